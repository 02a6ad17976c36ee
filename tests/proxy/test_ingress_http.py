"""What visitors with a browser see, and what reaches the devices."""

from __future__ import annotations

import ssl
from email.utils import parsedate_to_datetime

import pytest
import structlog
import trio
import trustme

from support.http_rig import Peer
from support.ingress import Site, running_site
from support.streams import socket_pair
from tunnelmux.config import HttpIngress
from tunnelmux.limits import IngressLimits, Limits
from tunnelmux.sessions import LocalHandle

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def get(host: bytes, *fields: bytes) -> bytes:
    lines = b"".join(field + b"\r\n" for field in (b"Host: " + host, *fields))
    return b"GET /page?secret=1 HTTP/1.1\r\n" + lines + b"\r\n"


async def ask(site: Site, request: bytes) -> bytes:
    """The answer's head, of a visitor that asks once."""
    visitor = site.visit()
    await visitor.send(request)
    head = await visitor.read_head()
    await visitor.stream.aclose()
    return head


# Which device and service


@pytest.mark.parametrize(
    ("request_head", "service"),
    [
        (get(b"dev1.localhost"), None),
        (get(b"DEV1.LocalHost:8080"), None),
        (get(b"dev1.localhost."), None),
        (get(b"dev1.localhost.:8080"), None),
        (get(b"web--dev1.localhost"), b"web"),
        (get(b"Web--Dev1.localhost:80"), b"web"),
        (get(b"127.0.0.1:8080", b"Tunnelmux-Device: dev1"), None),
        (get(b"[::1]:8080", b"tunnelmux-device: DEV1", b"Tunnelmux-Service: web"), b"web"),
        (get(b"localhost", b"Tunnelmux-Device: dev1"), None),
        (get(b"localhost.:80", b"Tunnelmux-Device: dev1", b"Tunnelmux-Service: web"), b"web"),
        # Fields that say what the host says
        (get(b"dev1.localhost", b"Tunnelmux-Device: dev1"), None),
        (get(b"web--dev1.localhost", b"Tunnelmux-Device: Dev1"), b"web"),
        (get(b"web--dev1.localhost", b"Tunnelmux-Service: web"), b"web"),
        # In disguise they mean nothing, and do not get through.
        (get(b"web--dev1.localhost", b"Tunnelmux_Service: ssh"), b"web"),
        (get(b"web--dev1.localhost", b"Tunnelmux.Service: ssh"), b"web"),
        (b"GET http://dev1.localhost/page HTTP/1.1\r\nHost: dev2.localhost\r\n\r\n", None),
        (b"GET / HTTP/1.0\r\nTunnelmux-Device: dev1\r\n\r\n", None),
    ],
)
async def test_request_goes_to_the_service_its_head_names(
    request_head: bytes, service: bytes | None
) -> None:
    async with running_site() as site, site.agent("dev1") as agent, site.agent("dev2"):
        visitor = site.visit()
        await visitor.send(request_head)
        head = await agent.serve(OK)
        assert b"Tunnelmux-Device" not in head
        wanted = [] if service is None else [b"Tunnelmux-Service: " + service]
        assert [line for line in head.split(b"\r\n") if b"unnelmux" in line] == wanted
        assert (await visitor.read_head()).startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize(
    "host",
    [
        b"localhost",
        b"dev1",
        b"dev9.localhost",
        b"web--dev9.localhost",
        b"a.dev1.localhost",
        b"dev1.localhost.evil.example",
        b"dev1.example.com",
        b"--dev1.localhost",
        b"web--.localhost",
        b"a--b--dev1.localhost",
        b"-dev1.localhost",
        b".localhost",
        b"127.0.0.1",
        b"[::1]",
        b"",
    ],
)
async def test_unknown_device_is_404(host: bytes) -> None:
    async with running_site() as site, site.agent("dev1"):
        head = await ask(site, get(host))
        assert head.startswith(b"HTTP/1.1 404 Not Found\r\n")
        assert b"Tunnelmux-Reason: unknown-device\r\n" in head


