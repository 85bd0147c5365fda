"""A bounded run of the fuzz target, the same inputs every time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

RUNS = 200_000
TARGET = Path(__file__).parents[1] / "fuzz_decode.py"


def test_decode_survives(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    command = [sys.executable, "-W", "error", str(TARGET), f"-runs={RUNS}", "-seed=1", "-max_len=4096", str(corpus)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert f"Done {RUNS} runs" in done.stderr
