"""What is mapped into memory has its place on the disk: one that becomes full ends no process (SIGBUS)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from engine.counters import Counters
from engine.state.flight import Flight
from engine.state.frequency import FrequencyFile
from engine.state.in_hand import Hands, take_left

Mapped = FrequencyFile | Flight | Hands
RULES = [(1, 60_000_000_000), (2, 3_600_000_000_000)]


def frequencies(path: Path) -> FrequencyFile:
    return FrequencyFile(path, RULES, 1 << 20)


def flight(path: Path) -> Flight:
    return Flight(path, Counters())


def hands(path: Path) -> Hands:
    """Also after the supervisor has looked at it."""
    made = Hands(path.parent)
    take_left(path.parent)
    return made


@pytest.mark.parametrize("opened", [frequencies, flight, hands])
def test_it_has_its_place_from_the_start(tmp_path: Path, opened: Callable[[Path], Mapped]) -> None:
    for _ in range(2):
        opened(tmp_path / "file").close()
        (path,) = tmp_path.iterdir()
        held = path.stat()
        assert held.st_size > 0
        assert held.st_blocks * 512 >= held.st_size


@pytest.mark.parametrize("opened", [frequencies, flight, hands])
def test_one_with_holes_is_filled_up(tmp_path: Path, opened: Callable[[Path], Mapped]) -> None:
    opened(tmp_path / "file").close()
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    with path.open("r+b") as file:
        file.truncate(0)
        file.write(content.rstrip(b"\0"))
        file.truncate(len(content))
    opened(tmp_path / "file").close()
    held = path.stat()
    assert held.st_blocks * 512 >= held.st_size == len(content)
    assert path.read_bytes() == content
