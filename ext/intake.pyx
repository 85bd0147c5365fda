# distutils: include_dirs = ext
"""Stages decode and admit for sends of the common kind, a run of records at a time: see intake.pyi.

In: records. Out: rows in Columns, open sends, claimed ids. Whatever is not of the common kind is left to the stages in
Python, which are the model: for each record it takes, this does exactly what they do.
Invariant: a record it does not take has changed nothing.
Never: decides that a record is bad; makes an object for a recipient.
"""

cimport cython

from array import array

from cpython.buffer cimport PyObject_CheckBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_GetItem
from cpython.ref cimport PyObject
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcmp, memcpy, memset

from ext.columns cimport Columns
from ext.gates cimport Levels, Meter
from ext.ledger cimport Ledger, marks_settled
from ext.records cimport Row, headers_of, rows_of
from ext.scan cimport Bytes, Scanner, Span, big_endian, text_at
from ext.seen cimport SeenTable
from ext.sends cimport Content, Flow, OpenSend, SendTable, foresee_lines

from engine.admit import LATEST_MS as LATEST
from engine.send import (
    MAX_CAMPAIGN_BYTES, MAX_CONTENT_BYTES, MAX_ID_BYTES, MAX_META_BYTES, MAX_RECIPIENTS, MAX_RECORD_BYTES, MAX_TIME_MS,
    Send,
)

cdef extern from "table.h" nogil:
    ctypedef struct IdSet:
        void* slots
        uint64_t seed
    int idset_reserve(IdSet* ids, size_t most)
    void idset_clear(IdSet* ids)
    bint idset_add(IdSet* ids, const uint8_t* base, size_t at, const uint8_t* name, size_t length)

cdef enum:  # spans, in Send's order
    ID, CHANNEL, TO, CONTENT, V, ACCOUNT, TENANT, CAMPAIGN, NOT_BEFORE, DUE, DEADLINE, META, SPANS

KEYS = tuple(Send.__struct_fields__)
if KEYS != (
    "id", "channel", "to", "content", "v", "account", "tenant", "campaign", "not_before", "due", "deadline", "meta",
):
    raise ImportError(f"Send has {KEYS}")  # the enum above says otherwise

PLAIN_ID = b"-.0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz"

cdef dict NO_DATA = {}

cdef enum:
    ABSENT = -1
    ODD = -2
    NIL = 0xC0
    NO_NAME = 0xFF  # stands for a length
    LONGEST_ID = 128
    NAMES_ROOM = 4 * (1 + LONGEST_ID)

    MOST_ROOM = 1024  # bytes of a record that are foreseen
    GROUP = 16  # records between asking for a line of the table of ids and its use
    NEAR = 256  # by the highest byte of a product, which all of it goes into

cdef struct Near:
    PyObject* flow  # borrowed; NULL: nobody
    const char* key  # of SendTable.by_names
    uint64_t print

cdef struct Known:  # of a record, before anything is changed
    Bytes start
    Py_ssize_t size
    Span[SPANS] spans
    Bytes id
    Py_ssize_t id_length, unknown
    PyObject* flow  # borrowed
    uint8_t dedupe[16]

cdef bint[256] plain
cdef int code
for code in PLAIN_ID:
    plain[code] = True
if MAX_ID_BYTES != LONGEST_ID or MAX_CAMPAIGN_BYTES != LONGEST_ID:
    raise ImportError("names have another length")

cdef int64_t NS_PER_MS = 1_000_000
cdef int64_t LATEST_MS = LATEST
cdef int64_t LEAST_ODD_MS = MAX_TIME_MS
cdef Py_ssize_t MOST_CONTENT = MAX_CONTENT_BYTES, MOST_META = MAX_META_BYTES, MOST_RECORD = MAX_RECORD_BYTES
cdef uint32_t MOST_RECIPIENTS = MAX_RECIPIENTS


