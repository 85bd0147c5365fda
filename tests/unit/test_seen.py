"""The dedupe table and its file."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from engine.errors import LogUnusable
from engine.send import Origin
from engine.state.seen import Seen

A, B = Origin("t", 0, 1), Origin("t", 1, 1)
DAY_MS = 86_400_000


def flush(seen: Seen, now_ms: int = 0, oldest_open_ms: int | None = None) -> None:
    segment = seen.take(now_ms, oldest_open_ms)
    if segment is not None:
        seen.write(segment)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "seen.db"


def test_the_first_origin_keeps_the_id(path: Path) -> None:
    seen = Seen(path, DAY_MS, 100)
    key = seen.key_of("tenant", "channel", "id")
    assert seen.claim(key, A) is None
    assert seen.claim(key, A) is None, "a redelivery goes on"
    assert seen.claim(key, B) == A
    seen.close()


def test_tenant_channel_and_id_do_not_run_together(path: Path) -> None:
    seen = Seen(path, DAY_MS, 100)
    keys = {seen.key_of(*parts) for parts in [("a", "b", "c"), ("ab", "", "c"), ("a", "bc", ""), ("", "ab", "c")]}
    assert len(keys) == 4
    seen.close()


def test_what_was_written_outlives_the_process_and_what_was_not_does_not(path: Path) -> None:
    first = Seen(path, DAY_MS, 100)
    first.claim(b"k" * 16, A)
    flush(first)
    first.claim(b"l" * 16, A)
    first.close()
    again = Seen(path, DAY_MS, 100)
    assert again.claim(b"k" * 16, B) == A
    assert again.claim(b"l" * 16, B) is None
    again.close()


def test_a_place_that_was_only_named_is_known_once_it_is_used(path: Path) -> None:
    """A slice of records that claim nothing names their partition; what is claimed there later must find it again."""
    first = Seen(path, DAY_MS, 100)
    first.place(A.topic, A.partition)
    flush(first)
    first.claim(b"k" * 16, A)
    flush(first)
    first.close()
    again = Seen(path, DAY_MS, 100)
    assert again.claim(b"k" * 16, B) == A
    again.close()


def test_of_the_records_of_a_move_the_furthest_goes_on(path: Path) -> None:
    seen = Seen(path, DAY_MS, 100)
    key = b"m" * 16
    assert seen.claim_move(key, A, 1, True)
    assert seen.claim_move(key, A, 1, True), "a redelivery goes on"
    assert not seen.claim_move(key, B, 1, True), "the same move, made twice"
    assert not seen.claim_move(key, B, 2, False)
    assert seen.claim_move(key, B, 2, True), "what became of it"
    assert not seen.claim_move(key, A, 1, True), "has moved on"
    seen.free(key, A)
    assert not seen.claim_move(key, A, 1, True), "not its to give back"
    seen.free(key, B)
    assert seen.claim_move(key, A, 1, True)
    seen.close()


def test_a_freed_id_is_free_again_also_after_a_restart(path: Path) -> None:
    seen = Seen(path, DAY_MS, 100)
    seen.claim(b"k" * 16, A)
    flush(seen)
    seen.free(b"k" * 16, B)
    assert seen.claim(b"k" * 16, B) == A, "only its holder frees it"
    seen.free(b"k" * 16, A)
    flush(seen)
    seen.close()
    again = Seen(path, DAY_MS, 100)
    assert again.claim(b"k" * 16, B) is None
    again.close()


def test_ids_go_when_their_window_is_over(path: Path) -> None:
    seen = Seen(path, 1000, 100)
    seen.claim(b"k" * 16, A)
    flush(seen, now_ms=0)
    seen.claim(b"l" * 16, A)
    flush(seen, now_ms=1001)
    assert seen.claim(b"k" * 16, B) is None
    assert seen.claim(b"l" * 16, B) == A
    assert seen.shortened == 0
    seen.close()


def test_over_max_ids_the_oldest_go_and_are_counted_but_never_those_of_open_sends(path: Path) -> None:
    seen = Seen(path, DAY_MS, 1)
    for number in range(3):
        seen.claim(bytes([number]) * 16, A)
        flush(seen, now_ms=number, oldest_open_ms=0)
    assert len(seen) == 3
    flush(seen, now_ms=3, oldest_open_ms=2)
    assert len(seen) == 1
    assert seen.shortened == 2
    assert seen.claim(bytes([2]) * 16, B) == A
    seen.close()


def test_an_id_claimed_anew_does_not_go_with_its_old_segment(path: Path) -> None:
    seen = Seen(path, 1000, 100)
    seen.claim(b"k" * 16, A)
    flush(seen, now_ms=0)
    seen.free(b"k" * 16, A)
    seen.claim(b"k" * 16, B)
    flush(seen, now_ms=900)
    flush(seen, now_ms=1100)
    assert seen.claim(b"k" * 16, A) == B
    seen.close()


def test_a_foreign_or_newer_file_is_refused_by_name(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"not a database, not at all" * 100)
    with pytest.raises(LogUnusable, match=r"seen\.db"):
        Seen(path, DAY_MS, 100)
    path.unlink()
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE other (x)")
    db.close()
    with pytest.raises(LogUnusable, match="not a surgetank dedupe file"):
        Seen(path, DAY_MS, 100)
    path.unlink()
    Seen(path, DAY_MS, 100).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(LogUnusable, match="version 99"):
        Seen(path, DAY_MS, 100)
