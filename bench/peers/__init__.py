"""Every tunnel that is measured. A further one is a class with a line in PEERS."""

from __future__ import annotations

from bench.peers.frp import Frp
from bench.peers.minimal import Minimal
from bench.peers.openssh import OpenSsh
from bench.peers.others import Bore, Chisel, Piko, Rathole
from bench.peers.ours import OverPlainTcp, Tunnelmux
from bench.peers.tunnel import Direct, Peer

PEERS: tuple[Peer, ...] = (
    Direct("direct", "nginx, no tunnel", multiplexes=False),
    Tunnelmux("tunnelmux-ws", "TCP service, ws://"),
    Tunnelmux("tunnelmux-wss", "TCP service, wss://", encrypted=True),
    OverPlainTcp("tunnelmux-tcp", "TCP service, plain TCP"),
    Tunnelmux("tunnelmux-http", "HTTP ingress, ws://", http=True),
    Chisel("chisel", "Go, SSH in a WebSocket", encrypted=True),
    Frp("frp", "Go, yamux on TCP"),
    Frp("frp-tls", "Go, yamux on TLS (its default)", encrypted=True),
    Rathole("rathole", "Rust, a TCP connection each", multiplexes=False),
    Bore("bore", "Rust, a TCP connection each", multiplexes=False),
    OpenSsh("openssh", "C, ssh -R, aes128-gcm", encrypted=True),
    Minimal("go-ws", "hashicorp/yamux on gorilla/websocket"),
    Minimal("go-tcp", "hashicorp/yamux on TCP"),
    Minimal("go-http", "httputil.ReverseProxy on hashicorp/yamux", http=True),
    Frp("frp-http", "Go, its vhost, yamux on TCP", http=True),
    Piko("piko", "Go, yamux in a WebSocket", http=True),
)