cdef inline Py_ssize_t text_of(Bytes p, Bytes* body) noexcept nogil:
    """The length of the string at p; ABSENT: nil; ODD: something else, or too long."""
    cdef Py_ssize_t length
    body[0] = text_at(p, &length)
    if body[0] == NULL:
        return ABSENT if p[0] == NIL else ODD
    return length if length <= LONGEST_ID else ODD


cdef inline int64_t time_of(const Span* span) noexcept nogil:
    """ms; ABSENT; ODD: no time."""
    cdef int64_t value
    if span.at == NULL or span.at[0] == NIL:
        return ABSENT
    if span.at[0] < 0x80:
        return span.at[0]
    if not 0xCC <= span.at[0] <= 0xCF:
        return ODD
    value = <int64_t>big_endian(span.at + 1, 1 << (span.at[0] - 0xCC))
    return value if 0 <= value < LEAST_ODD_MS else ODD


cdef inline bint contradict(int64_t not_before, int64_t due, int64_t deadline) noexcept nogil:
    """ABSENT is before everything."""
    if deadline != ABSENT and (deadline < not_before or due > deadline):
        return True
    return due != ABSENT and due < not_before


cdef inline bint usual(const Span* spans) noexcept nogil:
    """Nothing about it needs a closer look but its names, recipients and times."""
    if spans[ID].at == NULL or spans[CHANNEL].at == NULL or spans[TO].at == NULL or spans[CONTENT].at == NULL:
        return False
    if spans[V].at != NULL and spans[V].at[0] != 1:
        return False
    cdef uint8_t first = spans[CONTENT].at[0]
    if not (first & 0xF0 == 0x80 or first == 0xDE or first == 0xDF):
        return False
    if spans[CONTENT].end - spans[CONTENT].at > MOST_CONTENT:
        return False
    return spans[META].at == NULL or spans[META].end - spans[META].at <= MOST_META


include "names.pxi"


cdef const int64_t[::1] column(object numbers):
    return numbers if PyObject_CheckBuffer(numbers) else array("q", numbers)


cdef inline bint is_ours(headers):
    for name, _ in headers:
        if (<str>name).startswith("surgetank-"):
            return True
    return False


