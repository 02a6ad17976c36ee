"""Signing in and links over TLS: in Chromium, by a client that keeps cookies, behind nginx."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trustme

from support.apis import live_api
from support.browser import browser_page
from support.fake_oidc import fake_provider
from support.front_proxies import DOMAIN, running_nginx
from support.guarded import BROWSER, PROGRAM, Answer, Visitor, guarded
from support.tenants import TEST, person
from support.visiting import World, access_cookie, path_of, visiting
from tunnelmux.config import Address
from tunnelmux.config.api import OIDCConfig

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

PATIENCE = 60  # seconds for a step: a net under a browser that hangs


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ssl.SSLContext]:
    folder = tmp_path_factory.mktemp("ingress")
    authority = trustme.CA()
    certificate = authority.issue_cert("dev1.localhost", "*.localhost")
    certificate.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    (folder / "key.pem").chmod(0o600)
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    return folder, trust


def check_cookies(answer: Answer) -> None:
    """What is set is for this host alone, and goes over TLS alone (RFC 6265bis 4.1.3.2)."""
    [line] = [value for value in answer.all("set-cookie") if "-access=" in value]
    name, _, rest = line.partition("=")
    flags = {part.strip().lower() for part in rest.split(";")[1:]}
    assert name == "__Host-tunnelmux-access"
    assert {"secure", "httponly", "path=/", "samesite=lax"} <= flags
    assert not any(flag.startswith("domain") for flag in flags)


async def come_in(world: World, ask: Callable[..., object], scheme_and_host: str) -> dict[str, str]:
    """Sign in by these requests; the field with the cookie."""
    anna = await world.person("anna")
    answer = await ask("/x?y=1", BROWSER)
    assert isinstance(answer, Answer)
    assert answer.status == 302
    begun = answer.first("set-cookie")
    assert begun.startswith("__Host-tunnelmux-sign-in=") and "; Secure" in begun
    text = answer.first("location").partition("asked=")[2]
    asked = await world.proofs.read_asked(text)
    assert asked["o"] == scheme_and_host
    shown = BROWSER | {"Cookie": begun.partition(";")[0]}
    answer = await ask(await world.ticket(anna, asked), shown)
    assert isinstance(answer, Answer)
    assert answer.status == 303
    assert answer.first("location") == f"{scheme_and_host}/x?y=1"
    check_cookies(answer)
    return {"Cookie": access_cookie(answer)}


async def check_both_paths(world: World, ask: Callable[..., object], cookie: str) -> None:
    """It lets in by h11 and in the pump, and not under the name that plain HTTP has."""
    plain = cookie.replace("__Host-tunnelmux-access", "tunnelmux-dev-access")
    for _ in range(3):
        answer = await ask("/x", PROGRAM | {"Cookie": cookie})
        assert isinstance(answer, Answer)
        assert answer.status == 200
        assert answer.seen["tunnelmux-email"] == ["anna@example.com"]
        assert "cookie" not in answer.seen
        answer = await ask("/x", PROGRAM | {"Cookie": plain})
        assert isinstance(answer, Answer)
        assert answer.status == 401
    assert world.this.requests == 3


async def test_a_sign_in_over_tls(tmp_path: Path, tls: tuple[Path, ssl.SSLContext]) -> None:
    async with visiting(tmp_path, tls=tls) as world:
        host = f"dev1.localhost:{world.this.port}"

        async def ask(path: str, headers: dict[str, str]) -> Answer:
            return await world.this.ask(path, headers, host=host)

        shown = await come_in(world, ask, f"https://{host}")
        await check_both_paths(world, ask, shown["Cookie"])


async def test_a_sign_in_behind_nginx(
    tmp_path: Path, debian_program: Callable[[str, str], str]
) -> None:
    """The ingress itself speaks plain HTTP: nginx says that the visitor came over TLS."""
    async with visiting(tmp_path, trusted=("127.0.0.1",), domain=DOMAIN) as world:
        ingress = Address("127.0.0.1", world.this.port)
        async with running_nginx(tmp_path, debian_program, ingress) as front:
            host = f"dev1.{DOMAIN}:{front.port}"

            async def ask(path: str, headers: dict[str, str]) -> Answer:
                async with await front.visit(f"dev1.{DOMAIN}") as stream:
                    return await Visitor(stream).ask(path, headers, host=host)

            shown = await come_in(world, ask, f"https://{host}")
            await check_both_paths(world, ask, shown["Cookie"])


async def test_a_person_in_chromium(
    tmp_path: Path, tls: tuple[Path, ssl.SSLContext], chromium: str
) -> None:
    """The whole way over TLS with a browser's own judgement of cookies; and a link used once."""
    async with fake_provider() as fake:

        @asynccontextmanager
        async def provider(_base: str) -> AsyncIterator[OIDCConfig]:
            yield OIDCConfig(issuer=fake.issuer, client_id=fake.client_id, timeout=20)

        async with (
            live_api(tmp_path, provider) as api,
            browser_page(
                chromium, tmp_path / "profile", flags=["--ignore-certificate-errors"]
            ) as page,
        ):
            owner = await person(api, "owner")
            tenant = api.running.api.registry.tenant(owner.tenant_id, TEST)
            device, token = await tenant.devices.add("dev1")
            await api.running.api.visitors.publish()
            fake.claims.update(sub="anna", email="anna@example.com", email_verified=True)
            await tenant.invitations.add(
                "anna@example.com", "viewer", lifetime=600, issuer=fake.issuer
            )
            registry = f"sqlite:///{tmp_path}/registry.db"
            async with guarded(registry_url=registry, token=token, tls=tls) as this:
                base = f"https://dev1.localhost:{this.port}"
                with trio.fail_after(PATIENCE):
                    await page.call("Page.navigate", url=f"{base}/x?y=1")
                    await page.wait_for_page(f"location.href.startsWith({fake.issuer!r})")
                    url = await page.evaluate("location.href")
                    callback = fake.callback_for(url, code="code-of-anna")
                    await page.goto(f"{api.base}/api/auth/callback?{callback}")
                    await page.wait_for_page(f"location.href === {base + '/x?y=1'!r}")
                    await page.wait_for_page("document.body?.innerText.startsWith('GET /x?y=1 ')")
                cookies = (await page.call("Network.getCookies", urls=[base]))["cookies"]
                [cookie] = [one for one in cookies if one["name"].endswith("-access")]
                assert cookie["name"] == "__Host-tunnelmux-access"
                assert cookie["secure"] and cookie["httpOnly"] and cookie["sameSite"] == "Lax"
                assert cookie["domain"] == "dev1.localhost"
                # A link that is good once: looking at it is not using it.
                await page.call("Network.clearBrowserCookies")
                admin = await person(api, "admin", "admin")
                made = await api.call(
                    "POST", f"/api/devices/{device.id}/links", admin.token, json={"once": True}
                )
                path = path_of(made.json()["url"])
                with trio.fail_after(PATIENCE):
                    await page.goto(base + path)
                    await page.wait_for_page("document.querySelector('form button')")
                    await page.evaluate("document.querySelector('form button').click()")
                    await page.wait_for_page(f"location.href === {base + '/'!r}")
                    await page.wait_for_page("document.body?.innerText.startsWith('GET / ')")
                    await page.goto(base + path)
                    await page.wait_for_page("document.querySelector('form button')")
                    await page.evaluate("document.querySelector('form button').click()")
                    await page.wait_for_page("document.body?.innerText.includes('used already')")
