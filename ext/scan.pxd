from libc.stdint cimport uint64_t

cdef enum:
    MAX_DEPTH = 64
    MAX_NAMES = 16
    PRINTS = 32


ctypedef const unsigned char* Bytes


cdef inline uint64_t big_endian(Bytes p, int n) noexcept nogil:
    cdef uint64_t value = 0
    cdef int i
    for i in range(n):
        value = value << 8 | p[i]
    return value


cdef inline Bytes text_at(Bytes p, Py_ssize_t* length) noexcept nogil:
    """Where the msgpack string at p (all of it is there) has its text; NULL: it is no string."""
    if p[0] & 0xE0 == 0xA0:
        length[0] = p[0] & 0x1F
        return p + 1
    if not 0xD9 <= p[0] <= 0xDB:
        return NULL
    cdef int width = 1 << (p[0] - 0xD9)
    length[0] = <Py_ssize_t>big_endian(p + 1, width)
    return p + 1 + width


cdef struct Span:  # a top-level value; at NULL: its key is not there
    Bytes at
    Bytes end


cdef class Scanner:
    cdef bint plain  # refuse what JSON cannot say: bytes, NaN, infinity
    cdef int count
    cdef tuple names
    cdef const char* name[MAX_NAMES]
    cdef Py_ssize_t length[MAX_NAMES]
    # Names by a print of theirs: a name's number + 1, 0: none (any more).
    cdef unsigned char first[PRINTS]
    cdef unsigned char follow[MAX_NAMES]

    cdef int which(self, Bytes key, Py_ssize_t n) noexcept nogil
    cdef int msgpack(
        self, Bytes* at, Bytes end, Py_ssize_t* unknown, Span* spans, int often, const Span* met
    ) noexcept nogil
    cdef int json(self, Bytes* at, Bytes end, Py_ssize_t* unknown) noexcept nogil
