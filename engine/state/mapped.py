"""Maps a file of the directory ``state`` into memory (shell)."""

from __future__ import annotations

import os
from mmap import mmap


def map_file(file: int, size: int, offset: int = 0) -> mmap:
    """``size`` bytes of an open file, which becomes as long as that. Raises OSError.

    The disk keeps place for them from now on: a mapping of a file with holes ends its process (SIGBUS) when it is
    written where the disk has become full.
    """
    os.posix_fallocate(file, offset, size)
    return mmap(file, size, offset=offset)
