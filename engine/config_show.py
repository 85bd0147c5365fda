"""A Config as people and scripts see it: plain values with every default, as TOML; no secret in it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from engine.config import ChannelConfig, Config, Duration, Size
from engine.config_load import INTERNAL
from engine.config_secrets import masked, masked_url


def plain(config: Config) -> dict[str, Any]:
    """The keys of the file with their effective values; secrets as "***"."""
    shown: dict[str, Any] = _plain(config)
    shown["log"]["security"] = masked(shown["log"]["security"])
    for name, channel in config.channels.items():
        shown["channels"][name] |= _channel(channel)
    return shown


def _channel(channel: ChannelConfig) -> dict[str, Any]:
    accounts = channel.masked_accounts()
    for name, limits in channel.account_limits.items():
        accounts[name]["limits"] = _plain(limits)
    return {"base_url": masked_url(channel.base_url), "accounts": accounts}


def _plain(value: object) -> Any:
    if isinstance(value, msgspec.Struct):
        hidden = INTERNAL.get(type(value), ())
        items = ((name, getattr(value, name)) for name in value.__struct_fields__ if name not in hidden)
        return {name: _plain(one) for name, one in items if one is not None}
    if isinstance(value, Duration | Size):
        return str(value)
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    return value


def toml(table: dict[str, Any], path: str = "") -> str:
    """A TOML document that reads as ``table``; tables of tables get headers, tables in lists stand in the line."""
    return "\n".join(_lines(table, path)).strip() + "\n"


def _lines(table: dict[str, Any], path: str) -> Iterator[str]:
    yield from (f"{_name(name)} = {_value(value)}" for name, value in table.items() if not isinstance(value, dict))
    for name, value in table.items():
        if isinstance(value, dict):
            inner = f"{path}.{_name(name)}" if path else _name(name)
            if not value or not all(isinstance(one, dict) for one in value.values()):
                yield from ("", f"[{inner}]")
            yield from _lines(value, inner)


def _value(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_name(name)} = {_value(one)}" for name, one in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return _text(value) if isinstance(value, str) else str(value)


def _name(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _text(name)


def _text(text: str) -> str:
    """JSON's strings are TOML's, but for DEL."""
    return msgspec.json.encode(text).decode().replace("\x7f", "\\u007f")
