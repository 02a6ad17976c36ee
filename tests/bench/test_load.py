"""What wrk prints, as figures."""

from __future__ import annotations

import pytest
from bench.load import LoadFailure, parse_wrk, request

PRINTED = """\
Running 2s test @ http://127.0.0.1:20001/small
  2 threads and 50 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.02ms    1.71ms  24.94ms   91.71%
    Req/Sec    30.41k     5.02k   39.21k    68.29%
  Latency Distribution
     50%  512.00us
     75%    0.99ms
     90%    2.24ms
     99%    {p99}
  124002 requests in 2.10s, 39.27MB read
Requests/sec:  59048.12
Transfer/sec:     18.70MB
""".replace("{p99}", "1.20s ")  # wrk pads a unit of one letter


def test_figures_come_in_milliseconds_whatever_the_unit():
    load = parse_wrk(PRINTED)
    assert (load.rate, load.requests) == (59048.12, 124002)
    assert (load.p50, load.p99) == (pytest.approx(0.512), pytest.approx(1200))
    assert load.errors == 0


def test_a_wrong_answer_is_a_failure():
    with pytest.raises(LoadFailure, match="Non-2xx or 3xx responses: 3"):
        parse_wrk(PRINTED + "  Non-2xx or 3xx responses: 3\n")


def test_few_errors_are_counted_and_many_are_a_failure():
    errors = "  Socket errors: connect 0, read {}, write 1, timeout 2\n"
    assert parse_wrk(PRINTED + errors.format(7)).errors == 10
    with pytest.raises(LoadFailure, match="5003 errors in 124002 requests"):
        parse_wrk(PRINTED + errors.format(5000))


def test_no_answer_at_all_is_a_failure():
    with pytest.raises(LoadFailure, match="too few requests were answered"):
        parse_wrk("  0 requests in 1.00s, 0.00B read\nRequests/sec:      0.00\n")


def test_a_request_has_one_host_field():
    assert request("/", []).count(b"Host:") == 1
    assert request("/", ["Host: dev1.localhost"]).count(b"Host:") == 1
