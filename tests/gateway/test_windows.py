"""What all channels of one person or device may have under way together."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from tunnelmux.gateway.app import Gateway
from tunnelmux.gateway.windows import WINDOW, window_among

MEBIBYTE = 1024 * 1024


def carrier() -> Any:
    return SimpleNamespace(_channels={})


def open_one(connection: Any, window: int) -> int:
    channels = connection._channels
    channels[len(channels)] = SimpleNamespace(get_recv_window=lambda: window)
    return window


def test_few_channels_have_a_whole_window_and_many_share_what_is_left() -> None:
    connection = carrier()
    windows = [open_one(connection, window_among([connection])) for _ in range(1024)]
    assert windows[:53] == [WINDOW] * 53
    assert max(windows[300:]) < 33_000
    assert windows == sorted(windows, reverse=True)
    assert sum(windows) < (32 + 32) * MEBIBYTE
    del connection._channels[0]
    for number in range(500, 1024):
        del connection._channels[number]
    assert window_among([connection]) > 60_000


def test_all_connections_of_a_person_share_and_those_of_others_have_their_own() -> None:
    def of(peer: str, *carriers: Any) -> Any:
        return SimpleNamespace(peer=peer, carriers=lambda: carriers)

    own, to_device, second = carrier(), carrier(), carrier()
    gateway: Any = SimpleNamespace(connections=[of("bob", own, to_device), of("bob", second)])
    for connection in (own, to_device, second):
        for _ in range(40):
            open_one(connection, Gateway.window_for(gateway, "bob"))
    assert Gateway.window_for(gateway, "bob") < WINDOW // 8
    assert Gateway.window_for(gateway, "eve") == WINDOW
