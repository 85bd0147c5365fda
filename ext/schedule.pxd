from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t

from ext.limits cimport Limit, Scope
from ext.queues cimport EndedRow, Queues, Row


cdef class Core:
    cdef Queues* q  # owned
    cdef Row* rows  # owned: of the running push, and behind them their Times
    cdef Py_ssize_t rows_room
    cdef EndedRow* ended  # owned: what the running reap or put_off takes out
    cdef Py_ssize_t ended_room
    cdef list waits  # a channel: three Histograms (by tier), which q fills
    cdef list sizes  # a channel: its Histogram of batch sizes
    cdef list late  # a tier: its Histogram

    cdef int pace_tier(self, int tier, int64_t mode, object tau_ns, object floor, object near_ns) except -1
    cdef Scope* scope(self, object scope, object handle, int64_t most=*) except NULL
    cdef Scope* each_tenant(self, object handle, bint calendar) except NULL
    cdef int64_t channel_of(self, object handle) except -1
    cdef int64_t account_of(self, object handle) except -1
    cdef int set_paused(self, object scope, object handle, object campaign, bint paused, int64_t until) except -1
    cdef int advance(self, object now_ns) except -1
    cdef Limit* limit(self, object handle) except NULL
    cdef int room_for_rows(self, Py_ssize_t n) except -1
    cdef int room_for_ended(self, Py_ssize_t n) except -1
    cdef dict tier_stats(self, uint8_t tier)


cdef class Batches:
    cdef readonly Py_ssize_t count
    cdef readonly Py_ssize_t items
    cdef readonly bint more
    cdef readonly bytes ids
    cdef object columns  # one bytes object that holds all columns
    cdef dict __dict__  # the columns that were asked for
    # For C code, borrowed from it:
    cdef const uint32_t* channel_of  # one a batch
    cdef const uint32_t* start_of  # count + 1
    cdef const uint32_t* send_of  # one a recipient
    cdef const uint32_t* id_end_of  # items + 1
    cdef const uint16_t* position_of
    cdef const uint8_t* attempt_of


cdef class Ended:
    cdef readonly Py_ssize_t items
    cdef readonly object until  # None: of reap
    cdef readonly bint more
    cdef object columns
    cdef dict __dict__
