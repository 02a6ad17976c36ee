"""The settings of a session with the proxy, from one configuration."""

from __future__ import annotations

import ssl

from tunnelmux.agent.credentials import Credentials
from tunnelmux.config import AgentConfig, Device, ProxyEndpoint, Secret
from tunnelmux.errors import ConfigError
from tunnelmux.transports import WayOut, client_context, parse_url, reach_of
from tunnelmux.wire import TUNNEL_PATH

__all__ = ["ProxyLink", "needs_new_session"]

_MOST_WAYS = 32
# URLs of nodes whose way is kept. A proxy tells of 8 nodes at a time.


class ProxyLink:
    """The proxy's URL, the way to it, its certificate, and this device's credential.

    Raises ConfigError when a certificate or the state directory cannot be used.
    """

    def __init__(self, proxy: ProxyEndpoint, device: Device) -> None:
        self.url = parse_url(proxy.url)
        self.way = WayOut(proxy.way_out)
        self.credentials = Credentials(proxy, device)
        self.device = device.name
        self.ssl_context: ssl.SSLContext | None = None
        if self.url.is_secure:
            self.ssl_context = client_context(proxy.ca_file, proxy.pin)
        self.dialled = proxy.url
        self._ways = {proxy.url: self.way}
        self._shown: Secret | None = None
        self._kept: Secret | None = None  # what stands in the file, or in the configuration
        self._earlier: list[Secret] | None = None  # left to be shown; None while none was wanted

    def objection(self, url: str) -> str | None:
        """Why a node's URL, which the proxy has told, must not be dialled; None where it may be.

        The token is shown to it, so it must not be weaker than the configured one. And a hostile
        proxy must not choose a request that this device makes: the path is one of a proxy. Its
        addresses are looked at when it is dialled (`WayOut.told_by`).
        """
        try:
            node = parse_url(url)
        except ConfigError as error:
            return str(error)
        if not node.is_secure and self.url.is_secure:
            return "its URL is ws://, and proxy.url is not"
        if node.target not in {TUNNEL_PATH, self.url.target}:
            return f"the path of its URL is neither {TUNNEL_PATH} nor that of proxy.url"
        # Where an HTTP proxy resolves names, only what stands in the URL can be looked at.
        if self.way.http_proxy is not None and reach_of(node.host) < reach_of(self.url.host):
            return "its address is further inside than that in proxy.url"
        return None

    def context_for(self, url: str) -> ssl.SSLContext | None:
        """The TLS context for the proxy's URL or that of a node."""
        return self.ssl_context if parse_url(url).is_secure else None

    def way_to(self, url: str) -> WayOut:
        """The way to the proxy's URL or that of a node; kept between connections."""
        if url not in self._ways:
            if len(self._ways) > _MOST_WAYS:
                self._ways = {self.dialled: self.way}
            self._ways[url] = WayOut(self.way.http_proxy, told_by=self.way)
        return self._ways[url]

    def token(self) -> Secret:
        """The token to send now; reads one line of a local file. Raises ConfigError.

        That is the one that is kept, or after `fall_back` one that it replaced.
        """
        kept = self.credentials.read()
        if kept != self._kept or self._earlier is None:
            self._kept = self._shown = kept
            self._earlier = None
        assert self._shown is not None
        return self._shown

    def fall_back(self) -> bool:
        """The proxy does not know what was shown: show an earlier token from now on, the latest
        first. False when there is none left."""
        if self._kept is None:
            return False
        if self._earlier is None:
            self._earlier = self.credentials.earlier(self._kept)
        if not self._earlier:
            self._earlier = None
            return False
        self._shown = self._earlier.pop(0)
        return True

    @property
    def shows_earlier(self) -> bool:
        """Whether what is shown is one that the kept token replaced."""
        return self._earlier is not None

    def keep_earlier(self) -> None:
        """The proxy took the earlier token that was shown: it stands in its old place again. Raises
        ConfigError when that could not be written."""
        assert self._shown is not None  # it was taken
        self.credentials.put(self._shown)
        self._kept, self._earlier = self._shown, None

    def learn(self, token: Secret) -> None:
        """Store the token that the proxy gave in place of the one sent. Raises ConfigError."""
        self._shown = token
        self.credentials.learn(token)

    def replace(self, before: Secret, token: Secret) -> None:
        """Store a new token in place of `before`, which is kept beside it; raises ConfigError. The
        session goes on: the proxy accepts both tokens.
        """
        self.credentials.replace(before, token)
        self._shown, self._earlier = token, None

    def put_back(self, token: Secret) -> None:
        """Write the token down that another one was to replace; raises ConfigError."""
        self.credentials.put(token)
        self._shown, self._earlier = token, None

    def has_another_token(self) -> bool:
        """Whether the token to send has changed. Raises ConfigError."""
        return self._shown is not None and self.credentials.read() != self._shown


def needs_new_session(old: AgentConfig, new: AgentConfig) -> bool:
    """Whether the change needs a new session. The proxy caches each session's services and their
    default: so a changed service needs a new session, an added or removed one does not.
    """
    if (old.proxy, old.device, old.limits.session) != (new.proxy, new.device, new.limits.session):
        return True
    if old.default_service != new.default_service:
        return True
    if old.shell.enabled != new.shell.enabled:
        return True  # gateways look in what is announced whether there is SSH
    before = {service.name: service for service in old.offered}
    return any(service != before.get(service.name, service) for service in new.offered)
