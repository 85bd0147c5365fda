"""The cancel commands in force (pure): which sends they cover, each until it expires.

Invariant: an expired command covers nothing, and is forgotten when the next one comes.
"""

from __future__ import annotations

from typing import NamedTuple


class Standing(NamedTuple):
    """One command about a campaign: of ``tenant`` or (None) of all; what was first seen by ``at_ms``."""

    tenant: str | None
    at_ms: int
    expires_ms: int


class Cancelled:
    """One worker's. All times are ms since the epoch."""

    def __init__(self) -> None:
        self._standing: dict[str, list[Standing]] = {}  # by campaign

    def add(self, campaign: str, standing: Standing, now_ms: int) -> None:
        """One more. Cost: what stands is looked through once."""
        self._standing.setdefault(campaign, []).append(standing)
        kept = {name: [one for one in commands if one.expires_ms > now_ms] for name, commands in self._standing.items()}
        self._standing = {name: commands for name, commands in kept.items() if commands}

    def __contains__(self, campaign: object) -> bool:
        """Whether any command may be about it: the cheap question before ``covers``."""
        return campaign in self._standing

    def covers(self, campaign: str, tenant: str, first_seen_ms: int, now_ms: int) -> bool:
        """True for a send that a command covers."""
        return any(
            first_seen_ms <= one.at_ms and one.tenant in (None, tenant) and one.expires_ms > now_ms
            for one in self._standing.get(campaign, ())
        )

    def __len__(self) -> int:
        return sum(map(len, self._standing.values()))
