"""What intake asks before it takes a send in, as records that C code asks without Python: see gates.pyi.

Never: reads a clock, or decides when a level changes (engine.overload does).
"""

cimport cython
from libc.stdint cimport int64_t


@cython.final
cdef class Meter:
    def __init__(self, int64_t most, int64_t per_ns):
        if not (1 <= most <= 1_000_000_000 and 1_000_000_000 <= per_ns <= 86_400_000_000_000):
            raise ValueError(f"{most} in {per_ns} ns: 1..1000000000 in 1 s..1 d expected")
        self.most, self.per_ns = most, per_ns
        self.whole_ns = -(<int64_t>1 << 62)

    cdef bint has(self, int64_t n, int64_t now_ns) noexcept:
        return n <= self.most and max(self.whole_ns, now_ns) - now_ns + n * self.per_ns // self.most <= self.per_ns

    cdef void use(self, int64_t n, int64_t now_ns) noexcept:
        self.whole_ns = max(self.whole_ns, now_ns) + n * self.per_ns // self.most

    def take(self, int64_t n, int64_t now_ns):
        if not 0 <= n <= 100_000:
            raise ValueError(f"n is {n}: 0..100000 expected")
        if not self.has(n, now_ns):
            return False
        self.use(n, now_ns)
        return True


cdef class Levels:
    def __init__(self):
        self.level = LEVELS - 1

    cdef void arrive(self, int level, int64_t recipients, int64_t slack_ns) noexcept:
        self.sends += 1
        self.arrived[level] += recipients
        self.slack_ns[2 * level // LEVELS] += <double>max(slack_ns, <int64_t>0) * <double>recipients

    def admits(self, int level, int64_t recipients, int64_t slack_ns):
        if not 0 <= level < LEVELS:
            raise ValueError(f"level is {level}: 0..{LEVELS - 1} expected")
        self.arrive(level, recipients, slack_ns)
        return level <= self.level

    def window(self):
        cdef int i
        arrived = [self.arrived[i] for i in range(LEVELS)]
        slack_ns = (self.slack_ns[0], self.slack_ns[1])
        for i in range(LEVELS):
            self.arrived[i] = 0
        self.slack_ns[0] = self.slack_ns[1] = self.sends = 0
        return arrived, slack_ns
