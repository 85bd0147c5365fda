"""Records of calls: what is written is read, what is not one is told by name."""

from __future__ import annotations

import pytest

from engine.errors import Reject
from engine.send import Outcome
from engine.wire_attempt import MAX_DATA_BYTES, Attempt, End, Ended, Member, decode, encode_attempt, encode_end

CALL = Attempt(
    batch="0a", channel="partner", account="", at=5, content=b"\x01", ids=["a", "b", "c"], data=[],
    members=[Member("t.basic", 1, 9, [0, 7]), Member("t.basic", 2, 0, [3])],
)  # fmt: skip


def test_both_records_are_read_as_they_were_written() -> None:
    read = decode(*encode_attempt(CALL))
    assert isinstance(read, Attempt)
    assert [tuple(member) for member in read.members] == [("t.basic", 1, 9, [0, 7]), ("t.basic", 2, 0, [3])]
    assert (read.batch, read.ids, read.data, read.content) == ("0a", ["a", "b", "c"], [], b"\x01")
    end = End(batch="0a", platform_id="p", ended=[(Ended(Outcome.FAILED, "1", "why"), [2])], free=None)
    assert decode(*encode_end(end)) == end


def test_more_values_of_recipients_than_a_record_should_hold_are_left_out() -> None:
    large = Attempt(**{f: getattr(CALL, f) for f in CALL.__struct_fields__} | {"data": [{"k": "x" * MAX_DATA_BYTES}]})
    read = decode(*encode_attempt(large))
    assert isinstance(read, Attempt)
    assert read.data is None


@pytest.mark.parametrize("value", [b"", b"\xc1", b"{}", encode_attempt(CALL)[1][:-1], encode_end(End(
    batch="0a", platform_id="", ended=[], free=[]))[1]])  # fmt: skip
def test_what_is_no_attempt_is_refused(value: bytes) -> None:
    with pytest.raises(Reject):
        decode(b"0a", value)


def test_rows_without_a_place_are_refused() -> None:
    key, value = encode_attempt(Attempt(**{f: getattr(CALL, f) for f in CALL.__struct_fields__} | {"ids": ["a"]}))
    with pytest.raises(Reject, match="do not agree"):
        decode(key, value)
