from libc.stdint cimport int64_t

cdef enum:
    LEVELS = 256  # engine.overload: two tiers of 128


cdef class Meter:
    cdef readonly int64_t most, per_ns
    cdef readonly int64_t whole_ns

    cdef bint has(self, int64_t n, int64_t now_ns) noexcept
    cdef void use(self, int64_t n, int64_t now_ns) noexcept


cdef class Levels:
    cdef public int level  # the last one admitted
    cdef readonly int64_t sends  # of this window
    cdef int64_t arrived[LEVELS]
    cdef double slack_ns[2]

    cdef void arrive(self, int level, int64_t recipients, int64_t slack_ns) noexcept
