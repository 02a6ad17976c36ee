"""tunnelmux-api as a program: from an empty folder to a first owner."""

from __future__ import annotations

import importlib.util
import re
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import httpx2
import pytest
import trio
from click.testing import CliRunner

from support.oidc import Browser
from support.proxies import free_port
from tunnelmux.api.quickstart import OWNER, run_quickstart
from tunnelmux.cli.api import api
from tunnelmux.config import Address
from tunnelmux.errors import ConfigError

pytestmark = pytest.mark.slow  # they start programs

CONFIG = """
[api]
public_url = "http://localhost:3721"
[registry]
url = "sqlite:///{folder}/registry.db"
[oidc]
issuer = "http://localhost:4000"
client_id = "public"
[browser_sessions]
key_file = "session-keys"
"""


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-c", "from tunnelmux.cli.api import main; main()"]
    return subprocess.run(
        [*program, *words], cwd=folder, capture_output=True, text=True, timeout=50, check=False
    )


def prepare(folder: Path) -> None:
    (folder / "api.toml").write_text(CONFIG.format(folder=folder))
    (folder / "session-keys").write_text(run(folder, "keys", "new").stdout)


def test_without_keys_it_says_how_to_make_them(tmp_path: Path) -> None:
    (tmp_path / "api.toml").write_text(CONFIG.format(folder=tmp_path))
    done = run(tmp_path, "check", "--config", "api.toml")
    assert done.returncode == 2
    assert "tunnelmux-api keys new > " in done.stderr


def test_check_shows_the_configuration_without_secrets(tmp_path: Path) -> None:
    prepare(tmp_path)
    done = run(tmp_path, "check", "--config", "api.toml")
    assert (done.returncode, 'issuer = "http://localhost:4000"' in done.stdout) == (0, True)
    assert "registry.db" not in done.stdout


def test_the_registrys_url_may_stand_in_a_file_and_is_not_shown(tmp_path: Path) -> None:
    prepare(tmp_path)
    text = (tmp_path / "api.toml").read_text()
    (tmp_path / "api.toml").write_text(
        text.replace(f'url = "sqlite:///{tmp_path}/registry.db"', 'url_file = "registry.url"')
    )
    without = run(tmp_path, "check", "--config", "api.toml")
    assert without.returncode == 2
    assert "registry.url_file" in without.stderr
    address = tmp_path / "registry.url"
    address.write_text(f"sqlite:///{tmp_path}/registry.db\n")
    address.chmod(0o644)
    done = run(tmp_path, "check", "--config", "api.toml")
    assert (done.returncode, "url_file" in done.stdout) == (0, True)
    assert "registry.db" not in done.stdout + done.stderr
    assert "chmod o-r registry.url" in done.stderr
    assert run(tmp_path, "db", "upgrade", "--config", "api.toml").returncode == 0
    assert (tmp_path / "registry.db").exists()


def test_the_first_owner_is_named_once(tmp_path: Path) -> None:
    prepare(tmp_path)
    grant = ["admin", "grant", "--config", "api.toml", "--issuer", "http://localhost:4000"]
    first = run(tmp_path, *grant, "--subject", "ada")
    assert (first.returncode, first.stdout) == (0, "ada is owner of default.\n")
    second = run(tmp_path, *grant, "--subject", "eve")
    assert second.returncode == 1
    assert "owner" in second.stderr
    assert run(tmp_path, *grant, "--subject", "eve", "--force").returncode == 0
    verified = run(tmp_path, "audit", "verify", "--config", "api.toml")
    assert verified.returncode == 0
    assert "tenant default: " in verified.stdout


async def test_quickstart_signs_the_owner_in_at_its_own_provider(tmp_path: Path) -> None:
    port, provider = free_port(), free_port()
    run_it = f"""
from pathlib import Path
import trio
from tunnelmux.api.quickstart import run_quickstart
from tunnelmux.config import Address
async def main():
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: run_quickstart(Path("state"),
            Address("127.0.0.1", {port}), announce=print, provider_port={provider},
            task_status=task_status))
        print("running", flush=True)
trio.run(main)
"""
    process = await trio.lowlevel.open_process(
        [sys.executable, "-c", run_it], cwd=tmp_path, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        said = b""
        with trio.fail_after(40):
            while b"running" not in said:
                said += await process.stdout.receive_some()
        assert b"DEVELOPMENT PROVIDER" in said
        check_tables(said.decode(), tmp_path / "state")
        async with httpx2.AsyncClient(trust_env=False, timeout=30) as client:
            browser = Browser(client)
            page = await browser.get(
                f"http://127.0.0.1:{port}/api/auth/login?return_to=/api/auth/me"
            )
            me = await browser.request("POST", str(page.url), data={"sub": OWNER})
            assert isinstance(me, httpx2.Response)
            assert me.status_code == 200, me.text
            assert (me.json()["role"], me.json()["tenants"][0]["tenant"]) == ("owner", "default")
    finally:
        process.kill()
        await process.wait()


def check_tables(said: str, state: Path) -> None:
    """What quickstart says of a proxy can be pasted into proxy.toml."""
    found = re.search(r'\[registry\].*?secret_file = "[^"]+"', said, re.DOTALL)
    assert found is not None, said
    tables = tomllib.loads(found[0])
    assert tables["registry"]["url"] == f"sqlite:///{state}/registry.db"
    secret = Path(tables["internal"]["secret_file"])
    assert secret.stat().st_mode & 0o077 == 0
    assert len(secret.read_text()) == 64


def test_without_its_libraries_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "fastapi" else find(name)
    )
    result = CliRunner().invoke(api, ["--quickstart"])
    assert "fastapi is not installed" in str(result.exception)
    assert 'pip install ".[api]"' in str(result.exception)


def test_quickstart_listens_on_loopback_only(tmp_path: Path) -> None:
    done = run(tmp_path, "--quickstart", "--listen", "0.0.0.0:3721", "--state-dir", "state")
    assert done.returncode == 2
    assert "everybody can sign in as anybody" in done.stderr


def test_a_changed_entry_of_the_audit_is_found(tmp_path: Path) -> None:
    import sqlite3

    prepare(tmp_path)
    run(tmp_path, "admin", "add-tenant", "acme", "--config", "api.toml")
    with sqlite3.connect(tmp_path / "registry.db") as database:
        database.execute("UPDATE audit SET action = 'nothing'")
    database.close()
    verified = run(tmp_path, "audit", "verify", "--config", "api.toml")
    assert verified.returncode == 1
    assert "broken at entry 1" in verified.stdout


async def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"127\.0\.0\.1:{port} \(Address already in use\)"):
            await run_quickstart(
                tmp_path, Address("127.0.0.1", 0), announce=print, provider_port=port
            )
