"""What a person sees of the installation: signing in, the devices, the gateway, the metrics."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urljoin, urlsplit

import httpx2
import trio

from bench.cluster.installation import Installation
from bench.processes import HOST

__all__ = ["checks"]

PERSON = "ada@example.com"


async def checks(this: Installation, client: httpx2.AsyncClient) -> Sequence[tuple[str, bool]]:
    """Each thing that was looked at, and whether it is as it should be."""
    found = [
        ("ada signs in at nginx, as the owner of the installation", await signs_in(this, client)),
        ("both gateways greet by nginx", await gateways_greet(this)),
    ]
    if "prometheus" in this.pids:
        up = await scraped(this, client)
        found.append((f"Prometheus reads {', '.join(up) or 'nothing'}", len(up) == 3))
    return found


async def signs_in(this: Installation, client: httpx2.AsyncClient) -> bool:
    """Go through the provider's page; the API says who it is, and with which role."""
    base = f"http://localhost:{this.ports[8000]}"
    jar: dict[str, dict[str, str]] = {}
    data: dict[str, str] | None = None
    url, method = f"{base}/api/auth/login?return_to=/api/auth/me", "GET"
    for _ in range(12):
        here = jar.setdefault(urlsplit(url).netloc, {})
        cookies = "; ".join(f"{name}={value}" for name, value in here.items())
        client.cookies.clear()
        answer = await client.request(method, url, data=data, headers={"cookie": cookies})
        for field in answer.headers.get_list("set-cookie"):
            name, _, value = field.partition(";")[0].partition("=")
            here[name] = value
        if answer.is_redirect:
            url, method, data = urljoin(url, answer.headers["location"]), "GET", None
        elif "text/html" in answer.headers.get("content-type", ""):
            method, data = "POST", {"sub": PERSON}  # the page asks who signs in
        else:
            return bool(answer.is_success and PERSON in answer.text and "owner" in answer.text)
    return False


async def gateways_greet(this: Installation) -> bool:
    """Two connections by nginx, which takes the gateways in turn."""
    for _ in range(2):
        stream = await trio.open_tcp_stream(HOST, this.ports[2222])
        with trio.move_on_after(20):
            async with stream:
                await stream.send_all(b"SSH-2.0-demo\r\n")
                if not (await stream.receive_some()).startswith(b"SSH-2.0-tunnelmux"):
                    return False
                continue
        return False
    return True


async def scraped(this: Installation, client: httpx2.AsyncClient) -> list[str]:
    """What Prometheus has read lately; the killed copy of the API is not among it."""
    url = f"http://{this.addresses['prometheus']}:9090/api/v1/query?query=up"
    names = {address: name for name, address in this.addresses.items()}
    with trio.move_on_after(30):
        while True:
            result = (await client.get(url)).json()["data"]["result"]
            up = sorted(
                names[item["metric"]["instance"].partition(":")[0]]
                for item in result
                if item["value"][1] == "1"
            )
            if len(up) == 3:
                return up
            await trio.sleep(1)
    return up
