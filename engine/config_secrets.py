"""What of a configuration is never shown: which keys hold secrets, and what stands in their place (pure)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from engine.config import Config

MASK = "***"
# An account key of such a name, or given as X_file, is never shown.
SECRET_NAME = re.compile(r"secret|passw|token|key|authorization|credential|cookie", re.IGNORECASE)


def is_secret(name: str) -> bool:
    """Whether a key's value must not be shown; where a file is, may be."""
    return not name.endswith("_file") and SECRET_NAME.search(name) is not None


def masked(keys: dict[str, Any], secret_keys: frozenset[str] = frozenset()) -> dict[str, Any]:
    """``keys`` with every secret, at any depth, as "***"."""
    return {
        name: MASK
        if name in secret_keys or is_secret(name)
        else masked(value, secret_keys)
        if isinstance(value, dict)
        else value
        for name, value in keys.items()
    }


def secret_values(config: Config) -> set[str]:
    """Every secret text of every account and of the log, for the engine's own log to keep out."""
    found: set[str] = set()
    _gather_secrets(msgspec.structs.asdict(config.log.security), frozenset(), found)
    for channel in config.channels.values():
        for keys in channel.accounts.values():
            _gather_secrets(keys, channel.secret_keys, found)
    return found


def _gather_secrets(keys: dict[str, Any], secret_keys: frozenset[str], found: set[str]) -> None:
    for name, value in keys.items():
        if isinstance(value, dict):
            _gather_secrets(value, secret_keys, found)
        elif isinstance(value, str) and (name in secret_keys or is_secret(name)):
            found.add(value)


def masked_url(url: str) -> str:
    """``url`` without a password or a token in its query."""
    url = re.sub(r"(?<=://)[^/@?#]*@", MASK + "@", url)
    return re.sub(r"([?&](?:[^=&#]*)(?:secret|passw|token|key|sign)[^=&#]*=)[^&#]*", rf"\1{MASK}", url, flags=re.I)
