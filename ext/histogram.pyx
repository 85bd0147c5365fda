# distutils: include_dirs = ext
from libc.stdint cimport int64_t
from libc.stdlib cimport calloc, free

MOST_EDGES = 65536


cdef class Histogram:
    def __cinit__(self, edges):
        cdef size_t i, size = len(edges)
        if not 1 <= size <= MOST_EDGES:
            raise ValueError(f"edges: {size} of them, 1..{MOST_EDGES} expected")
        self.counts.edges = <int64_t*>calloc(size, sizeof(int64_t))
        self.counts.counts = <uint64_t*>calloc(size + 1, sizeof(uint64_t))
        if self.counts.edges == NULL or self.counts.counts == NULL:
            raise MemoryError
        self.counts.size = size
        for i in range(size):
            self.counts.edges[i] = edges[i]
            if i and self.counts.edges[i] <= self.counts.edges[i - 1]:
                raise ValueError(f"edges[{i}] is {edges[i]}: more than {edges[i - 1]}, the one before, expected")

    def __dealloc__(self):
        free(self.counts.edges)
        free(self.counts.counts)

    @property
    def edges(self):
        return [self.counts.edges[i] for i in range(self.counts.size)]

    def observe(self, int64_t value, int64_t n=1):
        if n < 0:
            raise ValueError(f"n is {n}: 0 or more expected")
        counts_observe(&self.counts, value, <uint64_t>n)

    def observe_many(self, const int64_t[::1] values):
        cdef Py_ssize_t i
        for i in range(values.shape[0]):
            counts_observe(&self.counts, values[i], 1)

    def snapshot(self):
        cdef size_t i
        cumulative = []
        total = 0
        for i in range(self.counts.size + 1):
            total += self.counts.counts[i]
            cumulative.append(total)
        return cumulative, (<object>counts_sum_high(&self.counts) << 64) + counts_sum_low(&self.counts)
