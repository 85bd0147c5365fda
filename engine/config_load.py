"""A configuration file -> Config, or every problem in it at once, each with its line and what would be valid.

What comes in: the path of a TOML file. What goes out: a ``Config`` whose every key is set, relative paths made
absolute, secrets read; and warnings. Relative paths (``state``, ``log.path``, ``X_file``) start at the directory of the
configuration file, so that the file means the same wherever the command is run.
It never shows a secret, and never stops at the first problem.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from os import PathLike
from pathlib import Path as FilePath
from types import UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import msgspec

from engine.config import (
    ChannelConfig,
    Config,
    Duration,
    Limit,
    LogConfig,
    Security,
    Size,
    Span,
    TierConfig,
    default_tiers,
    tier_policy,
)
from engine.config_file import ConfigProblems, File, Problem, read
from engine.config_lines import Path
from engine.send import Tier

MAX_SECRET_BYTES = 64 << 10
PASSWORDS = {"password", "key_password"}  # of [log.security]
FILES = ("ca_file", "cert_file", "key_file")
INTERNAL: dict[type[msgspec.Struct], set[str]] = {  # no keys of the file
    ChannelConfig: {"account_limits", "secret_keys"},
    LogConfig: {"member"},
    Config: {"worker"},
}


class Loaded(NamedTuple):
    """A valid file: what it says, and what its owner should know. ``file`` tells where a key of it stands."""

    config: Config
    warnings: tuple[Problem, ...]
    file: File


def load_with_warnings(path: str | PathLike[str], text: str | None = None) -> Loaded:
    """The file as a Config, and its warnings; ``text``: what it said when another process read it. Raises
    ConfigProblems (a ConfigError)."""
    from engine.config_check import check, warn  # it makes drivers, which import the structs

    file = read(str(path), text)
    reading = Reading(file, FilePath(path).absolute().parent)
    config = reading.config()
    wrong = [_of_value(problem.path) for problem in reading.problems]
    for key, text in check(config):
        # Where a value is wrong, its default stands in for it: rules that look at it would speak of that.
        if not any(key[: len(path)] == path[: len(key)] for path in wrong):
            reading.wrong(key, text)
    if reading.problems:
        raise ConfigProblems(sorted(reading.problems, key=lambda problem: problem.line))
    return Loaded(config, tuple(file.problem(key, text) for key, text in warn(config, file.lines)), file)


class Reading:
    """Turns parsed TOML into structs, collecting what is wrong instead of stopping there."""

    def __init__(self, file: File, directory: FilePath) -> None:
        self.file = file
        self.directory = directory
        self.problems: list[Problem] = []

    def wrong(self, path: Path, text: str) -> None:
        """Note a problem."""
        self.problems.append(self.file.problem(path, text))

    def config(self) -> Config:
        """The whole file; meaningless where ``problems`` is not empty."""
        data = self.file.data
        config: Config = self.struct(Config, data, (), Config())
        tiers = default_tiers()
        for name, given in _table(data.get("tiers")).items():
            if name in tiers:
                tiers[name] = self.struct(TierConfig, given, ("tiers", name), tiers[name])
            else:
                self.wrong(("tiers", name), f"no such tier; {_choices(name, list(tiers))}")
        log_path = _table(data.get("log")).get("path")
        state = self.directory / config.state
        path = self.directory / config.log.path if log_path is not None else state / "log.db"
        config = msgspec.structs.replace(config, tiers=tiers)
        tiers = {tier.label: tier_policy(config, tier) for tier in Tier}
        return msgspec.structs.replace(
            config, state=str(state), tiers=tiers, log=self._log(msgspec.structs.replace(config.log, path=str(path)))
        )

    def _log(self, log: LogConfig) -> LogConfig:
        named = {name: getattr(log.security, name) for name in FILES}
        found = {name: str(self.directory / path) for name, path in named.items() if path}
        return msgspec.structs.replace(log, security=msgspec.structs.replace(log.security, **found))

    def struct(self, kind: Any, data: object, path: Path, base: Any = None) -> Any:
        """A struct from a table; keys not given come from ``base`` or are the defaults."""
        if not isinstance(data, dict):
            self.wrong(path, "must be a table")
            return base
        if kind is Security:
            data = self._passwords(data, path)
        types = {name: t for name, t in annotated_fields(kind).items() if name not in INTERNAL.get(kind, ())}
        values: dict[str, Any] = {}
        for name, value in data.items():
            if name in types:
                values[name] = self.value(types[name], value, (*path, name))
            else:
                self.wrong((*path, name), f"unknown key; {_choices(name, list(types))}")
        required = [one.name for one in msgspec.structs.fields(kind) if one.required]
        for name in required:
            if name not in data:
                self.wrong((*path, name), f"missing: must be {valid(types[name])}")
        if kind is ChannelConfig:
            values |= self._accounts(values.get("accounts") or {}, path, values.get("driver") == "webhook")
        values = {name: value for name, value in values.items() if value is not None}
        if not values.keys() >= set(required):
            return None
        return msgspec.structs.replace(base, **values) if base is not None else kind(**values)

    def value(self, kind: Any, value: object, path: Path) -> Any:
        """One key's value; None when it is wrong."""
        plain = plain_type(kind)
        if path == ("tiers",) or (path[:1] == ("channels",) and path[2:] == ("accounts",)):
            return self._raw_table(value, path)
        if isinstance(plain, type) and issubclass(plain, msgspec.Struct):
            return self.struct(plain, value, path, plain() if _all_default(plain) else None)
        if get_origin(plain) is dict:
            return self._named(get_args(plain)[1], value, path)
        if get_origin(plain) is tuple:
            return self._listed(get_args(plain)[0], value, path)
        return self._leaf(kind, value, path)

    def _raw_table(self, value: object, path: Path) -> Any:
        if isinstance(value, dict):
            return {} if path == ("tiers",) else value  # tiers: made by ``config``, each has its own defaults
        self.wrong(path, "must be a table")
        return None

    def _named(self, kind: Any, value: object, path: Path) -> Any:
        if not isinstance(value, dict):
            self.wrong(path, "must be a table of tables")
            return None
        found = {name: self.value(kind, one, (*path, name)) for name, one in value.items()}
        return {name: one for name, one in found.items() if one is not None}

    def _listed(self, kind: Any, value: object, path: Path) -> Any:
        if not isinstance(value, list):
            self.wrong(path, f"must be a list of {valid(kind)}")
            return None
        found = tuple(self.value(kind, one, (*path, index)) for index, one in enumerate(value))
        return None if None in found else found

    def _leaf(self, kind: Any, value: object, path: Path) -> Any:
        plain = plain_type(kind)
        low, high = range_of(kind)
        try:
            if plain in (Duration, Span, Size):
                found: Any = plain.parse(value) if isinstance(value, str) else None
            else:
                found = msgspec.convert(value, plain, strict=True)
            if found is not None and (low is None or low <= found <= high):
                return found
        except (ValueError, msgspec.ValidationError):
            pass  # told below
        self.wrong(path, f"must be {valid(kind)}")
        return None

    def _accounts(self, accounts: Mapping[str, object], path: Path, webhook: bool) -> dict[str, Any]:
        """Each account's own keys, its limits apart, X_file read into X; a webhook may have none."""
        keys: dict[str, dict[str, Any]] = {}
        limits: dict[str, tuple[Limit, ...]] = {}
        secret: set[str] = set()
        for name, given in accounts.items():
            at = (*path, "accounts", name)
            if not isinstance(given, dict):
                self.wrong(at, "must be a table")
                continue
            if found := self.value(tuple[Limit, ...], given.get("limits", []), (*at, "limits")):
                limits[name] = found
            keys[name] = self._secrets({k: v for k, v in given.items() if k != "limits"}, at, secret)
        if not keys and webhook:
            keys["default"] = {}
        return {"accounts": keys, "account_limits": limits, "secret_keys": frozenset(secret)}

    def _passwords(self, given: Mapping[str, Any], path: Path) -> dict[str, Any]:
        secrets = {key: value for key, value in given.items() if key.removesuffix("_file") in PASSWORDS}
        read = self._secrets(secrets, path, set())
        others = {key: value for key, value in given.items() if key not in secrets}
        return others | {key: value for key, value in read.items() if value is not None}

    def _secrets(self, given: Mapping[str, Any], path: Path, secret: set[str]) -> dict[str, Any]:
        keys: dict[str, Any] = {}
        for key, value in given.items():
            if isinstance(value, dict):
                keys[key] = self._secrets(value, (*path, key), secret)
            elif not key.endswith("_file"):
                keys[key] = value
            elif (name := key.removesuffix("_file")) in given:
                self.wrong((*path, key), f"give either `{name}` or `{key}`")
            else:
                secret.add(name)
                keys[name] = self._secret(value, (*path, key))
        return keys

    def _secret(self, name: object, path: Path) -> str | None:
        if not isinstance(name, str) or not name:
            self.wrong(path, "must be the path of a file")
            return None
        try:
            with (self.directory / name).open("rb") as stream:
                text = stream.read(MAX_SECRET_BYTES + 1).decode().strip()
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
            self.wrong(path, f"cannot be read: {why}")
            return None
        if not text or len(text) > MAX_SECRET_BYTES:
            self.wrong(path, "the file must hold 1..65536 bytes of text")
            return None
        return text


