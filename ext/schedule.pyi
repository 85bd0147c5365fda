"""The scheduling core: what may go now, in which order, merged into platform-size batches.

Pure: time is given as monotonic integer nanoseconds, nothing blocks, nothing is logged. Columns are buffers in native
byte order; handles are u32 and mean something only to their core. NEVER (2**63 - 1) stands for "no such time".
"""

from collections.abc import Sequence

from typing_extensions import Buffer

from ext.histogram import Histogram

NEVER: int
TICK_NS: int  # timers are rounded up to this (2**20 ns)
GLOBAL: int
CHANNEL: int
ACCOUNT: int
WHOLE_TIER: int
OF_TENANT: int
OF_CAMPAIGN: int
EACH_TENANT: int  # on a channel, each for itself
HELD_TURN: int  # nothing: it may go now, others go first maybe
HELD_PAUSE: int
HELD_SLOT: int  # its channel has no call to spare
HELD_BLOCK: int
HELD_LIMIT: int
HELD_GRANT: int  # a limit has room, and the grant that is asked for is not there yet
HELD_LINGER: int  # for others to merge with
HELD_TIME: int  # a not_before, or the wait before a retry
HELD_PACING: int  # the time of its channel's next call, at the rate of now, has not come
CALLS: int
RECIPIENTS: int
CLOSED_CAP: int
CLOSED_LINGER: int
CLOSED_DUE: int
CLOSED_CUT: int
EXPIRED: int
CANCELLED: int
PUT_OFF_PAUSE: int
PUT_OFF_REST: int
PUT_OFF_LIMIT: int
ASAP: int
EVEN: int
PACED: int
CALL_A_SECOND: int  # as a rate: calls per 10**15 ns
WAIT_EDGES: tuple[int, ...]  # ns, of queue_wait and lateness
SIZE_EDGES: tuple[int, ...]  # recipients, of batch_recipients

class Batches:
    """What pop_batches returned: ``count`` batches over ``items`` recipients, as columns (memoryviews, read-only)."""

    count: int
    items: int
    more: bool  # the budget ended the call: something may go now, call again
    tier: memoryview  # u8, one a batch
    channel: memoryview  # u32
    account: memoryview  # u32
    tenant: memoryview  # u32
    campaign: memoryview  # u32
    content: memoryview  # u32
    closed: memoryview  # u8: CLOSED_*
    due: memoryview  # i64 ns, the earliest of its recipients
    start: memoryview  # u32, count + 1: batch b has the items start[b]..start[b + 1]
    send: memoryview  # u32, one a recipient
    position: memoryview  # u16: its place in the send's `to`
    attempt: memoryview  # u8: calls made for it before this one
    pushed: memoryview  # i64 ns: when its send first entered the core
    id_end: memoryview  # u32, items + 1 (first is 0): recipient i's id is ids[id_end[i]:id_end[i + 1]]
    ids: bytes

class Ended:
    """What reap returned: recipients that ended inside the core, as columns; and put_off, of what it hands back."""

    items: int
    more: bool
    cause: memoryview  # u8: EXPIRED or CANCELLED; of put_off PUT_OFF_*, what holds them longest
    until: memoryview  # i64 ns, of put_off: until when that does, at least
    send: memoryview  # u32
    position: memoryview  # u16
    attempt: memoryview  # u8

