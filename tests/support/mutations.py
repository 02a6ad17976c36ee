"""Any few bytes of an input changed, for tests of what reads it."""

from __future__ import annotations

from hypothesis import strategies as st

__all__ = ["MUTATIONS", "mutated"]

MUTATIONS = st.lists(
    st.tuples(
        st.integers(0, 4_000),
        st.sampled_from(["replace", "insert", "delete", "swap case"]),
        st.one_of(
            st.sampled_from(
                [b"\r", b"\n", b"\r\n", b" ", b"\t", b"\x00", b"\x0b", b":", b",", b"_"]
            ),
            st.binary(min_size=1, max_size=1),
        ),
    ),
    max_size=4,
)


def mutated(raw: bytes, mutations: list[tuple[int, str, bytes]]) -> bytes:
    for place, what, octets in mutations:
        at = place % (len(raw) + 1)
        if what == "insert":
            raw = raw[:at] + octets + raw[at:]
        else:
            new = {"replace": octets, "delete": b""}.get(what, raw[at : at + 1].swapcase())
            raw = raw[:at] + new + raw[at + 1 :]
    return raw
