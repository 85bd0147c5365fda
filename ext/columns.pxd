from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t

from ext.sends cimport Content, Flow, OpenSend, SendTable

cdef enum:
    VECTORS = 16


cdef class Columns:
    cdef char* at[VECTORS]  # owned; those of runs come first, then those of recipients, then the ids
    cdef readonly Py_ssize_t runs, recipients
    cdef Py_ssize_t id_bytes
    cdef Py_ssize_t runs_room, recipients_room, ids_room

    cdef int grow(self, int first, int end, Py_ssize_t need, Py_ssize_t* room) except -1
    cdef int recipient(self, uint16_t position, const char* id, uint8_t length) except -1
    cdef int run(
        self, uint32_t handle, OpenSend send, uint8_t attempt, int64_t not_before, uint32_t count, int64_t apart
    ) except -1
    cdef void drop_recipients(self, Py_ssize_t recipients) noexcept


cdef class Ids:
    cdef bytes text, ends  # id i: text[ends[i]:ends[i + 1]]; ends: uint32_t
    cdef Py_ssize_t size


cdef class Batch:
    cdef readonly Flow flow
    cdef readonly Content content
    cdef readonly SendTable table
    cdef readonly uint32_t channel
    cdef readonly int64_t popped_ns
    cdef Py_ssize_t size
    cdef uint32_t* send  # owned, one block with the next three
    cdef uint32_t* id_end  # size + 1
    cdef uint16_t* position
    cdef uint8_t* attempt
    cdef bytes text  # id i: text[id_end[i]:id_end[i + 1]]

    cdef int allocate(self, Py_ssize_t size) except -1
    cdef Py_ssize_t row(self, Py_ssize_t row) except -1
