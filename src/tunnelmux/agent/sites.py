"""Translate between the two names of a site: the one that visitors use, and the one that its target
uses. Where they differ (`host` of a service, or an `https://` target for visitors over HTTP),
fields that name the site are rewritten in both directions. Otherwise a target would redirect
visitors to a host that only the device can reach, and see its own pages as cross-site.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from tunnelmux.config import ServiceConfig
from tunnelmux.http.fields import replace_host
from tunnelmux.http.forwarded import parse_forwarded, write_forwarded
from tunnelmux.http.head import Field, RequestHead, field_values

__all__ = ["SiteTranslation", "translation_for"]

_URL = re.compile(rb"(?:(https?):)?//([^/?#\\\s\"<>,;@]+)(?=[/?#]|\Z)", re.IGNORECASE)
_IN_BRACKETS = re.compile(rb"<([^<>]*)>")
_REFRESH = re.compile(rb"([0-9. \t]*[;,][ \t]*(?:url[ \t]*=[ \t]*)?[\"']?)(.*)", re.IGNORECASE)
_DEFAULT_PORTS = {b"http": b":80", b"https": b":443"}
_IP_ADDRESS = re.compile(rb"[0-9.]+|.*:.*")


@dataclass(frozen=True, slots=True)
class _Site:
    """A site: its scheme and authority, and other hosts that mean it as well."""

    scheme: bytes
    authority: bytes
    also: tuple[bytes, ...] = ()

    def owns(self, scheme: bytes | None, authority: bytes) -> bool:
        """Whether a URL with this scheme and authority belongs to this site."""
        asked = _without_port(scheme or self.scheme, authority)
        return any(
            asked in (_without_port(scheme or self.scheme, own), _without_port(self.scheme, own))
            for own in (self.authority, *self.also)
        )

    @property
    def names(self) -> list[bytes]:
        """The host names, without ports, in lower case."""
        return [_host_name(own) for own in (self.authority, *self.also)]


@dataclass(frozen=True, slots=True)
class SiteTranslation:
    """Rewrites the fields of one request and of its answer."""

    visitor: _Site
    target: _Site

    def of_request(self, headers: list[Field]) -> list[Field]:
        """The request's fields with the target's site in place of the visitor's."""
        changed = [(name, self._of_request(name.lower(), value)) for name, value in headers]
        return replace_host(changed, self.target.authority)

    def of_answer(self, headers: list[Field]) -> list[Field]:
        """The answer's fields with the visitor's site in place of the target's."""
        return [(name, self._of_answer(name.lower(), value)) for name, value in headers]

    def _of_request(self, name: bytes, value: bytes) -> bytes:
        match name:
            case b"origin" | b"referer" | b"destination":
                return self._to_target(value)
            case b"if":
                return _IN_BRACKETS.sub(lambda m: b"<%s>" % self._to_target(m[1]), value)
            case b"x-forwarded-host":
                first = value.partition(b",")[0].strip()
                return self.target.authority if self._is_visitors(first) else value
            case b"forwarded":
                return self._forwarded(value)
        return value

    def _of_answer(self, name: bytes, value: bytes) -> bytes:
        match name:
            case b"location" | b"content-location":
                return self._to_visitor(value)
            case b"link":
                return _IN_BRACKETS.sub(lambda m: b"<%s>" % self._to_visitor(m[1]), value)
            case b"refresh":
                if (match := _REFRESH.fullmatch(value)) is not None:
                    return match[1] + self._to_visitor(match[2])
            case b"set-cookie":
                return self._cookie(value)
        return value

    def _to_target(self, url: bytes) -> bytes:
        match = _URL.match(url)
        if match is None or not self.visitor.owns(match[1], match[2]):
            return url
        return _moved(url, match, self.target)

    def _to_visitor(self, url: bytes) -> bytes:
        match = _URL.match(url)
        if match is None or not self.target.owns(match[1], match[2]):
            return url
        # A URL with a scheme that neither side has means another server.
        if match[1] is not None and match[1].lower() not in {
            self.target.scheme,
            self.visitor.scheme,
        }:
            return url
        return _moved(url, match, self.visitor)

    def _is_visitors(self, authority: bytes) -> bool:
        return self.visitor.owns(None, authority)

    def _forwarded(self, value: bytes) -> bytes:
        hops = parse_forwarded(value)
        if hops is None:
            return value
        own = self.target.authority
        return write_forwarded(
            [
                replace(hop, host=own) if hop.host and self._is_visitors(hop.host) else hop
                for hop in hops
            ]
        )

    def _cookie(self, value: bytes) -> bytes:
        first, *attributes = value.split(b";")
        kept = [first]
        for attribute in attributes:
            name, _, domain = attribute.partition(b"=")
            if name.strip().lower() != b"domain" or not self._is_targets_domain(domain):
                kept.append(attribute)
                continue
            asked = _host_name(self.visitor.authority)
            if b"." in asked and not _IP_ADDRESS.fullmatch(asked):
                kept.append(name + b"=" + asked)
            # Otherwise without a domain, which limits the cookie to the host.
        return b";".join(kept)

    def _is_targets_domain(self, domain: bytes) -> bool:
        asked = domain.strip().lower().lstrip(b".")
        if not asked or any(_lies_in(name, asked) for name in self.visitor.names):
            return False
        return any(_lies_in(name, asked) for name in self.target.names)


def translation_for(service: ServiceConfig, request: RequestHead) -> SiteTranslation | None:
    """The translation for this request; None where both sides use the same name."""
    if not service.rewrite or (service.host is None and not service.where.is_encrypted):
        return None
    told = field_values(request.headers, b"x-forwarded-host")[:1]
    hosts = [host for host in (*told, request.host) if host]
    if not hosts:
        return None
    protos = field_values(request.headers, b"x-forwarded-proto")
    scheme = b"https" if protos and protos[0].lower() == b"https" else b"http"
    own = service.host.encode("ascii") if service.host is not None else request.host or hosts[0]
    address = service.address
    return SiteTranslation(
        visitor=_Site(scheme, hosts[0], tuple(hosts[1:])),
        target=_Site(
            service.where.scheme.encode("ascii"),
            own,
            (str(address).encode("ascii", "replace"),) if address is not None else (),
        ),
    )


def _lies_in(name: bytes, domain: bytes) -> bool:
    """Whether a cookie with this domain applies to this host (RFC 6265 section 5.1.3)."""
    below = name.endswith(b"." + domain) and not _IP_ADDRESS.fullmatch(name)
    return below or name == domain


def _moved(url: bytes, match: re.Match[bytes], site: _Site) -> bytes:
    scheme = site.scheme + b":" if match[1] is not None else b""
    return b"%s//%s%s" % (scheme, site.authority, url[match.end() :])


def _without_port(scheme: bytes, authority: bytes) -> bytes:
    """The authority in lower case, without the scheme's default port and without a root dot."""
    authority = authority.lower().removesuffix(_DEFAULT_PORTS.get(scheme.lower(), b":"))
    return authority.removesuffix(b".")


def _host_name(authority: bytes) -> bytes:
    authority = authority.lower()
    if authority.startswith(b"["):
        return authority.partition(b"]")[0][1:]
    return authority.partition(b":")[0].removesuffix(b".")
