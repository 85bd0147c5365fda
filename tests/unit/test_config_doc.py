"""The documentation and the example say what the structs say."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from engine.config_doc import TABLES, render
from engine.config_load import INTERNAL, annotated_fields, load_with_warnings

ROOT = Path(__file__).parents[2]


def keys() -> set[str]:
    return {
        field.name
        for _, kind, _ in TABLES
        for field in msgspec.structs.fields(kind)
        if field.name not in INTERNAL.get(kind, ())
    }


def test_the_reference_is_the_one_made_from_the_structs() -> None:
    made = "python -m engine.config_doc > docs/configuration.md"
    assert (ROOT / "docs/configuration.md").read_text() == render(), f"out of date: {made}"


def test_every_key_says_what_it_means() -> None:
    for _, kind, _ in TABLES:
        for name, annotated in annotated_fields(kind).items():
            if name not in INTERNAL.get(kind, ()):
                assert len(annotated.__metadata__[0].description) > 10, name


def test_the_example_is_accepted_without_a_warning() -> None:
    loaded = load_with_warnings(ROOT / "deploy/surgetank.toml")
    assert loaded.warnings == ()
    assert {channel.driver for channel in loaded.config.channels.values()} >= {"webhook", "wecom.message"}


def test_the_example_shows_every_key() -> None:
    text = (ROOT / "deploy/surgetank.toml").read_text()
    missing = {key for key in keys() if not re.search(rf"\b{key}\b( =|\]|\.)", text)}
    assert not missing
