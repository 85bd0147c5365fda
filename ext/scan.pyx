# cython: language_level=3
"""Reads a record once, before anything is built from it: see scan.pyi.

msgpack is read with one counter of open items for each level, JSON with one counter of brackets; nothing recurses and
nothing is allocated, so the cost is one pass over the bytes (about 1 ns each) whatever they say.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.math cimport isfinite
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

cdef enum:
    OK = 0
    CUT_OFF = 1
    TRAILING = 2
    BAD_BYTE = 3
    BAD_UTF8 = 4
    TOO_DEEP = 5
    BAD_KEY = 6
    EXTENSION = 7
    NOT_PLAIN = 8
    NOT_A_MAP = 9
    TWICE = 10  # not an error: only where spans are asked for

WHAT = {
    CUT_OFF: "malformed", TRAILING: "malformed", BAD_BYTE: "malformed", BAD_UTF8: "malformed",
    TOO_DEEP: "too_deep", BAD_KEY: "key_invalid", EXTENSION: "extension", NOT_PLAIN: "not_plain",
    NOT_A_MAP: "not_a_map",
}
TEXT = {
    CUT_OFF: "cut off", TRAILING: "bytes after the value", BAD_BYTE: "a byte that starts nothing",
    BAD_UTF8: "not UTF-8", TOO_DEEP: "nested too deep", BAD_KEY: "a map's key is not a string",
    EXTENSION: "a msgpack extension type", NOT_PLAIN: "bytes, NaN or infinity where text and numbers are wanted",
    NOT_A_MAP: "not a map",
}


class ScanError(ValueError):
    def __init__(self, what, text, at):
        super().__init__(f"{text} at byte {at}")
        self.what = what
        self.at = at


cdef inline Bytes utf8_error(Bytes p, Bytes end, Bytes limit) noexcept nogil:
    """The first byte that is not UTF-8 (RFC 3629: shortest form, no surrogates), or NULL. ``limit``: up to where there
    are bytes to read, so that the last few can be looked at together."""
    cdef uint64_t word
    cdef unsigned char c, low, high
    cdef int more
    while p < end:
        if limit - p >= 8:
            memcpy(&word, p, 8)
            word &= <uint64_t>0x8080808080808080
            if end - p < 8:
                word &= (<uint64_t>1 << 8 * (end - p)) - 1  # little-endian: the first byte is the lowest
            if not word:
                p += 8
                continue
        c = p[0]
        if c < 0x80:
            p += 1
            continue
        low, high = 0x80, 0xBF
        if 0xC2 <= c <= 0xDF:
            more = 1
        elif 0xE0 <= c <= 0xEF:
            more = 2
            if c == 0xE0:
                low = 0xA0
            elif c == 0xED:
                high = 0x9F
        elif 0xF0 <= c <= 0xF4:
            more = 3
            if c == 0xF0:
                low = 0x90
            elif c == 0xF4:
                high = 0x8F
        else:
            return p
        if end - p <= more or p[1] < low or p[1] > high:
            return p
        if more > 1 and p[2] & 0xC0 != 0x80 or more > 2 and p[3] & 0xC0 != 0x80:
            return p
        p += more + 1
    return NULL


cdef inline bint finite(Bytes p, int n) noexcept nogil:
    cdef uint64_t bits = big_endian(p, n)
    cdef uint32_t half
    cdef float single
    cdef double full
    if n == 4:
        half = <uint32_t>bits
        memcpy(&single, &half, 4)
        return isfinite(single)
    memcpy(&full, &bits, 8)
    return isfinite(full)


cdef inline Bytes string_end(Bytes p, Bytes end) noexcept nogil:
    """The closing quote of a JSON string, or NULL."""
    while p < end:
        if p[0] == c'"':
            return p
        p += 2 if p[0] == c"\\" else 1
    return NULL


cdef inline int print_of(Bytes key, Py_ssize_t n) noexcept nogil:
    return (key[0] + 3 * n) % PRINTS if n else 0


cdef inline bint is_at(const Span* met, Bytes p, Bytes end) noexcept nogil:
    return met.at != NULL and end - p >= met.end - met.at and memcmp(p, met.at, met.end - met.at) == 0


def first_byte(raw):
    cdef Py_buffer view
    cdef int first
    PyObject_GetBuffer(raw, &view, PyBUF_SIMPLE)
    first = (<Bytes>view.buf)[0] if view.len else -1
    PyBuffer_Release(&view)
    return first


@cython.final
cdef class Scanner:
    def __init__(self, names, *, bint plain=False):
        cdef int i, at
        if len(names) > MAX_NAMES:
            raise ValueError(f"at most {MAX_NAMES} names")
        self.plain = plain
        self.names = tuple(name.encode() for name in names)  # owns what `name` points into
        self.count = len(self.names)
        for i, name in enumerate(self.names):
            self.name[i] = PyBytes_AS_STRING(name)
            self.length[i] = len(name)
        for i in reversed(range(self.count)):
            at = print_of(<Bytes>self.name[i], self.length[i])
            self.follow[i] = self.first[at]
            self.first[at] = <unsigned char>(i + 1)

    def scan(self, bytes value not None):
        cdef Bytes start = <Bytes>PyBytes_AS_STRING(value)
        cdef Bytes at = start
        cdef Bytes end = start + PyBytes_GET_SIZE(value)
        cdef Py_ssize_t unknown = 0
        cdef int code
        if at < end and at[0] == c"{":
            code = self.json(&at, end, &unknown)
        else:
            code = self.msgpack(&at, end, &unknown, NULL, -1, NULL)
        if code != OK:
            raise ScanError(WHAT[code], TEXT[code], at - start)
        return unknown

    cdef inline int which(self, Bytes key, Py_ssize_t n) noexcept nogil:
        """The name's number, or -1."""
        cdef int number = self.first[print_of(key, n)]
        while number:
            if self.length[number - 1] == n and memcmp(self.name[number - 1], key, n) == 0:
                break
            number = self.follow[number - 1]
        return number - 1

    cdef int msgpack(
        self, Bytes* at, Bytes end, Py_ssize_t* unknown, Span* spans, int often, const Span* met
    ) noexcept nogil:
        """Walk one value. ``at[0]`` is left where it went wrong. ``spans``, unless NULL: one for each name, with at
        NULL, filled with the value's place; TWICE: which of two it is, is for a decoder to say. ``met``: a value of the
        name ``often`` that was walked before (at NULL: none), and is not again where the same bytes stand."""
        cdef uint64_t[MAX_DEPTH] lefts  # of the levels around this one
        cdef bint[MAX_DEPTH] maps
        cdef uint64_t left = 1  # items still to come on this level; a map's keys and values count alike
        cdef bint is_map = False
        cdef int depth = 0
        cdef Bytes p = at[0]
        cdef Bytes body
        cdef unsigned char c
        cdef uint64_t size
        cdef int width, name
        cdef bint key
        cdef Span* span = NULL
        if p >= end:
            return CUT_OFF
        if not (p[0] & 0xF0 == 0x80 or p[0] == 0xDE or p[0] == 0xDF):
            return NOT_A_MAP
        while True:
            at[0] = p
            if p >= end:
                return CUT_OFF
            key = is_map and left & 1 == 0
            left -= 1
            if key and span != NULL and depth == 1:
                span.end = p
                span = NULL
            c = p[0]
            p += 1
            if 0xA0 <= c <= 0xBF or 0xD9 <= c <= 0xDB or 0xC4 <= c <= 0xC6:
                if c <= 0xBF:
                    size = c & 0x1F
                else:
                    width = 1 << (c - 0xD9 if c >= 0xD9 else c - 0xC4)
                    if end - p < width:
                        return CUT_OFF
                    size = big_endian(p, width)
                    p += width
                if size > <uint64_t>(end - p):
                    return CUT_OFF
                if 0xC4 <= c <= 0xC6:
                    if key:
                        return BAD_KEY
                    if self.plain:
                        return NOT_PLAIN
                else:
                    body = utf8_error(p, p + size, end)
                    if body != NULL:
                        at[0] = body
                        return BAD_UTF8
                    if key and depth == 1:
                        name = self.which(p, <Py_ssize_t>size)
                        if name < 0:
                            unknown[0] += 1
                        elif spans != NULL:
                            span = &spans[name]
                            if span.at != NULL:
                                return TWICE
                            span.at = p + size
                            if name == often and is_at(met, span.at, end):
                                p += met.end - met.at
                                left -= 1
                p += size
            elif c <= 0x7F or c >= 0xE0 or c == 0xC0 or c == 0xC2 or c == 0xC3:
                if key:
                    return BAD_KEY
            elif c <= 0x9F or 0xDC <= c <= 0xDF:
                if key:
                    return BAD_KEY
                width = 0 if c <= 0x9F else 2 if c & 1 == 0 else 4
                if end - p < width:
                    return CUT_OFF
                size = big_endian(p, width) if width else c & 0x0F
                p += width
                if depth == MAX_DEPTH:
                    return TOO_DEEP
                lefts[depth], maps[depth] = left, is_map
                is_map = c <= 0x8F or c >= 0xDE
                left = size << 1 if is_map else size
                if left > <uint64_t>(end - p):  # every item takes a byte at least
                    return CUT_OFF
                depth += 1
            elif 0xCA <= c <= 0xD3:
                if key:
                    return BAD_KEY
                width = 4 << (c - 0xCA) if c <= 0xCB else 1 << ((c - 0xCC) & 3)
                if end - p < width:
                    return CUT_OFF
                if self.plain and c <= 0xCB and not finite(p, width):
                    return NOT_PLAIN
                p += width
            elif c == 0xC1:
                return BAD_BYTE
            else:
                return EXTENSION
            while left == 0 and depth:  # levels that are complete close
                depth -= 1
                left, is_map = lefts[depth], maps[depth]
            if left == 0:
                break
        if span != NULL:
            span.end = p
        at[0] = p
        return OK if p == end else TRAILING

    cdef int json(self, Bytes* at, Bytes end, Py_ssize_t* unknown) noexcept nogil:
        """Depth, UTF-8 and top-level keys; the rest of the grammar is left to the decoder."""
        cdef Bytes p = at[0]
        cdef Bytes text
        cdef Bytes bad = utf8_error(p, end, end)
        cdef int depth = 0
        cdef bint key = False
        cdef unsigned char c
        if bad != NULL:
            at[0] = bad
            return BAD_UTF8
        while p < end:
            c = p[0]
            if c == c'"':
                at[0] = p
                p += 1
                text = p
                p = string_end(p, end)
                if p == NULL:
                    return CUT_OFF
                if key:
                    key = False
                    if self.which(text, p - text) < 0:
                        unknown[0] += 1
            elif c == c"{" or c == c"[":
                if depth == MAX_DEPTH:
                    at[0] = p
                    return TOO_DEEP
                depth += 1
                key = depth == 1
            elif c == c"}" or c == c"]":
                depth -= 1
                if depth == 0:  # what follows is for the decoder to judge
                    return OK
            elif c == c"," and depth == 1:
                key = True
            p += 1
        at[0] = p
        return CUT_OFF
