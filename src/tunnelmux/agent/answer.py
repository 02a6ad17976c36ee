"""What the proxy's answer to a handshake says about this device and its token."""

from __future__ import annotations

from collections.abc import Mapping

import trio

from tunnelmux.agent.link import ProxyLink
from tunnelmux.agent.sessions import printable
from tunnelmux.config import Secret
from tunnelmux.errors import ConfigError, ConnectError, ConnectRefused
from tunnelmux.observability import get_logger
from tunnelmux.wire import REPLACED_FIELD, RIVAL_FIELD, TOKEN_FIELD

__all__ = ["falls_back", "field_of", "read_answer"]

_log = get_logger("agent")


def field_of(headers: Mapping[str, str], field: bytes) -> str | None:
    """The value of this field in an answer."""
    return headers.get(field.decode("ascii").lower())


async def read_answer(link: ProxyLink, headers: Mapping[str, str]) -> None:
    """Read the fields about this device in the proxy's answer to a handshake that it took."""
    await _keep_accepted(link)
    await _keep_token(link, field_of(headers, TOKEN_FIELD))
    if field_of(headers, REPLACED_FIELD) is not None:
        _log.warning(
            "joined in place of another",
            device=link.device,
            effect="the machine that had this name cannot connect any more",
        )
    if rival := field_of(headers, RIVAL_FIELD):
        _log.warning(
            "two agents with one credential",
            device=link.device,
            rival=printable(rival),
            fix="another machine and this one replace each other in turn, as after cloning a "
            "disk: give each a name and a token of its own",
        )


async def falls_back(link: ProxyLink, error: ConnectError) -> bool:
    """Whether an earlier token is left to be shown to a proxy that does not know this one."""
    if not isinstance(error, ConnectRefused) or error.status != 401:
        return False
    return await trio.to_thread.run_sync(link.fall_back)


async def _keep_token(link: ProxyLink, token: str | None) -> None:
    if token is None or link.credentials.path is None:
        return
    if link.credentials.has_joined:
        # Only the first use of a join line is answered so. What the device has is good.
        _log.warning(
            "token ignored",
            device=link.device,
            cause="the proxy gave another token without being asked",
            fix="look whether proxy.url leads to your proxy; tokens are changed by `rotate`",
        )
        return
    try:
        await trio.to_thread.run_sync(link.learn, Secret(token))
    except ConfigError as error:
        _log.error("token not kept", cause=str(error))
    else:
        _log.info("joined", device=link.device, token_file=str(link.credentials.path))


async def _keep_accepted(link: ProxyLink) -> None:
    """Put an earlier token back into its place, if it is what the proxy took."""
    if not link.shows_earlier:
        return
    try:
        await trio.to_thread.run_sync(link.keep_earlier)
    except ConfigError as error:
        _log.error("token not kept", cause=str(error))
    else:
        _log.warning(
            "token put back",
            device=link.device,
            token_file=str(link.credentials.kept_in),
            cause="the proxy refused the one that replaced it",
            fix="if that was not you, look at what the device was connected to before",
        )
