"""A service with `host =`: everything in a head that speaks of hosts, in both directions."""

from __future__ import annotations

import pytest

from tunnelmux.agent.sites import translation_for
from tunnelmux.config import ServiceConfig
from tunnelmux.http.head import Field, RequestHead

JUPYTER = ServiceConfig(name="jupyter", target="http://127.0.0.1:8888", host="localhost:8888")
SITE = b"jupyter--dev1.localhost:8080"


def asked(*fields: Field, host: bytes = SITE, proto: bytes = b"http") -> RequestHead:
    forwarded = [(b"X-Forwarded-Proto", proto), (b"X-Forwarded-Host", host)]
    return RequestHead(b"GET", b"/", b"1.1", [(b"Host", host), *forwarded, *fields])


def out(
    name: bytes, value: bytes, service: ServiceConfig = JUPYTER, proto: bytes = b"http"
) -> bytes:
    """The field as the target sees it."""
    request = asked((name, value), proto=proto)
    sites = translation_for(service, request)
    assert sites is not None
    return dict(sites.of_request(request.headers))[name]


def back(
    name: bytes,
    value: bytes,
    service: ServiceConfig = JUPYTER,
    *,
    host: bytes = SITE,
    proto: bytes = b"http",
) -> bytes:
    """The field of an answer as the visitor sees it."""
    sites = translation_for(service, asked(host=host, proto=proto))
    assert sites is not None
    return dict(sites.of_answer([(name, value)]))[name]


@pytest.mark.parametrize(
    ("name", "value", "seen"),
    [
        (b"Origin", b"http://" + SITE, b"http://localhost:8888"),
        (b"ORIGIN", b"https://" + SITE.upper(), b"http://localhost:8888"),
        (b"Origin", b"null", b"null"),
        (b"Origin", b"http://evil.example", b"http://evil.example"),
        (b"Origin", b"http://" + SITE + b".evil.example", b"http://" + SITE + b".evil.example"),
        (b"Origin", b"http://jupyter--dev1.localhost", b"http://jupyter--dev1.localhost"),
        (b"Origin", b"http://dev2.localhost:8080", b"http://dev2.localhost:8080"),
        (b"Referer", b"http://" + SITE + b"/tree?a=b", b"http://localhost:8888/tree?a=b"),
        (b"Referer", b"http://" + SITE, b"http://localhost:8888"),
        (b"Referer", b"http://a@" + SITE + b"/x", b"http://a@" + SITE + b"/x"),
        (b"Destination", b"http://" + SITE + b"/b.txt", b"http://localhost:8888/b.txt"),
        (b"Destination", b"/b.txt", b"/b.txt"),
        (b"Destination", b"http://other.example/b", b"http://other.example/b"),
        (
            b"If",
            b"<http://%s/a> (<urn:x>) <http://x.example/> (<urn:y>)" % SITE,
            b"<http://localhost:8888/a> (<urn:x>) <http://x.example/> (<urn:y>)",
        ),
        (b"X-Forwarded-Host", SITE, b"localhost:8888"),
        (
            b"Forwarded",
            b'for=1.2.3.4;host="%s";proto=http' % SITE,
            b'for=1.2.3.4;host="localhost:8888";proto=http',
        ),
        (b"Forwarded", b'for=1.2.3.4;host="other"', b'for=1.2.3.4;host="other"'),
        (b"X-Origin", b"http://" + SITE, b"http://" + SITE),
    ],
)
def test_what_speaks_of_the_visitors_site_goes_out_as_the_targets(
    name: bytes, value: bytes, seen: bytes
) -> None:
    assert out(name, value) == seen
    assert out(b"Host", SITE) == b"localhost:8888"


