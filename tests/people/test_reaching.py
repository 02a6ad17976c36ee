"""Reaching devices by name: ssh, connect, forward, curl."""

from __future__ import annotations

import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from support.installation import Installation, ssh_words

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


def test_connect_joins_standard_input_and_output(installation: Installation, way: str) -> None:
    data = bytes(range(256)) * 2000
    done = installation.run("connect", "dev1", "echo", env=installation.way(way), send=data)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == data


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (("dev1", "none"), 4, b'dev1: This device has no service "none"'),
        (("dev9", "echo"), 4, b'no device is called "dev9"'),
        (("dev1", "closed"), 5, b"dev1: "),
    ],
)
def test_connect_says_why_it_cannot(
    installation: Installation, way: str, words: tuple[str, str], status: int, says: bytes
) -> None:
    done = installation.run("connect", *words, env=installation.way(way))
    assert done.returncode == status, done.stderr
    assert says in done.stderr
    assert done.stdout == b""


def test_a_device_that_is_away_is_told_from_one_that_is_not_known(
    installation: Installation,
) -> None:
    done = installation.run("connect", "dev3", "echo")
    assert done.returncode == 5
    assert b"dev3: The device is not connected now" in done.stderr


def test_ssh_runs_a_command_and_ends_as_it_does(installation: Installation, way: str) -> None:
    options = ssh_words(installation.folder)
    done = installation.run(
        *("ssh", "dev1", *options, "--", "echo hello; cat; exit 7"),
        env=installation.way(way),
        send=b"typed",
    )
    assert (done.stdout, done.returncode) == (b"hello\ntyped", 7), done.stderr


def test_ssh_refuses_a_command_without_dashes(installation: Installation) -> None:
    done = installation.run("ssh", "dev1", "uptime")
    assert done.returncode == 2
    assert b'put the command behind "--": tunnelmux ssh dev1 -- uptime' in done.stderr


def test_scp_works_with_the_host_block(installation: Installation, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_bytes(installation.run("ssh-config").stdout)
    (tmp_path / "sent").write_bytes(b"x" * 300_000)
    options = ssh_words(installation.folder)
    options[1] = str(config)
    subprocess.run(
        ["scp", *options, str(tmp_path / "sent"), f"dev1.tunnelmux:{tmp_path}/copied"],
        env=installation.by_api,
        check=True,
        timeout=50,
    )
    assert (tmp_path / "copied").read_bytes() == b"x" * 300_000


def test_curl_calls_a_service(installation: Installation, way: str) -> None:
    env = installation.way(way)
    done = installation.run("curl", "dev1/web/", "-sS", "-w", "%{http_code}", env=env)
    assert (done.stdout, done.returncode) == (b"hello\n200", 0), done.stderr
    done = installation.run("curl", "dev1/web/nothing", "-sSf", env=env)
    assert done.returncode == 22  # curl's own
    done = installation.run("curl", "dev9/web/", env=env)
    assert done.returncode == 4


def test_open_makes_a_link_that_lets_a_browser_in(installation: Installation) -> None:
    made = installation.run("open", "dev1", "web", "--for", "10", "--no-browser")
    assert made.returncode == 0, made.stderr
    assert made.stderr == b"Valid for 10 min, for all who have it.\n"
    link = urlsplit(made.stdout.decode().strip())
    assert link.hostname == "web--dev1.localhost"

    async def visit() -> None:
        client, base = installation.api.client, f"http://{installation.visitors}"
        fields = {"host": link.netloc, "accept": "text/html"}
        stranger = await client.get(f"{base}/", headers=fields)
        assert stranger.status_code == 302  # to sign in
        let_in = await client.get(f"{base}{link.path}?{link.query}", headers=fields)
        assert let_in.status_code == 303
        cookie = let_in.headers["set-cookie"].partition(";")[0]
        page = await client.get(f"{base}/", headers={**fields, "cookie": cookie})
        assert (page.status_code, page.text) == (200, "hello\n")

    installation.here(visit)
    refused = installation.run("open", "dev1", env=installation.by_proxy)
    assert refused.returncode == 3


def test_a_long_folder_of_temporary_files_is_no_obstacle(
    installation: Installation, tmp_path: Path
) -> None:
    """`curl` is led to a Unix socket, whose path has 107 bytes."""
    folder = tmp_path / ("long-" * 25)
    folder.mkdir()
    env = installation.way("proxy") | {"TMPDIR": str(folder)}
    done = installation.run("curl", "dev1/web/", "-s", env=env)
    assert done.returncode == 0, done.stderr
