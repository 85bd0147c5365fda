"""The file of frequencies: it outlives its process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from engine.errors import LogUnusable
from engine.state.frequency import FrequencyFile

S = 1_000_000_000
NOW = 1_790_000_000 * S
RULES = [(1, 60 * S), (2, 3_600 * S)]
SIZE = 1 << 16


def take(file: FrequencyFile, at: int) -> dict[int, tuple[int, int]]:
    """One message to one recipient."""
    return file.counts.take(file.key("a"), ["one"], at, at)


def test_what_was_counted_is_there_again(tmp_path: Path) -> None:
    file = FrequencyFile(tmp_path / "c", RULES, SIZE)
    assert take(file, NOW) == {}
    file.close()
    file = FrequencyFile(tmp_path / "c", RULES, SIZE)
    assert take(file, NOW + S) != {}
    assert take(file, NOW + 62 * S) == {}
    file.close()


def test_a_killed_process_has_counted(tmp_path: Path) -> None:
    code = """
import os, signal, sys
from pathlib import Path
from tests.unit.test_frequency_file import *
take(FrequencyFile(Path(sys.argv[1]), RULES, SIZE), NOW)
os.kill(os.getpid(), signal.SIGKILL)
"""
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path / "c")], check=False)
    assert ended.returncode == -9
    file = FrequencyFile(tmp_path / "c", RULES, SIZE)
    assert take(file, NOW + S) != {}
    file.close()


def test_another_number_or_rule_keeps_what_was_counted(tmp_path: Path) -> None:
    file = FrequencyFile(tmp_path / "c", RULES, SIZE)
    take(file, NOW)
    file.close()
    file = FrequencyFile(tmp_path / "c", [(9, 86_400 * S), (2, 60 * S)], 4 * SIZE)
    assert take(file, NOW + S) == {}
    assert take(file, NOW + S) != {}
    file.close()


def test_accounts_have_keys_of_their_own_and_every_file(tmp_path: Path) -> None:
    one, other = (FrequencyFile(tmp_path / name, RULES, SIZE) for name in "ab")
    assert len({one.key("a"), one.key("b"), other.key("a")}) == 3
    one.close()
    other.close()


@pytest.mark.parametrize("held", [b"x", b"x" * 100_000])
def test_a_foreign_file_is_refused(tmp_path: Path, held: bytes) -> None:
    (tmp_path / "c").write_bytes(held)
    with pytest.raises(LogUnusable, match="not a surgetank frequency file"):
        FrequencyFile(tmp_path / "c", RULES, SIZE)
    assert (tmp_path / "c").read_bytes() == held


def test_a_place_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    with pytest.raises(LogUnusable, match="cannot be used"):
        FrequencyFile(tmp_path / "c", RULES, SIZE)
