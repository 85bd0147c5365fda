"""The recipients of a msgpack send, read where they stand: see recipients.pyi.

In: a well-formed record and its `to`. Out: a sequence, or RecipientsError.
Never: makes an object for a recipient nobody asks for.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp

from ext.scan cimport Bytes, Span, big_endian, text_at

from msgspec import Raw

from engine.send import MAX_DATA_BYTES, MAX_ID_BYTES, MAX_RECIPIENTS, Recipient

cdef Py_ssize_t MOST_DATA = MAX_DATA_BYTES, MOST_ID = MAX_ID_BYTES
cdef uint32_t MOST = MAX_RECIPIENTS


class RecipientsError(ValueError):
    def __init__(self, reason, detail):
        super().__init__(detail)
        self.reason = reason


cdef uint32_t items_at(Bytes* p, int few) noexcept nogil:
    """The items of the list (``few`` 0x90) or pairs of the map (0x80) at p, which moves on to the first of them."""
    cdef Bytes at = p[0]
    cdef int width = 0
    if at[0] & 0xF0 != few:
        width = 2 if at[0] & 1 == 0 else 4
    p[0] = at + 1 + width
    return <uint32_t>big_endian(at + 1, width) if width else at[0] & 0x0F


cdef bint is_map(Bytes p) noexcept nogil:
    return p[0] & 0xF0 == 0x80 or p[0] == 0xDE or p[0] == 0xDF


cdef Bytes after(Bytes p) noexcept nogil:
    """What stands behind the value at p."""
    cdef size_t left = 1
    cdef unsigned char c
    while left:
        left -= 1
        c = p[0]
        if is_map(p):
            left += 2 * <size_t>items_at(&p, 0x80)
        elif c & 0xF0 == 0x90 or c == 0xDC or c == 0xDD:
            left += items_at(&p, 0x90)
        elif c & 0xE0 == 0xA0:
            p += 1 + (c & 0x1F)
        elif 0xD9 <= c <= 0xDB:
            p += 1 + (1 << (c - 0xD9)) + big_endian(p + 1, 1 << (c - 0xD9))
        elif 0xC4 <= c <= 0xC6:
            p += 1 + (1 << (c - 0xC4)) + big_endian(p + 1, 1 << (c - 0xC4))
        elif 0xCA <= c <= 0xCB:
            p += 5 if c == 0xCA else 9
        elif 0xCC <= c <= 0xD3:
            p += 1 + (1 << ((c - 0xCC) & 3))
        else:
            p += 1
    return p


cdef Py_ssize_t characters(Bytes text, Py_ssize_t length) noexcept nogil:
    cdef Py_ssize_t i, n = 0
    for i in range(length):
        n += text[i] & 0xC0 != 0x80
    return n


cdef bint set_text(Bytes p, Span* text) noexcept nogil:
    """False: the value at p is no string."""
    cdef Py_ssize_t length = 0
    text.at = text_at(p, &length)
    if text.at == NULL:
        return False
    text.end = text.at + length
    return True


cdef bint parts_of(Bytes p, Span* id, Span* data) noexcept nogil:
    """The id's text and (at NULL: none) the data of the recipient at p; False: its id is no string, or not there."""
    cdef Py_ssize_t length = 0
    cdef uint32_t _pair
    cdef Bytes key
    cdef bint good
    data.at = NULL
    if not is_map(p):
        return set_text(p, id)
    good = False
    for _pair in range(items_at(&p, 0x80)):
        key = text_at(p, &length)
        p = key + length
        if length == 2 and memcmp(key, b"id", 2) == 0:
            good = set_text(p, id)
        elif length == 4 and memcmp(key, b"data", 4) == 0:
            data.at, data.end = p, after(p)
        p = after(p)
    return good


cdef class Recipients:
    cdef bytes record
    cdef uint32_t* starts  # owned: where in the record each stands
    cdef uint32_t count

    def __init__(self, bytes record not None, to):
        cdef Py_buffer view
        cdef Bytes p
        PyObject_GetBuffer(to, &view, PyBUF_SIMPLE)
        p = <Bytes>view.buf
        PyBuffer_Release(&view)  # the record outlives it
        cdef Bytes start = <Bytes>PyBytes_AS_STRING(record)
        if not start <= p < start + PyBytes_GET_SIZE(record):
            raise ValueError("to is not a part of record")
        self.record = record
        if not (p[0] & 0xF0 == 0x90 or p[0] == 0xDC or p[0] == 0xDD):
            raise RecipientsError("to_invalid", "not a list")
        cdef uint32_t count = items_at(&p, 0x90)
        self.check_kinds(p, count)
        if not count:
            raise RecipientsError("to_empty", "")
        if count > MOST:
            raise RecipientsError("to_too_many", f"{count:,}; at most {MOST:,}")
        self.starts = <uint32_t*>malloc(count * sizeof(uint32_t))
        if self.starts == NULL:
            raise MemoryError
        self.count = count
        self.place(p, start)
        self.check()

    def __dealloc__(self):
        free(self.starts)

    cdef int check_kinds(self, Bytes p, uint32_t count) except -1:
        cdef uint32_t i
        cdef Py_ssize_t length
        for i in range(count):
            if text_at(p, &length) == NULL and not is_map(p):
                raise RecipientsError("to_invalid", f"to[{i}]: neither a string nor a map")
            p = after(p)
        return 0

    cdef int place(self, Bytes p, Bytes start) except -1:
        """First all ids: each a string of so many characters."""
        cdef Span id, data
        cdef uint32_t i
        cdef Py_ssize_t n
        for i in range(self.count):
            self.starts[i] = <uint32_t>(p - start)
            if not parts_of(p, &id, &data):
                raise RecipientsError("recipient_invalid", f"to[{i}]: `id` is missing or no string")
            n = characters(id.at, id.end - id.at)
            if not 0 < n <= MOST_ID:
                raise RecipientsError("recipient_invalid", f"to[{i}]: {n} characters; 1..{MOST_ID} expected")
            p = after(p)
        return 0

    cdef int check(self) except -1:
        """Then their bytes, and their data."""
        cdef Span id, data
        cdef uint32_t i
        for i in range(self.count):
            parts_of(<Bytes>PyBytes_AS_STRING(self.record) + self.starts[i], &id, &data)
            if id.end - id.at > MOST_ID:
                raise RecipientsError("recipient_invalid", f"to[{i}]: {id.end - id.at} bytes; at most {MOST_ID}")
            if data.at != NULL and (data.end - data.at > MOST_DATA or not is_map(data.at)):
                raise RecipientsError("data_invalid", f"to[{i}]: data is not a map of at most {MOST_DATA:,} bytes")
        return 0

    def __len__(self):
        return self.count

    def __getitem__(self, Py_ssize_t index):
        cdef Span id, data
        if index < 0:
            index += self.count
        if not 0 <= index < self.count:
            raise IndexError(index)
        cdef Bytes p = <Bytes>PyBytes_AS_STRING(self.record) + self.starts[index]
        parts_of(p, &id, &data)
        name = (<const char*>id.at)[:id.end - id.at].decode()
        if not is_map(p):
            return name
        return Recipient(name) if data.at == NULL else Recipient(name, Raw((<const char*>data.at)[:data.end - data.at]))

    def __iter__(self):
        return (self[i] for i in range(self.count))

    def __eq__(self, other):
        return list(self) == list(other)

    def __repr__(self):
        return repr(list(self))
