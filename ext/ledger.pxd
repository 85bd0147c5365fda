from libc.stdint cimport int64_t, uint64_t


cdef extern from "marks.h" nogil:
    ctypedef struct Marks:
        int64_t watermark, position, end
        uint64_t open

    int marks_make(Marks* marks, int64_t position)
    void marks_free(Marks* marks)
    int marks_open(Marks* marks, int64_t offset, int64_t stamp_ms)
    int marks_complete(Marks* marks, int64_t offset)
    bint marks_done(const Marks* marks, int64_t offset)
    int64_t marks_oldest_ms(const Marks* marks)


cdef class Ledger:
    cdef Marks marks  # owned
    cdef readonly object partition
    cdef readonly int64_t epoch
    cdef public int64_t committed
    cdef public bint stale

    cpdef int complete(self, int64_t offset) except -1
    cdef int complete_all(self, const int64_t* offsets, Py_ssize_t count) except -1
