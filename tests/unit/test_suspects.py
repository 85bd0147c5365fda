"""Which record killed a worker: what is remembered from crash to crash, and what a dead process leaves in its file."""

from __future__ import annotations

import signal
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.logs import Chunk
from engine.send import Tier
from engine.state.in_hand import SLICE, Hands, read_book, take_left, write_book
from engine.suspects import MOST, Book, InHand, Killer, Place, after, is_crash

SEGV, KILL = -signal.SIGSEGV, -signal.SIGKILL


def places(*offsets: int, topic: str = "t") -> tuple[Place, ...]:
    return tuple(Place(topic, 0, offset) for offset in offsets)


def killers(*offsets: int) -> tuple[Killer, ...]:
    return tuple(Killer(place, 1_000 + place.offset) for place in places(*offsets))


def left(first: int, last: int | None = None) -> list[InHand]:
    return [InHand(Place("t", 0, first), first if last is None else last, 1_000 + first)]


def chunk(*offsets: int, topic: str = "t", partition: int = 0) -> Chunk:
    count = len(offsets)
    return Chunk(
        topic, partition, 1, list(offsets), [1_000 + offset for offset in offsets], [None] * count, [b"v"] * count,
        [()] * count,
    )  # fmt: skip


def test_two_crashes_make_suspects_and_the_third_alone_a_killer() -> None:
    book = after(Book(), SEGV, left(1, 3))
    assert not book.suspects
    book = after(book, SEGV, left(1, 3))
    assert book.suspects == places(1, 2, 3)
    book = after(book, SEGV, left(2))
    assert book.killers == killers(2)
    assert book.suspects == places(1, 3), "these are still taken alone"
    assert after(book, SEGV, left(3)).killers == killers(2, 3), "one crash for each further killer"


def test_a_record_that_is_always_alone_needs_three_crashes_too() -> None:
    book = Book()
    for crash in range(3):
        assert not book.killers, crash
        book = after(book, SEGV, left(7))
    assert book.killers == killers(7)


@pytest.mark.parametrize("code", [KILL, -signal.SIGTERM, 0])
def test_an_end_from_outside_says_nothing_of_records(code: int) -> None:
    book = after(after(Book(), SEGV, left(1)), SEGV, left(1))
    assert after(book, code, left(1)) == book


@pytest.mark.parametrize("code", [SEGV, -signal.SIGABRT, -signal.SIGBUS, -signal.SIGILL, -signal.SIGFPE, 1])
def test_what_a_process_does_to_itself_is_a_crash(code: int) -> None:
    assert is_crash(code)


def test_a_crash_with_nothing_in_hand_says_nothing() -> None:
    book = after(Book(), SEGV, left(1))
    assert after(book, SEGV, []) == book


crashes = st.lists(
    st.tuples(
        st.sampled_from([SEGV, KILL, 0, 1]),
        st.just([]) | st.builds(lambda first, more: left(first, first + more), st.integers(0, 6), st.integers(0, 2)),
    ),
    max_size=30,
)


@given(crashes)
def test_nobody_is_a_killer_who_was_not_in_hand_at_three_crashes(lives: list[tuple[int, list[InHand]]]) -> None:
    book = Book()
    for code, held in lives:
        book = after(book, code, held)
    for place, _ in book.killers:
        times = [held[0].places for code, held in lives if is_crash(code) and held and place in held[0].places]
        assert len(times) >= 3
        assert [place] in times[2:]
    assert not {place for place, _ in book.killers} & set(book.suspects)


def test_killers_in_two_tiers_that_take_turns_are_both_found() -> None:
    book = Book()
    for held in (left(1, 2), left(8, 9), left(1, 2), left(8, 9), left(1), left(8)):
        book = after(book, SEGV, held)
    assert book.killers == killers(1, 8)


def test_what_is_remembered_is_bounded() -> None:
    book = Book()
    for first in range(0, 3 * MOST, SLICE):
        for _ in range(2):
            book = after(book, SEGV, left(first, first + SLICE - 1))
    assert len(book.once) == len(book.suspects) == MOST
    assert book.suspects[-1].offset == 3 * MOST - 1, "the latest"


# --- the file


def test_a_process_that_dies_leaves_what_it_had_in_hand(tmp_path: Path) -> None:
    held = Hands(tmp_path)
    held.hold(Tier.BASIC, chunk(*range(50, 50 + SLICE), topic="b" * 249, partition=3))
    held.hold(Tier.SYSTEM, chunk(9, topic="s"))
    held.hold(Tier.TEMPLATE, chunk(1, 2))
    held.release(Tier.TEMPLATE)
    basic = InHand(Place("b" * 249, 3, 50), 49 + SLICE, 1_050)
    assert take_left(tmp_path) == [InHand(Place("s", 0, 9), 9, 1_009), basic]
    assert len(basic.places) == SLICE
    assert take_left(tmp_path) == [], "only once: the next life may die before it opens the file"


def test_a_record_at_the_same_place_of_a_new_topic_is_another_one(tmp_path: Path) -> None:
    write_book(tmp_path, Book(killers=killers(7)))
    held = Hands(tmp_path)
    assert held.is_killer(chunk(7))
    assert not held.is_killer(chunk(7)._replace(timestamps_ms=[9_999]))


def test_the_next_life_begins_with_empty_hands(tmp_path: Path) -> None:
    Hands(tmp_path).hold(Tier.BASIC, chunk(1))
    Hands(tmp_path)
    assert take_left(tmp_path) == []


def test_without_a_file_nothing_is_known(tmp_path: Path) -> None:
    assert (take_left(tmp_path), read_book(tmp_path)) == ([], Book())
    (tmp_path / "suspects.json").write_text("{")
    assert read_book(tmp_path) == Book()


def test_a_book_outlives_the_process(tmp_path: Path) -> None:
    book = Book(places(4), places(1, 2), killers(3))
    write_book(tmp_path, book)
    assert read_book(tmp_path) == book


def test_slices_are_as_large_as_is_said_then(tmp_path: Path) -> None:
    sizes = iter([SLICE, 3, 1, 50, SLICE])
    slices = list(Hands(tmp_path).slices(chunk(*range(SLICE + 100)), lambda: next(sizes)))
    cuts = [0, SLICE, SLICE + 3, SLICE + 4, SLICE + 54, SLICE + 100]
    assert slices == [*pairwise(cuts)]


@given(count=st.integers(1, 1_200), suspects=st.sets(st.integers(0, 1_300)), deadly=st.sets(st.integers(0, 1_300)))
def test_suspects_are_taken_alone_and_nothing_is_left_out(
    tmp_path_factory: pytest.TempPathFactory, count: int, suspects: set[int], deadly: set[int]
) -> None:
    folder = tmp_path_factory.mktemp("h")
    write_book(folder, Book((), places(*suspects), killers(*deadly)))
    held, whole = Hands(folder), chunk(*range(count))
    slices = list(held.slices(whole))
    assert [at for start, end in slices for at in range(start, end)] == list(range(count))
    for start, end in slices:
        part = chunk(*range(start, end))
        assert end - start == 1 or (end - start <= SLICE and not (suspects | deadly) & set(range(start, end)))
        assert held.is_killer(part) == (start in deadly and end - start == 1)
    if not suspects | deadly:
        assert len(slices) == -(-count // SLICE), "no slice is smaller than need be"
