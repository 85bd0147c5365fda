# distutils: include_dirs = ext
"""The core as Python sees it: checks what comes in, hands rows to ext.queues, lays what comes out into columns.

In: columns (buffers), handles, times. Out: Batches and Ended.
Invariant: a call that raises has changed nothing, except that time has moved on.
Never: keeps a reference to a caller's buffer, or makes a Python object for a recipient.

More than 500 lines: Core, with a method for each operation, which Cython cannot spread over files, and the columns that
it alone reads and writes.
"""

from cython cimport final, no_gc_clear
from cpython.buffer cimport PyBUF_FORMAT, PyBUF_ND, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.long cimport PyLong_AsLongLongAndOverflow
from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcmp, memcpy

from ext.histogram cimport Histogram
from ext.limits cimport (
    LIMIT_CALLS, LIMIT_RECIPIENTS, Limit, Scope, limit_ceiling, limit_count, limit_grant, limit_period,
    limit_roll, limit_wants, limit_when, scope_limit,
)
from ext.pace cimport PACE_ASAP, PACE_CALL_A_SECOND, PACE_EVEN, PACE_FASTEST, PACE_PACED, Pace
from ext.queues cimport (
    BASIC, BY_LIMIT, BY_PAUSE, BY_REST, CAMPAIGN_, CANCELLED_, CAP, CUT, DUE, EXPIRED_, LINGER_OVER, SYSTEM,
    PUT_OFF_WHOLE, TEMPLATE, TIERS,
    OF_BLOCK, OF_GRANT, OF_LIMIT, OF_LINGER, OF_PAUSE, OF_RATE, OF_SLOT, OF_TIME, TURN,
    BatchRow, EndedRow, Group, Kept, Node, Output, Queues, Reason, Row, Times,
    queues_add_account, queues_add_channel, queues_add_limit, queues_advance, queues_cancel, queues_due, queues_free,
    queues_explain, queues_has_ended, queues_has_work, queues_kept, queues_make, queues_make_tenant, queues_memory,
    queues_pace, queues_pause, queues_pause_group, queues_pop, queues_push, queues_put_off,
    queues_puts_off, queues_queued, queues_reap, queues_reconsider,
    place_of, queues_release, queues_reweight, queues_reweight_tier, queues_tenant, queues_unsound,
)
from ext.queues cimport TENANT as TENANT_

NEVER = INT64_MAX
TICK_NS = 1 << 20
GLOBAL, CHANNEL, ACCOUNT, WHOLE_TIER, OF_TENANT, OF_CAMPAIGN, EACH_TENANT = 0, 1, 2, 3, 4, 5, 6
CALLS, RECIPIENTS = LIMIT_CALLS, LIMIT_RECIPIENTS
# What holds a campaign, and (by level of the tree) whose pause, scope or rate it is.
HELD_TURN, HELD_PAUSE, HELD_SLOT, HELD_BLOCK, HELD_LIMIT, HELD_GRANT, HELD_LINGER, HELD_TIME, HELD_PACING = (
    TURN, OF_PAUSE, OF_SLOT, OF_BLOCK, OF_LIMIT, OF_GRANT, OF_LINGER, OF_TIME, OF_RATE,
)
cdef tuple SCOPE_OF = (GLOBAL, WHOLE_TIER, CHANNEL, ACCOUNT, OF_TENANT, OF_CAMPAIGN, EACH_TENANT)
CLOSED_CAP, CLOSED_LINGER, CLOSED_DUE, CLOSED_CUT = CAP, LINGER_OVER, DUE, CUT
EXPIRED, CANCELLED = EXPIRED_, CANCELLED_
PUT_OFF_PAUSE, PUT_OFF_REST, PUT_OFF_LIMIT = BY_PAUSE, BY_REST, BY_LIMIT
ASAP, EVEN, PACED = PACE_ASAP, PACE_EVEN, PACE_PACED
CALL_A_SECOND = PACE_CALL_A_SECOND

_MS = 1_000_000
WAIT_EDGES = tuple(ms * _MS for ms in (
    1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 60_000, 120_000, 300_000, 600_000,
    1_800_000, 3_600_000, 14_400_000, 86_400_000,
))
SIZE_EDGES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000)

cdef enum:
    MOST = 1 << 20  # weights, slots, caps, budgets, channels, accounts
    MOST_RUN = 65536  # recipients of a run: what a u16 position can tell apart

cdef int64_t LATEST = <int64_t>1 << 62  # of now, and other sums stay inside 64 bits
cdef int64_t WIDEST = <int64_t>1 << 60  # of a window and its number


cdef int64_t within(str name, object value, int64_t least, int64_t most) except? -1:
    cdef int overflow = 0
    cdef int64_t number = PyLong_AsLongLongAndOverflow(value, &overflow)
    if overflow or not least <= number <= most:
        raise ValueError(f"{name} is {value}: {least}..{most} expected")
    return number


