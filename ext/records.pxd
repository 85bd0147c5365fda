from cpython cimport array
from libc.stdint cimport int32_t, int64_t, uint8_t


cdef extern from "records.h" nogil:
    ctypedef struct Row:
        int64_t offset, stamp_ms
        const uint8_t* key
        const uint8_t* value
        const uint8_t* headers
        const uint8_t* end
        int32_t key_bytes, value_bytes, header_count


cdef class RecordBatch:
    cdef Py_buffer data  # owned
    cdef const uint8_t* at
    cdef const uint8_t* end
    cdef Py_ssize_t left  # records
    cdef int64_t first_offset, first_ms, append_ms


cdef class Records:
    cdef Row* rows  # owned
    cdef Py_ssize_t count
    cdef list owners  # of what the rows point into

    cdef int reserve(self, Py_ssize_t count) except -1
    cdef array.array numbers(self, bint stamps)


cdef class Column:
    cdef Records records
    cdef int kind
    cdef Py_ssize_t start, count

    cdef object item(self, Py_ssize_t at)


cdef const Row* rows_of(object column, Py_ssize_t count) except? NULL
cdef tuple headers_of(const Row* row)