cdef bytes room_for(Py_ssize_t size):
    """For so many bytes, to be written soon: what was freed long ago is in no cache. None: too many to ask for."""
    cdef bytes room
    if size > MOST_ROOM:
        return None
    room = PyBytes_FromStringAndSize(NULL, size)
    foresee_lines(PyBytes_AS_STRING(room), (size + 63) // 64)
    return room


@cython.final
cdef class Taker:
    cdef SendTable table
    cdef SeenTable seen
    cdef Columns columns
    cdef Scanner scanner
    cdef object cancelled
    cdef dict meters  # None: no allowance
    cdef dict gates
    cdef int64_t due_after_ms, max_age_ms, linger_ns, horizon_ns
    # Of the running take:
    cdef int64_t latest_ns  # what may not leave before waits on the log
    cdef bint watching  # somebody has cancelled something
    cdef Near[NEAR] near  # flows met, by a print of their names
    cdef list met  # owns their keys
    cdef Known[GROUP] known
    cdef list told  # their headers
    cdef list values  # and what their values go into, where these stand in somebody else's memory
    cdef Span raw  # the content met last, in a value
    cdef PyObject* raw_scope
    cdef PyObject* raw_content
    cdef IdSet ids
    cdef readonly int64_t sends, recipients, size, unknown_keys

    def __init__(
        self, SendTable table not None, SeenTable seen not None, Columns columns not None, cancelled, *,
        dict meters, dict gates not None, int64_t due_after_ms, int64_t max_age_ms, int64_t linger_ns,
        int64_t horizon_ns,
    ):
        self.meters, self.gates = meters, gates
        self.table, self.seen, self.columns, self.cancelled = table, seen, columns, cancelled
        self.due_after_ms, self.max_age_ms, self.linger_ns = due_after_ms, max_age_ms, linger_ns
        self.horizon_ns = horizon_ns
        self.scanner, self.met, self.told, self.values = Scanner(KEYS), [], [], []
        self.ids.seed = <uint64_t>hash(b"surgetank")  # drawn anew for every process

    def __dealloc__(self):
        free(self.ids.slots)

    def learn(self, bytes value not None, Flow flow not None):
        cdef Span[SPANS] spans
        cdef Names names
        cdef Py_ssize_t unknown = 0
        self.raw.at = NULL
        if not self.read(<Bytes>PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value), spans, &unknown):
            return
        if not usual(spans) or not names_of(spans, &names):
            return
        key = key_of(&names)
        if key not in self.table.by_names[flow.tier_number]:
            self.table.by_names[flow.tier_number][key] = flow
            flow.names.append(key)

    cdef bint read(self, Bytes at, Py_ssize_t length, Span* spans, Py_ssize_t* unknown) noexcept:
        """False: not well-formed msgpack of a send's size."""
        cdef int i
        for i in range(SPANS):
            spans[i].at = NULL
        if not 0 < length <= MOST_RECORD:
            return False
        return self.scanner.msgpack(&at, at + length, unknown, spans, CONTENT, &self.raw) == 0

    def take(
        self, values, keys, headers, offsets, stamps_ms, int tier, Ledger ledger, str topic not None, int32_t partition,
        uint32_t place, int64_t now_ns, int64_t now_ms, int64_t offset_ns, Py_ssize_t start,
    ):
        cdef Py_ssize_t i = start, group, end, known, count = len(values)
        cdef const int64_t[::1] numbers = column(offsets), stamps = column(stamps_ms)
        cdef const Row* texts = rows_of(values, count)
        cdef const Row* names = rows_of(keys, count)
        cdef const Row* others = rows_of(headers, count)
        # What owns the values for as long as this runs.
        cdef object objects = values if texts != NULL or isinstance(values, (list, tuple)) else list(values)
        cdef dict by_names = self.table.by_names[tier]
        cdef OpenSend send
        self.sends = self.recipients = self.size = self.unknown_keys = 0
        self.latest_ns = now_ns + self.horizon_ns
        self.watching = bool(self.cancelled)
        self.forget()
        while i < count:
            group, end = i, min(i + GROUP, count)
            self.told.clear()
            self.values.clear()
            while i < end and self.know(texts, objects, headers, others, i, &self.known[i - group], by_names):
                i += 1
            known, i = i, group
            while i < known:
                if marks_settled(&ledger.marks, numbers[i]) != NULL:
                    return i
                send = OpenSend.__new__(OpenSend)
                send.ledger, send.topic, send.partition = ledger, topic, partition
                send.value = objects[i] if texts == NULL else self.values[i - group]
                send.offset = send.origin_offset = numbers[i]
                send.first_seen_ms, send.pushed_ns = min(stamps[i], now_ms), now_ns
                if not self.take_one(send, &self.known[i - group], place, now_ns, offset_ns):
                    return i
                send.headers = self.told[i - group]
                if names == NULL or names[i].key != NULL:
                    send.record_key = keys[i]
                i += 1
            if known < end:
                return known
        return count

    cdef bint know(
        self, const Row* texts, object objects, object headers, const Row* others, Py_ssize_t i, Known* known,
        dict by_names,
    ) except -1:
        """Whether a record may be of the common kind. Its id is asked for: it stands in memory that is far away."""
        cdef Names names
        cdef object told = headers[i] if others == NULL else headers_of(&others[i]) if others[i].header_count else ()
        if told and is_ours(told):
            return False
        if texts != NULL:
            known.start, known.size = texts[i].value, texts[i].value_bytes
        elif type(objects[i]) is bytes:
            known.start, known.size = <Bytes>PyBytes_AS_STRING(objects[i]), PyBytes_GET_SIZE(objects[i])
        else:
            return False
        known.unknown = 0
        if known.start == NULL or not self.read(known.start, known.size, known.spans, &known.unknown):
            return False
        known.id_length = ABSENT if not usual(known.spans) else text_of(known.spans[ID].at, &known.id)
        if known.id_length <= 0 or not names_of(known.spans, &names):
            return False
        known.flow = self.flow_of(by_names, &names)
        if known.flow == NULL:
            return False
        self.seen.hash_id((<Flow>known.flow).scope, <const char*>known.id, known.id_length, known.dedupe)
        self.seen.look_ahead(known.dedupe)
        self.told.append(told)
        if texts != NULL:
            self.values.append(room_for(known.size))
        return True

    cdef bint take_one(
        self, OpenSend send, const Known* known, uint32_t place, int64_t now_ns, int64_t offset_ns
    ) except -1:
        """The send gets a copy of its value unless it has it; into the room it has, or some of its own."""
        cdef const Span* spans = known.spans
        cdef Py_ssize_t before = self.columns.recipients
        cdef int64_t not_before
        cdef PyObject* found
        send.flow = <Flow>known.flow
        if self.watching and send.flow.campaign in self.cancelled:
            return False
        found = self.content_of(send.flow, &spans[CONTENT])
        if found == NULL or not (<Content>found).complete:
            return False
        send.content = <Content>found
        not_before = self.set_times(send, spans, offset_ns)
        if not_before == ODD or not_before > self.latest_ns or not self.recipients_of(send, &spans[TO]):
            return False
        if not self.may_come(send, now_ns):
            self.columns.drop_recipients(before)
            return False
        if self.seen.claim_key(known.dedupe, place, 0, send.offset) != NULL:
            self.columns.drop_recipients(before)
            return False
        self.came(send, now_ns)
        memcpy(send.dedupe, known.dedupe, 16)
        if send.value is None:
            send.value = PyBytes_FromStringAndSize(<const char*>known.start, known.size)
        elif <Bytes>PyBytes_AS_STRING(send.value) != known.start:
            memcpy(PyBytes_AS_STRING(send.value), known.start, known.size)
        send.id_at, send.id_length = <uint32_t>(known.id - known.start), <uint32_t>known.id_length
        if spans[META].at != NULL:
            send.meta_at = <uint32_t>(spans[META].at - known.start)
            send.meta_length = <uint32_t>(spans[META].end - spans[META].at)
        send.data, send.linger_ns = NO_DATA, self.linger_ns
        self.columns.run(self.table.add(send), send, 0, not_before, send.total, -1)
        self.sends += 1
        self.recipients += send.total
        self.size += known.size
        self.unknown_keys += known.unknown
        return True

    cdef inline Meter meter_of(self, Flow flow):
        """None: nobody has asked for this tenant's yet."""
        cdef PyObject* found = PyDict_GetItem(self.meters, flow.tenant)
        return None if found == NULL else <Meter>found

    cdef inline Levels gate_of(self, Flow flow):
        cdef PyObject* found = PyDict_GetItem(self.gates, flow.channel)
        return None if found == NULL else <Levels>found

    cdef bint may_come(self, OpenSend send, int64_t now_ns) except -1:
        """Within its tenant's allowance, and not refused; else Python is asked again, and says what becomes of it."""
        cdef Flow flow = send.flow
        cdef Meter meter
        cdef Levels gate
        if flow.tier_number == 0:
            if self.meters is not None:
                meter = self.meter_of(flow)
                return meter is not None and meter.has(send.total, now_ns)
        elif self.gates:
            gate = self.gate_of(flow)
            return gate is None or flow.level <= gate.level
        return True

    cdef int came(self, OpenSend send, int64_t now_ns) except -1:
        cdef Flow flow = send.flow
        cdef Levels gate
        if flow.tier_number == 0:
            if self.meters is not None:
                self.meter_of(flow).use(send.total, now_ns)
        elif self.gates:
            gate = self.gate_of(flow)
            if gate is not None:
                gate.arrive(flow.level, send.total, send.due_ns - now_ns)
        return 0

    cdef void forget(self) noexcept:
        """What was looked up is good within one take, as nothing else runs meanwhile."""
        memset(self.near, 0, sizeof(self.near))
        self.met.clear()
        self.raw.at = NULL

    cdef PyObject* flow_of(self, dict by_names, const Names* names) except? NULL:
        """Borrowed; NULL: none has these names."""
        cdef uint64_t print = print_of(names)
        cdef Near* near = &self.near[print >> 56]
        if near.flow != NULL and near.print == print and are(names, near.key):
            return near.flow
        cdef bytes key = key_of(names)
        cdef PyObject* found = PyDict_GetItem(by_names, key)
        if found != NULL:
            self.met.append(key)
            near.flow, near.key, near.print = found, PyBytes_AS_STRING(key), print
        return found

    cdef PyObject* content_of(self, Flow flow, const Span* span) except? NULL:
        """Borrowed; NULL: nothing open has it in this encoding."""
        cdef Py_ssize_t first = PyBytes_GET_SIZE(flow.raw_scope), length = span.end - span.at
        if (
            self.raw.at != NULL and self.raw.end - self.raw.at == length
            and memcmp(self.raw.at, span.at, length) == 0
            and (<object>self.raw_scope is flow.raw_scope or <bytes>self.raw_scope == flow.raw_scope)
        ):
            return self.raw_content
        cdef bytes key = PyBytes_FromStringAndSize(NULL, first + length)
        memcpy(PyBytes_AS_STRING(key), PyBytes_AS_STRING(flow.raw_scope), first)
        memcpy(PyBytes_AS_STRING(key) + first, span.at, length)
        cdef PyObject* found = PyDict_GetItem(self.table.by_raw, key)
        if found != NULL:
            self.raw, self.raw_scope, self.raw_content = span[0], <PyObject*>flow.raw_scope, found
        return found

    cdef int64_t set_times(self, OpenSend send, const Span* spans, int64_t offset_ns) noexcept:
        """Returns not_before, ns (0: none), or ODD."""
        cdef int64_t not_before = time_of(&spans[NOT_BEFORE]), due = time_of(&spans[DUE])
        cdef int64_t deadline = time_of(&spans[DEADLINE]), start
        if not_before == ODD or due == ODD or deadline == ODD or contradict(not_before, due, deadline):
            return ODD
        start = max(send.first_seen_ms, not_before)
        deadline = start + self.max_age_ms if deadline == ABSENT else min(deadline, start + self.max_age_ms)
        due = start + self.due_after_ms if due == ABSENT else due
        send.due_ns = min(due, LATEST_MS) * NS_PER_MS + offset_ns
        send.deadline_ns = min(deadline, LATEST_MS) * NS_PER_MS + offset_ns
        return min(not_before, LATEST_MS) * NS_PER_MS + offset_ns if not_before > 0 else 0

    cdef bint recipients_of(self, OpenSend send, const Span* span) except -1:
        """Into the columns; False (and nothing there) when they are not all different plain ids."""
        cdef Bytes p = span.at
        cdef Py_ssize_t before = self.columns.recipients
        cdef uint32_t count, i
        if p[0] & 0xF0 == 0x90:
            count, p = p[0] & 0x0F, p + 1
        elif p[0] == 0xDC:
            count, p = <uint32_t>big_endian(p + 1, 2), p + 3
        else:
            return False
        if not 0 < count <= MOST_RECIPIENTS:
            return False
        if count > 1:
            if idset_reserve(&self.ids, count) < 0:
                raise MemoryError
            idset_clear(&self.ids)
        for i in range(count):
            p = self.recipient(p, <uint16_t>i, span.at, count > 1)
            if p == NULL:
                self.columns.drop_recipients(before)
                return False
        send.total = send.left = count
        return True

    cdef Bytes recipient(self, Bytes p, uint16_t position, Bytes base, bint several) except? NULL:
        """Returns what stands after it."""
        cdef Bytes body = NULL
        cdef Py_ssize_t length = text_of(p, &body), i
        if length <= 0:
            return NULL
        for i in range(length):
            if not plain[body[i]]:
                return NULL
        if several and not idset_add(&self.ids, base, body - base, body, length):
            return NULL
        self.columns.recipient(position, <const char*>body, <uint8_t>length)
        return body + length
