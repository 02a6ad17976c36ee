"""Every tunnel that is measured. A further one is a class with a line in PEERS."""

from __future__ import annotations

from bench.peers.frp import Frp
from bench.peers.minimal import Minimal
from bench.peers.nginx import BehindNginx, NginxAlone
from bench.peers.openssh import OpenSsh
from bench.peers.others import Bore, Chisel, Piko, Rathole
from bench.peers.ours import ByField, ByLogin, OverPlainTcp, Trusting, Tunnelmux
from bench.peers.tunnel import Direct, Peer

KEPT = ("keepalive",)
"""The column of those that show one way in for visitors."""

PEERS: tuple[Peer, ...] = (
    Direct("direct", "nginx, no tunnel", multiplexes=False),
    Tunnelmux("tunnelmux-ws", "TCP service, ws://"),
    Tunnelmux("tunnelmux-wss", "TCP service, wss://", encrypted=True),
    OverPlainTcp("tunnelmux-tcp", "TCP service, plain TCP"),
    Tunnelmux("tunnelmux-http", "HTTP ingress, ws://", visitors="http"),
    Chisel("chisel", "Go, SSH in a WebSocket", encrypted=True),
    Frp("frp", "Go, yamux on TCP"),
    Frp("frp-tls", "Go, yamux on TLS (its default)", encrypted=True),
    Rathole("rathole", "Rust, a TCP connection each", multiplexes=False),
    Bore("bore", "Rust, a TCP connection each", multiplexes=False),
    OpenSsh("openssh", "C, ssh -R, aes128-gcm", encrypted=True),
    Minimal("go-ws", "hashicorp/yamux on gorilla/websocket"),
    Minimal("go-tcp", "hashicorp/yamux on TCP"),
    Minimal("go-http", "httputil.ReverseProxy on hashicorp/yamux", visitors="http"),
    Frp("frp-http", "Go, its vhost, yamux on TCP", visitors="http"),
    Piko("piko", "Go, yamux in a WebSocket", visitors="http"),
    # The other ways in for visitors, each beside those of the peers that have it.
    Trusting("tunnelmux-trusted", "a trusted proxy in front", visitors="http", columns=KEPT),
    ByLogin("tunnelmux-login", "visitors who have signed in", visitors="http", columns=KEPT),
    ByField("tunnelmux-device", "routed by Tunnelmux-Device", visitors="http", columns=KEPT),
    Tunnelmux(
        "tunnelmux-https", "HTTPS", visitors="https", columns=(*KEPT, "connect", "websocket")
    ),
    Minimal("go-https", "go-http with TLS", visitors="https", columns=(*KEPT, "websocket")),
    Frp("frp-https", "frp's https vhost, TLS at its client", visitors="https", columns=KEPT),
    NginxAlone("nginx", "nginx with TLS, no tunnel", visitors="nginx", columns=(*KEPT, "connect")),
    BehindNginx("tunnelmux-nginx", Trusting("", "HTTP ingress", visitors="http"), columns=KEPT),
    BehindNginx("go-http-nginx", Minimal("go-http", "go-http", visitors="http"), columns=KEPT),
    BehindNginx("frp-http-nginx", Frp("", "frp-http", visitors="http"), columns=KEPT),
    BehindNginx("piko-nginx", Piko("", "piko", visitors="http"), columns=KEPT),
)
