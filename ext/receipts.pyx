# distutils: include_dirs = ext
"""Ends recipients: writes their receipts, counts, and completes the records they finish: see receipts.pyi.

In: a batch, which of its rows ended, and how. Out: receipts records, cut to size; completions.
Invariant: a recipient is told once; a send that has nobody left is out of the table.
Never: makes a Python object for a send or a recipient (but a completion's offset).
"""

cimport cython
from cpython cimport array
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy

from ext.columns cimport Batch
from ext.histogram cimport Histogram, counts_observe
from ext.ledger cimport Ledger
from ext.sends cimport AHEAD, OpenSend, SendTable, foresee_id, foresee_send

import array

cdef enum:
    MOST_COUNT = 65535  # an array16's
    NUMBER = 9  # bytes of the longest

cdef int64_t NS_PER_MS = 1_000_000
cdef array.array OFFSETS = array.array("q")


@cython.final
cdef class Entries:
    def __cinit__(
        self, bytes head not None, str name not None, str platform_id not None, int64_t wall_ms, size_t limit
    ):
        cdef Py_ssize_t length = PyBytes_GET_SIZE(head)
        self.records = []
        self.reserve(length + 1024)
        memcpy(self.at, PyBytes_AS_STRING(head), length)
        self.used = length
        self.key(b"batch", 5, name)
        self.key(b"platform_id", 11, platform_id)
        self.text(b"at", 2)
        self.number(wall_ms)
        self.text(b"sends", 5)
        self.start, self.limit = self.used, self.used + limit
        self.begin()

    def __dealloc__(self):
        free(self.at)

    cdef int reserve(self, size_t more) except -1:
        cdef size_t room
        cdef void* grown
        if self.used + more > self.room:
            room = max(2 * self.room, self.used + more)
            grown = realloc(self.at, room)
            if grown == NULL:
                raise MemoryError
            self.at, self.room = <char*>grown, room
        return 0

    cdef void byte(self, unsigned char value) noexcept nogil:
        self.at[self.used] = <char>value
        self.used += 1

    cdef void number(self, int64_t value) noexcept nogil:
        """Shortest form, big-endian; value >= 0."""
        cdef int width = 0 if value < 0x80 else 1 if value <= 0xFF else 2 if value <= 0xFFFF else 4
        if value > <int64_t>0xFFFFFFFF:
            width = 8
        if width == 0:
            self.byte(<unsigned char>value)
            return
        self.byte(0xCC if width == 1 else 0xCD if width == 2 else 0xCE if width == 4 else 0xCF)
        while width:
            width -= 1
            self.byte(<unsigned char>(value >> (8 * width) & 0xFF))

    cdef void text(self, const char* text, Py_ssize_t length) noexcept nogil:
        """At most 65,535 bytes."""
        if length < 32:
            self.byte(0xA0 | <unsigned char>length)
        elif length <= 0xFF:
            self.byte(0xD9)
            self.byte(<unsigned char>length)
        else:
            self.byte(0xDA)
            self.byte(<unsigned char>(length >> 8))
            self.byte(<unsigned char>(length & 0xFF))
        memcpy(self.at + self.used, text, length)
        self.used += length

    cdef int key(self, const char* name, Py_ssize_t length, str value) except -1:
        """A pair of the record's map."""
        cdef Py_ssize_t size
        cdef const char* text = PyUnicode_AsUTF8AndSize(value, &size)
        if size > 0xFFFF:
            raise ValueError(f"{size} bytes: at most 65,535 expected")
        self.reserve(size + 1024)  # room for what comes next, too
        self.text(name, length)
        self.text(text, size)
        return 0

    cdef void begin(self) noexcept nogil:
        self.used, self.count = self.start + 3, 0  # the array's header is written when it is known

    cdef int cut(self) except -1:
        """The record is done."""
        cdef char* header = self.at + self.start
        if not self.count:
            return 0
        header[0], header[1], header[2] = <char>0xDC, <char>(self.count >> 8), <char>(self.count & 0xFF)
        self.records.append(PyBytes_FromStringAndSize(self.at, self.used))
        self.begin()
        return 0

    cdef int head(self, OpenSend send) except -1:
        """An entry up to its recipients."""
        cdef Py_ssize_t id_length, topic_length
        cdef const char* id = send.id_text(&id_length)
        cdef const char* topic = PyUnicode_AsUTF8AndSize(send.topic, &topic_length)
        self.byte(0x96)
        self.text(id, id_length)
        self.byte(0x93)
        self.text(topic, topic_length)
        self.number(send.partition)
        self.number(send.origin_offset)
        return 0

    cdef int tail(self, OpenSend send, int64_t attempts, int64_t queued_ms) except -1:
        """An entry after its recipients."""
        cdef Py_ssize_t length
        cdef const char* meta = send.meta_text(&length)
        self.number(attempts)
        self.number(max(queued_ms, <int64_t>0))
        memcpy(self.at + self.used, meta, length)
        self.used += length
        self.count += 1
        return 0

    def done(self):
        self.cut()
        return self.records


