"""Visitors behind a trusted proxy have limits of their own, by the address that it names."""

from __future__ import annotations

from support.carried_http import get, rig
from support.ingress import running_site
from tunnelmux.limits import IngressLimits

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


async def test_each_visitor_behind_a_trusted_proxy_has_so_many_requests_in_progress() -> None:
    """By the address that the proxy names for each request, whatever connection it comes on."""
    limits = IngressLimits(max_streams_per_visitor=2)
    proxies = ["203.0.113.7", "203.0.113.8"]

    def of(client: str) -> bytes:
        return get("/x", f"X-Forwarded-For: {client}\r\n")

    async with running_site(limits=limits, trusted=proxies) as site, site.agent() as agent:
        reused = site.visit()
        for client in ("198.51.100.1", "198.51.100.1", "198.51.100.1", "203.0.113.8"):
            await reused.send(of(client))
            await agent.serve(OK)
            await reused.read_head()
            await reused.read_exactly(2)
        for address in ("203.0.113.7:1", "203.0.113.8:1"):
            busy = site.visit(address)
            await busy.send(of("198.51.100.1"))
            await agent.stream()
        await reused.send(of("198.51.100.1"))
        head = await reused.read_head()
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"Tunnelmux-Reason: too-many-visitors\r\n" in head
        assert b"198.51.100.1 " in await reused.read_until(b"}")
        await reused.read_exactly(1)
        # Another one has places of its own, also on that connection.
        await reused.send(of("198.51.100.2"))
        await agent.serve(OK)
        assert b" 200 " in await reused.read_head()


async def test_one_visitor_behind_a_trusted_proxy_leaves_streams_to_another() -> None:
    limits = IngressLimits(max_streams_per_visitor=2)
    async with rig(limits, trusted_fields=[], announces=True) as target:
        for client in ("198.51.100.1", "198.51.100.1", "198.51.100.2", "198.51.100.1"):
            visitor = await target.new_visitor()
            await visitor.send(get("/x", f"X-Forwarded-For: {client}\r\n"))
            if len(target.visitors) < 5:  # the rig has one of its own
                await (await target.connection()).read_head()
        head = await visitor.read_head()
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"Tunnelmux-Reason: too-many-visitors\r\n" in head
