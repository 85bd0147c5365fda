"""Fuzzes everything that reads bytes from the log: ``python tests/fuzz_decode.py -runs=200000 -seed=1 CORPUS_DIR``.

A coverage-guided atheris target (the guide sees the Python, not the compiled scanner), run bounded by
tests/integration/test_fuzz.py and longer by hand. An empty corpus directory is filled with valid and nearly valid
records first. Whatever the bytes: decode ends with a send, or with Reject and a reason of REASONS; what it let pass
can be read on by everybody else; every 256th input is held to the memory bound.
"""

from __future__ import annotations

import json
import sys
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import atheris
import msgpack
import msgspec

with atheris.instrument_imports(include=["engine"]):
    from engine import wire, wire_control
    from engine.decode import decode, decode_map
    from engine.errors import Reject
    from engine.send import REASONS, Origin, Outcome, Recipient, Send, Tier

from engine.cancelled import Cancelled
from engine.commit import Ledger
from engine.drivers import Prepared
from engine.logs import Partition
from ext.columns import Columns
from ext.intake import Taker
from ext.schedule import Core
from ext.seen import SeenTable
from ext.sends import Content, Flow, SendTable

TIMES_SIZE, BESIDES_BYTES = 20, 16 * 1024
MEASURE_EVERY = 256
SMALL: dict[str, Any] = {"id": "o", "channel": "c", "to": ["u"], "content": {}}
PLAIN: dict[str, Any] = {
    **SMALL, "to": ["u", "v.1", "w-2"], "content": {"k": 1}, "account": "a", "tenant": "t", "campaign": "",
    "not_before": 1, "due": 2, "deadline": 2**40, "meta": {"l": [1]}, "other": [],
}  # fmt: skip
inputs = 0


def one_input(data: bytes) -> None:
    """Any bytes are a send; and, by their number, one of the other things that are read."""
    global inputs
    inputs += 1
    if inputs % MEASURE_EVERY == 0:
        within_memory(data)
    send = rejected_or(decode, data)
    if send is not None:
        readable(send)
    TAKER.compare(data, send)
    rejected_or(READERS[len(data) % len(READERS)], data)


class Taken(SendTable):
    """The compiled intake, which has met every flow and content of the seeds and forgets none."""

    def __init__(self) -> None:
        self.columns = Columns()
        self.taker = Taker(
            self,
            SeenTable(b"s" * 16),
            self.columns,
            Cancelled(),
            meters=None,
            gates={},
            due_after_ms=1,
            max_age_ms=10**9,
            linger_ns=0,
            horizon_ns=2**62,
        )
        self.core = Core()
        self.core.add_account(self.core.add_channel(2**20, 0, 10_000))
        for seed in (SMALL, PLAIN):
            flow = Flow(Tier.BASIC, "c", "a", "t", None)
            self.taker.learn(msgpack.packb(seed), flow)
            self.by_raw[b"c\0" + msgpack.packb(seed["content"])] = Content(0, ("c", b""), Prepared(b"", b""))

    def compare(self, data: bytes, send: Send | None) -> None:
        """What it takes is a send, with that id and those recipients."""
        ledger = Ledger(Partition("t", 0), 0, 1)
        if not self.taker.take([data], [None], [()], [0], [0], 2, ledger, "t", 0, 0, 1, 10**12, 0, 0):
            return
        (handle,) = self
        assert send is not None
        opened = self[handle]
        assert (opened.id, opened.total, opened.meta) == (send.id, len(send.to), bytes(send.meta))
        self.columns.push(self.core, 1)
        popped = self.core.pop_batches(2**62, 2**20)
        ended = self.core.reap(2**62, 2**20)
        if popped.items:
            assert popped.ids == "".join(map(str, send.to)).encode()
        assert popped.items + ended.items == opened.total
        self.remove(handle)

    def forget_flow(self, flow: Flow) -> None:
        """Kept."""

    def forget_content(self, content: Content) -> None:
        """Kept."""


def header(name: str) -> Callable[[bytes], object]:
    """Reads the bytes as the value of one header of ours."""
    return lambda data: wire.history(((wire.ORIGIN, b"t:0:1"), (name, data)))


READERS: list[Callable[[bytes], object]] = [
    decode_map,
    wire.decode_registered,
    wire_control.decode_command,
    wire_control.decode_reply,
    wire.decode_receipt,
    wire.content_id,
    *(header(name) for name in sorted(wire.OURS)),
]


def rejected_or(read: Callable[[Any], Any], data: Any) -> Any:
    try:
        return read(data)
    except Reject as reject:
        if reject.reason not in REASONS or reject.detail == "larger than allowed":
            raise AssertionError(f"unexplained: {reject}") from reject
        return None


def readable(send: Send) -> None:
    """What passed does not fail later, but for numbers and bytes that a map must not hold."""
    msgspec.msgpack.decode(send.meta)
    msgpack.unpackb(bytes(send.meta))
    rejected_or(decode_map, send.content)
    for recipient in send.to:
        if isinstance(recipient, Recipient):
            rejected_or(decode_map, recipient.data)
    facts = wire.ReceiptFacts(
        tier="basic",
        channel=send.channel,
        account=send.account,
        tenant=send.tenant,
        campaign=send.campaign,
        outcome=Outcome.ACCEPTED,
        code="",
        reason="",
        batch="",
        platform_id="",
        at=0,
    )
    to = [r.id if isinstance(r, Recipient) else r for r in send.to]
    entry = wire.ReceiptSend(send.id, Origin("t", 0, 0), to, 1, 0, send.meta)
    for value in wire.encode_receipts(facts, wire.receipt_parts([entry])):
        wire.decode_receipt(value)


def within_memory(data: bytes) -> None:
    """The peak of one decode, as Python counts its allocations."""
    tracemalloc.start()
    with suppress(Reject):
        decode(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    if peak > TIMES_SIZE * len(data) + BESIDES_BYTES:
        raise AssertionError(f"{peak:,} bytes allocated for a record of {len(data):,}")


def seeds() -> list[bytes]:
    """Sends that use every key, in both encodings, and a record of every other kind."""
    full = {
        **SMALL, "v": 1, "to": ["u", {"id": "é", "data": {"k": 1.5}}], "content": {"text": "\n\U0001f600"},
        "account": "a", "tenant": "t", "campaign": "", "not_before": 1, "due": 2, "deadline": 3,
        "meta": {"l": [None, True, -1, 2**40, {}]}, "other": [],
    }  # fmt: skip
    command = {"v": 1, "id": "1", "command": "cancel", "campaign": "c", "at": 1, "expires": 2}
    reply = {"v": 1, "reply_to": "1", "worker": "w", "recipients": 3, "at": 1}
    registered = {"channel": "c", "content": {"a": 1}, "fields": {"f": {"required": True, "max_chars": 20}}}
    maps = [SMALL, PLAIN, full, command, reply, registered]
    deep = b"\x81\xa4meta" + b"\x91" * 70
    return [encode(m) for m in maps for encode in (msgpack.packb, lambda m: json.dumps(m).encode())] + [deep]


TAKER = Taken()


def main() -> None:
    """Hand over to libFuzzer, which ends the process."""
    for argument in sys.argv[1:]:
        corpus = Path(argument)
        if not argument.startswith("-") and corpus.is_dir() and not any(corpus.iterdir()):
            for number, seed in enumerate(seeds()):
                (corpus / f"seed-{number:02}").write_bytes(seed)
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
