# distutils: include_dirs = ext
"""Per partition, what was read and is not complete: see ledger.pyi, marks.h for how it is kept, bits.h for how it is
written down. The format of a map is public: docs/wire-format.md."""

from array import array

cimport cython
from cpython.buffer cimport PyObject_CheckBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint16_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

RUNS, BITSET = 0, 1

cdef enum:
    RUNS_ = 0
    BITSET_ = 1
    SHIFT = 62
    SPAN_SHIFT = 28
    SETTLED_WORDS = 1024
    MOST_SETTLED = 64 * SETTLED_WORDS  # recipients of one record: what a u16 position can tell apart
cdef int64_t LATEST = <int64_t>1 << SHIFT  # of offsets: sums stay inside 64 bits
cdef uint64_t MOST_SPAN = <uint64_t>1 << SPAN_SHIFT  # offsets of a map: 64 MiB of memory, whoever wrote it
MAX_SPAN = MOST_SPAN


cdef const int64_t[::1] column(object values):
    return values if PyObject_CheckBuffer(values) else array("q", values)


@cython.final
cdef class Ledger:
    def __cinit__(self, partition, int64_t position, int64_t epoch):
        if not 0 <= position < LATEST:
            raise ValueError(f"position is {position}: 0..2**{SHIFT} - 1 expected")
        if marks_make(&self.marks, position) < 0:
            raise MemoryError
        self.partition = partition
        self.epoch = epoch
        self.committed = position

    def __dealloc__(self):
        marks_free(&self.marks)

    @property
    def position(self):
        return self.marks.position

    @property
    def watermark(self):
        return self.marks.watermark

    @property
    def open(self):
        return self.marks.open

    @property
    def oldest_ms(self):
        return marks_oldest_ms(&self.marks) if self.marks.open else None

    @property
    def uncommitted(self):
        return self.marks.position - self.committed

    @property
    def dirty(self):
        return self.changes != self.saved or marks_anchor(&self.marks) != self.committed

    @property
    def unsaved(self):
        return self.changes - self.saved

    def open_many(self, offsets, timestamps_ms):
        cdef const int64_t[::1] numbers = column(offsets), stamps = column(timestamps_ms)
        cdef int64_t least = self.marks.position, restored
        cdef Py_ssize_t i, known = 0
        cdef int done
        if numbers.shape[0] != stamps.shape[0]:
            raise ValueError(f"{numbers.shape[0]} offsets and {stamps.shape[0]} timestamps")
        for i in range(numbers.shape[0]):
            if not least <= numbers[i] < LATEST:
                raise ValueError(f"offset {numbers[i]}: {least} or more expected")
            least = numbers[i] + 1
        if self.expecting and numbers.shape[0]:
            self.confirm(numbers[0], stamps[0])
        restored = self.marks.end
        for i in range(numbers.shape[0]):
            done = marks_open(&self.marks, numbers[i], stamps[i])
            if done < 0:
                raise MemoryError
            if numbers[i] < restored:
                known += done or marks_settled(&self.marks, numbers[i]) != NULL
        return known

    cdef int confirm(self, int64_t offset, int64_t stamp_ms) noexcept:
        """The first record read tells whether the map that was restored is of this topic."""
        self.expecting = False
        if offset != self.marks.last or stamp_ms != self.marks.last_ms:
            marks_forget(&self.marks)
            self.refuted = True
            self.changes += 1
        return 0

    cpdef int complete(self, int64_t offset) except -1:
        if self.stale:
            return 0
        if not marks_complete(&self.marks, offset):
            raise ValueError(f"{self.partition} at {offset}: no such record is open")
        self.changes += 1
        return 0

    cdef int complete_all(self, const int64_t* offsets, Py_ssize_t count) except -1:
        cdef Py_ssize_t i
        for i in range(count):
            self.complete(offsets[i])
        return 0

    def complete_many(self, const int64_t[::1] offsets):
        if offsets.shape[0]:
            self.complete_all(&offsets[0], offsets.shape[0])

    def is_done(self, int64_t offset):
        return marks_done(&self.marks, offset)

    def settle(self, int64_t offset, uint32_t total, const uint16_t[::1] positions):
        cdef Py_ssize_t i
        cdef Settled* one
        if self.stale:
            return
        if offset >= self.marks.position or marks_done(&self.marks, offset):
            raise ValueError(f"{self.partition} at {offset}: no such record is open")
        for i in range(positions.shape[0]):
            if positions[i] >= total:
                raise ValueError(f"position {positions[i]} of {total}")
        one = marks_settle(&self.marks, offset, (total + 63) // 64)
        if one == NULL:
            raise MemoryError
        for i in range(positions.shape[0]):
            one.bits[positions[i] // 64] |= <uint64_t>1 << (positions[i] % 64)
        self.changes += 1

    def settled(self, int64_t offset):
        cdef const Settled* one = marks_settled(&self.marks, offset)
        cdef uint32_t i
        if one == NULL:
            return frozenset()
        return frozenset([i for i in range(64 * one.words) if one.bits[i // 64] >> (i % 64) & 1])

    # --- the map

    def snapshot(self):
        cdef Snapshot made = Snapshot.__new__(Snapshot)
        made.offset = marks_anchor(&self.marks)
        made.stamp_ms = marks_oldest_ms(&self.marks) if self.marks.open else self.marks.last_ms
        made.changes = self.changes
        made.copy(&self.marks)
        return made

    def commit(self, Snapshot snapshot not None):
        self.committed, self.saved = snapshot.offset, snapshot.changes

    def restore(self, int64_t stamp_ms, int codec, bytes payload not None):
        cdef const uint8_t* at = <const uint8_t*>PyBytes_AS_STRING(payload)
        cdef const uint8_t* end = at + PyBytes_GET_SIZE(payload)
        if self.marks.open or self.marks.end != self.committed:
            raise ValueError("records were read, or a map restored, already")
        try:
            self.read_settled(self.read_done(codec, at, end), end)
        except ValueError:
            marks_forget(&self.marks)
            raise
        self.marks.last_ms, self.expecting = stamp_ms, self.marks.end > self.marks.position

    cdef const uint8_t* read_done(self, int codec, const uint8_t* at, const uint8_t* end) except NULL:
        cdef uint64_t size = 0, span = 0, run = 0, word
        cdef int64_t start = self.marks.position
        cdef const uint8_t* after
        cdef bint done = False
        at = varint_get(at, end, &size)
        if at == NULL or size > <uint64_t>(end - at):
            raise ValueError("cut off")
        after = at + size
        if codec == BITSET_:
            self.reserve(8 * size)
            while at < after:
                word = 0
                memcpy(&word, at, min(8, after - at))
                marks_set(&self.marks, start + <int64_t>span, word)
                at, span = at + min(8, after - at), span + 64
            return after
        if codec != RUNS_:
            raise ValueError(f"codec {codec}")
        while at < after:
            at = varint_get(at, after, &run)
            if at == NULL:
                raise ValueError("a run is cut off")
            if run > MOST_SPAN:
                raise ValueError(f"more than {MOST_SPAN} offsets")
            self.reserve(span + run)
            if done and run:
                marks_fill(&self.marks, start + <int64_t>span, start + <int64_t>(span + run))
                self.marks.end = start + <int64_t>(span + run)
            span, done = span + run, not done
        return after

    cdef int read_settled(self, const uint8_t* at, const uint8_t* end) except -1:
        cdef uint64_t[SETTLED_WORDS] bits
        cdef uint64_t step = 0, head = 0, span = 0
        cdef bint first = True
        cdef size_t used
        cdef Settled* one
        while at < end:
            at = varint_get(at, end, &step)
            if at != NULL:
                at = varint_get(at, end, &head)
            if at == NULL or head >> 1 > <uint64_t>(end - at):
                raise ValueError("what is settled is cut off")
            if step > MOST_SPAN or not (step or first):
                raise ValueError("what is settled does not ascend")
            span, first = span + step, False
            self.reserve(span + 1)
            used = unpack_bits(head & 1, at, at + (head >> 1), bits)
            at += head >> 1
            if not used:
                raise ValueError("nothing is settled")
            if marks_done(&self.marks, self.marks.position + <int64_t>span):
                raise ValueError("settled in part, and done")
            self.marks.end = max(self.marks.end, self.marks.position + <int64_t>span + 1)
            one = marks_settle(&self.marks, self.marks.position + <int64_t>span, <uint32_t>((used + 63) // 64))
            if one == NULL:
                raise MemoryError
            memcpy(one.bits, bits, 8 * one.words)
        return 0

    cdef int reserve(self, uint64_t span) except -1:
        if span > MOST_SPAN:
            raise ValueError(f"more than {MOST_SPAN} offsets")
        # One word more: a bitset's last word may reach beyond.
        if marks_reserve(&self.marks, self.marks.position + <int64_t>span + 64) < 0:
            raise MemoryError
        return 0


cdef size_t unpack_bits(bint is_set, const uint8_t* at, const uint8_t* end, uint64_t* bits) except? 0:
    """Into MOST_SETTLED bits; how many of them are used."""
    cdef uint64_t run = 0, used = 0, i
    cdef bint value = False
    memset(bits, 0, 8 * SETTLED_WORDS)
    if is_set:
        if end - at > 8 * SETTLED_WORDS:
            raise ValueError("too many recipients")
        memcpy(bits, at, end - at)
    while at < end and not is_set:
        at = varint_get(at, end, &run)
        if at == NULL or used + run > MOST_SETTLED:
            raise ValueError("a run of recipients is cut off, or too long")
        for i in range(used, used + run if value else used):
            bits[i // 64] |= <uint64_t>1 << (i % 64)
        used, value = used + run, not value
    return bits_used(bits, SETTLED_WORDS)


@cython.final
cdef class Snapshot:
    def __dealloc__(self):
        free(self.words)

    cdef int copy(self, const Marks* marks) except -1:
        cdef size_t count = <size_t>((marks.end - self.offset + 63) // 64), i
        cdef list parts = []
        cdef int64_t word, before = self.offset
        cdef Settled* one
        self.span = marks.end - self.offset
        self.words = <uint64_t*>malloc((count + 1) * sizeof(uint64_t))
        if self.words == NULL:
            raise MemoryError
        for i in range(count):
            self.words[i] = marks_word(marks, self.offset + 64 * <int64_t>i)
        self.used = bits_used(self.words, count)
        for word in range(marks.watermark // 64, (marks.end + 63) // 64):
            if marks.blocks[marks_at(marks, 64 * word)] == NULL:
                continue
            one = marks.blocks[marks_at(marks, 64 * word)].settled
            while one != NULL:
                if not marks_done(marks, one.offset):
                    parts.append(packed(one, <uint64_t>(one.offset - before)))
                    before = one.offset
                one = one.next
        self.settled = b"".join(parts)
        return 0

    @property
    def empty(self):
        return self.used == 0 and not self.settled

    def sizes(self):
        cdef size_t runs, bitset = bits_set_size(self.used), more = PyBytes_GET_SIZE(self.settled)
        with nogil:  # 2 ms for a million scattered offsets
            runs = bits_runs_size(self.words, self.used)
        return varint_size(runs) + runs + more, varint_size(bitset) + bitset + more

    def payload(self, int codec, size_t most=MAX_SPAN):
        cdef size_t used = min(self.used, most)
        cdef size_t size, more = self.settled_before(most)
        cdef uint8_t* to
        cdef bytes made
        with nogil:
            size = bits_runs_size(self.words, used) if codec == RUNS_ else bits_set_size(used)
        made = PyBytes_FromStringAndSize(NULL, varint_size(size) + size + more)
        to = varint_put(<uint8_t*>PyBytes_AS_STRING(made), size)
        with nogil:
            to = bits_put_runs(self.words, used, to) if codec == RUNS_ else bits_put_set(self.words, used, to)
        memcpy(to, PyBytes_AS_STRING(self.settled), more)
        return made

    cdef size_t settled_before(self, size_t span) noexcept:
        """How many bytes of ``settled`` are of the first ``span`` offsets."""
        cdef const uint8_t* start = <const uint8_t*>PyBytes_AS_STRING(self.settled)
        cdef const uint8_t* end = start + PyBytes_GET_SIZE(self.settled)
        cdef const uint8_t* at = start
        cdef const uint8_t* next
        cdef uint64_t step = 0, head = 0, passed = 0
        while at < end:
            next = varint_get(varint_get(at, end, &step), end, &head)
            passed += step
            if passed >= span:
                break
            at = next + (head >> 1)
        return <size_t>(at - start)


cdef bytes packed(const Settled* one, uint64_t step):
    cdef size_t used = bits_used(one.bits, one.words)
    cdef size_t runs = bits_runs_size(one.bits, used), bitset = bits_set_size(used)
    cdef size_t size = min(runs, bitset)
    cdef uint64_t head = size << 1 | (bitset < runs)
    cdef bytes made = PyBytes_FromStringAndSize(NULL, varint_size(step) + varint_size(head) + size)
    cdef uint8_t* to = varint_put(varint_put(<uint8_t*>PyBytes_AS_STRING(made), step), head)
    if bitset < runs:
        bits_put_set(one.bits, used, to)
    else:
        bits_put_runs(one.bits, used, to)
    return made
