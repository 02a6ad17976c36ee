"""The data path: sockets, tunnels and relays moved by compiled code in one Trio task.

`data_pump` is its face on Trio. `epoll`, `sockets`, `tunnel`, `relay` and `http_relay` are compiled
and need Linux; `head` (HTTP heads), `lines` (log lines) and `websocket` (RFC 6455 framing) do not.
"""

from __future__ import annotations
