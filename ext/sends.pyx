# distutils: include_dirs = ext
"""The sends a process has taken in and not finished, as records that C code reads without asking Python: see sends.pyi.

In: what admission made of a record. Out: a handle for the core; what the record says, piece by piece, when asked.
Invariant: a send, a flow and a content are in their tables exactly while something open needs them.
Never: holds a recipient; their ids stand in the core.
"""

cimport cython
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_GET_SIZE
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy

from ext.ledger cimport Ledger

from engine.send import Origin

cdef bytes NIL = b"\xc0"


@cython.final
cdef class Flow:
    def __init__(self, tier, str channel not None, str account not None, str tenant not None, campaign):
        self.tier, self.channel, self.account, self.tenant, self.campaign = tier, channel, account, tenant, campaign
        self.tier_number = tier
        self.names = []
        self.scope, self.raw_scope = dedupe_scope(tenant, channel), channel.encode() + b"\0"


cpdef bytes dedupe_scope(str tenant, str channel):
    cdef bytes first = tenant.encode(), second = channel.encode()
    return bytes((len(first), len(second))) + first + second


@cython.final
cdef class Content:
    def __init__(self, uint32_t handle, tuple key not None, prepared):
        self.handle, self.key, self.prepared = handle, key, prepared
        self.complete = prepared.complete
        self.raws = []


@cython.final
@cython.no_gc
@cython.freelist(4096)
cdef class OpenSend:
    def __init__(
        self, str id, origin, Flow flow, Content content, Ledger ledger, int64_t offset, bytes key, uint32_t total,
        uint32_t left, int64_t first_seen_ms, int64_t pushed_ns, int64_t due_ns, int64_t deadline_ns,
        int64_t linger_ns, meta, record_key, bytes value, headers, data, bint partial=False, move_key=None,
        uint8_t declined=0,
    ):
        if len(key) != 16:
            raise ValueError(f"key has {len(key)} bytes: 16 expected")
        self.id_bytes, self.meta_bytes = id.encode(), bytes(meta)
        self.topic, self.partition, self.origin_offset = origin
        self.flow, self.content, self.ledger = flow, content, ledger
        self.offset, self.total, self.left = offset, total, left
        memcpy(self.dedupe, PyBytes_AS_STRING(key), 16)
        self.first_seen_ms, self.pushed_ns, self.due_ns = first_seen_ms, pushed_ns, due_ns
        self.deadline_ns, self.linger_ns = deadline_ns, linger_ns
        self.record_key, self.value, self.headers, self.data = record_key, value, headers, data
        self.partial, self.move_key, self.declined = partial, move_key, declined

    cdef uint8_t declines_of(self, uint16_t position) noexcept:
        if self.declines is None or position >= PyByteArray_GET_SIZE(self.declines):
            return self.declined
        return self.declined + <uint8_t>PyByteArray_AS_STRING(self.declines)[position]

    def decline(self, positions):
        if self.declines is None:
            self.declines = bytearray()
        self.declines.extend(bytes(max(max(positions) + 1 - len(self.declines), 0)))
        for position in positions:
            self.declines[position] = (self.declines[position] + 1) & 255

    def most_declined(self, positions):
        return max(self.declines_of(position) for position in positions)

    cdef const char* id_text(self, Py_ssize_t* length) noexcept:
        if self.id_bytes is None:
            length[0] = self.id_length
            return PyBytes_AS_STRING(self.value) + self.id_at
        length[0] = PyBytes_GET_SIZE(self.id_bytes)
        return PyBytes_AS_STRING(self.id_bytes)

    cdef const char* meta_text(self, Py_ssize_t* length) noexcept:
        if self.meta_bytes is None and self.meta_length:
            length[0] = self.meta_length
            return PyBytes_AS_STRING(self.value) + self.meta_at
        cdef bytes meta = NIL if self.meta_bytes is None else self.meta_bytes
        length[0] = PyBytes_GET_SIZE(meta)
        return PyBytes_AS_STRING(meta)

    def whole(self, Py_ssize_t count):
        return count == self.total and not self.partial

    @property
    def id(self):
        cdef Py_ssize_t length
        cdef const char* text = self.id_text(&length)
        return text[:length].decode()

    @property
    def meta(self):
        cdef Py_ssize_t length
        cdef const char* text = self.meta_text(&length)
        return text[:length]

    @property
    def origin(self):
        return Origin(self.topic, self.partition, self.origin_offset)

    @property
    def key(self):
        return PyBytes_FromStringAndSize(<char*>self.dedupe, 16)


cdef class SendTable:
    def __cinit__(self):
        self.by_names, self.by_raw, self.sends = ({}, {}, {}), {}, []

    def __dealloc__(self):
        free(self.free_handles)

    def __len__(self):
        return self.size

    def __getitem__(self, uint32_t handle):
        return self.at(handle)

    def __iter__(self):
        return (handle for handle, send in enumerate(self.sends) if send is not None)

    @property
    def count(self):
        return [self.counts[0], self.counts[1], self.counts[2]]

    @property
    def sizes(self):
        return [self.bytes[0], self.bytes[1], self.bytes[2]]

    cdef OpenSend at(self, uint32_t handle):
        if handle >= <size_t>PyList_GET_SIZE(self.sends) or <object>PyList_GET_ITEM(self.sends, handle) is None:
            raise KeyError(handle)
        return <OpenSend>PyList_GET_ITEM(self.sends, handle)

    cpdef uint32_t add(self, OpenSend send) except? 0xFFFFFFFF:
        cdef uint32_t handle
        if self.free_used:
            self.free_used -= 1
            handle = self.free_handles[self.free_used]
            self.sends[handle] = send
        else:
            self.reserve()
            handle = <uint32_t>len(self.sends)
            self.sends.append(send)
        self.size += 1
        self.counts[send.flow.tier_number] += 1
        self.bytes[send.flow.tier_number] += PyBytes_GET_SIZE(send.value)
        send.flow.open += 1
        send.content.open += 1
        return handle

    cpdef remove(self, uint32_t handle):
        cdef OpenSend send = self.at(handle)
        cdef Flow flow = send.flow
        cdef Content content = send.content
        self.sends[handle] = None
        self.free_handles[self.free_used] = handle
        self.free_used += 1
        self.size -= 1
        self.counts[flow.tier_number] -= 1
        self.bytes[flow.tier_number] -= PyBytes_GET_SIZE(send.value)
        flow.open -= 1
        content.open -= 1
        if not flow.open:
            self.forget_flow(flow)
        if not content.open:
            self.forget_content(content)

    cdef int reserve(self) except -1:
        """So that a handle can always be freed."""
        cdef size_t need = <size_t>len(self.sends) + 1
        cdef void* grown
        if need > self.free_room:
            grown = realloc(self.free_handles, 2 * need * sizeof(uint32_t))
            if grown == NULL:
                raise MemoryError
            self.free_handles, self.free_room = <uint32_t*>grown, 2 * need
        return 0

    def forget_flow(self, flow):
        raise NotImplementedError

    def forget_content(self, content):
        raise NotImplementedError
