from libc.stdint cimport int64_t, uint32_t

from ext.sends cimport OpenSend


cdef class Entries:
    cdef char* at  # owned: the record being written
    cdef size_t used, room
    cdef size_t start, limit  # of the entries, in it
    cdef uint32_t count  # of them
    cdef list records

    cdef int reserve(self, size_t more) except -1
    cdef void byte(self, unsigned char value) noexcept nogil
    cdef void number(self, int64_t value) noexcept nogil
    cdef void text(self, const char* text, Py_ssize_t length) noexcept nogil
    cdef int key(self, const char* name, Py_ssize_t length, str value) except -1
    cdef void begin(self) noexcept nogil
    cdef int cut(self) except -1
    cdef int head(self, OpenSend send) except -1
    cdef int tail(self, OpenSend send, int64_t attempts, int64_t queued_ms) except -1