cdef uint32_t name(str what, object value) except? 0xFFFFFFFF:
    """A tenant's or campaign's handle."""
    return <uint32_t>within(what, value, 0, 0xFFFFFFFF)


cdef inline uint8_t level_of(int64_t scope) noexcept:
    return TENANT_ if scope == OF_TENANT else CAMPAIGN_


cdef uint32_t part_of(int64_t scope, object campaign) except? 0xFFFFFFFF:
    """The campaign of a tenant, or 0 for all of it."""
    if scope == OF_TENANT:
        within("campaign", campaign, 0, 0)
    return name("campaign", campaign)


# --- columns in ---

cdef enum:  # columns
    SEND, TIER, ACCOUNT_, TENANT, CAMPAIGN, CONTENT, ATTEMPT, NOT_BEFORE, DUE_, DEADLINE, LINGER, PUSHED, COUNT
    POSITION, ID_LENGTH, COLUMNS

cdef tuple NAMES = (
    "send", "tier", "account", "tenant", "campaign", "content", "attempt", "not_before", "due", "deadline", "linger",
    "pushed", "count", "position", "id_length",
)
cdef bytes CODES = b"IBIIIIBqqqqqIHB"


@final
cdef class Columns:
    """The columns of one push_many while it runs."""

    cdef Py_buffer views[COLUMNS]
    cdef int held  # so many of them must be released
    cdef Py_ssize_t runs, items
    cdef bytes ids

    def __dealloc__(self):
        while self.held:
            self.held -= 1
            PyBuffer_Release(&self.views[self.held])

    cdef int hold(self, tuple buffers, bytes ids) except -1:
        cdef int i
        cdef Py_ssize_t length
        for i in range(COLUMNS):
            self.hold_one(i, buffers[i])
            length = self.views[i].len // self.views[i].itemsize
            if i == SEND:
                self.runs = length
            elif i == POSITION:
                self.items = length
            elif length != (self.runs if i < POSITION else self.items):
                raise ValueError(
                    f"{NAMES[i]} has {length} rows: {self.runs if i < POSITION else self.items} expected, as in "
                    f"{'send' if i < POSITION else 'position'}"
                )
        self.ids = ids
        return 0

    cdef int hold_one(self, int i, object buffer) except -1:
        cdef Py_buffer* view = &self.views[i]
        try:
            PyObject_GetBuffer(buffer, view, PyBUF_FORMAT | PyBUF_ND)
        except (TypeError, BufferError) as error:
            raise ValueError(f"{NAMES[i]}: {error}") from error
        self.held += 1
        if not is_format(view.format, CODES[i], view.itemsize):
            code = "B" if view.format == NULL else view.format.decode()
            raise ValueError(f"{NAMES[i]} has items {code!r}: {chr(CODES[i])!r} expected")
        return 0

    cdef int check(self, Queues* q) except -1:
        """Raises ValueError for the first row that cannot be pushed."""
        cdef Py_ssize_t i, n = self.runs
        cdef int64_t recipients = 0, id_bytes = 0, linger = 0
        cdef uint8_t tier = 0, length = 255
        cdef uint32_t account = 0, count = 0
        cdef const uint8_t* tiers = <const uint8_t*>self.views[TIER].buf
        cdef const uint32_t* accounts = <const uint32_t*>self.views[ACCOUNT_].buf
        cdef const uint32_t* counts = <const uint32_t*>self.views[COUNT].buf
        cdef const int64_t* lingers = <const int64_t*>self.views[LINGER].buf
        cdef const uint8_t* lengths = <const uint8_t*>self.views[ID_LENGTH].buf
        # Column by column and without branches, many rows at a time; which row is wrong is asked when one is.
        for i in range(n):
            tier = max(tier, tiers[i])
        for i in range(n):
            account = max(account, accounts[i])
        for i in range(n):
            count = max(count, counts[i] - 1)
            recipients += counts[i]
        for i in range(n):
            linger |= lingers[i]
        if n and (tier >= TIERS or account >= q.account_count or count >= <uint32_t>MOST_RUN or linger < 0):
            self.name_wrong_run(q)
        if recipients != self.items:
            raise ValueError(f"count adds up to {recipients}: {self.items} expected, the rows of position")
        for i in range(self.items):
            length = min(length, lengths[i])
            id_bytes += lengths[i]
        if length == 0:
            i = bytes(lengths[:self.items]).index(0)
            raise ValueError(f"id_length[{i}] is 0: 1..255 expected")
        if id_bytes != len(self.ids):
            raise ValueError(f"id_length adds up to {id_bytes}: {len(self.ids)} expected, the bytes of ids")
        return 0

    cdef int name_wrong_run(self, Queues* q) except -1:
        cdef Py_ssize_t i
        for i in range(self.runs):
            tier = (<const uint8_t*>self.views[TIER].buf)[i]
            account = (<const uint32_t*>self.views[ACCOUNT_].buf)[i]
            count = (<const uint32_t*>self.views[COUNT].buf)[i]
            linger = (<const int64_t*>self.views[LINGER].buf)[i]
            if tier >= TIERS:
                raise ValueError(f"tier[{i}] is {tier}: 0, 1 or 2 expected")
            if account >= q.account_count:
                raise ValueError(f"account[{i}] is {account}: a handle below {q.account_count} expected")
            if not 1 <= count <= MOST_RUN:
                raise ValueError(f"count[{i}] is {count}: 1..{MOST_RUN} expected")
            if linger < 0:
                raise ValueError(f"linger[{i}] is {linger}: 0 or more expected")
        return 0

    cdef bint varies(self, int column) noexcept:
        """Not all runs have the same time there."""
        cdef const int64_t* times = <const int64_t*>self.views[column].buf
        return self.runs > 1 and memcmp(times, times + 1, (self.runs - 1) * sizeof(int64_t)) != 0

    cdef void fill(self, Row* rows, Times* times) noexcept:
        """A Row for each run, which points into the columns; Times, as many as there are runs at most."""
        cdef const uint32_t* send = <const uint32_t*>self.views[SEND].buf
        cdef const uint8_t* tier = <const uint8_t*>self.views[TIER].buf
        cdef const uint32_t* account = <const uint32_t*>self.views[ACCOUNT_].buf
        cdef const uint32_t* tenant = <const uint32_t*>self.views[TENANT].buf
        cdef const uint32_t* campaign = <const uint32_t*>self.views[CAMPAIGN].buf
        cdef const uint32_t* content = <const uint32_t*>self.views[CONTENT].buf
        cdef const uint8_t* attempt = <const uint8_t*>self.views[ATTEMPT].buf
        cdef const int64_t* not_before = <const int64_t*>self.views[NOT_BEFORE].buf
        cdef const int64_t* due = <const int64_t*>self.views[DUE_].buf
        cdef const int64_t* deadline = <const int64_t*>self.views[DEADLINE].buf
        cdef const int64_t* linger = <const int64_t*>self.views[LINGER].buf
        cdef const int64_t* pushed = <const int64_t*>self.views[PUSHED].buf
        cdef const uint32_t* count = <const uint32_t*>self.views[COUNT].buf
        cdef const uint16_t* positions = <const uint16_t*>self.views[POSITION].buf
        cdef const uint8_t* lengths = <const uint8_t*>self.views[ID_LENGTH].buf
        cdef const uint8_t* ids = <const uint8_t*>PyBytes_AS_STRING(self.ids)
        cdef Py_ssize_t i
        cdef uint32_t k, id_bytes
        cdef bint vary = (
            self.varies(PUSHED) or self.varies(DUE_) or self.varies(DEADLINE) or self.varies(NOT_BEFORE)
            or self.varies(LINGER)
        )
        for i in range(self.runs):
            rows[i].content, rows[i].place = content[i], place_of(account[i], tier[i])
            rows[i].campaign, rows[i].tenant = campaign[i], tenant[i]
        for i in range(self.runs):
            if i == 0 or vary and (
                pushed[i] != pushed[i - 1] or due[i] != due[i - 1] or deadline[i] != deadline[i - 1]
                or not_before[i] != not_before[i - 1] or linger[i] != linger[i - 1]
            ):
                times += i > 0
                times.pushed, times.due, times.deadline = pushed[i], due[i], deadline[i]
                times.not_before, times.linger = not_before[i], linger[i]
            rows[i].send, rows[i].count, rows[i].attempt, rows[i].times = send[i], count[i], attempt[i], times
            rows[i].positions, rows[i].id_lengths, rows[i].ids = positions, lengths, ids
            id_bytes = lengths[0]
            for k in range(1, count[i]):
                id_bytes += lengths[k]
            rows[i].id_bytes = id_bytes
            positions += count[i]
            lengths += count[i]
            ids += id_bytes


