"""Every limit has a test that reaches it. A new limit is added here, with its test."""

from __future__ import annotations

import ast
from dataclasses import fields
from pathlib import Path

import pytest

from support.tree import ROOT
from tunnelmux.limits import (
    AccessLimits,
    AgentLogLimits,
    AuditLimits,
    ExecLimits,
    IngressLimits,
    InternalLimits,
    Limits,
    SocketIOLimits,
)

REACHED_BY = {
    # one yamux session
    "max_streams": "mux/test_engine_backlog.py::live-stream-limit",
    "accept_backlog": "mux/test_engine_backlog.py::300-opens-and-nobody-accepts",
    "max_unacked_opens": "mux/test_engine_opening.py::the-257th-waits-for-the-first-ack",
    "max_stream_window": ("mux/test_engine_growth.py::test_growing_stops_at_the_limit_of_a_stream"),
    "max_unread_bytes": "mux/test_engine_unread.py::test_the_stillest_reader_makes_room",
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
    "stream_send_buffer": "mux/test_engine_flow.py::a-full-stream-buffer-takes-no-more",
    "session_send_buffer": "mux/test_engine_flow.py::a-full-session-buffer-takes-no-more",
    "max_frame_payload": "mux/test_engine_flow.py::frames-of-at-most-the-limit",
    "flush_size": (
        "mux/test_session_limits.py::test_no_more_than_one_flush_goes_to_the_transport_at_once"
    ),
    "pending_pongs": "mux/test_engine_ping.py::a-flood-of-pings-is-bounded",
    "pending_resets": "mux/test_engine_backlog.py::refusals-nobody-reads",
    "max_pings_per_second": ("mux/test_engine_ping.py::too-many-pings-in-a-second-end-the-session"),
    "max_stray_frames": "mux/test_engine_backlog.py::strays-up-to-the-limit",
    "ack_delay": "mux/test_engine_opening.py::late-ack-for-a-stream-nobody-accepts",
    "linger": "mux/test_engine_closing.py::linger",
    "keepalive_interval": ("mux/test_engine_ping.py::silence-is-asked-about-then-ends-the-session"),
    "keepalive_timeout": ("mux/test_engine_ping.py::silence-is-asked-about-then-ends-the-session"),
    "close_grace": "mux/test_session.py::test_closing_does_not_wait_for_a_stuck_transport",
    # visitors, handshakes and targets
    "max_head_bytes": "http/test_requests.py::test_head_over_the_limit_is_431",
    "max_idle_targets": "proxy/test_kept_targets.py::test_no_more_are_kept_than_the_limit_says",
    "target_idle_time": "proxy/test_kept_targets.py::test_one_that_nobody_uses_is_ended",
    "max_unfinished_heads": (
        "agent/test_unfinished_heads.py::test_heads_without_an_end_take_so_much_memory_and_no_more"
    ),
    "max_interim_heads": (
        "http/test_interim_heads.py::test_interim_heads_without_end_are_a_502_that_names_the_limit"
    ),
    "max_head_fields": "http/test_requests.py::test_too_many_fields_are_431",
    "head_timeout": "http/test_requests.py::test_slow_head_is_408",
    "idle_timeout": "http/test_exchange.py::test_idle_connection_is_closed_after_its_time",
    "connect_timeout": (
        "agent/test_streams.py::test_a_target_that_does_not_take_the_connection_is_a_504"
    ),
    "response_timeout": (
        "agent/test_streams.py::test_a_target_that_takes_the_request_and_never_answers_is_a_504"
    ),
    "max_visitors": "proxy/test_ingress_http.py::test_one_visitor_too_many_is_503",
    "max_visitors_per_address": (
        "proxy/test_ingress_http.py::test_one_address_has_so_many_connections"
    ),
    "handshake_timeout": "proxy/test_tunnel.py::test_a_slow_handshake_is_cut",
    "max_handshakes": (
        "proxy/test_tunnel.py::test_handshakes_in_flight_are_bounded_and_sessions_do_not_count"
    ),
    "max_waiting_handshakes": (
        "transports/test_waiting_line.py"
        "::test_one_address_has_half_of_the_line_and_one_too_many_is_not_taken"
    ),
    "max_arrivals_per_address": (
        "transports/test_admission.py"
        "::test_the_oldest_silent_one_of_an_address_gives_way_to_its_next"
    ),
    "first_byte_timeout": (
        "proxy/test_admission.py::test_silence_is_cut_before_the_handshake_timeout"
    ),
    "max_streams_per_visitor": (
        "proxy/test_ingress_tcp.py::test_one_address_gets_so_many_streams_and_another_still_one"
    ),
    "max_streams_per_port": (
        "proxy/test_ingress_tcp.py::test_a_crowd_at_one_port_leaves_others_their_streams"
    ),
    "max_hop_streams": "cluster/test_nodes.py::test_so_many_streams_go_to_one_node_and_no_more",
    "max_hops_per_node": (
        "cluster/test_hostile_node.py::test_a_node_gets_so_many_connections_and_no_more"
    ),
    "max_device_sessions": (
        "directory/test_contract.py::test_a_device_keeps_so_many_places_and_no_more"
    ),
    "reserved_streams": (
        "proxy/test_ingress_tcp.py::test_visitors_leave_streams_in_reserve_for_the_back_end"
    ),
    "max_measurements": "proxy/test_measuring.py::test_one_of_each_device_and_so_many_in_all",
    "measurement_bytes": (
        "proxy/test_measuring.py::test_no_more_bytes_are_taken_or_sent_than_the_limit_says"
    ),
    "measurement_time": (
        "proxy/test_measuring.py::test_neither_way_takes_longer_than_the_limit_says"
    ),
    "body_stall": (
        "http/test_exchange.py::test_a_body_that_moves_no_byte_is_a_408_and_the_target_sees_a_reset"
    ),
    "reconnect_wait": "proxy/test_ingress_http.py::test_the_wait_for_a_lost_device_ends",
    # who may visit
    "access_max_passes": "access/test_limits.py::test_so_many_proofs_are_remembered",
    "access_max_grants": (
        "access/test_limits.py::test_so_many_people_are_known_and_the_idle_make_room"
    ),
    "access_max_guesses": "access/test_rules.py::test_who_guesses_passwords_is_held_up",
    "access_max_guessers": "access/test_limits.py::test_so_many_guessers_are_remembered",
    "access_max_checks": "access/test_limits.py::test_so_many_passwords_are_checked_at_once",
    "access_max_waiting_checks": "access/test_limits.py::test_so_many_wait_for_a_check",
    "access_max_sign_ins": "access/test_limits.py::test_one_session_signs_in_so_often_in_a_minute",
    # Socket.IO
    "socketio_max_payload": (
        "socket_io/test_hostile_peers.py::test_an_agent_may_send_as_much_as_the_limit_says"
    ),
    "socketio_max_packets": (
        "socket_io/test_hostile_peers.py::test_a_payload_has_so_many_packets_and_no_more"
    ),
    "socketio_send_queue": (
        "socket_io/test_hostile_peers.py::test_an_agent_that_does_not_read_stops_its_senders"
    ),
    "socketio_max_silence": (
        "socket_io/test_main_server.py::test_a_server_that_announces_long_silence_is_refused"
    ),
    "socketio_max_cookies": (
        "socket_io/test_cookies.py::test_there_are_so_many_cookies_and_the_oldest_makes_room"
    ),
    "socketio_max_queued": (
        "socket_io/test_main_server.py"
        "::test_as_many_commands_run_at_once_as_are_allowed_and_some_wait"
    ),
    "socketio_result_memory": (
        "socket_io/test_main_server.py::test_results_nobody_acknowledges_end_in_busy"
    ),
    "socketio_remembered": (
        "socket_io/test_main_server.py"
        "::test_what_was_executed_is_remembered_for_as_many_as_the_limit_says"
    ),
    "socketio_max_sessions": (
        "socket_io/test_hostile_peers.py::test_there_are_so_many_sessions_and_no_more"
    ),
    "socketio_max_commands": (
        "socket_io/test_agents.py::test_an_agent_has_so_many_commands_at_once_and_no_more"
    ),
    "socketio_start_timeout": (
        "socket_io/test_agents.py::test_an_agent_that_does_not_begin_is_passed_over_and_told_so"
    ),
    "socketio_result_grace": (
        "socket_io/test_agents.py::test_a_result_is_waited_for_as_long_as_the_limit_says"
    ),
    # commands over SSH
    "max_concurrent": "agent/test_exec.py::test_one_command_too_many_is_busy",
    "max_output": "ssh/test_run.py::test_output_over_the_limit_is_thrown_away_and_said_so",
    "max_request": "agent/test_exec.py::test_a_request_over_the_limit_is_413",
    "max_timeout": "agent/test_exec.py::test_a_longer_time_than_allowed_is_forbidden",
    "login_timeout": "ssh/test_login.py::test_a_server_that_says_nothing_runs_into_login_timeout",
    "probe_timeout": (
        "ssh/test_pool.py::test_a_dead_connection_is_found_out_before_anything_is_asked_for_on_it"
    ),
    "max_connections": (
        "ssh/test_pool.py::test_max_connections_makes_room_in_place_of_an_idle_one"
    ),
    "connections_per_login": (
        "ssh/test_pool.py::test_connections_per_login_and_sessions_per_connection_bound_what_runs"
    ),
    "sessions_per_connection": (
        "ssh/test_pool.py::test_connections_per_login_and_sessions_per_connection_bound_what_runs"
    ),
    "idle_connection": "ssh/test_pool.py::test_an_idle_connection_is_closed",
    "ssh_keepalive": (
        "ssh/test_pool.py"
        "::test_a_connection_lost_under_a_command_is_reported_and_nothing_runs_twice"
    ),
    "kill_grace": "ssh/test_run.py::test_a_command_that_ignores_sigterm_is_killed_all_the_same",
    # the audit
    "max_bytes": (
        "observability/test_audit.py::test_files_rotate_by_size_and_a_bounded_number_stays"
    ),
    "keep": "observability/test_audit.py::test_files_rotate_by_size_and_a_bounded_number_stays",
    "keep_for": ("observability/test_audit.py::test_what_is_young_stays_however_much_is_written"),
    "min_free": (
        "observability/test_audit.py::test_a_disk_that_is_nearly_full_ends_that_and_the_log_says_so"
    ),
    "max_command": (
        "observability/test_audit.py"
        "::test_of_a_long_command_the_beginning_its_length_and_its_digest_are_kept"
    ),
    "keep_lines": "agent/test_log.py::test_no_more_lines_are_kept_than_the_limit_says",
    "refusals_per_minute": "agent/test_exec.py::test_forbidden_commands_do_not_fill_the_audit",
    # commands through the internal API
    "max_exec_request": (
        "internal/test_exec.py::test_the_request_the_devices_and_the_ids_are_bounded"
    ),
    "max_exec_devices": (
        "internal/test_exec.py::test_the_request_the_devices_and_the_ids_are_bounded"
    ),
    "max_exec_timeout": "internal/test_exec.py::test_a_field_that_is_missing_or_wrong_is_named",
    "exec_concurrency": "internal/test_exec.py::test_a_field_that_is_missing_or_wrong_is_named",
    "max_commands": "internal/test_exec.py::test_all_calls_together_are_bounded_too",
    "max_exec_answer": "internal/test_exec.py::test_a_document_holds_at_most_the_limit",
    "exec_stall": "internal/test_exec.py::test_a_caller_that_reads_nothing_is_cut",
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
    limits = [
        field.name
        for kind in (
            *(Limits, IngressLimits, AccessLimits, ExecLimits, SocketIOLimits, AuditLimits),
            AgentLogLimits,
        )
        for field in fields(kind)
    ]
    # Of the internal API's, those of commands.
    internal = [field.name for field in fields(InternalLimits)]
    limits += [name for name in internal if "exec" in name or name == "max_commands"]
    assert sorted(REACHED_BY) == sorted(limits)


@pytest.mark.parametrize("test_id", sorted(set(REACHED_BY.values())))
def test_the_test_is_there(test_id: str) -> None:
    file, _, name = test_id.partition("::")
    assert name in names_of(ROOT / "tests" / file)
