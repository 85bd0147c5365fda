from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t


cdef extern from "bits.h" nogil:
    size_t varint_size(uint64_t value)
    uint8_t* varint_put(uint8_t* to, uint64_t value)
    const uint8_t* varint_get(const uint8_t* at, const uint8_t* end, uint64_t* value)
    size_t bits_used(const uint64_t* words, size_t count)
    size_t bits_runs_size(const uint64_t* words, size_t used)
    uint8_t* bits_put_runs(const uint64_t* words, size_t used, uint8_t* to)
    size_t bits_set_size(size_t used)
    uint8_t* bits_put_set(const uint64_t* words, size_t used, uint8_t* to)


cdef extern from "marks.h" nogil:
    ctypedef struct Settled:
        Settled* next
        int64_t offset
        uint32_t words
        uint64_t* bits

    ctypedef struct Block:
        Settled* settled

    ctypedef struct Marks:
        Block** blocks
        int64_t watermark, position, end, last, last_ms
        uint64_t open

    int marks_make(Marks* marks, int64_t position)
    void marks_free(Marks* marks)
    size_t marks_at(const Marks* marks, int64_t offset)
    int marks_reserve(Marks* marks, int64_t offset)
    void marks_fill(Marks* marks, int64_t start, int64_t end)
    void marks_set(Marks* marks, int64_t offset, uint64_t bits)
    int marks_open(Marks* marks, int64_t offset, int64_t stamp_ms)
    bint marks_complete(Marks* marks, int64_t offset)
    bint marks_done(const Marks* marks, int64_t offset)
    Settled* marks_settled(const Marks* marks, int64_t offset)
    Settled* marks_settle(Marks* marks, int64_t offset, uint32_t words)
    int64_t marks_oldest_ms(const Marks* marks)
    uint64_t marks_word(const Marks* marks, int64_t offset)
    int64_t marks_anchor(const Marks* marks)
    void marks_forget(Marks* marks)


cdef class Ledger:
    cdef Marks marks  # owned
    cdef readonly object partition
    cdef readonly int64_t epoch
    cdef public int64_t committed
    cdef public bint leaving, stale
    cdef public bint refuted
    cdef bint expecting  # a map was restored, and no record read since
    cdef uint64_t changes, saved  # of now, of the last commit

    cpdef int complete(self, int64_t offset) except -1
    cdef int complete_all(self, const int64_t* offsets, Py_ssize_t count) except -1
    cdef int confirm(self, int64_t offset, int64_t stamp_ms) noexcept
    cdef const uint8_t* read_done(self, int codec, const uint8_t* at, const uint8_t* end) except NULL
    cdef int read_settled(self, const uint8_t* at, const uint8_t* end) except -1
    cdef int reserve(self, uint64_t span) except -1


cdef class Snapshot:
    cdef readonly int64_t offset, stamp_ms, span
    cdef uint64_t changes
    cdef uint64_t* words  # owned: done, from offset on
    cdef size_t used  # bits
    cdef bytes settled

    cdef int copy(self, const Marks* marks) except -1
    cdef size_t settled_before(self, size_t span) noexcept
