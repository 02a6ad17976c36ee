"""Read the device's serial number from its configured source."""

from __future__ import annotations

import subprocess

import trio

from tunnelmux.config import Device
from tunnelmux.observability import get_logger

__all__ = ["read_serial"]

_log = get_logger("agent")

_TIMEOUT = 5.0
_LONGEST = 128
_READ = 1024
# Bytes of a file or an output that are looked at.


async def read_serial(device: Device) -> str:
    """The serial number, or an empty text where there is none. Failures are only logged: the device
    can still be used by its name.
    """
    if device.serial:
        return device.serial.strip()
    try:
        if device.serial_file is not None:
            data = await trio.Path(device.serial_file).read_bytes()
        elif device.serial_command:
            data = await _output_of(device.serial_command)
        else:
            return ""
    except (OSError, subprocess.CalledProcessError, trio.TooSlowError) as error:
        cause = f"it took longer than {_TIMEOUT:g} s" if not str(error) else str(error)
        _log.warning("no serial number", device=device.name, cause=cause)
        return ""
    serial = data[:_READ].decode("utf-8", "replace").strip(" \t\r\n\0")
    if not serial or len(serial) > _LONGEST or not serial.isprintable():
        cause = f"it must be one line of 1 to {_LONGEST} printable characters"
        _log.warning("no serial number", device=device.name, cause=cause)
        return ""
    return serial


async def _output_of(command: list[str]) -> bytes:
    """What it prints; of one that prints more than a serial number can have, the beginning."""
    process = await trio.lowlevel.open_process(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    )
    assert process.stdout is not None  # a pipe was asked for
    data = b""
    async with process.stdout:
        try:
            with trio.fail_after(_TIMEOUT):
                while len(data) <= _READ and (more := await process.stdout.receive_some(_READ)):
                    data += more
                if len(data) <= _READ and await process.wait():
                    raise subprocess.CalledProcessError(process.returncode or 0, command)
        finally:
            if process.returncode is None:
                process.kill()
                with trio.CancelScope(shield=True):  # it cannot refuse
                    await process.wait()
    return data
