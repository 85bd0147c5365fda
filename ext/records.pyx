# distutils: include_dirs = ext
"""Kafka's records as columns: see records.pyi, records.h for how they are read.

In: the bytes of batches. Out: rows that point into them. Invariant: what a row points into lives as long as the row.
Never: an object for a record.
"""

cimport cython
from cpython cimport array
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from array import array as Array

cdef extern from "records.h" nogil:
    enum: LEAST_RECORD_BYTES
    const uint8_t* record_get(const uint8_t* at, const uint8_t* end, Row* row)
    const uint8_t* header_get(
        const uint8_t* at, const uint8_t* end, const uint8_t** name, int32_t* name_bytes, const uint8_t** value,
        int32_t* value_bytes,
    )

cdef enum:
    KEYS, VALUES, HEADERS

cdef array.array NUMBERS = Array("q")


@cython.final
cdef class RecordBatch:
    def __cinit__(
        self, data, Py_ssize_t count, int64_t first_offset, int64_t first_ms, int64_t append_ms=-1,
    ):
        PyObject_GetBuffer(data, &self.data, PyBUF_SIMPLE)
        self.at = <const uint8_t*>self.data.buf
        self.end = self.at + self.data.len
        self.left = max(count, 0)
        self.first_offset, self.first_ms, self.append_ms = first_offset, first_ms, append_ms

    def __dealloc__(self):
        PyBuffer_Release(&self.data)

    def read(self, Py_ssize_t most):
        cdef Records made = Records.__new__(Records)
        cdef Py_ssize_t count = max(min(most, self.left), 0)
        cdef Row* row
        if not self.left and self.at != self.end:
            raise ValueError(f"{self.end - self.at} bytes after the last record")
        if count > (self.end - self.at) // LEAST_RECORD_BYTES:
            raise ValueError(f"{self.left} records in {self.end - self.at} bytes")
        made.reserve(count)
        made.owners = [self]
        while made.count < count:
            row = &made.rows[made.count]
            self.at = record_get(self.at, self.end, row)
            if self.at == NULL:
                self.at, self.left = self.end, 1  # whoever asks again is told again
                raise ValueError(f"record {made.count} of {count} is damaged")
            row.offset = <int64_t>(<uint64_t>row.offset + <uint64_t>self.first_offset)
            row.stamp_ms = <int64_t>(<uint64_t>row.stamp_ms + <uint64_t>self.first_ms)
            if self.append_ms >= 0:
                row.stamp_ms = self.append_ms
            made.count += 1
        self.left -= count
        return made


@cython.final
cdef class Records:
    def __dealloc__(self):
        free(self.rows)

    cdef int reserve(self, Py_ssize_t count) except -1:
        self.rows = <Row*>malloc(max(count, 1) * sizeof(Row))
        if self.rows == NULL:
            raise MemoryError
        return 0

    cdef array.array numbers(self, bint stamps):
        cdef array.array made = array.clone(NUMBERS, self.count, False)
        cdef Py_ssize_t i
        for i in range(self.count):
            made.data.as_longlongs[i] = self.rows[i].stamp_ms if stamps else self.rows[i].offset
        return made

    def __len__(self):
        return self.count

    @property
    def offset(self):
        if not self.count:
            raise IndexError("no records")
        return self.rows[self.count - 1].offset

    @property
    def offsets(self):
        return self.numbers(False)

    @property
    def timestamps_ms(self):
        return self.numbers(True)

    @property
    def keys(self):
        return column_of(self, KEYS, 0, self.count)

    @property
    def values(self):
        return column_of(self, VALUES, 0, self.count)

    @property
    def headers(self):
        return column_of(self, HEADERS, 0, self.count)

    def since(self, int64_t offset):
        cdef Py_ssize_t first = 0
        while first < self.count and self.rows[first].offset < offset:
            first += 1
        if first == 0:
            return self
        cdef Records made = Records.__new__(Records)
        made.reserve(self.count - first)
        made.count, made.owners = self.count - first, self.owners
        memcpy(made.rows, self.rows + first, made.count * sizeof(Row))
        return made


def joined(parts):
    cdef Records made = Records.__new__(Records), part
    made.reserve(sum(map(len, parts)))
    made.owners = []
    for part in parts:
        memcpy(made.rows + made.count, part.rows, part.count * sizeof(Row))
        made.count += part.count
        made.owners += part.owners
    return made


def single(int64_t offset, int64_t stamp_ms, bytes key, bytes value):
    cdef Records made = Records.__new__(Records)
    cdef Row* row
    made.reserve(1)
    made.count, made.owners = 1, [key, value]
    row = made.rows
    row.offset, row.stamp_ms, row.headers, row.end, row.header_count = offset, stamp_ms, NULL, NULL, 0
    row.key, row.key_bytes = NULL, 0
    row.value, row.value_bytes = NULL, 0
    if key is not None:
        row.key, row.key_bytes = <const uint8_t*>PyBytes_AS_STRING(key), <int32_t>PyBytes_GET_SIZE(key)
    if value is not None:
        row.value, row.value_bytes = <const uint8_t*>PyBytes_AS_STRING(value), <int32_t>PyBytes_GET_SIZE(value)
    return made


cdef Column column_of(Records records, int kind, Py_ssize_t start, Py_ssize_t count):
    cdef Column made = Column.__new__(Column)
    made.records, made.kind, made.start, made.count = records, kind, start, count
    return made


@cython.final
cdef class Column:
    """A sequence; a slice of one is one."""

    def __len__(self):
        return self.count

    def __getitem__(self, at):
        cdef Py_ssize_t start, stop, step, index
        if isinstance(at, slice):
            start, stop, step = at.indices(self.count)
            if step != 1:
                return [self.item(index) for index in range(start, stop, step)]
            return column_of(self.records, self.kind, self.start + start, max(stop - start, 0))
        index = at
        if index < 0:
            index += self.count
        if not 0 <= index < self.count:
            raise IndexError(f"{at} of {self.count} records")
        return self.item(index)

    cdef object item(self, Py_ssize_t at):
        cdef const Row* row = &self.records.rows[self.start + at]
        if self.kind == HEADERS:
            return headers_of(row)
        if self.kind == KEYS:
            return None if row.key == NULL else PyBytes_FromStringAndSize(<const char*>row.key, row.key_bytes)
        return None if row.value == NULL else PyBytes_FromStringAndSize(<const char*>row.value, row.value_bytes)


cdef const Row* rows_of(object column, Py_ssize_t count) except? NULL:
    """The rows behind a column of so many; NULL: it is another kind of sequence."""
    if type(column) is not Column:
        return NULL
    if (<Column>column).count != count:
        raise ValueError(f"{(<Column>column).count} records: {count} expected")
    return (<Column>column).records.rows + (<Column>column).start


cdef tuple headers_of(const Row* row):
    """A name that is not UTF-8 is read as well as it can be: it must not hold up the record."""
    cdef const uint8_t* at = row.headers
    cdef const uint8_t* name = NULL
    cdef const uint8_t* value = NULL
    cdef int32_t name_bytes = 0, value_bytes = 0, _
    cdef list made
    if row.header_count == 0:
        return ()
    made = []
    for _ in range(row.header_count):
        at = header_get(at, row.end, &name, &name_bytes, &value, &value_bytes)
        made.append((
            PyUnicode_DecodeUTF8(<const char*>name, name_bytes, "replace"),
            PyBytes_FromStringAndSize(<const char*>value, value_bytes) if value != NULL else b"",
        ))
    return tuple(made)
