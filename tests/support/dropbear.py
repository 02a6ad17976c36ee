"""A real Dropbear on a loopback port, with one key that may log in."""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from support.proxies import free_port
from support.sshd import SshServer
from tunnelmux.config import Address

__all__ = ["running_dropbear"]


@asynccontextmanager
async def running_dropbear(
    folder: Path, program: Callable[[str, str], str]
) -> AsyncIterator[SshServer]:
    """A Dropbear for the length of the block; *program* finds a Debian package's program.

    It looks for keys in the user's home directory, and its connections get another one by
    nss_wrapper: nothing of the account that runs the tests is touched.
    """
    dropbear = program("dropbear", "dropbear-bin")
    dropbearkey = program("dropbearkey", "dropbear-bin")
    keygen = program("ssh-keygen", "openssh-client")
    await trio.run_process(
        [keygen, "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(folder / "user_key")]
    )
    await trio.run_process(
        [dropbearkey, "-t", "ed25519", "-f", str(folder / "host_key")], capture_stdout=True
    )
    home = folder / "home"
    (home / ".ssh").mkdir(mode=0o700, parents=True)
    home.chmod(0o700)
    shutil.copy(folder / "user_key.pub", home / ".ssh" / "authorized_keys")
    (home / ".ssh" / "authorized_keys").chmod(0o600)
    user = getpass.getuser()
    (folder / "passwd").write_text(f"{user}:x:{os.getuid()}:{os.getgid()}::{home}:/bin/sh\n")
    (folder / "group").write_text(f"{user}:x:{os.getgid()}:\n")
    environment = {
        **os.environ,
        "LD_PRELOAD": wrapper(),
        "NSS_WRAPPER_PASSWD": str(folder / "passwd"),
        "NSS_WRAPPER_GROUP": str(folder / "group"),
    }
    port = free_port()
    process = await trio.lowlevel.open_process(
        [dropbear, "-F", "-E", "-s", "-r", str(folder / "host_key"), "-p", f"127.0.0.1:{port}"],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    try:
        with trio.fail_after(20):
            async for line in process.stderr:
                if b"Not backgrounding" in line:
                    break
            while not await listens(port):  # noqa: ASYNC110  it tells nobody
                await trio.sleep(0.05)
        yield SshServer(Address("127.0.0.1", port), folder)
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 10):
            process.terminate()
            await process.wait()
            await process.stderr.aclose()


async def listens(port: int) -> bool:
    try:
        await (await trio.open_tcp_stream("127.0.0.1", port)).aclose()
    except OSError:
        return False
    return True


def wrapper() -> str:
    """The library that gives the process accounts of its own, or skips the test."""
    found = sorted(Path("/usr/lib").glob("*/libnss_wrapper.so"))
    if found:
        return str(found[0])
    problem = "needs libnss_wrapper.so: install libnss-wrapper"
    if os.environ.get("CI") == "true":
        pytest.fail(problem)
    pytest.skip(problem)