@pytest.mark.parametrize(
    ("name", "value", "seen"),
    [
        (b"Location", b"http://localhost:8888/home?x#y", b"http://%s/home?x#y" % SITE),
        (b"LOCATION", b"HTTP://LocalHost:8888/home", b"http://%s/home" % SITE),
        (b"Location", b"http://localhost:8888", b"http://%s" % SITE),
        (b"Location", b"http://localhost:8888?next=1", b"http://%s?next=1" % SITE),
        (b"Location", b"//localhost:8888/home", b"//%s/home" % SITE),
        (b"Location", b"http://127.0.0.1:8888/home", b"http://%s/home" % SITE),
        (b"Location", b"/home", b"/home"),
        (b"Location", b"home?u=http://localhost:8888/", b"home?u=http://localhost:8888/"),
        (b"Location", b"http://localhost:9999/home", b"http://localhost:9999/home"),
        (b"Location", b"http://localhost/home", b"http://localhost/home"),
        (b"Location", b"https://localhost:8888/home", b"https://localhost:8888/home"),
        (b"Location", b"http://localhost:8888.evil/", b"http://localhost:8888.evil/"),
        (b"Location", b"http://localhost:8888@evil/", b"http://localhost:8888@evil/"),
        (b"Location", b"http://login.example/?to=x", b"http://login.example/?to=x"),
        (b"Content-Location", b"http://localhost:8888/a.en", b"http://%s/a.en" % SITE),
        (b"Refresh", b"5; url=http://localhost:8888/a", b"5; url=http://%s/a" % SITE),
        (b"Refresh", b"5", b"5"),
        (b"Link", b"<http://localhost:8888/2>; rel=next", b"<http://%s/2>; rel=next" % SITE),
        (b"Set-Cookie", b"s=1; Domain=localhost; Path=/",
         b"s=1; Domain=jupyter--dev1.localhost; Path=/"),
        (b"Set-Cookie", b"s=1; domain=.LOCALHOST", b"s=1; domain=jupyter--dev1.localhost"),
        (b"Set-Cookie", b"s=1; Domain=other.example", b"s=1; Domain=other.example"),
        (b"Set-Cookie", b"s=1; Path=/", b"s=1; Path=/"),
    ],
)  # fmt: skip
def test_what_speaks_of_the_targets_site_comes_back_as_the_visitors(
    name: bytes, value: bytes, seen: bytes
) -> None:
    if b"omain=localhost" in value.lower() or b".localhost" in value.lower():
        # Under the domain "localhost" this one is the visitor's as well, and not for us to move.
        assert back(name, value) == value
        host = b"jupyter--dev1.example.com:8080"
        assert back(name, value, host=host) == seen.replace(b"dev1.localhost", b"dev1.example.com")
    else:
        assert back(name, value) == seen


def test_a_visitor_over_https_gets_links_with_https() -> None:
    site = b"jupyter--dev1.example.com"
    for location in (b"http://localhost:8888/x", b"https://localhost:8888/x"):
        assert back(b"Location", location, host=site, proto=b"https") == b"https://%s/x" % site


def test_ports_that_a_scheme_has_anyway() -> None:
    router = ServiceConfig(name="web", target="http://192.168.1.1", host="router.lan")
    for location in (b"http://router.lan/x", b"http://router.lan:80/x", b"http://192.168.1.1/x"):
        assert back(b"Location", location, router) == b"http://%s/x" % SITE
    assert out(b"Origin", b"http://" + SITE, router) == b"http://router.lan"


def test_cookies_of_a_targets_own_domain() -> None:
    router = ServiceConfig(name="web", target="http://192.168.1.1", host="app.router.lan")
    site = b"dev1.example.com"
    for domain in (b"app.router.lan", b".router.lan", b"lan", b"192.168.1.1"):
        cookie = b"a=b; Domain=%s; Secure" % domain
        assert back(b"Set-Cookie", cookie, router, host=site) == (
            b"a=b; Domain=dev1.example.com; Secure"
        )
        for alone in (b"127.0.0.1:8080", b"[::1]:8080", b"localhost:8080"):
            assert back(b"Set-Cookie", cookie, router, host=alone) == b"a=b; Secure"
    assert back(b"Set-Cookie", b"a=b; Domain=1.1", router, host=site) == b"a=b; Domain=1.1"


def test_an_https_target_of_visitors_over_http() -> None:
    router = ServiceConfig(name="web", target="https://192.168.1.1")
    assert back(b"Location", b"https://%s/x" % SITE, router) == b"http://%s/x" % SITE
    assert back(b"Location", b"https://192.168.1.1/x", router) == b"http://%s/x" % SITE
    assert out(b"Origin", b"http://" + SITE, router) == b"https://" + SITE
    assert out(b"Host", SITE, router) == SITE


@pytest.mark.parametrize(
    "service",
    [
        ServiceConfig(name="a", target="http://127.0.0.1", host="x.lan", rewrite=False),
        ServiceConfig(name="a", target="https://127.0.0.1", rewrite=False),
        ServiceConfig(name="a", target="http://127.0.0.1"),
        ServiceConfig(name="a", target="unix:/run/a.sock"),
    ],
)
def test_where_nothing_is_translated(service: ServiceConfig) -> None:
    assert translation_for(service, asked()) is None
