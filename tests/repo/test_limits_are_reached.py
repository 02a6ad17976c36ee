"""Every limit has a test that reaches it. A new limit is added here, with its test."""

from __future__ import annotations

import ast
from dataclasses import fields
from pathlib import Path

import pytest

from support.tree import ROOT
from tunnelmux.limits import IngressLimits, Limits

REACHED_BY = {
    # one yamux session
    "max_streams": "mux/test_engine_backlog.py::U41-live-stream-limit",
    "accept_backlog": "mux/test_engine_backlog.py::U39-300-opens-and-nobody-accepts",
    "max_unacked_opens": "mux/test_engine_opening.py::U34-the-257th-waits-for-the-first-ack",
    "max_stream_window": ("mux/test_engine_growth.py::test_growing_stops_at_the_limit_of_a_stream"),
    "session_window_budget": (
        "mux/test_engine_growth.py::test_all_streams_of_a_session_share_its_budget"
    ),
    "process_window_budget": (
        "mux/test_session_limits.py::test_the_budget_of_the_process_is_the_one_of_the_limits"
    ),
    "window_idle": (
        "mux/test_engine_growth.py"
        "::test_an_idle_window_shrinks_and_its_budget_comes_back_as_the_credit_is_used"
    ),
    "stream_send_buffer": "mux/test_engine_flow.py::U53-a-full-stream-buffer-takes-no-more",
    "session_send_buffer": "mux/test_engine_flow.py::U53-a-full-session-buffer-takes-no-more",
    "max_frame_payload": "mux/test_engine_flow.py::E6-frames-of-at-most-the-limit",
    "flush_size": (
        "mux/test_session_limits.py::test_no_more_than_one_flush_goes_to_the_transport_at_once"
    ),
    "pending_pongs": "mux/test_engine_ping.py::U85-a-flood-of-pings-is-bounded",
    "pending_resets": "mux/test_engine_backlog.py::U43-refusals-nobody-reads",
    "max_pings_per_second": (
        "mux/test_engine_ping.py::U85-too-many-pings-in-a-second-end-the-session"
    ),
    "max_stray_frames": "mux/test_engine_backlog.py::U27-strays-up-to-the-limit",
    "ack_delay": "mux/test_engine_opening.py::U38-late-ack-for-a-stream-nobody-accepts",
    "linger": "mux/test_engine_closing.py::U78-linger",
    "keepalive_interval": (
        "mux/test_engine_ping.py::U87-silence-is-asked-about-then-ends-the-session"
    ),
    "keepalive_timeout": (
        "mux/test_engine_ping.py::U87-silence-is-asked-about-then-ends-the-session"
    ),
    "close_grace": "mux/test_session.py::test_closing_does_not_wait_for_a_stuck_transport",
    # visitors, handshakes and targets
    "max_head_bytes": "http/test_requests.py::test_head_over_the_limit_is_431",
    "head_timeout": "http/test_requests.py::test_slow_head_is_408",
    "idle_timeout": "http/test_exchange.py::test_idle_connection_is_closed_after_its_time",
    "connect_timeout": (
        "agent/test_streams.py::test_a_target_that_does_not_take_the_connection_is_a_504"
    ),
    "response_timeout": (
        "agent/test_streams.py::test_a_target_that_takes_the_request_and_never_answers_is_a_504"
    ),
    "max_visitors": "proxy/test_ingress_http.py::test_one_visitor_too_many_is_503",
    "handshake_timeout": "proxy/test_tunnel.py::test_a_slow_handshake_is_cut",
    "max_handshakes": (
        "proxy/test_tunnel.py::test_handshakes_in_flight_are_bounded_and_sessions_do_not_count"
    ),
    "reconnect_wait": "proxy/test_ingress_http.py::test_the_wait_for_a_lost_device_ends",
}
"""Under tests/: the function, or the row of a case table."""


def names_of(path: Path) -> set[str]:
    """The test functions of a file, and the rows of its case table."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if node.name.startswith("test_"):
            names.add(node.name)
        for call in node.decorator_list:
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "case":
                names.add(ast.literal_eval(call.args[0]))
    return names


def test_every_limit_is_in_the_table() -> None:
    limits = [field.name for kind in (Limits, IngressLimits) for field in fields(kind)]
    assert sorted(REACHED_BY) == sorted(limits)


@pytest.mark.parametrize("test_id", sorted(set(REACHED_BY.values())))
def test_the_test_is_there(test_id: str) -> None:
    file, _, name = test_id.partition("::")
    assert name in names_of(ROOT / "tests" / file)
