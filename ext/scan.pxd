cdef enum:
    MAX_DEPTH = 64
    MAX_NAMES = 16


cdef class Scanner:
    cdef bint plain  # refuse what JSON cannot say: bytes, NaN, infinity
    cdef int count
    cdef tuple names
    cdef const char* name[MAX_NAMES]
    cdef Py_ssize_t length[MAX_NAMES]

    cdef bint known(self, const unsigned char* key, Py_ssize_t n) noexcept nogil
    cdef int msgpack(self, const unsigned char** at, const unsigned char* end, Py_ssize_t* unknown) noexcept nogil
    cdef int json(self, const unsigned char** at, const unsigned char* end, Py_ssize_t* unknown) noexcept nogil
