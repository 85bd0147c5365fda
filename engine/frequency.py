"""How often each recipient of a channel gets a message (shell): takes those out of a batch who have had theirs.

In: a batch that was popped; how its call ended. Out: which recipients must wait, and until when.
Invariant: whoever is on a call is counted by every rule from before it is written, as at the latest time it can arrive,
until that is known better; a call that takes longer is not forgotten while it is under way. Never: counts what surely
reached nobody (a call that did not leave, a refusal): a rule of a few messages a month would be used up by an outage.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from engine.clock import Clock
from engine.config import ChannelConfig
from engine.drivers import Action, CallResult, Driver, Verdict
from engine.open_sends import Flow
from engine.send import Tier
from engine.shares import frequency_of
from engine.state.frequency import FrequencyFile
from ext.columns import Batch
from ext.schedule import TICK_NS

REACHED_NOBODY = frozenset({Action.FAILED, Action.DEAD, Action.PARK, Action.REFRESH})
CALLS_TAKE = 2  # times its timeout at most: a token may have to be got first
AGAIN_NS = 1_000_000_000  # who waits for a call that is late looks again after so long
ROUND = 5  # a wait ends up to 1/2**ROUND of it later, so that those who wait about as long go together again


class Held(NamedTuple):
    """What ``hold`` made of a batch."""

    at_ns: int  # wall: those who go are counted as at this time
    waits: Mapping[int, int]  # row -> until when it must wait, ns of the core


NOTHING = Held(0, {})


class Frequencies:
    """One process's: a file for each channel that has rules."""

    def __init__(
        self,
        state: Path,
        configs: Mapping[str, ChannelConfig],
        drivers: Mapping[str, Driver],
        clock: Clock,
        *,
        keep_for_system: bool = True,
    ) -> None:
        """Raises LogUnusable."""
        self._reserves = keep_for_system
        self.waited: Counter[str] = Counter()  # recipients taken out of a batch, by channel
        self._clock = clock
        self._offset_ns = clock.offset_ns()  # once: a step of the wall clock must not let anything be forgotten
        self._under_way: dict[str, dict[int, None]] = defaultdict(dict)  # channel -> at_ns of its calls, earliest first
        self._timeouts = {name: int(config.timeout) for name, config in configs.items()}
        self._files: dict[str, FrequencyFile] = {}
        self._keys: dict[tuple[str, str], bytes] = {}
        self._rules: dict[str, list[str]] = {}  # by channel, as people say them
        self._ends: dict[Flow, dict[int, str]] = {}  # of waits, ns of the core, a tick -> by which rule
        for name, config in configs.items():
            if rules := frequency_of(config):
                pairs = [(rule.messages, int(rule.per)) for rule in rules]
                memory, caseless = config.frequency_memory, drivers[name].caseless
                self._files[name] = FrequencyFile(state / "frequency" / _file_name(name), pairs, memory, caseless)
                self._rules[name] = [f"{rule.messages} messages per {rule.per}" for rule in rules]

    def hold(self, batch: Batch, *, again: bool) -> Held:
        """Count the batch's recipients, but those who must wait. ``again``: a call repeated as it was; it counts once
        more, and nobody waits. Free on a channel without rules."""
        name = batch.flow.channel
        file = self._files.get(name)
        if file is None:
            return NOTHING
        now_ns = self._now_ns()
        looks_ns = self._looks_ns(name, now_ns)
        under_way, at_ns = self._under_way[name], now_ns + CALLS_TAKE * self._timeouts[name]
        while at_ns in under_way:
            at_ns += 1
        urgent = batch.tier is Tier.SYSTEM or not self._reserves
        refused = file.counts.take(self._key(file, batch), list(batch.ids), looks_ns, at_ns, urgent, again)
        self.waited[name] += len(refused)
        if len(refused) < len(batch):
            under_way[at_ns] = None
        if not refused:
            return Held(at_ns, {})
        soonest = now_ns if looks_ns == now_ns else now_ns + AGAIN_NS
        waits = {row: _rounded(now_ns, max(until, soonest)) + self._offset_ns for row, (until, _) in refused.items()}
        self._note(batch.flow, {waits[row]: rule for row, (_, rule) in refused.items()})
        return Held(at_ns, waits)

    def rule(self, flow: Flow, until_ns: int) -> str | None:
        """The rule whose waits of the flow's end at this tick of the core: "30 messages per 1m"; None: none does."""
        return self._ends.get(flow, {}).get(until_ns)

    def forget(self, flow: Flow) -> None:
        """Nothing of it is open any more."""
        self._ends.pop(flow, None)

    def _note(self, flow: Flow, rules: Mapping[int, int]) -> None:
        """Waits by their end; what has passed goes. Some hundred stay at most, for ends are rounded."""
        now, rules_of = self._clock.now_ns(), self._rules[flow.channel]
        ends = {end: rule for end, rule in self._ends.get(flow, {}).items() if end > now}
        ends |= {-(-until // TICK_NS) * TICK_NS: rules_of[rule] for until, rule in rules.items()}
        self._ends[flow] = ends

    def done(self, batch: Batch, held: Held, result: CallResult) -> None:
        """The batch's call has ended: who may have got it got it by now, or is still to be reached in as long as a
        call may take; the others got nothing."""
        name = batch.flow.channel
        file = self._files.get(name)
        if file is None:
            return
        ids, key = batch.ids, self._key(file, batch)
        now_ns = self._now_ns()
        by_ns, looks_ns = now_ns if result.answered else now_ns + self._timeouts[name], self._looks_ns(name, now_ns)
        reached, others = _told_apart(ids, result)
        file.counts.give_back(key, others, looks_ns, held.at_ns)
        file.counts.move(key, reached, looks_ns, held.at_ns, by_ns)
        del self._under_way[name][held.at_ns]

    def full_shares(self) -> dict[str, float]:
        """By channel, how much of the memory has no room for another recipient, 0..1."""
        now_ns = self._now_ns()
        return {name: file.counts.full_share(self._looks_ns(name, now_ns)) for name, file in self._files.items()}

    def close(self) -> None:
        """No call may be under way any more."""
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _now_ns(self) -> int:
        """Wall time as it would be without the steps of the clock since the start."""
        return self._clock.now_ns() - self._offset_ns

    def _looks_ns(self, channel: str, now_ns: int) -> int:
        """As of when windows are looked at: no later than the oldest call under way is counted. Past that it may still
        arrive (the process, or its machine, stood still), and must not have been forgotten."""
        return min(now_ns, next(iter(self._under_way[channel]), now_ns))

    def _key(self, file: FrequencyFile, batch: Batch) -> bytes:
        name = batch.flow.channel, batch.flow.account
        key = self._keys.get(name)
        if key is None:
            key = self._keys[name] = file.key(batch.flow.account)
        return key


def rows_by_wait(waits: Mapping[int, int]) -> dict[int, list[int]]:
    """Rows in their order, by when their wait ends, soonest first."""
    found: dict[int, list[int]] = defaultdict(list)
    for row in sorted(waits):
        found[waits[row]].append(row)
    return dict(sorted(found.items()))


def _told_apart(ids: Sequence[str], result: CallResult) -> tuple[list[str], list[str]]:
    """Who may have got it, and who surely did not."""
    exceptions = result.exceptions if result.left else {}
    whole = result.left and _may_have_reached(result.whole)
    if not exceptions:
        return (list(ids), []) if whole else ([], list(ids))
    reached: list[str] = []
    others: list[str] = []
    for row, id in enumerate(ids):
        verdict = exceptions.get(row)
        (reached if (whole if verdict is None else _may_have_reached(verdict)) else others).append(id)
    return reached, others


def _may_have_reached(verdict: Verdict) -> bool:
    return verdict.action not in REACHED_NOBODY and not verdict.refused


def _rounded(now_ns: int, until_ns: int) -> int:
    step = 1 << max(0, (until_ns - now_ns >> ROUND).bit_length() - 1)
    return -(-until_ns // step) * step


def _file_name(channel: str) -> str:
    """Of any name, one that a file may have."""
    return f"{quote(channel, safe='')[:64]}-{blake2b(channel.encode(), digest_size=4).hexdigest()}"
