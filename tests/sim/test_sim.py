"""The whole path, from the log to the platforms and back, through everything that can go wrong, seed by seed.

``pytest tests/sim --seed N`` tells one story again; ``--seeds N`` tells so many instead of a thousand.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sim.judge import Judge
from tests.sim.story import Story

MEMORY = Path("/dev/shm")  # noqa: S108 - its files are as durable as the world they are in
AT_ONCE = 50  # stories a test
AGAIN = """
from pathlib import Path
from tests.sim.test_sim import tell
print("trace", tell({seed}, Path("{folder}")).trace())
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="surgetank-sim-", dir=MEMORY if MEMORY.is_dir() else None))
    yield made
    shutil.rmtree(made)


def tell(seed: int, folder: Path) -> Story:
    """One story, judged. One in five is calm."""
    place = folder / str(seed)
    place.mkdir()
    story = Story(seed, place, calm=seed % 5 == 0)
    judge = Judge(story)
    try:
        story.run(judge.content)
        judge.judge()
    except BaseException as error:
        told = ", ".join(story.troubles) or "calm"
        error.add_note(f"seed {seed} ({told}); to tell it again: pytest tests/sim --seed {seed}")
        raise
    finally:
        story.close()
        shutil.rmtree(place)
    return story


def test_stories(seeds: range, folder: Path) -> None:
    for seed in seeds:
        tell(seed, folder)


@pytest.mark.parametrize("seed", [3, 11])
def test_a_story_is_the_same_whenever_it_is_told(seed: int, folder: Path) -> None:
    trace = tell(seed, folder).trace()
    assert tell(seed, folder).trace() == trace
    for hashes in "12":  # the order of sets of strings differs
        again = [sys.executable, "-c", AGAIN.format(seed=seed, folder=folder)]
        environment = os.environ | {"PYTHONHASHSEED": hashes}
        ran = subprocess.run(again, env=environment, capture_output=True, text=True, check=True)
        assert ran.stdout.splitlines()[-1] == f"trace {trace}"
