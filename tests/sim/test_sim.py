"""The whole path, from the log to the platforms and back, through everything that can go wrong, seed by seed.

``pytest tests/sim --seed N`` tells one story again; ``--seeds N`` tells so many instead of a thousand.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from multiprocessing import get_context
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


def why_not(seed: int, folder: Path) -> str:
    """What is wrong with a story, in a process of its own; nothing: empty."""
    try:
        tell(seed, folder)
    except Exception as error:  # noqa: BLE001 - the process's outer edge
        return "".join(traceback.format_exception(error))
    return ""


def quietly() -> None:
    """What the engines of a process say goes nowhere; warnings are errors, as in the tests' own process."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    warnings.simplefilter("error")


@pytest.fixture(scope="session")
def tellers() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn"), initializer=quietly) as pool:
        yield pool


def test_stories(seeds: range, folder: Path, tellers: ProcessPoolExecutor) -> None:
    if len(seeds) == 1:  # here, where asserts say more
        tell(seeds[0], folder)
        return
    wrong = [text for text in tellers.map(why_not, seeds, repeat(folder)) if text]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("seed", [3, 11])
def test_a_story_is_the_same_whenever_it_is_told(seed: int, folder: Path) -> None:
    trace = tell(seed, folder).trace()
    assert tell(seed, folder).trace() == trace
    for hashes in "12":  # the order of sets of strings differs
        again = [sys.executable, "-c", AGAIN.format(seed=seed, folder=folder)]
        environment = os.environ | {"PYTHONHASHSEED": hashes}
        ran = subprocess.run(again, env=environment, capture_output=True, text=True, check=True)
        assert ran.stdout.splitlines()[-1] == f"trace {trace}"
