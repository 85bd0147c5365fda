from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef enum:
    PARTS = 1024


cdef struct Slot:
    uint8_t key[16]
    int64_t offset
    uint32_t place, hop
    uint32_t segment
    bint used


cdef struct Entry:  # what a segment's bytes hold
    uint8_t key[16]
    uint32_t place, hop
    int64_t offset


cdef struct Part:
    Slot* slots  # owned
    size_t mask, used


cdef class SeenTable:
    cdef Part parts[PARTS]
    cdef uint8_t secret[16]
    cdef uint32_t segment
    cdef Entry* fresh
    cdef size_t fresh_used, fresh_room, size

    cdef void hash_id(self, bytes scope, const char* id, Py_ssize_t length, uint8_t* key) noexcept
    cdef Slot* find(self, const uint8_t* key) noexcept nogil
    cdef void look_ahead(self, const uint8_t* key) noexcept nogil
    cdef Slot* claim_key(self, const uint8_t* key, uint32_t place, uint32_t hop, int64_t offset) except? NULL
    cdef int put(self, const uint8_t* key, uint32_t place, uint32_t hop, int64_t offset, uint32_t segment) except -1
    cdef int drop(self, Slot* slot) except -1
    cdef int note(self, const uint8_t* key, uint32_t place, uint32_t hop, int64_t offset) except -1
    cdef int room_for_one(self) except -1
