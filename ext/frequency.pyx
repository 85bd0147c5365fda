# distutils: include_dirs = ext
"""How often recipients got messages: see frequency.pyi and frequency.h.

In: recipients of a batch. Out: who may not get another message yet, and until when.
Never: makes an object for a recipient who may, or touches memory beyond the buffers it was given, which it keeps.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

cdef extern from "siphash.h" nogil:
    void siphash128(const uint8_t* key, const uint8_t* data, size_t length, uint8_t* out)

cdef extern from "frequency.h" nogil:
    ctypedef struct OftenSet:
        pass
    ctypedef struct OftenTable:
        uint64_t count
        uint32_t number

    void often_make(OftenTable* table, OftenSet* sets, uint64_t count, uint32_t number, int64_t per)
    OftenSet* often_set(const OftenTable* table, uint64_t key_hash)
    int64_t often_when(const OftenTable* table, uint64_t key_hash, int64_t now_ns, uint32_t kept)
    void often_count(const OftenTable* table, uint64_t key_hash, int64_t now_ns, int64_t at_ns)
    void often_uncount(const OftenTable* table, uint64_t key_hash, int64_t now_ns, int64_t at_ns)
    void often_fill(const OftenTable* table, int64_t now_ns, uint64_t step, uint64_t* looked, uint64_t* full)

cdef extern from *:
    """
    #define prefetch_set(set) (__builtin_prefetch(set, 1), __builtin_prefetch((const char *)(set) + 64, 1), \
        __builtin_prefetch((const char *)(set) + 128, 1), __builtin_prefetch((const char *)(set) + 192, 1))
    """
    void prefetch_set(const void* at) noexcept nogil

SET_BYTES = sizeof(OftenSet)

cdef enum:
    TABLES = 8
    FILL_SETS = 1024  # looked at to tell how full a table is
    LONGEST_ID = 128
    KEPT = 10  # the part of a number that only urgent ones may use: one in so many, rounded down


cdef const char* lowered(const char* text, Py_ssize_t size, char* to) noexcept nogil:
    """ASCII letters in lower case; returns ``to``."""
    cdef Py_ssize_t i
    for i in range(size):
        to[i] = text[i] + 32 if c"A" <= text[i] <= c"Z" else text[i]
    return to


cdef class Frequency:
    cdef OftenTable tables[TABLES]
    cdef Py_buffer views[TABLES]
    cdef int count  # tables, and views held
    cdef bint caseless

    def __cinit__(self, tables, bint caseless=False):
        self.caseless = caseless
        if len(tables) > TABLES:
            raise ValueError(f"{len(tables)} tables: at most {TABLES}")
        for memory, number, per_ns in tables:
            self.add(memory, number, per_ns)

    def __dealloc__(self):
        while self.count:
            self.count -= 1
            PyBuffer_Release(&self.views[self.count])

    cdef int add(self, object memory, object number, object per_ns) except -1:
        cdef Py_buffer* view = &self.views[self.count]
        if not (1 <= number <= 60_000 and 1_000_000_000 <= per_ns <= 1 << 60):
            raise ValueError(f"{number} in {per_ns} ns: 1..60000 in a second or more expected")
        PyObject_GetBuffer(memory, view, PyBUF_SIMPLE | PyBUF_WRITABLE)
        self.count += 1
        if view.len < <Py_ssize_t>sizeof(OftenSet) or <size_t>view.buf % 8:
            raise ValueError(f"memory of {view.len} bytes: {sizeof(OftenSet)} or more, aligned, expected")
        often_make(
            &self.tables[self.count - 1], <OftenSet*>view.buf, <uint64_t>view.len // sizeof(OftenSet), number, per_ns
        )
        return 0

    cdef uint64_t* hash_all(self, bytes key, list ids) except NULL:
        """The caller's to free; the sets are on their way from memory."""
        cdef Py_ssize_t i, size, n = len(ids)
        cdef uint8_t out[16]
        cdef char small[LONGEST_ID]
        cdef const char* text
        cdef int t
        if len(key) != 16:
            raise ValueError(f"key has {len(key)} bytes: 16 expected")
        cdef uint64_t* hashes = <uint64_t*>malloc((n + 1) * sizeof(uint64_t))
        if hashes == NULL:
            raise MemoryError
        try:
            for i in range(n):
                text = PyUnicode_AsUTF8AndSize(ids[i], &size)
                if self.caseless:
                    if size > LONGEST_ID:
                        raise ValueError(f"an id has {size} bytes: at most {LONGEST_ID} expected")
                    text = lowered(text, size, small)
                siphash128(<const uint8_t*>PyBytes_AS_STRING(key), <const uint8_t*>text, <size_t>size, out)
                memcpy(&hashes[i], out, 8)
                for t in range(self.count):
                    prefetch_set(often_set(&self.tables[t], hashes[i]))
        except BaseException:
            free(hashes)
            raise
        return hashes

    def take(
        self, bytes key not None, list ids not None, int64_t now_ns, int64_t at_ns, bint urgent=True, bint anyway=False
    ):
        cdef uint64_t* hashes = self.hash_all(key, ids)
        cdef uint32_t kept
        cdef int64_t until, when
        cdef Py_ssize_t i
        cdef int t, rule = 0
        refused = {}
        try:
            for i in range(len(ids)):
                until = 0
                for t in range(self.count):
                    kept = 0 if urgent else self.tables[t].number // KEPT
                    when = often_when(&self.tables[t], hashes[i], now_ns, kept)
                    if when > until:
                        until, rule = when, t
                if until and not anyway:
                    refused[i] = until, rule
                    continue
                for t in range(self.count):
                    often_count(&self.tables[t], hashes[i], now_ns, at_ns)
        finally:
            free(hashes)
        return refused

    def give_back(self, bytes key not None, list ids not None, int64_t now_ns, int64_t at_ns):
        cdef uint64_t* hashes = self.hash_all(key, ids)
        cdef Py_ssize_t i
        cdef int t
        for i in range(len(ids)):
            for t in range(self.count):
                often_uncount(&self.tables[t], hashes[i], now_ns, at_ns)
        free(hashes)

    def move(self, bytes key not None, list ids not None, int64_t now_ns, int64_t from_ns, int64_t to_ns):
        cdef uint64_t* hashes = self.hash_all(key, ids)
        cdef Py_ssize_t i
        cdef int t
        for i in range(len(ids)):
            for t in range(self.count):
                often_uncount(&self.tables[t], hashes[i], now_ns, from_ns)
                often_count(&self.tables[t], hashes[i], now_ns, to_ns)
        free(hashes)

    def full_share(self, int64_t now_ns):
        cdef uint64_t looked = 0, full = 0, step
        cdef int t
        for t in range(self.count):
            step = self.tables[t].count // FILL_SETS + 1
            often_fill(&self.tables[t], now_ns, step, &looked, &full)
        return <double>full / <double>looked if looked else 0.0
