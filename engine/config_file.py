"""A TOML file with the lines of its keys, and what is said when one of them is wrong.

It repeats a value only where that cannot be a secret.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any, NamedTuple

import msgspec

from engine.config_lines import Path, key_lines, line_of
from engine.config_secrets import MASK, SECRET_NAME, masked_url
from engine.errors import ConfigError

MAX_FILE_BYTES = 4 << 20
SHOWN_CHARS = 60


class Problem(NamedTuple):
    """One thing that is wrong, or (as a warning) not as one may think. ``value`` empty: there is none to show."""

    file: str
    line: int
    key: str
    value: str
    text: str
    path: Path = ()

    def __str__(self) -> str:
        what = f"{self.key} = {self.value}" if self.value else self.key
        return f"{self.file}:{self.line}: {what}: {self.text}" if what else f"{self.file}:{self.line}: {self.text}"


class ConfigProblems(ConfigError):
    """Everything that is wrong with one file; one line each."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = tuple(problems)


@dataclass(slots=True)
class File:
    """The text as parsed, and where its keys stand."""

    name: str
    data: dict[str, Any]
    lines: Mapping[Path, int] = field(default_factory=dict)
    text: str = ""

    def problem(self, path: Path, text: str) -> Problem:
        """``text`` about ``path``, with its line and its value as far as it may be shown."""
        return Problem(self.name, self._line(path), key_text(path), self._shown(path), text, path)

    def _line(self, path: Path) -> int:
        # A secret may stand in the file as X_file.
        by_file = (*path[:-1], f"{path[-1]}_file") if path else path
        return line_of(self.lines, by_file if by_file in self.lines else path)

    def _shown(self, path: Path) -> str:
        value: Any = self.data
        for part in path:
            try:
                value = value[part]
            except (KeyError, IndexError, TypeError):
                return ""
        if _may_be_secret(path) and isinstance(value, str):
            return MASK
        return value_text(value)


def read(name: str, text: str | None = None) -> File:
    """The file, or ``text`` as if it stood there."""
    raw = b""
    try:
        if text is None:
            with FilePath(name).open("rb") as stream:
                raw = stream.read(MAX_FILE_BYTES + 1)
            if len(raw) > MAX_FILE_BYTES:
                raise ConfigProblems([Problem(name, 1, "", "", f"larger than {MAX_FILE_BYTES >> 20} MiB")])
            text = raw.decode()
        return File(name, tomllib.loads(text), key_lines(text.replace("\r\n", "\n")), text)
    except OSError as error:
        raise ConfigProblems([Problem(name, 1, "", "", f"cannot be read: {error.strerror}")]) from error
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigProblems([Problem(name, line, "", "", "not UTF-8 text")]) from error
    except RecursionError as error:
        raise ConfigProblems([Problem(name, 1, "", "", "nested too deeply")]) from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigProblems([_syntax(name, text or "", str(error))]) from error


def _syntax(name: str, text: str, message: str) -> Problem:
    found = re.search(r" \(at (?:line (\d+), column \d+|end of document)\)$", message)
    plain = message[: found.start()] if found else message
    line = int(found[1]) if found and found[1] else text.rstrip("\n").count("\n") + 1
    return Problem(name, line, "", "", f"not TOML: {plain[:1].lower()}{plain[1:]}")


def key_text(path: Path) -> str:
    """A path as one would write it: channels.partner.limits[0].per."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            name = part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else msgspec.json.encode(part).decode()
            text += f".{name}" if text else name
    return text


def _may_be_secret(path: Path) -> bool:
    """By its name; and all text of an account, for a secret under a misspelt name is one too."""
    if str(path[-1]).endswith("_file"):
        return False
    own = path[0] == "channels" and path[2:3] == ("accounts",) and path[4:5] != ("limits",)
    return own or any(SECRET_NAME.search(str(part)) for part in path)


def value_text(value: object) -> str:
    """A value as TOML has it, shortened; tables and lists, which may hold anything, not at all."""
    if isinstance(value, dict | list):
        return ""
    text = msgspec.json.encode(masked_url(value)).decode() if isinstance(value, str) else str(value)
    text = text.lower() if isinstance(value, bool) else text
    return text if len(text) <= SHOWN_CHARS else text[:SHOWN_CHARS] + "..."
