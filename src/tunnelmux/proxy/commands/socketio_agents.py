"""The server for Socket.IO agents: their authentication and their messages.

The proxy acts as the main server of the relay service's specification. Its events are
`execute_command` to the agent and `command_result` from it, answered with
`command_result_received`. The namespace is `/proxy`; `/` is accepted too, because
python-socketio, as the specification's sample calls it, joins that.
"""

from __future__ import annotations

import hmac
import math
import ssl
from collections.abc import Mapping
from functools import partial

from tunnelmux.access.addresses import AddressLists
from tunnelmux.config import ProxyConfig, SocketIOAgent, hash_token
from tunnelmux.http.fields import TrustedProxies
from tunnelmux.observability import RepeatedLines, get_logger
from tunnelmux.proxy.access.by_address import LISTS_CHANGED, is_listed
from tunnelmux.proxy.commands.agent_target import AgentTarget, Connection
from tunnelmux.proxy.commands.dispatcher import Dispatcher
from tunnelmux.socketio import (
    Admitted,
    EngineSettings,
    Event,
    Refusal,
    ServerSettings,
    Socket,
    SocketIOServer,
    SocketOver,
)
from tunnelmux.transports import server_context
from tunnelmux.transports.admission import source_of

__all__ = ["NAMESPACES", "AgentServer", "agent_settings"]

_log = get_logger("proxy.agents")

NAMESPACES = frozenset({"/proxy", "/"})

_ANY = AddressLists()

_UNKNOWN = hash_token("compared for unknown agents, so that they take as long as a wrong key")

_MAX_ID = 128  # characters of a commandId, as for requests


