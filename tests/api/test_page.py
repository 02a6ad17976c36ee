"""docs/api.md says what the server says of itself."""

from __future__ import annotations

from support.api_page import PAGE, api_page


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text("utf-8") == api_page(), (
        "docs/api.md is old: run `python -m support.api_page` in tests/"
    )