cdef bint is_format(const char* text, char code, Py_ssize_t size) noexcept:
    """A native integer of the right kind and size; int64 goes by the name of l or q, uint32 by I or L."""
    if text == NULL:
        return code == c"B"
    if text[0] == c"@" or text[0] == c"=":
        text += 1
    if text[0] == 0 or text[1] != 0:
        return False
    if code == c"q":
        return size == 8 and (text[0] == c"q" or text[0] == c"l")
    if code == c"I":
        return size == 4 and (text[0] == c"I" or text[0] == c"L")
    return text[0] == code


# --- columns out ---

cdef class Layout:
    """Cuts one bytes object into columns that start at multiples of 8."""

    cdef object data
    cdef Py_ssize_t used

    def __cinit__(self, Py_ssize_t bytes_needed, int columns):
        self.data = PyBytes_FromStringAndSize(NULL, bytes_needed + 8 * columns + 8 & ~7)
        self.used = 0

    cdef void* column(self, Py_ssize_t rows, Py_ssize_t size) noexcept:
        cdef char* start = PyBytes_AS_STRING(self.data) + self.used
        self.used += rows * size + 7 & ~7
        return start


cdef object view_column(bytes data, tuple columns, tuple rows, str name):
    """The column of this name as a read-only memoryview; None: there is none."""
    cdef Py_ssize_t start = 0, size, length
    for (known, code, size), length in zip(columns, rows, strict=True):
        if known == name:
            return memoryview(data).cast(code)[start // size:start // size + length]
        start += length * size + 7 & ~7
    return None


cdef tuple BATCH_COLUMNS = (
    ("due", "q", 8), ("pushed", "q", 8),
    ("channel", "I", 4), ("account", "I", 4), ("tenant", "I", 4), ("campaign", "I", 4), ("content", "I", 4),
    ("start", "I", 4), ("send", "I", 4), ("id_end", "I", 4),
    ("position", "H", 2), ("tier", "B", 1), ("closed", "B", 1), ("attempt", "B", 1),
)
cdef tuple ENDED_COLUMNS = (("send", "I", 4), ("position", "H", 2), ("cause", "B", 1), ("attempt", "B", 1))


cdef class Batches:
    def __getattr__(self, name):
        cdef Py_ssize_t b = self.count, n = self.items
        view = view_column(self.columns, BATCH_COLUMNS, (b, n, b, b, b, b, b, b + 1, n, n + 1, n, b, b, n), name)
        if view is None:
            raise AttributeError(f"Batches has no {name!r}")
        setattr(self, name, view)  # found before this method from now on
        return view


cdef class Ended:
    def __getattr__(self, name):
        cdef Py_ssize_t n = self.items
        view = view_column(self.columns, ENDED_COLUMNS, (n, n, n, n), name)
        if view is None:
            raise AttributeError(f"Ended has no {name!r}")
        setattr(self, name, view)  # found before this method from now on
        return view


cdef Batches hand_over(Output* out):
    """Copies the rows of the output into columns; the caller empties it, so that no memory means nothing is lost."""
    cdef Py_ssize_t b = out.batches_used, n = out.items_used, i
    cdef Layout layout = Layout(b * 34 + n * 19 + 8, 14)
    cdef Batches made = Batches()
    cdef int64_t* due = <int64_t*>layout.column(b, 8)
    cdef int64_t* pushed = <int64_t*>layout.column(n, 8)
    cdef uint32_t* channel = <uint32_t*>layout.column(b, 4)
    cdef uint32_t* account = <uint32_t*>layout.column(b, 4)
    cdef uint32_t* tenant = <uint32_t*>layout.column(b, 4)
    cdef uint32_t* campaign = <uint32_t*>layout.column(b, 4)
    cdef uint32_t* content = <uint32_t*>layout.column(b, 4)
    cdef uint32_t* start = <uint32_t*>layout.column(b + 1, 4)
    cdef uint32_t* send = <uint32_t*>layout.column(n, 4)
    cdef uint32_t* id_end = <uint32_t*>layout.column(n + 1, 4)
    cdef uint16_t* position = <uint16_t*>layout.column(n, 2)
    cdef uint8_t* tier = <uint8_t*>layout.column(b, 1)
    cdef uint8_t* closed = <uint8_t*>layout.column(b, 1)
    cdef uint8_t* attempt = <uint8_t*>layout.column(n, 1)
    cdef const BatchRow* batch
    for i in range(b):
        batch = &out.batches[i]
        due[i], channel[i], account[i], tenant[i] = batch.due, batch.channel, batch.account, batch.tenant
        campaign[i], content[i], start[i] = batch.campaign, batch.content, batch.start
        tier[i], closed[i] = batch.tier, batch.closed
    start[b] = <uint32_t>n
    id_end[0] = 0
    if n:
        memcpy(pushed, out.pushed, n * sizeof(int64_t))
        memcpy(send, out.send, n * sizeof(uint32_t))
        memcpy(id_end + 1, out.id_end, n * sizeof(uint32_t))
        memcpy(position, out.position, n * sizeof(uint16_t))
        memcpy(attempt, out.attempt, n)
    made.ids = PyBytes_FromStringAndSize(<char*>out.ids, out.ids_used)
    made.count, made.items, made.columns = b, n, layout.data
    made.channel_of, made.start_of, made.send_of, made.id_end_of = channel, start, send, id_end
    made.position_of, made.attempt_of = position, attempt
    return made


cdef void fill_ended(Layout layout, const EndedRow* rows, Py_ssize_t n) noexcept:
    cdef uint32_t* send = <uint32_t*>layout.column(n, 4)
    cdef uint16_t* position = <uint16_t*>layout.column(n, 2)
    cdef uint8_t* cause = <uint8_t*>layout.column(n, 1)
    cdef uint8_t* attempt = <uint8_t*>layout.column(n, 1)
    cdef Py_ssize_t i
    for i in range(n):
        send[i], position[i], cause[i], attempt[i] = rows[i].send, rows[i].position, rows[i].cause, rows[i].attempt


cdef void* grown(void* at, Py_ssize_t* room, Py_ssize_t n, size_t size) except? NULL:
    """Room for n; NULL where there is none yet, and none is asked for."""
    cdef void* moved = at
    if n > room[0]:
        moved = realloc(at, n * size)
        if moved == NULL:
            raise MemoryError
        room[0] = n
    return moved


# --- the core ---

@no_gc_clear  # q fills the Histograms in the lists for as long as it lives
cdef class Core:
    def __cinit__(
        self, template_weight=1, basic_weight=1, deadline_lead_ns=1_000_000_000, own_queues=64, *,
        pacing=(ASAP, ASAP, ASAP), tau_ns=3_600_000_000_000, floor=CALL_A_SECOND, near_ns=(0, 0, 0), horizon_ns=NEVER,
    ):
        cdef int tier
        if len(pacing) != TIERS or len(near_ns) != TIERS:
            raise ValueError(f"pacing is {pacing}, near_ns is {near_ns}: one for each of {TIERS} tiers expected")
        self.q = queues_make(
            <uint32_t>within("template_weight", template_weight, 1, MOST),
            <uint32_t>within("basic_weight", basic_weight, 1, MOST),
            within("deadline_lead_ns", deadline_lead_ns, 0, LATEST),
            <uint32_t>within("own_queues", own_queues, 0, MOST),
            <uint64_t>hash(b"surgetank"),  # Python draws the key of this hash anew for every process
        )
        if self.q == NULL:
            raise MemoryError
        self.q.horizon = within("horizon_ns", horizon_ns, 0, INT64_MAX)
        for tier in range(TIERS):
            self.pace_tier(
                tier, within(f"pacing[{tier}]", pacing[tier], PACE_ASAP, PACE_ASAP if tier == SYSTEM else PACE_PACED),
                tau_ns, floor, near_ns[tier],
            )
        self.waits, self.sizes, self.late = [], [], []
        for tier in range(TIERS):
            late = Histogram(WAIT_EDGES)
            self.late.append(late)
            self.q.lateness[tier] = &(<Histogram>late).counts

    def __dealloc__(self):
        queues_free(self.q)
        free(self.rows)
        free(self.ended)

    cdef int pace_tier(self, int tier, int64_t mode, object tau_ns, object floor, object near_ns) except -1:
        cdef int64_t tau = within("tau_ns", tau_ns, 0, LATEST)
        cdef int64_t least = within("floor", floor, 1, <int64_t>PACE_FASTEST)
        cdef int64_t near = within(f"near_ns[{tier}]", near_ns, 0, LATEST)
        if queues_pace(self.q, <uint8_t>tier, <int>mode, tau, <uint64_t>least, near) < 0:
            raise MemoryError
        return 0

    cdef Scope* scope(self, object scope, object handle, int64_t most=WHOLE_TIER) except NULL:
        cdef int64_t kind = within("scope", scope, GLOBAL, most)
        cdef Group* tenant
        if kind == OF_TENANT:
            tenant = queues_make_tenant(self.q, name("handle", handle))
            if tenant == NULL:
                raise MemoryError
            return &tenant.scope
        if kind == GLOBAL:
            within("handle", handle, 0, 0)
            return &self.q.everything
        if kind == CHANNEL:
            return &self.q.channels[self.channel_of(handle)].scope
        if kind == WHOLE_TIER:
            return &self.q.of_tier[within("tier", handle, SYSTEM, BASIC)]
        return &self.q.accounts[self.account_of(handle)].scope

    cdef Scope* each_tenant(self, object handle, bint calendar) except NULL:
        cdef int64_t at = self.channel_of(handle)
        if calendar:
            raise ValueError("a limit of each tenant has no calendar")
        if self.q.counts[SYSTEM].pushed + self.q.counts[TEMPLATE].pushed + self.q.counts[BASIC].pushed:
            raise ValueError("a limit of each tenant must be there before anything is pushed")
        return &self.q.channels[at].each

    cdef int64_t account_of(self, object handle) except -1:
        return within("account", handle, 0, <int64_t>self.q.account_count - 1)

    cdef int64_t channel_of(self, object handle) except -1:
        return within("channel", handle, 0, <int64_t>self.q.channel_count - 1)

    cdef int advance(self, object now_ns) except -1:
        queues_advance(self.q, within("now_ns", now_ns, 0, LATEST))
        return 0

    def add_channel(self, slots, reserved, cap, bint stays=False):
        cdef int64_t most = within("slots", slots, 1, MOST)
        cdef int64_t kept = within("reserved", reserved, 0, most - 1)
        cdef int64_t largest = within("cap", cap, 1, MOST)
        cdef uint32_t handle = self.q.channel_count
        cdef int tier
        sizes = Histogram(SIZE_EDGES)
        waits = [Histogram(WAIT_EDGES) for _ in range(TIERS)]
        within("channels", handle + 1, 1, MOST)
        if queues_add_channel(self.q, <uint32_t>most, <uint32_t>kept, <uint32_t>largest, stays) < 0:
            raise MemoryError
        self.sizes.append(sizes)
        self.waits.append(waits)
        self.q.channels[handle].batch_recipients = &(<Histogram>sizes).counts
        for tier in range(TIERS):
            self.q.channels[handle].queue_wait[tier] = &(<Histogram>waits[tier]).counts
        return handle

    def add_account(self, channel):
        cdef uint32_t handle = self.q.account_count
        within("accounts", handle + 1, 1, MOST)
        if queues_add_account(self.q, <uint32_t>self.channel_of(channel)) < 0:
            raise MemoryError
        return handle

    cdef Limit* limit(self, object handle) except NULL:
        return self.q.limits[within("limit", handle, 0, <int64_t>self.q.limit_count - 1)]

    def add_limit(self, scope, handle, unit, number, per_ns, reserved=0, bint calendar=False):
        cdef Scope* of = self.each_tenant(handle, calendar) if scope == EACH_TENANT else (
            self.scope(scope, handle, OF_TENANT)
        )
        cdef int64_t counted = within("unit", unit, LIMIT_CALLS, LIMIT_RECIPIENTS)
        cdef int64_t most = within("number", number, 1, WIDEST)
        cdef int64_t per = within("per_ns", per_ns, 1, WIDEST)
        cdef int64_t kept = within("reserved", reserved, 0, most - 1)
        made = queues_add_limit(self.q, of, <int>counted, calendar, <uint64_t>most, per, <uint64_t>kept)
        if made == NULL:
            raise MemoryError
        queues_reconsider(self.q, of)
        return made.handle

    def set_limit(self, scope, handle, unit, number, per_ns, reserved=0, bint calendar=False):
        cdef Scope* of = self.scope(scope, handle, OF_TENANT)
        cdef int64_t counted = within("unit", unit, LIMIT_CALLS, LIMIT_RECIPIENTS)
        cdef int64_t most = within("number", number, 1, WIDEST)
        cdef int64_t kept = within("reserved", reserved, 0, most - 1)
        limit = scope_limit(of, <int>counted, calendar, within("per_ns", per_ns, 1, WIDEST))
        if limit == NULL:
            return self.add_limit(scope, handle, unit, number, per_ns, reserved, calendar)
        limit.number, limit.reserved = <uint64_t>most, <uint64_t>kept
        queues_reconsider(self.q, of)
        return limit.handle

    def set_period(self, limit, now_ns, period, ends_ns, next_ns, guard_ns=0):
        cdef Limit* of = self.limit(limit)
        cdef int64_t ends = within("ends_ns", ends_ns, 0, LATEST)
        cdef int64_t ends_next = within("next_ns", next_ns, ends, LATEST)
        of.guard = within("guard_ns", guard_ns, 0, WIDEST)
        self.advance(now_ns)
        limit_period(of, self.q.now, within("period", period, 1, WIDEST), ends, ends_next)
        queues_reconsider(self.q, of.scope)

    def restore(self, limit, at_ns, n):
        limit_count(self.limit(limit), within("at_ns", at_ns, -LATEST, LATEST), within("n", n, 0, WIDEST))

    def ration(self, limit, portion):
        cdef Limit* of = self.limit(limit)
        of.granted, of.portion = 0, <uint64_t>within("portion", portion, 0, WIDEST)

    def asked(self):
        wants = []
        while self.q.asking != NULL:
            wants.append((self.q.asking.handle, limit_wants(self.q.asking)))
            self.q.asking = self.q.asking.asking
        return wants

    def grant(self, limit, n):
        cdef Limit* of = self.limit(limit)
        limit_grant(of, <uint64_t>within("n", n, 0, WIDEST))
        queues_reconsider(self.q, of.scope)

    def use(self, limit, now_ns):
        cdef Limit* of = self.limit(limit)
        self.advance(now_ns)
        limit_roll(of, self.q.now)
        return of.total, of.total - of.gone, of.scope.held[of.unit], of.granted

    def free_at(self, limit, now_ns):
        cdef Limit* of = self.limit(limit)
        self.advance(now_ns)
        return max(self.q.now, limit_when(of, self.q.now, 1, of.scope.held[of.unit], limit_ceiling(of, False)))

    def push_many(
        self, now_ns, send, tier, account, tenant, campaign, content, attempt, not_before, due, deadline, linger,
        pushed, count, position, id_length, bytes ids not None,
    ):
        cdef Columns columns = Columns()
        columns.hold(
            (
                send, tier, account, tenant, campaign, content, attempt, not_before, due, deadline, linger, pushed,
                count, position, id_length,
            ),
            ids,
        )
        columns.check(self.q)
        self.advance(now_ns)
        self.room_for_rows(columns.runs)
        columns.fill(self.rows, <Times*>(self.rows + columns.runs))
        if queues_push(self.q, self.rows, <size_t>columns.runs, <size_t>columns.items, <size_t>len(ids)) < 0:
            raise MemoryError

    cdef int room_for_rows(self, Py_ssize_t n) except -1:
        self.rows = <Row*>grown(self.rows, &self.rows_room, n, sizeof(Row) + sizeof(Times))
        return 0

    cdef int room_for_ended(self, Py_ssize_t n) except -1:
        self.ended = <EndedRow*>grown(self.ended, &self.ended_room, n, sizeof(EndedRow))
        return 0

    def pop_batches(self, now_ns, budget):
        cdef int64_t steps = within("budget", budget, 1, MOST)
        cdef Output* out = &self.q.out
        self.advance(now_ns)
        if out.batches_used == 0:  # else: formed before, when there was no memory to hand them over
            queues_pop(self.q, <uint64_t>steps)
        if out.batches_used == 0 and self.q.no_memory:
            raise MemoryError
        cdef Batches batches = hand_over(out)
        out.batches_used = out.items_used = out.ids_used = 0
        batches.more = queues_has_work(self.q)
        return batches

    def release(self, now_ns, account, tier, recipients, left, late_ns=0, tenant=0):
        cdef int64_t at = self.account_of(account)
        cdef int64_t of = within("tier", tier, SYSTEM, BASIC)
        cdef Node* leaf = &self.q.accounts[at].leaves[of]
        if leaf.channel.in_flight[of] == 0:
            raise ValueError(f"tier {of} has no call in flight on account {at}")
        cdef Group* whose = queues_tenant(self.q, name("tenant", tenant))
        if whose == NULL or whose.scope.held[LIMIT_CALLS] == 0:
            raise ValueError(f"tenant {tenant} has no call in flight")
        cdef int64_t n = within(
            "recipients", recipients, 1,
            <int64_t>min(leaf.scope.held[LIMIT_RECIPIENTS], whose.scope.held[LIMIT_RECIPIENTS]),
        )
        cdef int64_t there = within("left", left, 0, n)
        cdef int64_t late = within("late_ns", late_ns, 0, WIDEST)
        self.advance(now_ns)
        queues_release(self.q, leaf, whose, <uint64_t>n, <uint64_t>there, self.q.now + late)

    def cancel(self, tenant, campaign, tier=None):
        return queues_cancel(
            self.q,
            name("tenant", tenant),
            name("campaign", campaign),
            -1 if tier is None else <int>within("tier", tier, SYSTEM, BASIC),
        )

    def reap(self, now_ns, budget):
        cdef uint64_t n = <uint64_t>within("budget", budget, 1, MOST)
        self.advance(now_ns)
        if not queues_has_ended(self.q):
            n = 0
        # Everything is allocated before the first row is taken: no memory means nothing is lost.
        cdef Layout layout = Layout(n * sizeof(EndedRow), 4)
        cdef Ended ended = Ended()
        self.room_for_ended(<Py_ssize_t>n)
        ended.items = <Py_ssize_t>queues_reap(self.q, self.ended, n)
        ended.columns = layout.data
        fill_ended(layout, self.ended, ended.items)
        ended.more = queues_has_ended(self.q)
        return ended

    def puts_off(self, now_ns):
        cdef int tier
        self.advance(now_ns)
        return [tier for tier in range(TIERS) if queues_puts_off(self.q, <uint8_t>tier)]

    def put_off(self, now_ns, tier, budget):
        cdef int64_t n = within("budget", budget, 1, MOST)
        cdef int64_t room = n + PUT_OFF_WHOLE
        cdef uint8_t of = <uint8_t>within("tier", tier, SYSTEM, BASIC)
        self.advance(now_ns)
        if not queues_puts_off(self.q, of):
            return None
        # Everything is allocated before the first row is taken: no memory means nothing is lost.
        cdef Layout layout = Layout(room * sizeof(EndedRow), 4)
        cdef Ended ended = Ended()
        cdef bytes untils = PyBytes_FromStringAndSize(NULL, room * sizeof(int64_t))
        self.room_for_ended(room)
        ended.items = <Py_ssize_t>queues_put_off(
            self.q, of, self.ended, <int64_t*>PyBytes_AS_STRING(untils), <uint64_t>n
        )
        ended.columns = layout.data
        fill_ended(layout, self.ended, ended.items)
        ended.until = memoryview(untils).cast("q")[:ended.items]
        ended.more = queues_puts_off(self.q, of)
        return ended

    def pause(self, scope, handle, campaign=0, until_ns=0):
        self.set_paused(scope, handle, campaign, True, within("until_ns", until_ns, 0, INT64_MAX))

    def resume(self, scope, handle, campaign=0):
        self.set_paused(scope, handle, campaign, False, 0)

    cdef int set_paused(
        self, object scope, object handle, object campaign, bint paused, int64_t until
    ) except -1:
        cdef int64_t kind = within("scope", scope, CHANNEL, OF_CAMPAIGN), at
        cdef int i
        if kind >= OF_TENANT:
            if queues_pause_group(
                self.q, level_of(kind), name("handle", handle), part_of(kind, campaign), paused, until
            ) < 0:
                raise MemoryError
        elif kind == WHOLE_TIER:
            queues_pause(self.q, &self.q.tiers[within("tier", handle, SYSTEM, BASIC)], paused, until)
        elif kind == CHANNEL:
            at = self.channel_of(handle)
            for i in range(TIERS):
                queues_pause(self.q, &self.q.channels[at].lanes[i], paused, until)
        else:
            at = self.account_of(handle)
            for i in range(TIERS):
                queues_pause(self.q, &self.q.accounts[at].leaves[i], paused, until)
        return 0

    def reweight(self, scope, handle, weight, campaign=0):
        cdef int64_t kind = within("scope", scope, WHOLE_TIER, OF_CAMPAIGN)
        cdef uint32_t share = <uint32_t>within("weight", weight, 1, MOST)
        if kind == WHOLE_TIER:
            queues_reweight_tier(self.q, <uint8_t>within("tier", handle, TEMPLATE, BASIC), share)
        elif queues_reweight(self.q, level_of(kind), name("handle", handle), part_of(kind, campaign), share) < 0:
            raise MemoryError

    def explain(self, now_ns, tenant, campaign):
        cdef uint32_t of = name("tenant", tenant), part = name("campaign", campaign)
        cdef size_t most = TIERS * <size_t>self.q.account_count, n, i
        cdef Reason* reasons = <Reason*>malloc((most + 1) * sizeof(Reason))
        if reasons == NULL:
            raise MemoryError
        try:
            self.advance(now_ns)
            n = queues_explain(self.q, of, part, reasons, most)
            return [
                (
                    reasons[i].tier, reasons[i].account, reasons[i].ready, reasons[i].why, SCOPE_OF[reasons[i].level],
                    <int64_t>reasons[i].limit - 1 if reasons[i].limit else None, reasons[i].until,
                    reasons[i].rate,
                )
                for i in range(n)
            ]
        finally:
            free(reasons)

    def block(self, scope, handle, until_ns):
        cdef Scope* of = self.scope(scope, handle)
        of.blocked = max(of.blocked, within("until_ns", until_ns, 0, INT64_MAX))

    def next_due(self, now_ns):
        self.advance(now_ns)
        return queues_due(self.q)

    def pace(self, tier, channel):
        cdef const Node* lane = &self.q.channels[self.channel_of(channel)].lanes[within("tier", tier, SYSTEM, BASIC)]
        cdef const Pace* pace
        if lane.pacing == NULL:
            return None
        pace = &lane.pacing.pace
        return pace.work, pace.need, pace.rate, pace.ceiling, pace.state

    def queued(self, tier, channel):
        return queues_queued(
            self.q, <uint8_t>within("tier", tier, SYSTEM, BASIC), <uint32_t>self.channel_of(channel)
        )

    def queue_wait(self, tier, channel):
        return self.waits[self.channel_of(channel)][within("tier", tier, SYSTEM, BASIC)]

    def lateness(self, tier):
        return self.late[within("tier", tier, SYSTEM, BASIC)]

    def batch_recipients(self, channel):
        return self.sizes[self.channel_of(channel)]

    def check(self):
        cdef const char* wrong = queues_unsound(self.q)
        if wrong != NULL:
            raise AssertionError(wrong.decode())

    def stats(self):
        cdef uint8_t tier
        rows = [self.tier_stats(tier) for tier in range(TIERS)]
        merged = {name: [row[name] for row in rows] for name in rows[0]}
        merged["memory_bytes"] = [queues_memory(self.q)]
        return merged

    cdef dict tier_stats(self, uint8_t tier):
        cdef uint64_t lingering = 0
        cdef Kept kept = queues_kept(self.q, tier)
        cdef uint32_t i
        count = self.q.counts[tier]
        for i in range(self.q.account_count):
            lingering += self.q.accounts[i].leaves[tier].lingering
        pacing = self.q.tiers[tier].pacing
        return {
            "pushed": count.pushed, "popped": count.popped, "expired": count.expired, "cancelled": count.cancelled,
            "put_off": count.put_off, "queued": count.queued, "waiting": count.retries + count.scheduled,
            "retry": count.retries, "scheduled": count.scheduled, "ended": count.ended, "linger": lingering,
            "throttled": kept.throttled, "paused": kept.paused, "paced": kept.paced,
            "ready": count.queued - lingering - kept.paused - kept.throttled - kept.paced, "flows": count.flows,
            "pacing_calls": 0 if pacing == NULL else pacing.pace.work,
            "pacing_floor": 0 if pacing == NULL else self.q.floor,
            "pacing_need": 0 if pacing == NULL else pacing.pace.need,
            "pacing_rate": 0 if pacing == NULL else pacing.pace.rate,
        }