def _of_value(path: Path) -> Path:
    """The key a value is known by, wherever it was read from: X for X_file."""
    return (*path[:-1], path[-1].removesuffix("_file")) if path and isinstance(path[-1], str) else path


def _table(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _choices(name: str, known: list[str]) -> str:
    close = get_close_matches(name, known, n=1)
    return f'did you mean "{close[0]}"?' if close else f"valid here: {', '.join(sorted(known))}"


def annotated_fields(kind: Any) -> dict[str, Any]:
    """A struct's fields with what is said of them."""
    return get_type_hints(kind, include_extras=True)


def plain_type(kind: Any) -> Any:
    """The type without its annotation and without None (TOML has no null)."""
    kind = get_args(kind)[0] if hasattr(kind, "__metadata__") else kind
    if get_origin(kind) in (Union, UnionType):
        return next(option for option in get_args(kind) if option is not type(None))
    return kind


def range_of(kind: Any) -> tuple[int | None, int | None]:
    """Lowest and highest valid value."""
    meta = kind.__metadata__[0].extra if hasattr(kind, "__metadata__") else {}
    return meta.get("low"), meta.get("high")


def _all_default(kind: type[msgspec.Struct]) -> bool:
    return not any(one.required for one in msgspec.structs.fields(kind))


def valid(kind: Any) -> str:
    """What a key takes, for people."""
    plain = plain_type(kind)
    low, high = range_of(kind)
    if get_origin(plain) is Literal:
        return " or ".join(f'"{choice}"' for choice in get_args(plain))
    if plain in (Duration, Span, Size):
        unit = 'a size such as "1GiB"' if plain is Size else 'a duration such as "10m"'
        return f"{unit}, {plain(low)}..{plain(high)}"
    if plain is int:
        return f"{low}..{high}" if low is not None else "an integer"
    if isinstance(plain, type) and issubclass(plain, msgspec.Struct):
        return "tables"
    return "text"
