"""What every driver checks alike: its keys in the config, and the values of a registered content.

In: the operator's config, a send's content and data. Out: checked values, or ConfigError / Reject that says what would
be valid. Never: echoes a secret.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import msgspec

from engine.config import ChannelConfig
from engine.drivers import Template
from engine.errors import ConfigError, Reject
from engine.send import MAX_RECIPIENTS
from ext.columns import Ids

JSON_HEADERS: Mapping[str, str] = {"Content-Type": "application/json"}

_Account = TypeVar("_Account", bound=msgspec.Struct)
_encode = msgspec.json.Encoder().encode
_KEY = re.compile(r"`\$\.(\w+)|(?:unknown|required) field `(\w+)`")
_HOLE = re.compile(r"\{([^{}]{1,128})\}")


@lru_cache(64)
def quoted(text: str) -> str:
    """As a value in a URL's query. Remembered: one token serves thousands of calls."""
    return quote(text, safe="")


def base_url(channel: str, config: ChannelConfig, whole: bool = False) -> str:
    """The channel's address without a slash at its end; ``whole``: it is used as it stands and may have a query."""
    key = ("channels", channel, "base_url")
    url = config.base_url
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good or not url.isascii() or not url.isprintable() or " " in url:
        raise ConfigError("not an address; valid is http:// or https:// with a host, ASCII only", key)
    if parts.username is not None or parts.password is not None:
        raise ConfigError("an address with a user or password; credentials belong to the accounts", key)
    if parts.fragment or (parts.query and not whole):
        raise ConfigError("an address without a query or fragment is wanted", key)
    return url if whole else url.rstrip("/")


def accounts(channel: str, config: ChannelConfig, kind: type[_Account], need: bool = True) -> dict[str, _Account]:
    """The channel's accounts, checked. Strings must be non-empty, printable and without spaces at their ends."""
    key = ("channels", channel, "accounts")
    if need and not config.accounts:
        raise ConfigError(f"the driver {config.driver} needs an account with {_keys(kind)}", key)
    return {name: _account(raw, kind, (*key, name)) for name, raw in config.accounts.items()}


def _account(raw: dict[str, Any], kind: type[_Account], key: tuple[str, ...]) -> _Account:
    try:
        account = msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        at = _KEY.search(str(error))
        path = (*key, at[1] or at[2]) if at else key
        raise ConfigError(f"{error}; the keys are {_keys(kind)}", path) from None
    for name in kind.__struct_fields__:
        text = getattr(account, name)
        if isinstance(text, str) and (not text or not text.isprintable() or text != text.strip()):
            raise ConfigError("empty, or with unprintable characters, or with spaces at its ends", (*key, name))
    return account


def _keys(kind: type[msgspec.Struct]) -> str:
    return ", ".join(kind.__struct_fields__)


def cap(channel: str, config: ChannelConfig, most: int = MAX_RECIPIENTS, default: int | None = None) -> int:
    """Recipients a call: the channel's ``batch`` (1..``most``), else ``default``, else ``most``."""
    batch = config.batch
    if batch is None:
        return most if default is None else default
    if not 1 <= batch <= most:
        valid = f"1..{most}" if most > 1 else "1"
        raise ConfigError(
            f"{batch} recipients a call; valid for {config.driver} is {valid}", ("channels", channel, "batch")
        )
    return batch


def plain_id(id: str) -> bool:
    """One name: printable and without spaces. Invisible characters are out: a platform may trim or drop them."""
    return bool(id) and id.isprintable() and " " not in id


def encode(value: Any) -> bytes:
    """As JSON. Raises Reject(content_invalid) for what JSON cannot say; binary becomes base64, NaN null."""
    try:
        return _encode(value)
    except (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise Reject("content_invalid", f"cannot be written as JSON: {error}") from None


def joined(ids: Sequence[str], between: bytes) -> bytes:
    """The inside of JSON strings: the ids with ``between``, which is JSON already, between each two."""
    text = ids.joined(between) if isinstance(ids, Ids) else None
    return between.join(encode(id)[1:-1] for id in ids) if text is None else text


def only(content: Mapping[str, Any], keys: tuple[str, ...]) -> None:
    """Raises Reject(content_invalid) for a key that is not one of ``keys``: a typo would change the message."""
    for key in content:
        if key not in keys:
            raise Reject("content_invalid", f"unknown key {str(key)[:100]!r}; valid are {', '.join(keys)}")


def values(template: Template, data: Mapping[str, Any]) -> dict[str, str]:
    """``data`` as texts, each checked against its field. Numbers become text the shortest way (12.50 becomes "12.5":
    send prices as strings). Raises Reject; which fields are missing is not looked at here."""
    return {name: _value(template, name, value) for name, value in data.items()}


def _value(template: Template, name: str, value: Any) -> str:
    field = template.fields.get(name)
    if field is None:
        names = ", ".join(template.fields) or "none"
        raise Reject("field_invalid", f"{template.id} has no field {name[:100]!r}; its fields are {names[:1000]}")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise Reject("field_invalid", f"{name} is neither a string nor a number")
    if isinstance(value, float) and not math.isfinite(value):
        raise Reject("field_invalid", f"{name} is not a finite number")
    text = str(value)
    if field.max_chars is not None and len(text) > field.max_chars:
        raise Reject("field_too_long", f"{name} has {len(text)} characters; {template.id} takes {field.max_chars}")
    return text


def missing(template: Template, values: Mapping[str, str]) -> frozenset[str]:
    """The required fields without a value, or with an empty one."""
    return frozenset(name for name, field in template.fields.items() if field.required and not values.get(name))


def filled(template: Template, data: Mapping[str, Any]) -> Mapping[str, Any]:
    """The registered content with each ``{field}`` in its strings (not its keys) replaced, once and not again in what
    was put in; an optional field without a value becomes nothing, other braces stay. Raises Reject."""
    texts = values(template, data)
    lacking = missing(template, texts)
    if lacking:
        raise Reject("field_missing", f"{template.id} needs {', '.join(sorted(lacking))}")
    content: Mapping[str, Any] = _fill(template.content, {**dict.fromkeys(template.fields, ""), **texts})
    return content


def _fill(value: Any, texts: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return _HOLE.sub(lambda hole: texts.get(hole[1], hole[0]), value)
    if isinstance(value, Mapping):
        return {key: _fill(inner, texts) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_fill(inner, texts) for inner in value]
    return value
