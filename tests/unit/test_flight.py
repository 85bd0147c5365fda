"""What a kill would repeat, where a kill leaves it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from engine.counters import Counters
from engine.errors import LogUnusable
from engine.send import Outcome, Tier
from engine.state.flight import Flight, Left, read

T, OTHER = Tier.BASIC, Tier.SYSTEM


def test_recipients_are_counted_from_their_call_to_their_commit(tmp_path: Path) -> None:
    path, counters = tmp_path / "state" / "flight", Counters()
    flight = Flight(path, counters)
    flight.begin(T, 10)
    assert read(path)[T] == Left(10, 0, 0)
    counters.end(T, "c", Outcome.ACCEPTED, 7)  # three are tried again
    flight.end(T, 10)
    assert read(path)[T] == flight.left(T) == Left(0, 7, 0)
    counters.committed[T] = 5
    flight.committed(T)
    assert read(path)[T] == Left(0, 2, 0)
    assert read(path)[OTHER] == Left(0, 0, 0)
    flight.close()


def test_what_a_lost_partition_leaves_is_forfeited_once(tmp_path: Path) -> None:
    counters = Counters()
    flight = Flight(tmp_path / "flight", counters)
    flight.begin(T, 5)
    counters.end(T, "c", Outcome.ACCEPTED, 4)
    flight.forfeit(T)
    assert flight.left(T) == Left(5, 0, 9)
    counters.end(T, "c", Outcome.ACCEPTED, 5)
    flight.end(T, 5)
    assert flight.left(T) == Left(0, 5, 9)
    assert flight.forfeited(T) == 9
    flight.close()


def test_a_killed_process_leaves_its_counts_to_the_next(tmp_path: Path) -> None:
    path = tmp_path / "flight"
    code = f"""
import os, signal
from pathlib import Path
from engine.counters import Counters
from engine.send import Outcome, Tier
from engine.state.flight import Flight
counters = Counters()
flight = Flight(Path({str(path)!r}), counters)
flight.begin(Tier.BASIC, 30)
counters.end(Tier.BASIC, "c", Outcome.ACCEPTED, 30)
flight.end(Tier.BASIC, 30)
flight.begin(Tier.BASIC, 4)
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", code], env=os.environ, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert read(path)[T] == Left(4, 30, 0)
    again = Flight(path, Counters())
    assert again.left(T) == Left(0, 0, 34)
    assert again.forfeited(T) == 34
    again.close()
    again = Flight(path, Counters())
    assert again.left(T) == Left(0, 0, 34)
    assert again.forfeited(T) == 0, "an earlier life has told of them"
    again.close()


@pytest.mark.parametrize("content", [b"x", b"x" * 4096])
def test_another_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "flight"
    path.write_bytes(content)
    with pytest.raises(LogUnusable, match="flight"):
        Flight(path, Counters())
    assert path.read_bytes() == content