@pytest.mark.parametrize(
    "fields",
    [
        (b"Tunnelmux-Device: dev2",),
        (b"Tunnelmux-Service: ssh",),
        (b"Tunnelmux-Device: dev1", b"Tunnelmux-Service: ssh"),
        (b"Tunnelmux-Device: dev1", b"Tunnelmux-Device: dev1"),
        (b"Tunnelmux-Device: dev1, dev2",),
        (b"Tunnelmux-Device:",),
        (b"Tunnelmux-Device: dev1", b"Tunnelmux-Service: ../x"),
    ],
)
async def test_head_that_names_two_services_is_400(fields: tuple[bytes, ...]) -> None:
    async with running_site() as site, site.agent("dev1"), site.agent("dev2"):
        head = await ask(site, get(b"web--dev1.localhost", *fields))
        assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert b"Tunnelmux-Reason: bad-request\r\n" in head


@pytest.mark.parametrize("service", [b"web", b"ssh"])
async def test_a_field_chooses_no_other_service_than_the_host(service: bytes) -> None:
    # What stands in front may guard the services by their names, and let dev1 alone through.
    async with running_site() as site, site.agent("dev1"):
        fields = (b"Tunnelmux-Device: dev1", b"Tunnelmux-Service: " + service)
        for given in (fields, fields[1:]):
            head = await ask(site, get(b"dev1.localhost", *given))
            assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")


@pytest.mark.parametrize(
    "host",
    [
        b"evil.example",
        b"dev1.evil.example",
        b"localhost.evil.example",
        b"127.0.0.1.evil.example",
        b"a.dev1.localhost",
        b"--dev1.localhost",
        b"evil.example:80",
        b"xn--localhost-.example",
    ],
)
async def test_a_name_that_leads_here_by_dns_rebinding_reaches_no_device(host: bytes) -> None:
    async with running_site() as site, site.agent("dev1"):
        head = await ask(site, get(host, b"Tunnelmux-Device: dev1"))
        assert head.startswith(b"HTTP/1.1 403 Forbidden\r\n")
        assert b"Tunnelmux-Reason: forbidden\r\n" in head


@pytest.mark.parametrize("host", [b"127.0.0.1:8080", b"[::1]:80", b"localhost", b"gateway:8080"])
async def test_the_field_names_the_device_where_the_host_is_of_ones_own_network(
    host: bytes,
) -> None:
    async with running_site() as site, site.agent("dev1") as agent:
        visitor = site.visit()
        await visitor.send(get(host, b"Tunnelmux-Device: dev1"))
        assert b"Host: " + host in await agent.serve(OK)


async def test_every_request_of_a_connection_goes_where_it_says_itself() -> None:
    async with running_site() as site, site.agent("dev1") as one, site.agent("dev2") as two:
        visitor = site.visit()
        for agent, host in ((one, b"dev1"), (two, b"dev2"), (one, b"dev1"), (two, b"dev2")):
            await visitor.send(get(host + b".localhost"))
            assert b"Host: " + host in await agent.serve(OK)
            await visitor.read_head()
            assert await visitor.read_exactly(2) == b"ok"


async def test_smuggled_request_never_reaches_another_device() -> None:
    async with running_site() as site, site.agent("dev1"), site.agent("dev2"):
        visitor = site.visit()
        await visitor.send(
            b"POST / HTTP/1.1\r\nHost: dev1.localhost\r\nContent-Length: 6\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + get(b"dev2.localhost")
        )
        assert (await visitor.read_head()).startswith(b"HTTP/1.1 400 ")
        await visitor.end()
        assert (await visitor.read_all()).count(b"HTTP/1.1") == 0


# Who is asking


async def test_fields_about_the_visitor() -> None:
    async with running_site() as site, site.agent() as agent:
        visitor = site.visit()
        await visitor.send(get(b"dev1.localhost:8080", b"X-Forwarded-For: 6.6.6.6"))
        head = await agent.serve(OK)
        assert b"Host: dev1.localhost:8080\r\n" in head
        assert b"X-Forwarded-For: 203.0.113.7\r\n" in head
        assert b"X-Forwarded-Proto: http\r\n" in head
        assert b"X-Forwarded-Host: dev1.localhost:8080\r\n" in head
        assert b'Forwarded: for=203.0.113.7;host="dev1.localhost:8080";proto=http\r\n' in head


