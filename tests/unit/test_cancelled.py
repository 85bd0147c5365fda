"""Which sends the cancel commands in force cover."""

from __future__ import annotations

from engine.cancelled import Cancelled, Standing


def test_covers_what_was_first_seen_by_then_until_it_expires() -> None:
    cancelled = Cancelled()
    cancelled.add("k", Standing(None, 100, 1000), 100)
    assert cancelled.covers("k", "t", 100, 999)
    assert not cancelled.covers("k", "t", 101, 999)
    assert not cancelled.covers("k", "t", 100, 1000)
    assert not cancelled.covers("l", "t", 100, 999)
    assert "k" in cancelled
    assert "l" not in cancelled
    assert None not in cancelled


def test_one_tenant_or_all() -> None:
    cancelled = Cancelled()
    cancelled.add("k", Standing("t", 100, 1000), 0)
    assert cancelled.covers("k", "t", 50, 0)
    assert not cancelled.covers("k", "u", 50, 0)
    cancelled.add("k", Standing(None, 40, 1000), 0)
    assert cancelled.covers("k", "u", 40, 0)
    assert not cancelled.covers("k", "u", 50, 0)


def test_expired_commands_are_forgotten() -> None:
    cancelled = Cancelled()
    for n in range(1000):
        cancelled.add(f"k{n % 7}", Standing(None, n, n + 10), n)
        assert len(cancelled) <= 10
    cancelled.add("other", Standing(None, 2000, 3000), 2000)
    assert len(cancelled) == 1
    assert "k0" not in cancelled
