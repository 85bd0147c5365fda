"""The lines of a TOML text's keys, over what TOML's grammar allows."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest

from engine.config_lines import Path, key_lines, line_of

EVERYTHING = "\n".join(
    (
        '# a comment with [brackets] and "quotes"',
        "top = 1",
        '"quoted key" = 2',
        "'lit.eral' = \"a # b\"",
        "[a.b]  # tail",
        "x.y.z = [1, 2,",
        "  # between",
        "  3]",
        's = """',
        "[not.a.table]",
        'k = 1 \\""" still"""',
        "l = '''",
        "[nor.this]",
        "''''",
        'm = """q""""',
        "[[list]]",
        "k = { p = 1, q = [{ r = \"}\" }, { r = ']' }] }",
        "[list.sub]",
        "d = 1979-05-27 07:32:00",
        "[[list]]",
        "k = true",
        "[[list.inner]]",
        "f = 1.5e3",
        "[[list.inner]]",
        "f = inf",
        "[t]",
        '"\\u00e9\\t" = ""',
    )
)


def paths(value: Any, path: Path = ()) -> set[Path]:
    """Every path in parsed TOML."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = {path} if path else set()
    for name, one in items:
        found |= paths(one, (*path, name))
    return found


def test_every_key_of_every_kind_has_a_line_that_names_it() -> None:
    text = EVERYTHING
    lines = key_lines(text)
    assert set(lines) == paths(tomllib.loads(text))
    rows = text.split("\n")
    for path, line in lines.items():
        name = next(part for part in reversed(path) if isinstance(part, str))
        if not isinstance(path[-1], int) and name.isascii() and name.isprintable():
            assert name in rows[line - 1], path


def test_known_lines() -> None:
    lines = key_lines(EVERYTHING)
    assert lines[("top",)] == 2
    assert lines[("a", "b", "x", "y", "z", 2)] == 8
    assert lines[("a", "b", "m")] == 15
    assert lines[("list", 0, "k", "q", 1, "r")] == 17
    assert lines[("list", 1, "inner", 1, "f")] == 25


@pytest.mark.parametrize("text", ["", "\n", "# only", "a = 1", "[a]", "a = []", "a = {}", 'a = ""', "a = ''''''"])
def test_short_texts(text: str) -> None:
    assert set(key_lines(text)) == paths(tomllib.loads(text))


def test_a_missing_key_is_at_the_table_it_should_stand_in() -> None:
    lines = key_lines("[a]\nb = 1\n[a.c]\nd = 1")
    assert line_of(lines, ("a", "c", "missing")) == 3
    assert line_of(lines, ("nowhere", "x")) == 1


def test_a_tables_own_header_counts_though_one_within_it_came_first() -> None:
    assert key_lines("[a.b]\n[a]\nc = 1")[("a",)] == 2
