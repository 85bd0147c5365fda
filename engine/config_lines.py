"""Where each key of a TOML text stands: ``tomllib`` parses but gives no positions.

Only for text ``tomllib`` has accepted, so that nothing here has to check the syntax.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping

Path = tuple[str | int, ...]  # table and key names, and indices into arrays

BLANK = re.compile(r"(?:[ \t\r\n]+|#[^\n]*)*")
# Longest first: a multi-line string begins like two short ones.
STRING = re.compile(
    r'"""(?P<mb>(?:\\.|[^\\])*?"{0,2})"""(?!")|\'\'\'(?P<ml>.*?\'{0,2})\'\'\'(?!\')|"(?P<b>(?:\\.|[^"\\\n])*)"|\'(?P<l>[^\'\n]*)\'',
    re.DOTALL,
)
BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
SCALAR = re.compile(r"[^,\]}\n#]*")
ESCAPE = re.compile(r"\\(?:u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|(.))")
SHORT_ESCAPES = {"b": "\b", "t": "\t", "n": "\n", "f": "\f", "r": "\r"}


def line_of(lines: Mapping[Path, int], path: Path) -> int:
    """The line of ``path``, else of the nearest table around it; 1 when there is none."""
    for end in range(len(path), 0, -1):
        if path[:end] in lines:
            return lines[path[:end]]
    return 1


def key_lines(text: str) -> dict[Path, int]:
    """The line (from 1) of every table, key, and element of an array. Cost: one pass."""
    return _Scan(text).all()


class _Scan:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.lines: dict[Path, int] = {}
        self._starts = [0, *(match.end() for match in re.finditer("\n", text))]
        self._tables: dict[Path, int] = {}  # arrays of tables: how many so far

    def all(self) -> dict[Path, int]:
        prefix: Path = ()
        self._blank()
        while self.at < len(self.text):
            if self.text[self.at] == "[":
                prefix = self._header()
            else:
                self._pair(prefix)
            self._blank()
        return self.lines

    def _header(self) -> Path:
        start = self.at
        array = self.text.startswith("[[", self.at)
        self.at += 2 if array else 1
        names = self._key()
        self.at += 2 if array else 1
        path: Path = ()
        for name in names[:-1]:
            path = (*path, name)
            self._mark(path, start)
            path = self._within(path)
        path = (*path, names[-1])
        if array:
            self._mark(path, start)
            self._tables[path] = self._tables.get(path, 0) + 1
            path = (*path, self._tables[path] - 1)
        self.lines.pop(path, None)  # a table's own header is its place, not one within it that stood before
        self._mark(path, start)
        return path

    def _within(self, path: Path) -> Path:
        """``path``, or its latest element when it is an array of tables."""
        return (*path, self._tables[path] - 1) if path in self._tables else path

    def _pair(self, prefix: Path) -> None:
        start = self.at
        path = prefix
        for name in self._key():
            path = (*path, name)
            self._mark(path, start)
        self.at += 1  # "="
        self._blank()
        self._value(path)

    def _key(self) -> list[str]:
        """A dotted key; stops at what follows it."""
        names = []
        while True:
            self._blank()
            names.append(self._name())
            self._blank()
            if self.text[self.at] != ".":
                return names
            self.at += 1

    def _name(self) -> str:
        if quoted := STRING.match(self.text, self.at):
            self.at = quoted.end()
            if quoted["l"] is not None:
                return quoted["l"]
            return ESCAPE.sub(_unescape, quoted["b"] or "")
        bare = BARE_KEY.match(self.text, self.at)
        assert bare is not None, f"not TOML at {self.at}"  # noqa: S101 - tomllib accepted the text
        self.at = bare.end()
        return bare[0]

    def _value(self, path: Path) -> None:
        if self.text[self.at] == "{":
            self._elements("}", path)
        elif self.text[self.at] == "[":
            self._elements("]", path)
        else:
            self._mark(path, self.at)
            match = STRING.match(self.text, self.at) or SCALAR.match(self.text, self.at)
            self.at = match.end() if match else self.at

    def _elements(self, close: str, path: Path) -> None:
        """An inline table's pairs, or an array's values, up to ``close``."""
        self._mark(path, self.at)
        self.at += 1
        index = 0
        self._blank()
        while self.text[self.at] != close:
            if close == "}":
                self._pair(path)
            else:
                self._mark((*path, index), self.at)
                self._value((*path, index))
            index += 1
            self._blank()
            self.at += self.text[self.at] == ","
            self._blank()
        self.at += 1

    def _blank(self) -> None:
        match = BLANK.match(self.text, self.at)
        self.at = match.end() if match else self.at

    def _mark(self, path: Path, at: int) -> None:
        self.lines.setdefault(path, bisect_right(self._starts, at))


def _unescape(match: re.Match[str]) -> str:
    code = match[1] or match[2]
    return chr(int(code, 16)) if code else SHORT_ESCAPES.get(match[3], match[3])
