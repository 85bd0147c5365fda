"""The audit (pure): joins what stood on the log of one send, and says what is missing, repeated, late, unexplained.

In: all rows of one origin, in any order; the due times and ages of the configuration. Out: counts, and findings.
Invariant: every recipient of a send counts once: under its outcome, as waiting, or as missing.
Never: asks the engine; what it judges by is docs/wire-format.md and the log.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec

from engine.audit_rows import Kept, Row, Sent, Told, names_at
from engine.clock import NS_PER_MS
from engine.config import TierConfig

KINDS = ("missing", "repeated", "late", "unexplained")
ENDS = {
    "accepted", "failed", "dead", "expired", "cancelled", "duplicate", "suppressed", "rejected", "unknown",
}  # fmt: skip
REFINES = {"delivered", "read", "clicked", "recalled"}  # of what was accepted: no ends of their own
REACHED = ("accepted", "unknown")  # the platform has it, or may have it
MOST_CAMPAIGNS = 10_000  # told apart; the rest is counted under OTHER
OTHER = "_other"

Origin = tuple[str, int, int]
Place = tuple[str, str | None, str | None]  # tier, channel, campaign


class Finding(NamedTuple):
    """One recipient (or "" for a whole record), and what is wrong with it."""

    kind: str
    tier: str
    channel: str | None
    tenant: str | None
    campaign: str | None
    id: str | None
    recipient: str
    origin: str
    why: str


class Window(NamedTuple):
    """Which sends are judged: those first seen in [from, to), ms since the epoch, of one campaign or (None) of all."""

    from_ms: int
    to_ms: int
    campaign: str | None

    def takes(self, seen_ms: int, campaign: str | None) -> bool:
        """Whether such a send is judged."""
        return self.from_ms <= seen_ms < self.to_ms and self.campaign in (None, campaign)


class Sums(msgspec.Struct):
    """Counted in recipients."""

    recipients: int = 0
    waiting: int = 0
    missing: int = 0
    repeated: int = 0
    late: int = 0
    unexplained: int = 0
    outcomes: Counter[str] = msgspec.field(default_factory=Counter)


class Audit:
    """``judge`` each origin once; ``found`` gets every finding as it is made."""

    def __init__(
        self, tiers: Mapping[str, TierConfig], window: Window, grace_ms: int, found: Callable[[Finding], None]
    ) -> None:
        self.total = Sums()
        self.places: dict[Place, Sums] = {}
        self._tiers = tiers
        self._window = window
        self._grace_ms = grace_ms
        self._found = found

    def judge(self, origin: Origin, rows: Sequence[Row], gone: bool, dead_whole: bool) -> None:
        """``gone``: the log no longer (or not yet, as it was read) has the origin itself; ``dead_whole``: nothing has
        been removed from the dead topic."""
        records = [row for row in rows if isinstance(row, Sent)]
        told = [row for row in rows if isinstance(row, Told)]
        if not records:
            if not gone:
                self._of_nothing(origin, told)
            return
        records.sort(key=lambda record: record.hop)
        first = records[0]
        if self._window.takes(first.seen_ms, first.campaign):
            kept = [row for row in rows if isinstance(row, Kept)]
            _Send(self, origin, records, told, kept, dead_whole).judge()

    def count(self, tier: str, channel: str | None, campaign: str | None) -> tuple[Sums, Sums]:
        """Where a send counts: in total, and in its place."""
        place = (tier, channel, campaign)
        if place not in self.places and len(self.places) >= MOST_CAMPAIGNS:
            place = (tier, channel, OTHER)
        return self.total, self.places.setdefault(place, Sums())

    def tell(self, finding: Finding) -> None:
        """Count it, and hand it on."""
        for sums in self.count(finding.tier, finding.channel, finding.campaign):
            setattr(sums, finding.kind, getattr(sums, finding.kind) + 1)
        self._found(finding)

    def stray(self, where: Origin, tier: str, why: str) -> None:
        """A record that belongs to nothing."""
        self.tell(Finding("unexplained", tier, None, None, None, None, "", _spoken(where), why))

    def due_ms(self, send: Sent) -> int:
        """When it should have left."""
        policy = self._tiers.get(send.tier)
        start = max(send.seen_ms, send.not_before)
        return send.due if send.due is not None else start + (policy.due_after // NS_PER_MS if policy else 0)

    def deadline_ms(self, send: Sent) -> int:
        """When it may expire: its own deadline, or its age."""
        policy = self._tiers.get(send.tier)
        oldest = max(send.seen_ms, send.not_before) + (policy.max_age // NS_PER_MS if policy else 0)
        return oldest if send.deadline is None else min(send.deadline, oldest)

    def is_late(self, at_ms: int, due_ms: int) -> bool:
        """Later than the grace allows."""
        return at_ms > due_ms + self._grace_ms

    def is_early(self, at_ms: int, deadline_ms: int) -> bool:
        """Earlier than the grace allows."""
        return at_ms + self._grace_ms < deadline_ms

    def _of_nothing(self, origin: Origin, told: Sequence[Told]) -> None:
        for one in told:
            if self._window.takes(one.at_ms, one.campaign):
                for name in one.to if one.to is not None else [""]:
                    why = f"told {one.outcome}, and no such record"
                    self.tell(
                        Finding(
                            "unexplained", one.tier, one.channel, None, one.campaign, one.id, name, _spoken(origin), why
                        )
                    )


class _Send:
    """One send with all that stands on the log about it; ``records`` by hop, the first of them the send itself."""

    def __init__(
        self,
        audit: Audit,
        origin: Origin,
        records: Sequence[Sent],
        told: Sequence[Told],
        kept: Sequence[Kept],
        dead_whole: bool,
    ) -> None:
        self.audit = audit
        self.origin = origin
        self.send = records[0]
        self.told = told
        self.kept = kept
        self.dead_whole = dead_whole
        self.sums = audit.count(self.send.tier, self.send.channel, self.send.campaign)
        to = self.send.to
        self.times = Counter(to)  # how often `to` names each
        self.waiting = {name for record in records if not record.settled for name in names_at(to, record.positions)}
        self.moved = {name for record in records if record.hop for name in names_at(to, record.positions)}
        self.settled = records[0].settled
        # By whom its times count: a record that was replayed was seen anew, one of another tier has that tier's.
        again = [one for one in records if one.seen_ms > self.send.seen_ms or one.tier != self.send.tier]
        self.seen_as = {name: record for record in again for name in names_at(to, record.positions)}
        self.on_dead = {name for one in kept for name in names_at(to, one.positions)}

    def judge(self) -> None:
        """Count every recipient, and tell what is wrong."""
        ends = self._ends()
        for name, times in self.times.items():
            for sums in self.sums:
                sums.recipients += times
            self._one(name, times, ends.get(name, ()))

    def _ends(self) -> dict[str, list[Told]]:
        """What was told of each recipient."""
        ends: dict[str, list[Told]] = {}
        for one in self.told:
            if one.outcome not in ENDS | REFINES:
                self._tell("unexplained", "", f"told {one.outcome}, which is no outcome")
            elif one.id is not None and self.send.id is not None and one.id != self.send.id:
                self._tell("unexplained", "", f"told of the id {one.id!r}")
            else:
                for name in self._named(one):
                    ends.setdefault(name, []).append(one)
        return ends

    def _named(self, told: Told) -> Iterator[str]:
        if told.to is None:
            yield from self.times
            return
        for name in told.to:
            if name in self.times:
                yield name
            else:
                self._tell("unexplained", name, f"told {told.outcome}, and not in `to`")

    def _one(self, name: str, times: int, told: Sequence[Told]) -> None:
        ends = [one for one in told if one.outcome in ENDS]
        outcomes = {one.outcome for one in ends}
        if not outcomes:
            self._open(name, times)
            return
        if times > 1 and len(outcomes) > 1:
            outcomes.discard("duplicate")  # of its other places
        final = set(outcomes)
        if name in self.moved and len(final) > 1:
            final.discard("dead")  # replayed since
        if len(final) > 1:
            self._tell("repeated", name, f"ended {' and '.join(sorted(final))}")
        outcome = next((one for one in REACHED if one in final), None) or min(final)
        for sums in self.sums:
            sums.outcomes[outcome] += 1
            if times > 1:
                sums.outcomes["duplicate"] += times - 1
        self._reached(name, ends, len(final) > 1)
        self._dead(name, outcomes)
        self._expired(name, ends)

    def _open(self, name: str, times: int) -> None:
        """Nothing was told of it."""
        if name in self.waiting:
            for sums in self.sums:
                sums.waiting += times
            return
        why = "no outcome, and its record is committed"
        if name in self.on_dead:
            why += "; it stands on the dead topic"
        for _ in range(times):
            self._tell("missing", name, why)

    def _reached(self, name: str, ends: Sequence[Told], told_already: bool) -> None:
        """How often the platform got it, and when first."""
        reached = [one for one in ends if one.outcome in REACHED]
        batches = {one.batch for one in reached}
        if len(batches) > 1 and not told_already:
            self._tell("repeated", name, f"{reached[0].outcome} in {len(batches)} calls: {', '.join(sorted(batches))}")
        accepted = min((one.at_ms for one in reached if one.outcome == "accepted"), default=None)
        due_ms = self.audit.due_ms(self.seen_as.get(name, self.send))
        if accepted is not None and self.audit.is_late(accepted, due_ms):
            self._tell("late", name, f"{accepted - due_ms} ms after its due time")

    def _dead(self, name: str, outcomes: set[str]) -> None:
        if not self.settled:  # the one may have been written, and the other not yet
            return
        if "dead" in outcomes and name not in self.on_dead and self.dead_whole:
            self._tell("unexplained", name, "told dead, and not on the dead topic")
        if "dead" not in outcomes and name in self.on_dead:
            self._tell("unexplained", name, "on the dead topic, and not told dead")

    def _expired(self, name: str, ends: Sequence[Told]) -> None:
        expired = [one.at_ms for one in ends if one.outcome == "expired"]
        deadline_ms = self.audit.deadline_ms(self.seen_as.get(name, self.send))
        if expired and self.audit.is_early(min(expired), deadline_ms):
            self._tell("unexplained", name, f"expired {deadline_ms - min(expired)} ms before its deadline")

    def _tell(self, kind: str, name: str, why: str) -> None:
        send = self.send
        self.audit.tell(
            Finding(kind, send.tier, send.channel, send.tenant, send.campaign, send.id, name, _spoken(self.origin), why)
        )


def _spoken(origin: Origin) -> str:
    return "{}:{}:{}".format(*origin)
