# distutils: include_dirs = ext
"""Per partition, what was read and is not complete: see ledger.pyi, and marks.h for how it is kept."""

from array import array

cimport cython
from cpython.buffer cimport PyObject_CheckBuffer

cdef enum:
    SHIFT = 62
cdef int64_t LATEST = <int64_t>1 << SHIFT  # of offsets: sums stay inside 64 bits


cdef const int64_t[::1] column(object values):
    return values if PyObject_CheckBuffer(values) else array("q", values)


@cython.final
cdef class Ledger:
    def __cinit__(self, partition, int64_t position, int64_t epoch):
        if not 0 <= position < LATEST:
            raise ValueError(f"position is {position}: 0..2**{SHIFT} - 1 expected")
        if marks_make(&self.marks, position) < 0:
            raise MemoryError
        self.partition = partition
        self.epoch = epoch
        self.committed = position

    def __dealloc__(self):
        marks_free(&self.marks)

    @property
    def position(self):
        return self.marks.position

    @property
    def watermark(self):
        return self.marks.watermark

    @property
    def open(self):
        return self.marks.open

    @property
    def oldest_ms(self):
        return marks_oldest_ms(&self.marks) if self.marks.open else None

    @property
    def uncommitted(self):
        return self.marks.position - self.committed

    def open_many(self, offsets, timestamps_ms):
        cdef const int64_t[::1] numbers = column(offsets), stamps = column(timestamps_ms)
        cdef int64_t least = self.marks.position
        cdef Py_ssize_t i
        if numbers.shape[0] != stamps.shape[0]:
            raise ValueError(f"{numbers.shape[0]} offsets and {stamps.shape[0]} timestamps")
        for i in range(numbers.shape[0]):
            if not least <= numbers[i] < LATEST:
                raise ValueError(f"offset {numbers[i]}: {least} or more expected")
            least = numbers[i] + 1
        for i in range(numbers.shape[0]):
            if marks_open(&self.marks, numbers[i], stamps[i]) < 0:
                raise MemoryError

    cpdef int complete(self, int64_t offset) except -1:
        if not self.stale and not marks_complete(&self.marks, offset):
            raise ValueError(f"{self.partition} at {offset}: no such record is open")
        return 0

    cdef int complete_all(self, const int64_t* offsets, Py_ssize_t count) except -1:
        cdef Py_ssize_t i
        for i in range(count):
            self.complete(offsets[i])
        return 0

    def complete_many(self, const int64_t[::1] offsets):
        if offsets.shape[0]:
            self.complete_all(&offsets[0], offsets.shape[0])

    def is_done(self, int64_t offset):
        return marks_done(&self.marks, offset)
