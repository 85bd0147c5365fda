from libc.stdint cimport int64_t, uint64_t


cdef extern from "histogram.h" nogil:
    ctypedef struct Counts:
        size_t size
        int64_t* edges
        uint64_t* counts

    void counts_observe(Counts* counts, int64_t value, uint64_t n)
    int64_t counts_sum_high(const Counts* counts)
    uint64_t counts_sum_low(const Counts* counts)


cdef class Histogram:
    cdef Counts counts  # owned; C code may keep a pointer to it for as long as it keeps this object