cdef size_t fixed_bytes(OpenSend send) noexcept:
    """What an entry needs besides its recipients, at most."""
    cdef Py_ssize_t id_length, meta_length
    send.id_text(&id_length)
    send.meta_text(&meta_length)
    return 8 + id_length + 255 + meta_length + 4 * NUMBER


cdef int tell_whole(Entries entries, OpenSend send, int64_t attempts, int64_t queued_ms) except -1:
    cdef size_t need = fixed_bytes(send)
    if entries.used + need > entries.limit or entries.count == MOST_COUNT:
        entries.cut()
    entries.reserve(need)
    entries.head(send)
    entries.byte(0xC0)
    return entries.tail(send, attempts, queued_ms)


cdef int tell_some(
    Entries entries, OpenSend send, Batch batch, list rows, Py_ssize_t start, Py_ssize_t end, int64_t attempts,
    int64_t queued_ms,
) except -1:
    """Rows start..end of ``rows`` by name; an entry that grows too large goes on in the next record."""
    cdef size_t need = fixed_bytes(send), counter
    cdef Py_ssize_t at = start, row, length
    cdef uint32_t told
    while at < end:
        if entries.used + need + 130 > entries.limit or entries.count == MOST_COUNT:
            entries.cut()
        entries.reserve(need)
        entries.head(send)
        entries.byte(0xDC)
        counter, told = entries.used, 0
        entries.used += 2
        while at < end and (told == 0 or entries.used + need + 130 <= entries.limit):
            row = at if rows is None else rows[at]
            length = batch.id_end[row + 1] - batch.id_end[row]
            entries.reserve(length + need)
            entries.text(PyBytes_AS_STRING(batch.text) + batch.id_end[row], length)
            told += 1
            at += 1
        entries.at[counter], entries.at[counter + 1] = <char>(told >> 8), <char>(told & 0xFF)
        entries.tail(send, attempts, queued_ms)
    return 0


cdef object positions_of(Batch batch, list rows, Py_ssize_t start, Py_ssize_t end):
    if rows is None:
        return array.array("H", (<char*>(batch.position + start))[:2 * (end - start)])
    return array.array("H", [batch.position[<Py_ssize_t>rows[at]] for at in range(start, end)])


@cython.final
cdef class Told:
    cdef readonly list records
    cdef readonly list completions
    cdef readonly list settled
    cdef readonly list unclaimed
    cdef readonly Py_ssize_t count
    cdef Ledger ledger  # of the last completion
    cdef array.array offsets

    def __cinit__(self):
        self.completions, self.settled, self.unclaimed = [], [], []

    cdef int less(
        self, Batch batch, uint32_t handle, OpenSend send, list rows, Py_ssize_t start, Py_ssize_t end
    ) except -1:
        """Rows start..end of ``rows``, all of that send, have ended."""
        cdef Ledger ledger = send.ledger
        send.left -= <uint32_t>(end - start)
        self.count += end - start
        if (send.left or send.given_back) and not ledger.stale:
            self.settled.append((ledger, send.offset, positions_of(batch, rows, start, end)))
        if send.left:
            return 0
        batch.table.remove(handle)
        if ledger.stale or send.given_back:
            return 0
        if not send.taken:
            self.unclaimed.append(send)
        if ledger is not self.ledger:
            self.ledger, self.offsets = ledger, array.clone(OFFSETS, 0, False)
            self.completions.append((ledger, self.offsets))
        array.resize_smart(self.offsets, len(self.offsets) + 1)
        self.offsets.data.as_longlongs[len(self.offsets) - 1] = send.offset
        return 0


def tell(
    Batch batch not None, who, bint keeps_id, bytes head, str name, str platform_id, int64_t wall_ms,
    Histogram end_to_end not None, size_t limit,
):
    cdef SendTable table = batch.table
    cdef list rows = None if isinstance(who, range) else list(who)
    cdef Py_ssize_t at = 0, end = len(who), start, row
    cdef uint32_t handle
    cdef OpenSend send
    cdef int64_t attempts, queued_ms
    cdef Entries entries = Entries(head, name, platform_id, wall_ms, limit)
    cdef Told told = Told()
    if rows is None and (end != batch.size or who.stop != end):
        raise ValueError(f"who is {who}: all {batch.size} rows, or a list, expected")
    while at < end:
        if rows is None and at + 2 * AHEAD < end:
            foresee_send(table, batch.send[at + 2 * AHEAD])
            foresee_id(table, batch.send[at + AHEAD])
        start = at
        row = at if rows is None else rows[at]
        handle = batch.send[row]
        while at < end and batch.send[at if rows is None else <Py_ssize_t>rows[at]] == handle:
            at += 1
        send = table.at(handle)
        attempts = batch.attempt[row] + 1
        queued_ms = (batch.popped_ns - send.pushed_ns) // NS_PER_MS
        if at - start == send.total and not send.partial:
            tell_whole(entries, send, attempts, queued_ms)
        else:
            tell_some(entries, send, batch, rows, start, at, attempts, queued_ms)
        counts_observe(&end_to_end.counts, (wall_ms - send.first_seen_ms) * NS_PER_MS, <uint64_t>(at - start))
        send.taken = send.taken or keeps_id
        told.less(batch, handle, send, rows, start, at)
    told.records = entries.done()
    return told