async def test_connection_field_cannot_remove_what_we_set() -> None:
    async with running_site() as site, site.agent() as agent:
        visitor = site.visit()
        await visitor.send(
            get(
                b"web--dev1.localhost",
                b"Connection: close, X-Forwarded-For, Forwarded, Tunnelmux-Service, Host",
            )
        )
        head = await agent.serve(OK)
        assert b"X-Forwarded-For: 203.0.113.7\r\n" in head
        assert b"Tunnelmux-Service: web\r\n" in head
        assert b"Host: web--dev1.localhost\r\n" in head


async def test_trusted_proxy_in_front() -> None:
    async with running_site(trusted=["10.0.0.0/8", "fd00::/8"]) as site, site.agent() as agent:
        for remote in ("10.1.2.3:4", "[fd00::1]:4"):
            visitor = site.visit(remote)
            await visitor.send(
                get(b"dev1.localhost", b"X-Forwarded-For: 6.6.6.6", b"X-Forwarded-Proto: https")
            )
            head = await agent.serve(OK)
            address = remote.rpartition(":")[0].strip("[]").encode()
            assert b"X-Forwarded-For: 6.6.6.6, " + address + b"\r\n" in head
            assert b"X-Forwarded-Proto: https\r\n" in head


# Neighbours


@pytest.mark.parametrize("allowed", [False, True])
async def test_a_device_sets_cookies_for_its_own_host(allowed: bool) -> None:
    answer = (
        b"HTTP/1.1 200 OK\r\nSet-Cookie: a=1; Domain=localhost; Path=/\r\n"
        b"Set-Cookie: b=2; Domain=dev1.localhost\r\nContent-Length: 2\r\n\r\nok"
    )
    async with running_site() as site, site.agent() as agent:
        ingress = HttpIngress(listen="127.0.0.1:0", parent_cookies=allowed)
        site.http.configure(ingress, IngressLimits())
        visitor = site.visit()
        await visitor.send(get(b"dev1.localhost:8080"))
        await agent.serve(answer)
        head = await visitor.read_head()
        domain = b"; Domain=localhost" if allowed else b""
        assert b"\r\nSet-Cookie: a=1%s; Path=/\r\n" % domain in head
        assert b"\r\nSet-Cookie: b=2; Domain=dev1.localhost\r\n" in head


async def test_a_cookie_is_held_to_the_host_that_a_trusted_proxy_tells() -> None:
    answer = OK.replace(b"\r\n\r\n", b"\r\nSet-Cookie: a=1; Domain=example.com\r\n\r\n")
    async with running_site(trusted=["203.0.113.7"]) as site, site.agent() as agent:
        visitor = site.visit()
        await visitor.send(get(b"dev1.localhost", b"X-Forwarded-Host: dev1.example.com"))
        await agent.serve(answer)
        assert b"\r\nSet-Cookie: a=1\r\n" in await visitor.read_head()


# Offline, busy, broken


async def test_device_that_never_connected_is_503() -> None:
    async with running_site() as site:
        head = await ask(site, get(b"dev1.localhost"))
        assert head.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        assert b"Tunnelmux-Reason: device-offline\r\n" in head
        assert b"Retry-After: 10\r\n" in head