class AgentServer(SocketIOServer):
    """The listener's handler, and the register of connected agents."""

    def __init__(self, dispatcher: Dispatcher, settings: ServerSettings) -> None:
        super().__init__(self._admit_agent, settings)
        self._dispatcher = dispatcher
        self._known: dict[str, SocketIOAgent] = {}
        self._targets: dict[str, AgentTarget] = {}
        self._refusals = RepeatedLines("agent refused")
        self._malformed = RepeatedLines("malformed result")
        # Without a bound for all of them, as of sessions.
        self._told = RepeatedLines("agent connected", in_all=math.inf)

    def configure(
        self,
        settings: ServerSettings,
        agents: list[SocketIOAgent],
        addresses: AddressLists = _ANY,
    ) -> list[str]:
        """Apply a new configuration. Returns the agents that it disconnects: those whose entry has
        changed, and those whose address may not connect any more.
        """
        self.settings = settings
        before, self._known = self._known, {agent.proxy_id: agent for agent in agents}
        thrown_out = []
        for name, agent in before.items():
            now = self._known.get(name)
            is_same = now is not None and (now.key_hash, now.group) == (agent.key_hash, agent.group)
            target = self._targets.get(name)
            if target is None or target.connection is None:
                continue
            connection = target.connection
            if not is_same:
                connection.socket.end("the configuration of this agent has changed")
            elif not is_listed(addresses, connection.remote):
                connection.socket.end(LISTS_CHANGED)
            else:
                continue
            thrown_out.append(name)
        return thrown_out

    @property
    def connected(self) -> list[str]:
        """The agents that are connected now, by name."""
        return sorted(
            name for name, target in self._targets.items() if target.connection is not None
        )

    def connection_of(self, name: str) -> Connection | None:
        """The live connection of that agent, or None."""
        target = self._targets.get(name)
        return target.connection if target is not None else None

    # -- connections -----------------------------------------------------------------------

    def _admit_agent(
        self, namespace: str, query: Mapping[str, str], auth: Mapping[str, object], remote: str
    ) -> Admitted:
        if namespace not in NAMESPACES:
            raise Refusal("Invalid namespace")
        proxy_id = auth.get("proxyId", query.get("proxyId"))
        api_key = auth.get("apiKey", query.get("apiKey"))
        agent = self._known.get(proxy_id) if isinstance(proxy_id, str) else None
        if not isinstance(api_key, str) or not _is_right(api_key, agent):
            if self._refusals.may_write(source_of(remote)):
                name = agent.proxy_id if agent else None
                _log.warning("agent refused", agent=name, remote=remote)
            raise Refusal("unauthorized: the proxyId is unknown or the apiKey is wrong")
        assert agent is not None  # an unknown agent must be refused with any key
        return Admitted(partial(self._serve_agent, agent, auth, remote))

    async def _serve_agent(
        self, agent: SocketIOAgent, auth: Mapping[str, object], remote: str, socket: Socket
    ) -> None:
        instance = auth.get("instance")
        connection = Connection(
            socket,
            instance if isinstance(instance, str) else None,
            confirms_start=auth.get("confirmsStart") is True,
            remote=remote,
        )
        name = agent.proxy_id
        target = self._targets.get(name) or AgentTarget(
            name,
            self.settings.engine.socketio,
            self.settings.http.reconnect_wait,
        )
        self._targets[name] = target
        replaced = target.connection
        target.attach(connection)
        self._dispatcher.add(target, groups=[agent.group] if agent.group else [])
        is_told = self._told.may_write(name)  # an agent may connect again and again
        if is_told:
            _log.info("agent connected", agent=name, group=agent.group, remote=remote)
        reason = "the proxy is closing"
        try:
            if replaced is not None:
                if is_told:
                    _log.warning("agent replaced", agent=name, cause="it connected again")
                replaced.socket.end("another connection of this agent took its place")
            while True:
                await self._take(target, connection, await socket.receive())
        except SocketOver as over:
            reason = str(over)
        finally:
            target.detach(connection)
            if target.connection is None:
                self._dispatcher.remove(target)
                if not target.busy:
                    self._targets.pop(name, None)
            if is_told:
                _log.info("agent disconnected", agent=name, reason=socket.reason or reason)

    # -- messages -----------------------------------------------------------------------

    async def _take(self, target: AgentTarget, connection: Connection, event: Event) -> None:
        content = event.args[0] if event.args else None
        if event.name == "command_result":
            answer = self._take_result(target, content)
            await connection.socket.acknowledge(event, answer)
            await connection.socket.emit("command_result_received", answer)
        elif event.name == "command_started":
            command_id = content.get("commandId") if isinstance(content, dict) else None
            may = target.may_start(command_id, connection)
            await connection.socket.acknowledge(event, may)
        else:
            _log.debug("unknown event", agent=target.name)

    def _take_result(self, target: AgentTarget, content: object) -> dict[str, object]:
        """Pass a command_result on. Returns the acknowledgement for the agent."""
        command_id = content.get("commandId") if isinstance(content, dict) else None
        if not isinstance(command_id, str) or not 0 < len(command_id) <= _MAX_ID:
            self._note_malformed(target, "commandId")
            return {"success": False, "error": "commandId must be a text"}
        assert isinstance(content, dict)
        result = content.get("result")
        if not isinstance(result, dict):
            self._note_malformed(target, "result")
            result = {"exitCode": "missing"}  # take_result ends the command with a message about it
        target.take_result(command_id, result)
        return {"success": True, "commandId": command_id}

    def _note_malformed(self, target: AgentTarget, field: str) -> None:
        if self._malformed.may_write(target.name):
            _log.warning("malformed result", agent=target.name, field=field)


def agent_settings(config: ProxyConfig) -> ServerSettings:
    """The server's settings from a configuration with [socketio]. Raises ConfigError."""
    listener, limits = config.socketio, config.limits
    assert listener is not None
    tls: ssl.SSLContext | None = None
    if listener.tls_certificate is not None and listener.tls_key is not None:
        tls = server_context(listener.tls_certificate, listener.tls_key)
    engine = EngineSettings(
        socketio=limits.socketio,
        session=limits.session,
        handshake_timeout=limits.ingress.handshake_timeout,
    )
    return ServerSettings(
        path=listener.path,
        trusted=TrustedProxies.parse(listener.trusted_proxies),
        allow_eio3=listener.allow_eio3,
        tls=tls,
        engine=engine,
        http=limits.ingress,
    )


def _is_right(api_key: str, agent: SocketIOAgent | None) -> bool:
    """Whether the key is the agent's; compared in constant time."""
    try:
        shown = hash_token(api_key)
    except UnicodeEncodeError:  # a lone surrogate, which JSON can hold
        return False
    is_equal = hmac.compare_digest(shown, agent.key_hash if agent is not None else _UNKNOWN)
    return is_equal and agent is not None
