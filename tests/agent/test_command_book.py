"""Which commands were executed, and which results are still to be acknowledged."""

from __future__ import annotations

import pytest

from tunnelmux.agent.command_book import CommandBook


@pytest.fixture
def book():
    return CommandBook(max_bytes=4000, max_remembered=5)


def result(size=10):
    return {"stdout": "x" * size, "stderr": "", "exitCode": 0}


def test_a_command_from_its_beginning_to_its_receipt(book):
    assert book.state("a") == "new"
    book.begin("a")
    assert (book.state("a"), book.running) == ("running", 1)
    book.finish("a", result())
    assert (book.state("a"), book.running) == ("finished", 0)
    assert book.unacknowledged == ["a"]
    book.acknowledge("a")
    assert book.unacknowledged == []
    assert book.result("a") == result()


def test_what_was_given_up_may_be_asked_for_again(book):
    book.begin("a")
    book.give_up("a")
    assert book.state("a") == "new"


def test_acknowledged_results_make_room_oldest_first_and_are_remembered(book):
    for name in "abc":
        book.begin(name)
        book.finish(name, result(1000))
        book.acknowledge(name)
    assert [book.state(name) for name in "abc"] == ["forgotten", "finished", "finished"]
    assert book.result("a") is None


def test_unacknowledged_results_are_never_dropped(book):
    for name in "abc":
        book.begin(name)
        book.finish(name, result(1400))
    assert book.unacknowledged == ["a", "b", "c"]
    assert book.is_full
    book.acknowledge("b")
    assert not book.is_full
    assert book.unacknowledged == ["a", "c"]


def test_many_small_results_fill_it_too(book):
    for number in range(6):
        book.begin(str(number))
        book.finish(str(number), {})
    assert book.is_full


def test_ids_are_remembered_up_to_the_limit(book):
    for number in range(10):
        book.begin(str(number))
        book.finish(str(number), {})
        book.acknowledge(str(number))
    assert [number for number in range(10) if book.state(str(number)) == "new"] == [0, 1, 2, 3, 4]


def test_a_receipt_for_nothing_means_nothing(book):
    book.acknowledge("nobody")
    assert book.unacknowledged == []