async def test_offline_device_is_503_with_the_time_last_seen(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running_site(limits=IngressLimits(reconnect_wait=5)) as site:
        async with site.agent():
            pass
        await trio.sleep(100)
        visitor = site.visit()
        await visitor.send(get(b"dev1.localhost"))
        assert b" 503 " in await visitor.read_head()
        text = await visitor.read_until(b'"reason":"device-offline"}\n')
        seen = text.decode().partition("last seen on ")[2].partition(" GMT")[0] + " GMT"
        assert parsedate_to_datetime(seen) == site.store.last_seen("dev1").replace(microsecond=0)
        # The connection goes on; the next request finds the device if it is back.
        async with site.agent() as agent:
            await visitor.send(get(b"dev1.localhost"))
            await agent.serve(OK)
            assert b" 200 " in await visitor.read_head()


async def test_a_browser_gets_a_page_and_a_program_a_problem_document() -> None:
    async with running_site() as site:
        for accept, kind, begins in (
            (b"text/html,application/xhtml+xml,*/*;q=0.8", b"text/html", b"<!doctype html>"),
            (b"*/*", b"application/problem+json", b'{"type":"about:blank"'),
        ):
            visitor = site.visit()
            await visitor.send(
                b"GET / HTTP/1.1\r\nHost: none.localhost\r\nAccept: %s\r\n\r\n" % accept
            )
            head = await visitor.read_head()
            assert head.startswith(b"HTTP/1.1 404 ")
            assert b"Tunnelmux-Reason: unknown-device\r\n" in head
            assert b"Content-Type: %s" % kind in head
            assert (await visitor.read_until(begins)).endswith(begins)


async def test_visitor_waits_for_a_device_just_lost(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running_site(limits=IngressLimits(reconnect_wait=5)) as site:
        async with site.agent():
            pass
        visitor = site.visit()
        await visitor.send(get(b"dev1.localhost"))
        await trio.sleep(3)
        async with site.agent() as agent:
            await agent.serve(OK)
            assert (await visitor.read_head()).startswith(b"HTTP/1.1 200 OK\r\n")


async def test_the_wait_for_a_lost_device_ends(autojump_clock: trio.testing.MockClock) -> None:
    async with running_site(limits=IngressLimits(reconnect_wait=5)) as site:
        async with site.agent():
            pass
        await trio.sleep(2)
        start = trio.current_time()
        assert b"device-offline" in await ask(site, get(b"dev1.localhost"))
        assert trio.current_time() - start == pytest.approx(3)
        # Once that moment has passed, nobody waits any more.
        assert b"device-offline" in await ask(site, get(b"dev1.localhost"))
        assert trio.current_time() - start == pytest.approx(3)


async def test_disabled_device_is_403() -> None:
    async with running_site() as site:
        head = await ask(site, get(b"dev3.localhost"))
        assert head.startswith(b"HTTP/1.1 403 Forbidden\r\n")
        assert b"Tunnelmux-Reason: device-disabled\r\n" in head


async def test_draining_device_is_503() -> None:
    async with running_site() as site, site.agent() as agent:
        await site.visit().send(get(b"dev1.localhost"))
        await agent.stream()
        agent.session.go_away()
        await trio.testing.wait_all_tasks_blocked()
        head = await ask(site, get(b"dev1.localhost"))
        assert b" 503 " in head
        assert b"Tunnelmux-Reason: device-draining\r\n" in head
        assert b"Retry-After: 1\r\n" in head


async def test_device_with_no_stream_left_is_503() -> None:
    async with running_site() as site, site.agent(limits=Limits(max_streams=1)) as agent:
        busy = site.visit()
        await busy.send(get(b"dev1.localhost"))
        await agent.stream()
        head = await ask(site, get(b"dev1.localhost"))
        assert b" 503 " in head
        assert b"Tunnelmux-Reason: device-busy\r\n" in head


async def test_device_that_takes_no_stream_is_504(autojump_clock: trio.testing.MockClock) -> None:
    ingress, session = IngressLimits(connect_timeout=5), Limits(max_unacked_opens=1, ack_delay=60)
    async with running_site(limits=ingress) as site, site.agent(limits=session):
        await site.visit().send(get(b"dev1.localhost"))
        await trio.testing.wait_all_tasks_blocked()
        start = trio.current_time()
        head = await ask(site, get(b"dev1.localhost"))
        assert trio.current_time() - start == pytest.approx(5)
        assert head.startswith(b"HTTP/1.1 504 Gateway Timeout\r\n")
        assert b"Tunnelmux-Reason: target-timeout\r\n" in head


async def test_device_that_never_answers_is_504_after_the_agents_own_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    limits = IngressLimits(connect_timeout=10, response_timeout=60)
    async with running_site(limits=limits) as site, site.agent() as agent:
        visitor = site.visit()
        start = trio.current_time()
        await visitor.send(get(b"dev1.localhost"))
        await agent.stream()
        assert b"Tunnelmux-Reason: target-timeout\r\n" in await visitor.read_head()
        assert trio.current_time() - start == pytest.approx(75)


async def test_a_service_with_a_longer_time_of_its_own_gets_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    limits = IngressLimits(connect_timeout=10, response_timeout=60)
    async with running_site(limits=limits) as site, site.agent() as agent:
        handle = site.store.live_device("dev1")
        assert isinstance(handle, LocalHandle)
        handle.timeouts = {None: 300.0, "quick": 1.0}
        for host, seconds in ((b"dev1.localhost", 315), (b"quick--dev1.localhost", 75)):
            visitor = site.visit()
            start = trio.current_time()
            await visitor.send(get(host))
            await agent.stream()
            assert b"Tunnelmux-Reason: target-timeout\r\n" in await visitor.read_head()
            assert trio.current_time() - start == pytest.approx(seconds)


async def test_no_wait_for_a_lost_device_when_it_is_turned_off() -> None:
    async with running_site(limits=IngressLimits(reconnect_wait=0)) as site:
        async with site.agent():
            pass
        assert b"device-offline" in await ask(site, get(b"dev1.localhost"))


async def test_tunnel_lost_before_the_answer_is_502() -> None:
    async with running_site() as site, site.agent() as agent:
        visitor = site.visit()
        await visitor.send(get(b"dev1.localhost"))
        await agent.stream()
        agent.session.abort()
        head = await visitor.read_head()
        assert head.startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
        assert b"Tunnelmux-Reason: tunnel-lost\r\n" in head


async def test_tunnel_lost_within_the_answer_cuts_the_visitor() -> None:
    async with running_site() as site, site.agent() as agent:
        visitor = site.visit()
        await visitor.send(get(b"dev1.localhost"))
        stream = await agent.stream()
        await stream.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nhalf of")
        await visitor.read_head()
        agent.session.abort()
        with pytest.raises(trio.BrokenResourceError):
            await visitor.read_all()


@pytest.mark.parametrize(
    ("status", "reason"),
    [(b"403 Forbidden", b"forbidden"), (b"502 Bad Gateway", b"target-refused")],
)
async def test_refusals_of_the_agent_pass_with_their_reason(status: bytes, reason: bytes) -> None:
    async with running_site() as site, site.agent() as agent:
        visitor = site.visit()
        await visitor.send(get(b"dev1.localhost"))
        await agent.serve(
            b"HTTP/1.1 %s\r\nTunnelmux-Reason: %s\r\nContent-Length: 0\r\n\r\n" % (status, reason)
        )
        head = await visitor.read_head()
        assert head.startswith(b"HTTP/1.1 " + status)
        assert b"Tunnelmux-Reason: " + reason + b"\r\n" in head


async def test_visitor_that_leaves_resets_the_stream(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running_site() as site, site.agent() as agent:
        visitor = site.visit()
        await visitor.send(get(b"dev1.localhost"))
        stream = await agent.stream()
        await stream.read_head()
        visitor.stream.reset()
        with pytest.raises(trio.BrokenResourceError):
            await stream.read_all()


# Limits, rubbish, draining


async def test_one_visitor_too_many_is_503(autojump_clock: trio.testing.MockClock) -> None:
    async with running_site(limits=IngressLimits(max_visitors=2)) as site, site.agent() as agent:
        first, second = site.visit(), site.visit()
        await first.send(get(b"dev1.localhost"))
        first_stream = await agent.stream()
        await second.send(get(b"dev1.localhost"))
        await agent.stream()
        third = site.visit()
        head = await third.read_head()
        assert head.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        assert b"Tunnelmux-Reason: too-many-visitors\r\n" in head
        await first_stream.send(OK)
        await first_stream.end()
        assert b" 200 " in await first.read_head()
        await first.end()
        await trio.sleep(1)
        assert site.http.visitor_count == 1


async def test_a_silent_visitor_gives_way_to_one_that_comes() -> None:
    async with running_site(limits=IngressLimits(max_visitors=2)) as site, site.agent() as agent:
        silent, asking = site.visit(), site.visit()
        await asking.send(get(b"dev1.localhost"))
        stream = await agent.stream()
        late = site.visit("198.51.100.1:1")
        with pytest.raises(trio.BrokenResourceError):
            await silent.read_all()
        await late.send(get(b"dev1.localhost"))
        await agent.serve(OK)
        assert b" 200 " in await late.read_head()
        await stream.send(OK)
        assert b" 200 " in await asking.read_head()


async def test_one_address_has_so_many_connections() -> None:
    limits = IngressLimits(max_visitors=100, max_visitors_per_address=2)
    async with running_site(limits=limits) as site, site.agent() as agent:
        busy = [site.visit(f"192.0.2.1:{port}") for port in (1, 2)]
        for visitor in busy:
            await visitor.send(get(b"dev1.localhost"))
            await agent.stream()
        assert (await site.visit("192.0.2.1:3").read_head()).startswith(b"HTTP/1.1 503 ")
        other = site.visit("192.0.2.2:1")
        await other.send(get(b"nobody.localhost"))
        assert (await other.read_head()).startswith(b"HTTP/1.1 404 ")


async def test_idle_connections_give_way_where_there_is_no_room(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Those of the address that has most of them, the oldest first."""
    async with running_site(limits=IngressLimits(max_visitors=5)) as site:
        idle: list[Peer] = []
        for remote in ("192.0.2.1:1", "192.0.2.1:2", "192.0.2.1:3", "192.0.2.2:1", "192.0.2.3:1"):
            idle.append(site.visit(remote))  # one after the other: tasks begin in any order
            await idle[-1].send(get(b"nobody.localhost"))
            assert (await idle[-1].read_head()).startswith(b"HTTP/1.1 404 ")
        for port in (1, 2):
            late = site.visit(f"192.0.2.9:{port}")
            await late.send(get(b"nobody.localhost"))
            assert (await late.read_head()).startswith(b"HTTP/1.1 404 ")
        await trio.sleep(1)
        assert [visitor.stream.was_reset for visitor in idle] == [True, True, False, False, False]


async def test_turning_visitors_away_is_bounded_too() -> None:
    async with running_site(limits=IngressLimits(max_visitors=1)) as site, site.agent() as agent:
        first = site.visit()
        await first.send(get(b"dev1.localhost"))
        await agent.stream()
        visitors: list[Peer] = [site.visit() for _ in range(100)]
        await trio.testing.wait_all_tasks_blocked()
        assert sum(visitor.stream.was_reset for visitor in visitors) == 100 - 64


async def test_one_address_has_so_many_requests_in_progress_and_another_its_own() -> None:
    limits = IngressLimits(max_streams_per_visitor=2)
    async with running_site(limits=limits) as site, site.agent() as agent:
        idle = [site.visit() for _ in range(3)]
        for visitor in idle:  # those that only keep their connection are none of the two
            await visitor.send(get(b"dev1.localhost"))
            await agent.serve(OK)
            await visitor.read_head()
            await visitor.read_exactly(2)
        busy = [site.visit() for _ in range(2)]
        for visitor in busy:
            await visitor.send(get(b"dev1.localhost"))
            await agent.stream()
        await idle[0].send(get(b"dev1.localhost"))
        head = await idle[0].read_head()
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"Tunnelmux-Reason: too-many-visitors\r\n" in head
        other = site.visit("198.51.100.1:1")
        await other.send(get(b"dev1.localhost"))
        await agent.serve(OK)
        assert b" 200 " in await other.read_head()


async def test_visitors_behind_a_trusted_proxy_are_not_one_visitor() -> None:
    limits = IngressLimits(max_streams_per_visitor=2, max_arrivals_per_address=2)
    async with (
        running_site(limits=limits, trusted=["203.0.113.7"]) as site,
        site.agent() as agent,
    ):
        silent = [site.visit() for _ in range(5)]
        for visitor in silent:
            await visitor.send(get(b"dev1.localhost"))
            await agent.stream()


async def test_rubbish_is_400_with_one_line_and_harms_nobody() -> None:
    with structlog.testing.capture_logs() as lines:
        async with running_site() as site, site.agent() as agent:
            good, bad = site.visit(), site.visit("198.51.100.1:666")
            await good.send(get(b"dev1.localhost"))
            await bad.send(b"\x00\x01\x02 rubbish \xff\n" * 100)
            assert b" 400 " in await bad.read_head()
            await bad.end()
            await bad.read_all()
            await agent.serve(OK)
            assert b" 200 " in await good.read_head()
    about_bad = [line for line in lines if line.get("visitor") == "198.51.100.1:666"]
    assert len(about_bad) == 1
    assert about_bad[0]["reason"] == "bad-request"


async def test_access_log_line() -> None:
    with structlog.testing.capture_logs() as lines:
        async with running_site() as site, site.agent() as agent:
            visitor = site.visit()
            await visitor.send(
                b"POST /up?token=abc HTTP/1.1\r\nHost: web--dev1.localhost\r\n"
                b"Content-Length: 3\r\n\r\nabc"
            )
            await agent.serve(OK)
            await visitor.read_head()
            await visitor.stream.aclose()
            await trio.testing.wait_all_tasks_blocked()
    (line,) = [line for line in lines if line["event"] == "request"]
    assert line.pop("seconds") >= 0
    assert line == {
        "event": "request",
        "log_level": "info",
        "visitor": "203.0.113.7:50000",
        "device": "dev1",
        "service": "web",
        "stream": 2,
        "method": "POST",
        "path": "/up",
        "status": 200,
        "bytes_in": 3,
        "bytes_out": 2,
    }
    assert "abc" not in str(line)


async def test_drain_closes_idle_visitors_and_lets_requests_finish() -> None:
    async with running_site() as site, site.agent() as agent:
        idle, busy = site.visit(), site.visit()
        await busy.send(get(b"dev1.localhost"))
        stream = await agent.stream()
        await trio.testing.wait_all_tasks_blocked()
        site.http.drain()
        assert await idle.read_all() == b""
        await stream.send(OK)
        assert b"Connection: close\r\n" in await busy.read_head()
        assert await busy.read_all() == b"ok"
        late = site.visit()
        assert await late.read_all() == b""


async def test_websocket_through_a_real_session() -> None:
    async with running_site() as site, site.agent() as agent:
        visitor = site.visit()
        await visitor.send(
            get(b"dev1.localhost", b"Connection: Upgrade", b"Upgrade: websocket") + b"ping"
        )
        stream = await agent.stream()
        assert b"Upgrade: websocket\r\n" in await stream.read_head()
        await stream.send(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n"
            b"Upgrade: websocket\r\n\r\npong"
        )
        assert b" 101 " in await visitor.read_head()
        assert await visitor.read_exactly(4) == b"pong"
        assert await stream.read_exactly(4) == b"ping"
        await visitor.end()
        assert await stream.read_all() == b""
        await stream.end()
        assert await visitor.read_all() == b""


# TLS


async def test_visitor_over_tls() -> None:
    authority = trustme.CA()
    server_context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(server_context)
    client_context = ssl.create_default_context()
    authority.configure_trust(client_context)
    async with running_site() as site, site.agent() as agent, trio.open_nursery() as nursery:
        site.http.configure(HttpIngress(listen="127.0.0.1:0"), IngressLimits(), server_context)
        client, inner = await socket_pair()
        nursery.start_soon(site.http.handle, inner, "203.0.113.7:50000")
        secured = trio.SSLStream(
            client, client_context, server_hostname="127.0.0.1", https_compatible=True
        )
        await secured.send_all(
            get(b"dev1.localhost", b"Connection: close").replace(b"1.1\r\n", b"1.0\r\n")
        )
        head = await agent.serve(b"HTTP/1.1 200 OK\r\n\r\nall of it")
        assert b"X-Forwarded-Proto: https\r\n" in head
        assert b"proto=https\r\n" in head
        answer = b"".join([bytes(part) async for part in secured])
        assert answer.endswith(b"\r\n\r\nall of it")
        await secured.aclose()


async def test_failed_tls_handshake_is_one_line() -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    with structlog.testing.capture_logs() as lines:
        async with running_site() as site:
            site.http.configure(HttpIngress(listen="127.0.0.1:0"), IngressLimits(), context)
            client, inner = await socket_pair()
            async with client, trio.open_nursery() as nursery:
                nursery.start_soon(site.http.handle, inner, "203.0.113.7:50000")
                await client.send_all(get(b"dev1.localhost"))
    (line,) = lines
    assert line["event"] == "visitor lost"
    assert "TLS" in line["problem"]
