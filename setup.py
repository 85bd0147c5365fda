"""Builds the Cython extensions. ``SURGETANK_DEBUG=1`` builds them with bounds checks, assertions and -O1 -g;
``SURGETANK_SANITIZE=1`` adds AddressSanitizer and UndefinedBehaviorSanitizer to that. Each kind has C files of its own
below build/, so that one does not undo the other."""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

SANITIZE = os.environ.get("SURGETANK_SANITIZE") == "1"
DEBUG = SANITIZE or os.environ.get("SURGETANK_DEBUG") == "1"
CPUS = os.cpu_count() or 1
KIND = "sanitize/" if SANITIZE else "debug/" if DEBUG else ""
SANITIZERS = ["-fsanitize=address,undefined", "-fno-omit-frame-pointer"] if SANITIZE else []

extensions = [
    Extension(
        f"ext.{path.stem}",
        [str(path)],
        depends=[str(part) for part in sorted([*Path("ext").glob("*.h"), *Path("ext").glob("*.pxi")])],
        extra_compile_args=(["-O1", "-g", "-UNDEBUG"] if DEBUG else ["-O3"]) + SANITIZERS,
        extra_link_args=SANITIZERS,
    )
    for path in sorted(Path("ext").glob("*.pyx"))
]

setup(
    options={"build_ext": {"parallel": CPUS}},
    ext_modules=cythonize(
        extensions,
        nthreads=CPUS,
        build_dir=f"build/{KIND}cython",
        compiler_directives={
            "language_level": 3,
            "boundscheck": DEBUG,
            "wraparound": False,
            "initializedcheck": DEBUG,
            "cdivision": not DEBUG,
            "embedsignature": True,
        },
    ),
)
