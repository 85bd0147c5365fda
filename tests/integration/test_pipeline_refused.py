"""Sends that cannot go, or not to everybody: each costs only itself, and says why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine import wire
from engine.logs import Record
from engine.send import Origin, Outcome
from tests.integration.support import (
    Told,
    as_json,
    channel,
    configured,
    gateway,
    now_ms,
    record,
    registered,
    send,
    working,
)
from tests.integration.test_pipeline import ACCOUNTS

NOW = now_ms()
LATEST = 2**53 - 1  # of times on the wire
REFUSED: list[tuple[str, bytes | None]] = [
    ("empty", b""),
    ("empty", None),
    ("not_a_map", b"\x93\x01\x02\x03"),
    ("malformed", send("cut")[:-3]),
    ("malformed", b'{"id": "x"'),
    ("too_large", b"{" + b" " * (2 << 20)),
    ("id_missing", b"\x80"),
    ("to_empty", send("nobody", [])),
    ("channel_unknown", send("nowhere", channel="nowhere")),
    ("account_unknown", send("whose", account="zzz")),
    ("account_missing", send("which", channel="notice")),
    ("times_contradict", send("before", not_before=NOW + 1000, deadline=NOW + 999)),
    ("content_invalid", send("content", channel="notice", account="a", content={"type": "song"})),
    ("content_invalid", send("ref", content={"ref": 7})),
    ("content_other_channel", send("other", content={"ref": "theirs"})),
    ("field_missing", send("field", content={"ref": "ours"})),
    ("field_invalid", send("field", content={"ref": "ours", "data": {"name": "n", "x": 1}})),
    ("data_invalid", send("data", content={"ref": "ours", "data": 7})),
]


@pytest.mark.parametrize("tier", ["system", "basic"])
async def test_what_is_refused_is_kept_and_costs_nobody_else(tmp_path: Path, tier: str) -> None:
    async with gateway() as partner:
        config = configured(
            tmp_path,
            channel("partner", partner.url),
            channel("notice", partner.url.replace("/hook", ""), ACCOUNTS, "wecom.message"),
        )
        async with working(config) as worker:
            await worker.append(
                registered("theirs", {"type": "text", "text": "x"}, "notice"),
                registered("ours", {"text": "{name}"}, name={"required": True}),
            )
            traced = (("traceparent", b"00-ab-cd-01"),)
            await worker.append(record(tier, send("first", "f"), partition=0))
            await worker.append(*(record(tier, value, traced, partition=0) for _, value in REFUSED))
            await worker.append(record(tier, send("last", "l"), partition=0))
            told = await worker.judged()
            assert partner.ids == {"f": 1, "l": 1}
            topic = f"surgetank.{tier}"
            for offset, (reason, value) in enumerate(REFUSED, 1):
                origin = Origin(topic, 0, offset)
                ends = [end for (where, _), (end,) in told.outcomes().items() if where == origin]
                assert [(end.outcome, end.reason) for end in ends] == [(Outcome.DEAD, reason)]
                (dead,) = [dead for dead in told.dead if dead.said.origin == origin]
                assert (dead.value, dead.said.reason) == (value, reason)
                assert dead.headers[: len(traced)] == traced
                assert dead.said.positions is None
                assert dead.said.first_seen_ms >= NOW
            counted = {reason: count for (_, reason), count in worker.pipeline.counters.invalid.items()}
            assert counted == {name: sum(name == reason for reason, _ in REFUSED) for name, _ in REFUSED}


async def test_one_bad_recipient_costs_only_itself(tmp_path: Path) -> None:
    async with gateway() as partner, working(configured(tmp_path, channel("partner", partner.url))) as worker:
        many = {"id": "x", "data": {"a": "b" * 4000}}
        await worker.send("basic", send("i", ["a", "b\x07", "c", many, "a", "\u200b"], channel="partner"))
        told = await worker.judged()
        assert partner.ids == {"a": 1, "c": 1, "x": 1}
        ends = told.by_id()
        assert {end.outcome for end in ends["i", "a"]} == {Outcome.ACCEPTED, Outcome.DUPLICATE}
        assert {id: ends["i", id][0].reason for id in ("b\x07", "\u200b")} == {
            "b\x07": "recipient_forbidden",
            "\u200b": "recipient_forbidden",
        }
        assert sorted(p for dead in told.dead for p in dead.said.positions or []) == [1, 5]
        assert {dead.value for dead in told.dead} == set(told.records.values())


async def test_ten_thousand_bad_recipients_are_one_dead_letter(tmp_path: Path) -> None:
    """Not ten thousand copies of the record."""
    async with gateway() as partner, working(configured(tmp_path, channel("partner", partner.url))) as worker:
        await worker.send("basic", send("i", ["ok", *(f"\x07{n}" for n in range(9_999))]))
        told = await worker.judged()
        assert partner.ids == {"ok": 1}
        (dead,) = told.dead
        assert dead.said.positions == list(range(1, 10_000))


async def test_a_forbidden_recipient_of_a_platform_that_joins_ids(tmp_path: Path) -> None:
    async with gateway() as partner:
        notice = channel("notice", partner.url.replace("/hook", ""), ACCOUNTS, "wecom.message")
        async with working(configured(tmp_path, notice)) as worker:
            text = {"type": "text", "text": "x"}
            await worker.send("basic", send("i", ["@all", "a|b"], "notice", account="a", content=text))
            told = await worker.judged()
            reasons = {end.reason for ends in told.outcomes().values() for end in ends}
            assert reasons == {"recipient_forbidden"}
            assert not partner.calls


@pytest.mark.parametrize("keys", [{"deadline": NOW - 1}, {"deadline": 0}, {"due": 0, "deadline": 1}])
async def test_past_its_deadline_no_call_is_made(tmp_path: Path, keys: dict[str, Any]) -> None:
    async with gateway() as partner, working(configured(tmp_path, channel("partner", partner.url))) as worker:
        await worker.send("basic", send("late", ["a", "b"], **keys))
        told = await worker.judged()
        assert not partner.calls
        assert [told.end("late", id).outcome for id in "ab"] == [Outcome.EXPIRED] * 2


async def test_older_than_its_tier_allows(tmp_path: Path) -> None:
    tiers = '[tiers.basic]\npacing = "asap"\nlinger = "1ms"\nmax_age = "1h"\n'
    async with gateway() as partner:
        config = configured(tmp_path, channel("partner", partner.url), tiers=tiers)
        async with working(config) as worker:
            now = now_ms()  # not NOW: the tests before this one may have taken long
            stamps = {"old": now - 3_700_000, "young": now - 3_000_000}
            await worker.append(*(record("basic", send(id), timestamp_ms=at) for id, at in stamps.items()))
            # Not before a moment that is less than an hour ago: its age counts from there.
            await worker.append(record("basic", send("put off", not_before=now - 60_000), timestamp_ms=now - 3_700_000))
            told = await worker.judged()
            assert told.end("old").outcome is Outcome.EXPIRED
            assert told.end("young").outcome is told.end("put off").outcome is Outcome.ACCEPTED


async def test_not_before_is_kept(tmp_path: Path) -> None:
    async with gateway() as partner, working(configured(tmp_path, channel("partner", partner.url))) as worker:
        offset_ms = worker.clock.offset_ns() / 1e6
        at = now_ms() + 400
        await worker.send("system", send("later", "later", not_before=at), send("now", "now"))
        await worker.until(lambda: len(partner.calls) == 1, "what may go has gone")
        assert sum(worker.pipeline.core.stats()["scheduled"]) == 1
        await worker.judged()
        early, late = partner.calls
        assert (early.ids, late.ids) == (["now"], ["later"])
        assert late.at_ns / 1e6 - offset_ms >= at


@pytest.mark.parametrize(
    ("keys", "ends"),
    [
        ({"not_before": LATEST}, False),
        ({"due": LATEST}, True),
        ({"deadline": LATEST}, True),
        ({"not_before": LATEST, "due": LATEST, "deadline": LATEST}, False),
        ({"not_before": 1, "due": 1}, True),
    ],
)
async def test_times_far_away_stop_nobody(tmp_path: Path, keys: dict[str, Any], ends: bool) -> None:
    async with gateway() as partner, working(configured(tmp_path, channel("partner", partner.url))) as worker:
        await worker.send("basic", send("far", "far", **keys), send("near", "near"))
        await worker.all_ended(2 if ends else 1)
        assert partner.ids == ({"far": 1, "near": 1} if ends else {"near": 1})


@pytest.mark.parametrize("stamp", [0, 253_402_300_799_999])
async def test_times_of_records_far_away_stop_nobody(tmp_path: Path, stamp: int) -> None:
    async with gateway() as partner, working(configured(tmp_path, channel("partner", partner.url))) as worker:
        await worker.append(record("basic", send("far", "far"), timestamp_ms=stamp), record("basic", send("near")))
        await worker.append(record("basic", b"junk", timestamp_ms=stamp))
        await worker.judged()
        assert partner.ids["u"] == 1


MOVED = wire.headers_of(wire.History(Origin("surgetank.basic", 0, 99), 1, NOW, 2, None, "retry", ""))


def changed(name: str, value: bytes) -> tuple[tuple[str, bytes], ...]:
    return tuple((header, value if header == name else given) for header, given in MOVED)


@pytest.mark.parametrize(
    ("name", "value", "outcome"),
    [
        (wire.ORIGIN, b"nowhere", Outcome.DEAD),
        (wire.HOP, b"-1", Outcome.DEAD),
        (wire.FIRST_SEEN, b"x", Outcome.DEAD),
        (wire.FIRST_SEEN, b"9" * 18, Outcome.ACCEPTED),
        (wire.FIRST_SEEN, b"0", Outcome.EXPIRED),
        (wire.REASON, b"\xff", Outcome.ACCEPTED),
    ],
)
async def test_headers_of_ours_that_somebody_else_wrote(
    tmp_path: Path, name: str, value: bytes, outcome: Outcome
) -> None:
    async with gateway() as partner, working(configured(tmp_path, channel("partner", partner.url))) as worker:
        await worker.append(record("basic", send("odd", "odd"), changed(name, value)), record("basic", send("near")))
        await worker.all_ended(2)
        assert partner.ids["u"] == 1
        told = await worker.told()
        odd = [receipt.outcome for receipt in told.receipts for entry in receipt.sends if entry.id != "near"]
        assert odd == [outcome]


async def test_what_moved_is_told_by_its_origin(tmp_path: Path) -> None:
    async with gateway() as partner, working(configured(tmp_path, channel("partner", partner.url))) as worker:
        await worker.append(record("basic", send("moved"), MOVED), record("basic", b"junk", MOVED))
        await worker.all_ended(2)
        told = await worker.told()
        assert {tuple(entry.origin) for receipt in told.receipts for entry in receipt.sends} == {
            ("surgetank.basic", 0, 99)
        }
        (dead,) = told.dead
        assert (dead.said.origin, dead.said.first_seen_ms) == (("surgetank.basic", 0, 99), NOW)
        assert len(dead.headers) == len(MOVED)


# --- duplicates


async def first_and_second(tmp_path: Path, first: dict[str, Any], second: dict[str, Any]) -> tuple[Told, list[str]]:
    async with gateway() as partner, working(configured(tmp_path, channel("partner", partner.url))) as worker:
        await worker.append(record("basic", send("same", "one", **first), partition=0))
        await worker.all_ended(1)
        await worker.append(record("system", send("same", ["two", "three"], **second), partition=1))
        await worker.all_ended(3)
        return await worker.told(), [id for call in partner.calls for id in call.ids]


async def test_an_id_that_was_there_is_a_duplicate_of_the_first(tmp_path: Path) -> None:
    told, ids = await first_and_second(tmp_path, {}, {})
    assert ids == ["one"]
    for id in ("two", "three"):
        end = told.end("same", id)
        assert (end.outcome, end.reason) == (Outcome.DUPLICATE, "first seen at surgetank.basic:0:0")


async def test_another_tenants_id_is_another(tmp_path: Path) -> None:
    _, ids = await first_and_second(tmp_path, {"tenant": "t"}, {"tenant": "u"})
    assert ids == ["one", "two", "three"]


@pytest.mark.parametrize(
    "first",
    [{"deadline": NOW}, {"content": {"ref": "theirs"}}],
    ids=["expired", "dead"],
)
async def test_an_id_is_free_again_when_nobody_was_reached(tmp_path: Path, first: dict[str, Any]) -> None:
    async with gateway() as partner, working(configured(tmp_path, channel("partner", partner.url))) as worker:
        await worker.append(registered("theirs", {}, "notice"))
        await worker.send("basic", send("same", "one", **first))
        await worker.all_ended(1)
        await worker.send("basic", send("same", "two"))
        await worker.all_ended(2)
        assert [call.ids for call in partner.calls] == [["two"]]


@pytest.mark.parametrize("accepted", [True, False])
async def test_ids_outlive_the_process(tmp_path: Path, accepted: bool) -> None:
    async with gateway() as partner:
        config = configured(tmp_path, channel("partner", partner.url))
        keys: dict[str, Any] = {} if accepted else {"deadline": NOW}
        async with working(config) as worker:
            await worker.append(record("basic", send("same", "one", **keys), partition=2))
            await worker.judged()
        async with working(config) as worker:
            await worker.append(record("basic", send("same", "two"), partition=0))
            await worker.all_ended(1)
            told = await worker.told()
            end = told.end("same", "two")
            if accepted:
                assert (end.outcome, end.reason) == (Outcome.DUPLICATE, "first seen at surgetank.basic:2:0")
            else:
                assert end.outcome is Outcome.ACCEPTED


async def test_json_is_a_send_too(tmp_path: Path) -> None:
    async with gateway() as partner, working(configured(tmp_path, channel("partner", partner.url))) as worker:
        value = as_json(
            {"id": "j", "channel": "partner", "to": ["王"], "content": {"t": "早"}, "meta": {"n": [1, None]}}
        )
        await worker.append(Record("surgetank.basic", value))
        told = await worker.judged()
        (call,) = partner.calls
        assert (call.ids, call.content) == (["王"], {"t": "早"})
        assert bytes(told.receipts[0].sends[0].meta) == b"\x81\xa1n\x92\x01\xc0"
