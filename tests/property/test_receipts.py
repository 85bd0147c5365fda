"""What compiled code tells of ended recipients, against the same told in Python."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import wire
from engine.commit import Ledger
from engine.drivers import Prepared
from engine.logs import Partition
from engine.open_sends import OpenSend, OpenSends
from engine.send import Origin, Outcome, Tier
from engine.wire import ReceiptFacts, ReceiptSend
from ext.columns import Batch, Columns, batches_of
from ext.histogram import Histogram
from ext.receipts import Told, tell
from ext.schedule import NEVER, Core

LEDGERS = [Ledger(Partition("surgetank.basic", number), 0, 1) for number in range(2)]
LIMIT = 700
SENDS = st.lists(
    st.tuples(
        st.sampled_from(["i", "王" * 40, "o-1", "x" * 128]),
        st.integers(0, 2**40),  # offset
        st.lists(st.sampled_from(["u", "v" * 128, "王五", "w"]), min_size=1, max_size=4, unique=True),
        st.sampled_from([None, 1, "m" * 300, {"k": [1]}]),
        st.integers(0, 1),  # partition
        st.integers(0, 200),  # attempt
    ),
    min_size=1,
    max_size=12,
    unique_by=lambda send: send[1],  # no two sends have one origin
)
TEXT = st.one_of(st.text(st.characters(codec="utf-8"), max_size=40), st.sampled_from(["x" * 31, "王" * 85, "y" * 512]))
NAME = st.one_of(TEXT, st.none())
FACTS = st.builds(
    ReceiptFacts,
    tier=st.just("basic"),
    channel=NAME,
    account=NAME,
    tenant=NAME,
    campaign=NAME,
    outcome=st.sampled_from(Outcome),
    code=TEXT,
    reason=TEXT,
    batch=TEXT,
    platform_id=TEXT,
    at=st.sampled_from([0, 127, 128, 255, 256, 65_535, 65_536, 2**32 - 1, 2**32, 1_790_000_000_000, 2**53]),
)
PLAIN = ReceiptFacts(
    tier="basic", channel="c", account="a", tenant="t", campaign=None, outcome=Outcome.ACCEPTED, code="0", reason="",
    batch="b", platform_id="", at=3_000,
)  # fmt: skip


def told_of(
    batch: Batch, rows: Sequence[int], keeps: bool, end_to_end: Histogram, limit: int, facts: ReceiptFacts = PLAIN
) -> tuple[Told, list[bytes]]:
    """What was done; and the sends of its records, which begin with the facts as Python writes them."""
    who = rows if isinstance(rows, range) else list(rows)
    head = wire.receipt_head(facts)
    told = tell(batch, who, keeps, head, facts.batch, facts.platform_id, facts.at, end_to_end, limit)
    (shared,) = wire.encode_receipts(facts, [b""])
    assert all(record.startswith(shared) for record in told.records)
    return told, [record.removeprefix(shared) for record in told.records]


def batches(sends: list[tuple[str, int, list[str], object, int, int]]) -> list[Batch]:
    core, opens, columns = Core(), OpenSends(), Columns()
    core.add_account(core.add_channel(1000, 0, 5))
    for id, offset, to, meta, partition, attempt in sends:
        flow = opens.flow(Tier.BASIC, "c", "a", 0, "t", None)
        content = opens.content_by_raw("c", b"r") or opens.content("c", b"r", Prepared(b"k", b"b"))
        value = msgpack.packb({"id": id, "channel": "c", "to": to, "content": {}})
        send = OpenSend(
            id, Origin("surgetank.basic", partition, offset), flow, content, LEDGERS[partition], offset, b"k" * 16,
            len(to), len(to), 1_000, 5_000_000, 0, NEVER, 0, msgpack.packb(meta), None, value, (), {},
        )  # fmt: skip
        columns.add(opens.add(send), send, attempt, 0, range(len(to)), [name.encode() for name in to])
    columns.push(core, 0)
    return batches_of(core.pop_batches(20_000_000, 1000), opens, 20_000_000)


def in_python(batch: Batch, rows: Sequence[int]) -> list[ReceiptSend]:
    found: dict[int, list[int]] = defaultdict(list)
    for row in rows:
        found[batch.handles[row]].append(row)
    told = []
    for handle, mine in found.items():
        send = batch.table[handle]
        to = None if len(mine) == send.total else [batch.ids[row] for row in mine]
        meta = msgspec.Raw(send.meta)
        told.append(ReceiptSend(send.id, send.origin, to, batch.attempts[mine[0]] + 1, 15, meta))
    return told


def joined(parts: list[bytes]) -> list[ReceiptSend]:
    """Entries cut in two, one again."""
    told: list[ReceiptSend] = []
    for part in parts:
        assert len(part) <= LIMIT + 700, "a part holds more than one entry only within the limit"
        for entry in msgspec.msgpack.decode(part, type=list[ReceiptSend]):
            last = told[-1] if told else None
            if (
                last
                and last.to
                and entry.to
                and (last.id, last.origin, last.meta) == (entry.id, entry.origin, entry.meta)
            ):
                told[-1] = msgspec.structs.replace(last, to=[*last.to, *entry.to])
            else:
                told.append(entry)
    return told


@given(SENDS, st.data())
def test_it_tells_what_python_would_have_told(
    sends: list[tuple[str, int, list[str], object, int, int]], data: st.DataObject
) -> None:
    end_to_end, ended = Histogram([10**9]), 0
    left = {number: len(to) for number, (_, _, to, *_) in enumerate(sends)}
    for batch in batches(sends):
        every = range(len(batch))
        some = sorted(data.draw(st.sets(st.sampled_from(every), min_size=1)))
        rest = [row for row in every if row not in some]
        for rows in [every] if data.draw(st.booleans()) else [some, rest]:
            if not len(rows):
                continue
            keeps = data.draw(st.booleans())
            expected, handles = in_python(batch, rows), [batch.handles[row] for row in rows]
            told, parts = told_of(batch, rows, keeps, end_to_end, LIMIT)
            assert [msgspec.structs.asdict(send) for send in joined(parts)] == [
                msgspec.structs.asdict(send) for send in expected
            ]
            ended += len(rows)
            assert told.count == len(rows)
            done = []
            for handle in handles:
                left[handle] -= 1
                if not left[handle]:
                    done.append((sends[handle][4], sends[handle][1]))
                    with pytest.raises(KeyError):
                        batch.table[handle]
            completed = [
                (ledger.partition.number, offset) for ledger, offsets in told.completions for offset in offsets
            ]
            assert completed == done
            assert not told.unclaimed or not keeps
    assert not any(left.values())
    counts, total = end_to_end.snapshot()
    assert (counts[-1], total) == (ended, ended * 2_000 * 10**6)


@given(FACTS)
def test_what_a_record_says_of_all_its_sends_is_what_python_writes(facts: ReceiptFacts) -> None:
    (batch,) = batches([("i", 1, ["u", "w"], None, 0, 0)])
    told, (part,) = told_of(batch, range(2), True, Histogram([1]), LIMIT, facts)
    (send,) = joined([part])
    assert told.records == wire.encode_receipts(facts, [part])
    assert wire.decode_receipt(told.records[0]).sends == [send]


def test_a_name_too_long_for_a_record_is_refused() -> None:
    (batch,) = batches([("i", 1, ["u"], None, 0, 0)])
    with pytest.raises(ValueError, match="65536 bytes"):
        told_of(batch, range(1), True, Histogram([1]), LIMIT, msgspec.structs.replace(PLAIN, batch="x" * 65_536))


def test_a_send_of_ten_thousand_is_told_in_parts_of_the_limit() -> None:
    to = [f"{n:0128}" for n in range(1000)]
    core, opens, columns = Core(), OpenSends(), Columns()
    core.add_account(core.add_channel(8, 0, 2000))
    flow, content = opens.flow(Tier.BASIC, "c", "a", 0, "t", None), opens.content("c", b"r", Prepared(b"k", b"b"))
    send = OpenSend(
        "i", Origin("t", 0, 0), flow, content, LEDGERS[0], 0, b"k" * 16, 1001, 1001, 0, 0, 0, NEVER, 0, b"\xc0", None,
        b"", (), {},
    )  # fmt: skip
    columns.add(opens.add(send), send, 0, 0, range(1000), [name.encode() for name in to])
    columns.push(core, 0)
    (batch,) = batches_of(core.pop_batches(1, 5000), opens, 1)
    told, parts = told_of(batch, range(1000), True, Histogram([1]), 20_000)
    assert max(map(len, parts)) <= 20_000
    assert [name for part in parts for entry in msgpack.unpackb(part) for name in entry[2]] == to
    assert (told.completions, send.left, send.taken) == ([], 1, True)
