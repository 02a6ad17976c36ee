"""What `make marks` makes of a report."""

from __future__ import annotations

from support.slow_marks import took_too_long

REPORT = """<testsuites><testsuite>
<testcase classname="tests.mux.test_session" name="test_quick" time="0.999" />
<testcase classname="tests.mux.test_session" name="test_slow[a.b-1]" time="1.2" />
</testsuite></testsuites>"""


def test_a_test_that_took_too_long_is_named_as_pytest_wants_it() -> None:
    assert took_too_long(REPORT) == ["tests/mux/test_session.py::test_slow[a.b-1]"]
