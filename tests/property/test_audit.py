"""The audit reads sends another way than the engine, and must come to the same recipients."""

from __future__ import annotations

from contextlib import suppress

from hypothesis import given
from hypothesis import strategies as st

from engine import audit_rows as rows
from engine.decode import decode
from engine.errors import Reject
from engine.send import Recipient
from tests.property.test_decode import nearly


@given(st.binary(max_size=200) | nearly())
def test_what_the_engine_can_read_the_audit_reads_alike(value: bytes) -> None:
    read = rows.sent(value, "basic", False, 9, None)
    assert rows.decode(rows.encode(read)) == read
    try:
        send = decode(value)
    except Reject:
        return
    assert read.to == [one.id if isinstance(one, Recipient) else one for one in send.to]
    assert (read.id, read.channel, read.tenant, read.campaign) == (send.id, send.channel, send.tenant, send.campaign)
    assert (read.not_before, read.due, read.deadline) == (send.not_before or 0, send.due, send.deadline)


@given(st.binary(max_size=200) | nearly())
def test_what_is_no_receipt_is_said_and_nothing_else(value: bytes) -> None:
    found: list[tuple[tuple[str, int, int], rows.Told]] = []
    with suppress(ValueError):
        found.extend(rows.told(value))
    for origin, told in found:
        assert len(rows.KEY.pack(0, *origin[1:])) == rows.KEY.size
        assert rows.decode(rows.encode(told)) == told
