"""The device's serial number, from where its configuration says."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tunnelmux.agent import serial as module
from tunnelmux.agent.serial import read_serial
from tunnelmux.config import Device, InvalidSetting


async def test_it_is_in_the_configuration_a_file_or_what_a_command_prints(tmp_path: Path) -> None:
    file = tmp_path / "serial"
    file.write_bytes(b"SN-123 \r\n\0")  # as a device tree has it
    command = [sys.executable, "-c", "print('SN-456')"]
    assert await read_serial(Device(name="cam1", serial="SN-0")) == "SN-0"
    assert await read_serial(Device(name="cam1", serial_file=file)) == "SN-123"
    assert await read_serial(Device(name="cam1", serial_command=command)) == "SN-456"
    assert await read_serial(Device(name="cam1")) == ""
    with pytest.raises(InvalidSetting, match="only one of"):
        Device(name="cam1", serial="SN-0", serial_file=file)


@pytest.mark.parametrize(
    "command",
    [
        "exit 1",
        "echo",
        "echo one; echo two",
        "printf 'a\\033[2Jb'",
        "head -c 129 /dev/zero | tr '\\0' x",
        "exec yes",
        "sleep 60",
    ],
)
async def test_what_is_none_leaves_the_device_its_name(
    monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr(module, "_TIMEOUT", 0.3)
    assert await read_serial(Device(name="cam1", serial_command=["/bin/sh", "-c", command])) == ""


async def test_a_file_that_is_not_there_leaves_the_device_its_name(tmp_path: Path) -> None:
    assert await read_serial(Device(name="cam1", serial_file=tmp_path / "none")) == ""
