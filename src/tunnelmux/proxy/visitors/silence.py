"""Ask an agent why a target that accepted a raw connection did not answer."""

from __future__ import annotations

import trio

from tunnelmux.http import ClientConnection
from tunnelmux.http.body import BadBody
from tunnelmux.http.connection import UpstreamGone
from tunnelmux.http.head import Field
from tunnelmux.limits import IngressLimits
from tunnelmux.relay import abort
from tunnelmux.wire import AGENT_AUTHORITY, SERVICE_FIELD, SILENCE_PATH

__all__ = ["ask_why"]

_TIMEOUT = 4.0
# Seconds: the agent probes its target for at most two, and a visitor waits.

_MOST = 512
# Bytes of the sentence that are shown.


async def ask_why(
    stream: trio.abc.HalfCloseableStream, service: str | None, limits: IngressLimits
) -> str | None:
    """The agent's explanation, asked on this new stream; None when it has none. The stream is
    closed afterwards.
    """
    client = ClientConnection(stream, limits)
    headers: list[Field] = [(b"Host", AGENT_AUTHORITY), (b"Connection", b"close")]
    if service is not None:
        headers.append((SERVICE_FIELD, service.encode("ascii")))
    target = b"http://" + AGENT_AUTHORITY + SILENCE_PATH
    said = b""
    try:
        with trio.move_on_after(_TIMEOUT):
            await client.send_request(b"GET", target, headers, end=True)
            while (head := await client.read_head()).is_interim:
                pass
            if head.status == 200:
                said = await client.read_body_start(_MOST)
    except (UpstreamGone, BadBody):
        return None  # the agent does not know this request, or has gone
    finally:
        with trio.CancelScope(shield=True):
            await abort(stream)
    sentence = said.decode("utf-8", "replace").strip()
    return sentence if sentence.isprintable() and sentence else None
