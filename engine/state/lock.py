"""One engine a state directory: two would each use the whole of what is left of every limit."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from engine.errors import LogUnusable


def lock(directory: Path) -> int:
    """Hold the directory until the process ends, however it does, or the descriptor is closed. Raises LogUnusable."""
    path = directory / "lock"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        held = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise LogUnusable(f"{path}: cannot be opened: {error.strerror}") from error
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(held)
        why = "another engine uses this directory" if isinstance(error, BlockingIOError) else error.strerror
        raise LogUnusable(f"{path}: {why}") from error
    return held
