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
    serial = data[:1024].decode("utf-8", "replace").strip(" \t\r\n\0")
    if not serial or len(serial) > _LONGEST or not serial.isprintable():
        cause = f"it must be one line of 1 to {_LONGEST} printable characters"
        _log.warning("no serial number", device=device.name, cause=cause)
        return ""
    return serial


async def _output_of(command: list[str]) -> bytes:
    with trio.fail_after(_TIMEOUT):
        done = await trio.run_process(command, capture_stdout=True, stdin=subprocess.DEVNULL)
    return done.stdout
