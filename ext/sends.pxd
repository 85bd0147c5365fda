from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t

from ext.ledger cimport Ledger

cdef extern from "foresee.h" nogil:
    void foresee_lines(const void* first, size_t lines)

cdef enum:
    SEND_LINES = 5  # an OpenSend is in
    AHEAD = 12  # sends between asking for one's lines and its use


cdef class Flow:
    cdef readonly object tier  # engine.send.Tier
    cdef readonly str channel, account, tenant
    cdef readonly object campaign  # str or None
    cdef public uint32_t account_handle, tenant_handle, campaign_handle
    cdef readonly uint32_t open  # sends
    cdef readonly list names  # keys of SendTable.by_names
    cdef public int level  # engine.overload's; of template and basic
    cdef int tier_number
    cdef bytes scope  # what the dedupe keys of its sends are taken over, before the id
    cdef bytes raw_scope  # what keys of SendTable.by_raw begin with


cdef class Content:
    cdef readonly uint32_t handle
    cdef readonly tuple key
    cdef readonly object prepared
    cdef readonly bint complete  # of prepared
    cdef readonly list raws  # keys of SendTable.by_raw
    cdef readonly uint32_t open  # sends


cdef class OpenSend:
    cdef readonly Flow flow
    cdef readonly Content content
    cdef readonly Ledger ledger
    cdef readonly bytes value
    cdef readonly object record_key, headers, data
    cdef readonly int64_t offset, first_seen_ms, pushed_ns, due_ns, deadline_ns, linger_ns
    cdef readonly uint32_t total
    cdef public uint32_t left
    cdef public bint taken
    cdef public bint given_back
    cdef readonly bint partial
    cdef readonly object move_key  # bytes or None
    cdef bytearray declines  # by position, each modulo 256; None: none since it was taken in
    cdef uint8_t declined  # before
    cdef str topic  # of its origin, like the next two
    cdef int32_t partition
    cdef int64_t origin_offset
    cdef uint8_t dedupe[16]
    cdef bytes id_bytes, meta_bytes  # NULL (None): they stand in the value, at these places
    cdef uint32_t id_at, id_length, meta_at, meta_length

    cdef uint8_t declines_of(self, uint16_t position) noexcept
    cdef const char* id_text(self, Py_ssize_t* length) noexcept
    cdef const char* meta_text(self, Py_ssize_t* length) noexcept


cdef class SendTable:
    cdef readonly tuple by_names
    cdef readonly dict by_raw
    cdef int64_t counts[3]
    cdef int64_t bytes[3]
    cdef list sends
    cdef uint32_t* free_handles
    cdef size_t free_used, free_room
    cdef readonly Py_ssize_t size

    cpdef uint32_t add(self, OpenSend send) except? 0xFFFFFFFF
    cpdef remove(self, uint32_t handle)
    cdef OpenSend at(self, uint32_t handle)
    cdef int reserve(self) except -1


cdef inline void foresee_send(SendTable table, uint32_t handle) noexcept:
    """It is asked for soon: thousands are open, and most of them in no cache."""
    if handle < <size_t>PyList_GET_SIZE(table.sends):
        foresee_lines(<const void*>PyList_GET_ITEM(table.sends, handle), SEND_LINES)


cdef inline void foresee_id(SendTable table, uint32_t handle) noexcept:
    """Its id too, where that stands in its record. To hold the record would be to wait for it."""
    cdef OpenSend send
    if handle >= <size_t>PyList_GET_SIZE(table.sends) or <object>PyList_GET_ITEM(table.sends, handle) is None:
        return
    send = <OpenSend>PyList_GET_ITEM(table.sends, handle)
    if send.id_bytes is None:
        foresee_lines(<const void*>send.value, 2)


cpdef bytes dedupe_scope(str tenant, str channel)
