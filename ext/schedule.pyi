"""The scheduling core: what may go now, in which order, merged into platform-size batches.

Pure: time is given as monotonic integer nanoseconds, nothing blocks, nothing is logged. Columns are buffers in native
byte order; handles are u32 and mean something only to their core. NEVER (2**63 - 1) stands for "no such time".
"""

from typing_extensions import Buffer

NEVER: int
TICK_NS: int  # timers are rounded up to this (2**20 ns)
GLOBAL: int
CHANNEL: int
ACCOUNT: int
CALLS: int
RECIPIENTS: int
CLOSED_CAP: int
CLOSED_LINGER: int
CLOSED_DUE: int
CLOSED_CUT: int
EXPIRED: int
CANCELLED: int

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
    """What reap returned: recipients that ended inside the core, as columns."""

    items: int
    more: bool
    cause: memoryview  # u8: EXPIRED or CANCELLED
    send: memoryview  # u32
    position: memoryview  # u16
    attempt: memoryview  # u8

class Core:
    def __init__(
        self, template_weight: int = 1, basic_weight: int = 1, deadline_lead_ns: int = 1_000_000_000
    ) -> None: ...
    def add_channel(self, slots: int, reserved: int, cap: int) -> int: ...
    def add_account(self, channel: int) -> int: ...
    def add_limit(self, scope: int, handle: int, unit: int, number: int, per_ns: int, reserved: int) -> int: ...
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
        linger: Buffer,  # i64 ns
        pushed: Buffer,  # i64 ns
        count: Buffer,  # u32 recipients of this run
        position: Buffer,  # u16, one a recipient
        id_length: Buffer,  # u8
        ids: bytes,
    ) -> None: ...
    def pop_batches(self, now_ns: int, budget: int) -> Batches: ...
    def release(self, channel: int, tier: int) -> None: ...
    def cancel(self, tenant: int, campaign: int) -> int: ...
    def reap(self, now_ns: int, budget: int) -> Ended: ...
    def block(self, scope: int, handle: int, until_ns: int) -> None: ...
    def next_due(self, now_ns: int) -> int: ...
    def stats(self) -> dict[str, list[int]]: ...
