"""How often a recipient gets a message: never too often, however small the memory; exactly, where there is enough."""

from __future__ import annotations

from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ext.frequency import SET_BYTES, Frequency
from tests.property.windows import most_in_a_window

S = 1_000_000_000
EPOCH = 1_790_000_000 * S
KEY = b"k" * 16
TICK = 60 * S // 4096 + 1

steps = st.lists(
    st.tuples(
        st.integers(0, 20 * S),  # after the one before
        st.integers(0, 30),  # to whom
        st.integers(0, 10 * S),  # on the way to its answer
        st.floats(0, 1),  # where on it the platform counts
        st.booleans(),  # it is not taken: given back
    ),
    max_size=120,
)


@settings(max_examples=300, deadline=None, print_blob=True)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=2), st.sampled_from([1, 2, 64]), steps)
def test_nobody_ever_gets_one_too_many(
    numbers: list[int], sets: int, drawn: list[tuple[int, int, int, float, bool]]
) -> None:
    rules = [(number, per * S) for number, per in zip(numbers, (60, 300), strict=False)]
    frequency = Frequency([(bytearray(sets * SET_BYTES), *rule) for rule in rules])
    longest, now = 10 * S, EPOCH
    arrived: dict[str, list[tuple[int, int]]] = defaultdict(list)
    under_way: list[tuple[int, int, str, bool]] = []
    for wait, who, way, share, back in drawn:
        now += wait
        for answered, stamp, name, returned in sorted(under_way):
            if answered > now:
                continue
            under_way.remove((answered, stamp, name, returned))
            if returned:
                frequency.give_back(KEY, [name], now, stamp)
            else:
                frequency.move(KEY, [name], now, stamp, answered)
        name = f"recipient {who}"
        if not frequency.take(KEY, [name], now, now + longest):
            under_way.append((now + way, now + longest, name, back))
            if not back:
                arrived[name].append((now + int(way * share), 1))
    for log in arrived.values():
        for number, per in rules:
            assert most_in_a_window(log, per) <= number


@settings(max_examples=200, deadline=None, print_blob=True)
@given(st.integers(1, 5), st.lists(st.tuples(st.integers(0, 30 * S), st.integers(0, 40)), max_size=100))
def test_with_memory_to_spare_up_to_five_are_told_exactly(number: int, drawn: list[tuple[int, int]]) -> None:
    frequency = Frequency([(bytearray(4096 * SET_BYTES), number, 60 * S)])
    now, got = EPOCH, defaultdict[str, list[int]](list)
    for wait, who in drawn:
        now += wait
        name = f"recipient {who}"
        surely = [at for at in got[name] if at > now - 60 * S]
        maybe = [at for at in got[name] if at > now - 60 * S - 2 * TICK]
        refused = frequency.take(KEY, [name], now, now)
        if refused:
            assert len(maybe) >= number
            assert 0 < refused[0][0] - (sorted(maybe)[-number] + 60 * S) <= 2 * TICK
        else:
            assert len(surely) < number
            got[name].append(now)


def test_a_steady_stream_gets_most_of_its_number() -> None:
    frequency = Frequency([(bytearray(SET_BYTES), 30, 60 * S)])
    got = 0
    for second in range(1_200):
        got += not frequency.take(KEY, ["one"], EPOCH + second * S, EPOCH + second * S)
    assert got >= 20 * 30 * 0.8


def test_who_waits_until_it_said_gets_the_next() -> None:
    frequency = Frequency([(bytearray(SET_BYTES), 2, 60 * S), (bytearray(SET_BYTES), 3, 3_600 * S)])
    for _ in range(2):
        assert frequency.take(KEY, ["one"], EPOCH, EPOCH) == {}
    until, rule = frequency.take(KEY, ["two", "one"], EPOCH + S, EPOCH + S)[1]
    assert rule == 0
    assert EPOCH + 60 * S < until <= EPOCH + 60 * S + 2 * TICK
    assert frequency.take(KEY, ["one"], until - TICK, until) == {0: (until, 0)}
    assert frequency.take(KEY, ["one"], until, until) == {}
    last, rule = frequency.take(KEY, ["one"], until + 60 * S, until)[0]
    assert last > EPOCH + 3_600 * S
    assert rule == 1


def test_who_goes_anyway_counts() -> None:
    frequency = Frequency([(bytearray(64 * SET_BYTES), 2, 60 * S)])
    for later in range(3):
        assert frequency.take(KEY, ["one"], EPOCH, EPOCH + later * S, anyway=True) == {}
    assert frequency.take(KEY, ["one"], EPOCH + 60 * S, EPOCH + 60 * S) != {}
    assert frequency.take(KEY, ["one"], EPOCH + 62 * S, EPOCH + 62 * S) == {}


def test_accounts_count_apart() -> None:
    frequency = Frequency([(bytearray(64 * SET_BYTES), 1, 60 * S)])
    assert frequency.take(KEY, ["one"], EPOCH, EPOCH) == {}
    assert frequency.take(b"l" * 16, ["one"], EPOCH, EPOCH) == {}
    assert frequency.take(KEY, ["one"], EPOCH, EPOCH) != {}


def test_most_recipients_have_room_of_their_own_at_half_load() -> None:
    sets = 1024
    frequency = Frequency([(bytearray(sets * SET_BYTES), 1, 60 * S)])
    names = [f"recipient {i}" for i in range(sets * 7)]
    half = len(names) // 2
    first = frequency.take(KEY, names[:half], EPOCH, EPOCH)
    assert len(first) / half < 0.02, "sent nothing before, and refused"
    assert 0 < frequency.full_share(EPOCH) < 0.1
    assert frequency.full_share(EPOCH + 62 * S) == 0


@pytest.mark.parametrize(
    ("tables", "says"),
    [
        ([(bytearray(10), 1, S)], "memory"),
        ([(bytearray(SET_BYTES), 0, S)], "1..60000"),
        ([(bytearray(256), 1, 1)] * 9, "8"),
    ],
)
def test_what_it_cannot_be_made_of(tables: list[tuple[bytearray, int, int]], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Frequency(tables)


def test_letters_alone_make_no_other_recipient_where_case_does_not_matter() -> None:
    rules = [(1, 60 * S)]
    strict = Frequency([(bytearray(64 * SET_BYTES), *rule) for rule in rules])
    caseless = Frequency([(bytearray(64 * SET_BYTES), *rule) for rule in rules], caseless=True)
    for frequency, refused in ((strict, {}), (caseless, {1})):
        assert set(frequency.take(KEY, ["LiSi-É", "lisi-É", "lisi-é", "x" * 128], EPOCH, EPOCH)) == set(refused)
    with pytest.raises(ValueError, match="129 bytes"):
        caseless.take(KEY, ["x" * 129], EPOCH, EPOCH)


def test_a_tenth_is_for_urgent_ones() -> None:
    frequency = Frequency([(bytearray(64 * SET_BYTES), 20, 60 * S)])
    got = [not frequency.take(KEY, ["one"], EPOCH, EPOCH, urgent) for urgent in [False] * 20 + [True] * 3 + [False]]
    assert got == [True] * 18 + [False] * 2 + [True, True, False, False]