class Core:
    """Three tiers (0 system, 1 template, 2 basic) over channels and their accounts.

    System goes first; template and basic share by weight (1..2**20), a batch each counting the same. Channels, and the
    accounts of a channel, take turns of a batch; tenants of an account, and campaigns of a tenant, share by recipients,
    newcomers first. A batch wants to go when it is full, when its oldest run has lingered, at its due time, or
    ``deadline_lead_ns`` (0..2**62) before a deadline. Contents of a campaign beyond ``own_queues`` (0..2**20, for each
    tier and account) merge from their second run on. Handles count up from 0; a bad argument is a ValueError and
    changes nothing.

    ``now_ns`` is 0..2**62. Every call that takes it first fires the timers that are due, whatever their number; a time
    before that of an earlier call counts as that one. MemoryError: the call has changed nothing but that, and may be
    made again.
    """

    def __init__(
        self,
        template_weight: int = 1,
        basic_weight: int = 1,
        deadline_lead_ns: int = 1_000_000_000,
        own_queues: int = 64,
        *,
        pacing: Sequence[int] = (0, 0, 0),
        tau_ns: int = 3_600_000_000_000,
        floor: int = ...,
        near_ns: Sequence[int] = (0, 0, 0),
        horizon_ns: int = ...,
    ) -> None:
        """``pacing`` by tier: ASAP; PACED: at the lowest peak rate that meets every due time, earliest due first; EVEN:
        each call's share from its arrival to its due time; system is ASAP. A paced tier has a rate for each channel,
        and one over all, and a call keeps to both: see ``pace``. ``tau_ns`` (0..2**62): how slowly a past peak is
        forgotten, 0 at once. ``floor`` (1 and more): never slower than this rate. ``near_ns`` by tier: what is due no
        later than this after its start (0: nothing) leaves at once, first in, first out, and neither waits for a rate
        nor takes any of it; when it cannot leave within 2 s, fair shares rule. ``horizon_ns`` (0..NEVER, at first
        NEVER): see ``put_off``."""

    def add_channel(self, slots: int, reserved: int, cap: int, stays: bool = False) -> int:
        """A channel of ``slots`` calls in flight (1..2**20), ``reserved`` of them (0..slots - 1) for system, and at
        most ``cap`` recipients a batch (1..2**20); what is queued there is never ``put_off`` if it ``stays``. Returns
        its handle."""

    def add_account(self, channel: int) -> int:
        """An account of a channel. Returns its handle, counted over all channels."""

    def add_limit(
        self, scope: int, handle: int, unit: int, number: int, per_ns: int, reserved: int = 0, calendar: bool = False
    ) -> int:
        """At most ``number`` (1..2**60) CALLS or RECIPIENTS in any half-open window of ``per_ns`` (1..2**60), or in any
        period that ``set_period`` tells (``calendar``; ``per_ns`` then only names it); ``reserved`` of them
        (0..number - 1) for system. ``handle``: of the channel, account, tier or tenant; 0 for GLOBAL. A tenant with a
        limit costs some 400 bytes for as long as the core lives, be it queued or not.

        EACH_TENANT (``handle``: a channel's): each tenant has a limit of its own there; before anything is pushed, no
        calendar, never rationed, and ``use`` knows nothing of it. A tenant's takes some 500 bytes while it has
        something queued or counted there, and as long again as nobody else comes.

        A use counts from its pop until a window after its release: however long a call is on its way, no window is over
        at the platform (limit.h has the proof). At least 0.999 of N P / (P + J) can be used by calls of one recipient,
        J = from pop to release. A batch that does not fit waits, and its tenant (in that account), account,
        channel or tier with it. Returns the
        limit's handle. What is on its way counts at once.
        """

    def set_limit(
        self, scope: int, handle: int, unit: int, number: int, per_ns: int, reserved: int = 0, calendar: bool = False
    ) -> int:
        """Another number for the scope's limit of this unit, length and kind; what it has counted stays. Adds it when
        there is none. Returns its handle."""

    def set_period(self, limit: int, now_ns: int, period: int, ends_ns: int, next_ns: int, guard_ns: int = 0) -> None:
        """A calendar limit's period (1 or more, one more than that of the one before), when it ends and when the next
        one does, both ``guard_ns`` after the platform's: the clocks differ by less. What is used within that of an
        end counts in both. To be told again whenever the wall clock may have been set."""

    def restore(self, limit: int, at_ns: int, n: int) -> None:
        """Uses of an earlier life, by ``at_ns`` (which may be negative), oldest first."""

    def ration(self, limit: int, portion: int) -> None:
        """From now on only what is granted may be used. It asks for more when less than half a portion is left, or for
        what a call needs."""

    def asked(self) -> list[tuple[int, int]]:
        """(limit, amount) asked for since the last time; each asks no more until it has got a grant."""

    def grant(self, limit: int, n: int) -> None:
        """So much more may be used."""

    def use(self, limit: int, now_ns: int) -> tuple[int, int, int, int]:
        """Counted ever; of it in the window or period that ends now; on its way; granted and not used (2**64 - 1:
        everything is granted)."""

    def free_at(self, limit: int, now_ns: int) -> int:
        """When one more call or recipient of template or basic fits: now, or when enough of the window has gone; NEVER:
        that hangs on calls under way."""

    def push_many(
        self,
        now_ns: int,
        send: Buffer,  # u32, one a run (a send, or what is left of one, all under one attempt)
        tier: Buffer,  # u8
        account: Buffer,  # u32
        tenant: Buffer,  # u32
        campaign: Buffer,  # u32
        content: Buffer,  # u32
        attempt: Buffer,  # u8
        not_before: Buffer,  # i64 ns
        due: Buffer,  # i64 ns
        deadline: Buffer,  # i64 ns
        linger: Buffer,  # i64 ns, 0 or more
        pushed: Buffer,  # i64 ns
        count: Buffer,  # u32 recipients of this run, 1..65,536
        position: Buffer,  # u16, one a recipient
        id_length: Buffer,  # u8, 1 or more
        ids: bytes,
    ) -> None:
        """Take runs in: all of them, or none and a ValueError that names column and row. A run whose deadline has
        passed ends at once, as EXPIRED."""

    def pop_batches(self, now_ns: int, budget: int) -> Batches:
        """Form what may go now; each batch takes a slot of its channel until ``release``.

        A recipient moved or a queue looked at is a step. It ends when ``budget`` (1..2**20) steps are made, but
        finishes the batch it is at: at most budget + the largest cap of steps. Of what lingered or waited until now a
        call frees a thousand queues, and ``more`` is true while there are others.
        """

    def release(
        self, now_ns: int, account: int, tier: int, recipients: int, left: int, late_ns: int = 0, tenant: int = 0
    ) -> None:
        """A call has ended: its slot is free, and ``left`` of the recipients it was popped with count in every limit
        for a window from now, or from ``late_ns`` later when it may arrive as late as that; the others never left
        (0: the platform saw nothing of it). ``tenant``: of its recipients. ValueError: none was in flight."""

    def cancel(self, tenant: int, campaign: int, tier: int | None = None) -> int:
        """End all that is queued or waiting of a campaign, in one tier or in every one; returns how many recipients.
        Takes as long as the campaign has queues, whatever they hold: a content that was pushed once only has none of
        its own where the campaign has more than 64."""

    def reap(self, now_ns: int, budget: int) -> Ended:
        """Hand back up to ``budget`` (1..2**20) recipients that expired or were cancelled.

        First those that expired at a push or pop, then those that stand expired in queues, then the cancelled. One that
        expired behind others of its queue that may still go is handed back when those have gone.
        """

    def puts_off(self, now_ns: int) -> list[int]:
        """The tiers of which ``put_off`` would find something to look at."""

    def put_off(self, now_ns: int, tier: int, budget: int) -> Ended | None:
        """Take up to ``budget`` (1..2**20) recipients of a tier out of the core that nothing but a pause, a block or a
        limit keeps, and that for longer than the horizon: those that wait first, in the order of their queues. What
        lingers or waits for its time is taken when that is over. None: there is nothing. ``more``: look again.

        A pause counts by its ``until_ns``; a limit by when the batch that it refused would fit; one that waits for a
        grant or for calls under way, not at all. Nothing is walked to find it: what comes to be held, and what is
        pushed below, says so itself. Of its steps each is a recipient, or a node looked at; a send that it has begun it
        takes whole, up to 10,000 more."""

    def pause(self, scope: int, handle: int, campaign: int = 0, until_ns: int = 0) -> None:
        """Nothing of a CHANNEL, an ACCOUNT, a WHOLE_TIER, an OF_TENANT (``handle``: the tenant's) or an OF_CAMPAIGN
        (a campaign of that tenant) leaves until it is resumed, be it there now or pushed later. Deadlines go on. Calls
        in flight are not affected. Takes as long as the tenant or campaign has accounts it is queued for, whatever is
        queued. One that is paused costs some 60 bytes when nothing of it is queued. ``until_ns`` resumes nothing: until
        then at least it lasts, for ``put_off`` (0: that is not known). A second pause has it anew."""

    def resume(self, scope: int, handle: int, campaign: int = 0) -> None:
        """Undo ``pause``. It takes its turns behind those that had theirs meanwhile."""

    def reweight(self, scope: int, handle: int, weight: int, campaign: int = 0) -> None:
        """Another weight (1..2**20; 1 at first) for a WHOLE_TIER (template or basic), an OF_TENANT or an OF_CAMPAIGN,
        from its next turn on; what it has left of this one, or owes, stays. A tenant or campaign keeps it, be it queued
        or not, until it is 1 again."""

    def explain(
        self, now_ns: int, tenant: int, campaign: int
    ) -> list[tuple[int, int, int, int, int, int | None, int, int]]:
        """Why a campaign's recipients have not left yet, a row for each tier and account they are queued in: tier,
        account, recipients that time does not hold, HELD_*, the scope that holds (GLOBAL..OF_CAMPAIGN), the limit or
        None, until when (NEVER: not known), and the rate at which calls leave (HELD_PACING; else 0).

        Of a pause, the widest; of limits and blocks, the one that refuses for longest, as far as that is known: of what
        its account or channel is kept by already (for another's batch maybe), and of all that would refuse its next
        batch. Of pacing: the channel's
        rate or the tier's, whichever takes longer for the calls due before its own, and until about when that is, by
        its due time at the latest; a limit that refuses for longer comes before it. Without anything ready: the
        earliest end of waiting among its first 64 queues. Steps: accounts and tiers, times limits above them and the
        slots of pacing; nothing that is queued is walked. A grant that is missing is asked for.
        """

    def block(self, scope: int, handle: int, until_ns: int) -> None:
        """Nothing of this scope leaves before ``until_ns``; a later block does not shorten an earlier one."""

    def next_due(self, now_ns: int) -> int:
        """When to call next: ``now_ns`` (or the core's time, if later) when something may go or was not reaped; else a
        time after it at which a timer fires, or earlier; NEVER when there is none. Slots and pushes come by themselves.
        """

    def stats(self) -> dict[str, list[int]]:
        """By name one number a tier, in recipients where nothing else is said; cheap (takes as long as there are
        accounts, and tenants and campaigns that are paused or held by a limit).

        Since the start: pushed = popped + expired + cancelled + put_off + queued + waiting. Now: queued = linger (waits
        to merge) + paused + throttled (held by a limit or a block, and not paused) + paced (only held back until its
        time comes) + ready; waiting = retry (attempt > 0) + scheduled; ended (not reaped); flows (queues that are not
        empty, or have something waiting). ``pacing_calls`` are still to leave, which needs ``pacing_need`` and happens
        at ``pacing_rate``, not below ``pacing_floor``: rates over all channels, as of the last pop. ``memory_bytes``:
        one number, what may be resident of what the core has asked for.
        """

    def queued(self, tier: int, channel: int) -> int:
        """Recipients of a tier on a channel that no linger and no pause keeps; takes as long as there are accounts, and
        campaigns that are paused or held by a limit."""

    def check(self) -> None:
        """AssertionError: the structure is not what it says it is. For tests: walks everything, many times over."""

    def pace(self, tier: int, channel: int) -> tuple[int, int, int, int, int] | None:
        """Of a paced tier on one channel: calls still to leave, the rate they need to be in time, the rate at which
        they leave, the ceiling (FASTEST while it is not known), and the state: 0 below the ceiling, 1 near it, where
        nothing is held back, 2 at it, where fair shares take the place of due times. None: it is not paced."""

    def queue_wait(self, tier: int, channel: int) -> Histogram:
        """ns from pushed (or not_before, if later) to leaving, a count each recipient of a first attempt."""

    def lateness(self, tier: int) -> Histogram:
        """ns from due to leaving, 0 when in time, a count each recipient that left."""

    def batch_recipients(self, channel: int) -> Histogram:
        """Recipients of a batch, a count each batch."""
