"""Whether a story ended well, read from the log and from the platforms' ledger."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from math import inf
from typing import NamedTuple

from bench.simulator_ledger import DELIVERED, DUPLICATE, VERDICTS
from engine import wire
from engine.clock import NS_PER_MS, NS_PER_S
from engine.logs import Partition, Position, Record
from engine.send import Origin, Outcome, Tier
from tests.integration.support import recipients
from tests.sim.broker import Entry
from tests.sim.committed import Committed, Place
from tests.sim.story import Story, Worker
from tests.sim.wires import Made
from tests.sim.world import EPOCH_NS, Process

Key = tuple[Origin, str]


class Moved(NamedTuple):
    """Somebody on a later topic. ``at_ns``: to the ms."""

    hop: int
    place: Place
    at_ns: int


MADE_UP_NS = 50 * NS_PER_MS  # a commit is begun so long after what it says was settled, at most


class Judge:
    """Watches every commit, and says at the end what is wrong."""

    def __init__(self, story: Story) -> None:
        self.story = story
        self.wanted: Counter[Key] = Counter()
        self.ends: dict[Key, list[Outcome]] = {}
        self.moves: dict[Key, list[Moved]] = {}  # on later topics, in the order they came
        self._names: dict[Origin, list[str]] = {}
        self._read: dict[Partition, int] = {}
        self._open: set[Key] = set()
        self._history = History(story, self.names, self.moves)
        story.broker.committing = self._committing

    # --- reading on

    def read(self) -> None:
        """What has come since the last time."""
        for name, topic in self.story.broker.topics.items():
            for number, entries in enumerate(topic.partitions):
                partition = Partition(name, number)
                for offset in range(self._read.get(partition, 0), len(entries)):
                    entry = entries[offset]
                    if entry is not None:
                        self._take(partition, offset, entry)
                self._read[partition] = len(entries)

    def names(self) -> Mapping[Origin, list[str]]:
        """Whom each record on the log is for."""
        self.read()
        return self._names

    def _take(self, partition: Partition, offset: int, entry: Entry) -> None:
        kind = partition.topic.removeprefix("surgetank.")
        if kind in (tier.label for tier in Tier):
            origin = Origin(*partition, offset)
            if wire.history(entry.headers) is None:
                names = self._names[origin] = recipients(entry.value)
                keys = [(origin, name) for name in names]
                self.wanted.update(keys)
                self._open.update(keys)
        elif kind == "receipts":
            self._told(wire.decode_receipt(entry.value or b""))
        elif kind.startswith("later."):
            said = wire.history(entry.headers)
            assert said is not None, f"{partition}/{offset} does not say where it comes from"
            names = self._names[said.origin]
            for position in range(len(names)) if said.positions is None else said.positions:
                place = Place(partition, offset, position)
                moved = Moved(said.hop, place, entry.timestamp_ms * NS_PER_MS - EPOCH_NS)
                self.moves.setdefault((said.origin, names[position]), []).append(moved)

    def _told(self, receipt: wire.Receipt) -> None:
        for entry in receipt.sends:
            origin = Origin(*entry.origin)
            for name in self._names[origin] if entry.to is None else entry.to:
                assert (origin, name) in self.wanted, f"a receipt for {name} of {origin}, who was never fed"
                self.ends.setdefault((origin, name), []).append(Outcome(receipt.outcome))
                self._open.discard((origin, name))

    def _spoken(self, said: wire.History) -> list[str]:
        names = self._names[said.origin]
        return names if said.positions is None else [names[position] for position in said.positions]

    def _committing(self, group: str, positions: Mapping[Partition, Position], who: object) -> None:
        """The position never passes what is not done: told, or moved on."""
        self._history.commit(positions, who)
        self.read()
        for partition, position in positions.items():
            before = self.story.broker.group(group).positions.get(partition, Position(0)).offset
            entries = self.story.broker.entries(partition)
            for offset in range(before, position.offset):
                entry = entries[offset]
                said = None if entry is None else wire.history(entry.headers)
                origin = Origin(*partition, offset) if said is None else said.origin
                names = self._spoken(said) if said is not None else self._names.get(origin, [])
                hop = 0 if said is None else said.hop
                for name in names:
                    key = (origin, name)
                    assert key in self.ends or self._stands(key, hop, partition, offset), (
                        f"{group} commits {offset} past {key}"
                    )

    def _stands(self, key: Key, hop: int, partition: Partition, offset: int) -> bool:
        """It has moved on, or another record of the same move is still to be done."""
        others = [one for one in self.moves.get(key, ()) if one.place[:2] != (partition, offset)]
        return any(one.hop > hop or (one.hop == hop and not self._history.done(one.place)) for one in others)

    # --- the end

    def content(self) -> bool:
        """Everything has ended and is committed."""
        self.read()
        if self._open or not all(_well(self.story, worker) for worker in self.story.workers):
            return False
        positions = {p: at.offset for group in self.story.broker.groups.values() for p, at in group.positions.items()}
        tiers = self.story.broker.partitions([f"surgetank.{tier.label}" for tier in Tier])
        return all(positions.get(partition, 0) == self._read.get(partition, 0) for partition in tiers)

    def judge(self) -> None:
        """Raises AssertionError with everything that is wrong."""
        self.read()
        wrong = [
            *self._missing(),
            *self._told_otherwise(),
            *self._limits(),
            *self._order(),
            *self._repeats(),
            *self._never(),
        ]
        assert not wrong, "\n".join(wrong[:20])

    def _missing(self) -> Iterator[str]:
        arrived = self._arrived()
        for key, times in self.wanted.items():
            ends = self.ends.get(key, [])
            if len(ends) < times:
                yield f"{key}: {times - len(ends)} outcomes are missing"
            if Outcome.ACCEPTED in ends and not arrived[key[1]]:
                yield f"{key} was accepted, and never arrived"

    def _told_otherwise(self) -> Iterator[str]:
        fed = self.story.fed
        deadlines = {id for one in fed if one.deadline for id in one.ids}
        cancelled = {id for one in fed if one.campaign and one.campaign == self.story.cancelled for id in one.ids}
        for key, ends in self.ends.items():
            if Outcome.EXPIRED in ends and key[1] not in deadlines:
                yield f"{key} expired, and had no deadline"
            if Outcome.CANCELLED in ends and key[1] not in cancelled:
                yield f"{key} was cancelled, and nobody had said so"
            if len(ends) > self.wanted[key] and not self._history.may_be_told_again(key):
                yield f"{key} was told {ends}, and what was told first had been committed"

    def _limits(self) -> Iterator[str]:
        for (platform, what), count in self.story.platforms.ledger.violations.items():
            yield f"{platform}: {what}: {count} times"

    def _order(self) -> Iterator[str]:
        """Within a life of a worker, of one partition, what may merge goes in the order it came."""
        ranks = self._ranks()
        moved = {name for _, name in self.moves}  # goes when it is due
        apart = {id for fed in self.story.fed if fed.channel in self.story.never for id in fed.ids}
        last: dict[object, tuple[int, int]] = {}
        begun: set[tuple[int, str]] = set()
        called: set[str] = set()  # and if repeats are forbidden, again only as then: apart from the others
        for call in self.story.platforms.calls:
            life = id(call.process)
            for name in call.ids:
                if name not in ranks or name in moved or (life, name) in begun or (name in apart and name in called):
                    continue
                begun.add((life, name))
                called.add(name)
                queue, rank = ranks[name]
                if rank < last.get((life, queue), (-1, -1)):
                    yield f"{name} left after one that came later"
                last[life, queue] = rank

    def _ranks(self) -> dict[str, tuple[object, tuple[int, int]]]:
        flows = {id: fed.flow for fed in self.story.fed if fed.flow for id in fed.ids}
        return {
            name: ((flows[name], origin.partition), (origin.offset, position))
            for origin, names in self._names.items()
            for position, name in enumerate(names)
            if name in flows
        }

    def _arrived(self) -> Counter[str]:
        ledger = self.story.platforms.ledger
        wanted = (VERDICTS[DELIVERED], VERDICTS[DUPLICATE])
        return Counter(row.recipient for row in ledger.entries(0, ledger.rows) if row.verdict in wanted)

    def _repeats(self) -> Iterator[str]:
        """Nobody is called again whom a call is known to have reached, unless it was not committed when its worker died
        or lost the partition."""
        origins = {name: origin for origin, names in self._names.items() for name in names}
        last: dict[str, Made] = {}
        for call in self.story.platforms.calls:
            for name in call.ids:
                before = last.get(name)
                if before is not None and not self._history.may_repeat(before, call, (origins[name], name)):
                    yield f"{name} was delivered again {call.begun_ns - before.begun_ns} ns later, without need"
            last.update(dict.fromkeys(call.reached, call))

    def _never(self) -> Iterator[str]:
        """Where repeats are forbidden nobody gets it twice, and nobody is told two ends."""
        channels = {id: fed.channel for fed in self.story.fed for id in fed.ids}
        ledger = self.story.platforms.ledger
        got = Counter(row.recipient for row in ledger.entries(0, ledger.rows) if row.verdict == VERDICTS[DELIVERED])
        for (_, name), ends in self.ends.items():
            if channels.get(name) not in self.story.never:
                continue
            if got[name] > 1:
                yield f"{name} got it {got[name]} times, and its channel forbids that"
            if len(set(ends) - {Outcome.UNKNOWN}) > 1:
                yield f"{name} was told {ends}"


def _well(story: Story, worker: Worker) -> bool:
    """It serves, runs, and its groups have taken a commit of it since it last stood still: an expelled one cannot end
    well. (Its fence is read, not asked: that would count as a look of its own.)"""
    if worker.pipeline is None:
        return False
    fence = worker.pipeline.fence
    return story.world.now_ns - fence._last_ns < NS_PER_S and set(fence._proven.values()) == {fence._gaps}


class History:
    """When receipts were acknowledged, what was committed, and when partitions changed hands."""

    def __init__(
        self, story: Story, names: Callable[[], Mapping[Origin, list[str]]], moves: Mapping[Key, Sequence[Moved]]
    ) -> None:
        self._story = story
        self._names = names
        self._moves = moves
        self._committed = Committed(story.broker)
        self._movers: dict[tuple[Key, int], list[tuple[int, Process]]] = {}  # when who knew it had moved so often
        self._told: dict[Key, list[tuple[int, Process]]] = {}  # when who knew that its receipt was on the log
        self._commits: dict[tuple[Process, Partition], list[tuple[int, int]]] = {}  # begun, and in effect
        self._rebalances: list[tuple[int, str]] = []
        story.acked = self._acked
        story.broker.rebalanced = lambda group: self._rebalances.append((story.world.now_ns, group))

    def commit(self, positions: Mapping[Partition, Position], who: object) -> None:
        """One takes effect."""
        assert isinstance(who, tuple)
        process, begun_ns = who
        for partition in positions:
            self._commits.setdefault((process, partition), []).append((begun_ns, self._story.world.now_ns))
        self._committed.add(positions, process, self._story.world.now_ns)

    def done(self, place: Place) -> bool:
        """Whether a commit in effect covers it."""
        return self._committed.first(place) is not None

    def may_repeat(self, before: Made, again: Made, key: Key) -> bool:
        """Whether a call may be made again for whom an earlier one has reached."""
        if before.answered_ns is None or self._was_twice(key, again.begun_ns):
            return True
        if before.process is again.process and not self._changed(key[0], before.begun_ns, again.begun_ns):
            return False
        if key in self._moves:
            return self._may_repeat_moved(key, before.process, again.begun_ns)
        told = self._by(key, before.process)
        return not any(self._covered(key[0], process, at_ns, again.begun_ns) for at_ns, process in told)

    def may_be_told_again(self, key: Key) -> bool:
        """Whether what was told of it need not have been committed before it was told once more. Who stood still may
        tell again what another has told meanwhile, before he learns that it is not his."""
        told = self._told.get(key, [])
        if told and self._was_twice(key, told[-1][0]):
            return True
        for (first_ns, first), (then_ns, then) in pairwise(told):
            if first is then and not self._changed(key[0], first_ns, then_ns):
                return False
            if key in self._moves:
                return then.frozen_ns > 0 or self._may_repeat_moved(key, first, then_ns)
            if not then.frozen_ns and self._covered(key[0], first, first_ns, then_ns):
                return False
        return True  # where nobody knows of a second time, the answer to an append was lost

    def _acked(self, process: Process, records: Sequence[Record]) -> None:
        names = self._names()
        for record in records:
            if ".later." in record.topic:
                self._knows(process, record)
            if not record.topic.endswith(".receipts"):
                continue
            for entry in wire.decode_receipt(record.value or b"").sends:
                origin = Origin(*entry.origin)
                for name in names[origin] if entry.to is None else entry.to:
                    self._told.setdefault((origin, name), []).append((self._story.world.now_ns, process))

    def _knows(self, process: Process, record: Record) -> None:
        said = wire.history(tuple(record.headers))
        assert said is not None
        names = self._names()[said.origin]
        for name in names if said.positions is None else [names[position] for position in said.positions]:
            known = self._movers.setdefault(((said.origin, name), said.hop), [])
            known.append((self._story.world.now_ns, process))

    def _may_repeat_moved(self, key: Key, process: Process, again_ns: int) -> bool:
        """Of somebody who has moved: unless all that stood for him when ``process`` told of his end was covered by
        its commits, before it was dealt anew (and what was read again then moved once more)."""
        for told_ns, _ in self._by(key, process):
            hop = max((one.hop for one in self._moves[key] if one.at_ns <= told_ns), default=0)
            if all(self._covers(place, process, told_ns, again_ns) for place in self._places(key, hop)):
                return False
        return True

    def _covers(self, place: Place, process: Process, from_ns: int, before_ns: float) -> bool:
        """Whether the first commit that covers it is the process's, and came before it was dealt anew."""
        commit = self._committed.first(place)
        if commit is None or commit.process is not process or commit.at_ns >= before_ns:
            return False
        return not self._changed(Origin(*place.partition, 0), from_ns, commit.at_ns)

    def _was_twice(self, key: Key, before_ns: int) -> bool:
        """A move of his may have been made twice, or again without it: two records stand for him."""
        return any(self._in_doubt(key, moved.hop) for moved in self._moves.get(key, ()) if moved.at_ns < before_ns)

    def _in_doubt(self, key: Key, hop: int) -> bool:
        """A crash, another owner, or an append whose answer was lost came between a move and the commit that covers it.
        The record stands there all the same, whoever has moved him once more and committed that."""
        moves = self._movers.get((key, hop), ())
        return len(self._places(key, hop)) > len(moves) or not all(self._sure(key, hop, *move) for move in moves)

    def _sure(self, key: Key, hop: int, moved_ns: int, process: Process) -> bool:
        """Whether who moved it has committed that."""
        return any(self._covers(place, process, moved_ns, inf) for place in self._places(key, hop - 1))

    def _places(self, key: Key, hop: int) -> list[Place]:
        origin, name = key
        if not hop:
            return [Place(Partition(*origin[:2]), origin.offset, self._names()[origin].index(name))]
        return [one.place for one in self._moves[key] if one.hop == hop]

    def _by(self, key: Key, process: Process) -> Iterator[tuple[int, Process]]:
        return (told for told in self._told.get(key, ()) if told[1] is process)

    def _changed(self, origin: Origin, from_ns: int, to_ns: int) -> bool:
        """Whether the group that reads that topic was dealt anew meanwhile; for who has moved, any of his tier's."""
        groups = _groups(origin.topic)
        return any(from_ns <= at_ns <= to_ns and group in groups for at_ns, group in self._rebalances)

    def _covered(self, origin: Origin, process: Process, told_ns: int, before_ns: int) -> bool:
        """Whether a commit of that process covers what it knew by then: made before the partition changed hands, and in
        effect before something else."""
        late_ns = told_ns + MADE_UP_NS + process.frozen_ns
        commits = self._commits.get((process, Partition(*origin[:2])), ())
        return any(
            begun_ns > late_ns and effect_ns < before_ns and not self._changed(origin, told_ns, effect_ns)
            for begun_ns, effect_ns in commits
        )


def _groups(topic: str) -> tuple[str, str]:
    """Of the tier whose topic, own or later, it is."""
    tier = topic.removeprefix("surgetank.").removeprefix("later.").partition(".")[0]
    return f"surgetank.{tier}", f"surgetank.later.{tier}"
