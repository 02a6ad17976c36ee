"""tunnelmux-api as a program: from an empty folder to a first owner."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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
