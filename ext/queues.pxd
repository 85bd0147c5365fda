"""The records of the core and what can be done with them; no Python object anywhere, nothing needs the GIL.

    tier (3) -> lane (tier x channel) -> leaf (tier x account) -> flow (tenant, campaign, content) -> runs

A flow is the unit of merging. A node stands in its parent's ring exactly while it is OPEN and something below it is
ready, so nothing ever walks flows to find work.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from ext.histogram cimport Counts
from ext.limits cimport Limit, Link, Scope


cdef extern from *:
    """
    /* A run's first two cache lines: in a deep queue every one of them waits for memory. */
    #define prefetch(run) (__builtin_prefetch(run), __builtin_prefetch((const char *)(run) + 64))
    """
    void prefetch(const void* run) noexcept nogil


cdef extern from "ring.h" nogil:
    void ring_make(Link* head)
    bint ring_holds(const Link* link)
    void* ring_first(const Link* head)
    void ring_append(Link* head, Link* link)
    void ring_remove(Link* link)
    void ring_to_tail(Link* head, Link* link)


cdef extern from "wheel.h" nogil:
    ctypedef struct Timer:
        pass
    ctypedef struct Wheel:
        pass

    void timer_make(Timer* timer, int kind)
    int timer_kind(const Timer* timer)
    void wheel_make(Wheel* wheel)
    void wheel_arm(Wheel* wheel, Timer* timer, int64_t at_ns)
    void wheel_disarm(Wheel* wheel, Timer* timer)
    Timer* wheel_fire(Wheel* wheel, int64_t now_ns)
    int64_t wheel_due(const Wheel* wheel)


cdef extern from "table.h" nogil:
    ctypedef struct TableSlot:
        pass
    ctypedef struct Table:
        TableSlot* slots
    ctypedef struct IdSet:
        void* slots
        uint64_t seed

    uint64_t mix64(uint64_t a, uint64_t b)
    void* table_next(const Table* table, uint64_t key_hash, size_t* cursor)
    int table_add(Table* table, uint64_t key_hash, void* item)
    void table_remove(Table* table, uint64_t key_hash, const void* item)
    size_t table_size(const Table* table)
    void* table_item(const Table* table, size_t index)
    int idset_reserve(IdSet* ids, size_t most)
    void idset_clear(IdSet* ids)
    bint idset_add(IdSet* ids, const uint8_t* base, size_t at, const uint8_t* name, size_t length)


cdef enum:
    SYSTEM, TEMPLATE, BASIC, TIERS

cdef enum Closed:
    CAP, LINGER_OVER, DUE, CUT

cdef enum Cause:
    LIVE, EXPIRED_, CANCELLED_

cdef enum NodeState:
    OPEN
    PARKED  # until its timer, or until its scope changes: a limit is used up, or the platform said to wait
    BLOCKED  # a lane, until release gives it a slot

cdef enum FlowState:
    IDLE  # nothing in its FIFO
    LINGERING  # waiting for more to merge; its timer is armed
    READY  # in its leaf's ring
    DEAD  # cancelled: its runs stand on the ended list, the last one reaped frees it


cdef struct Run:  # one row of push_many; its recipients follow it in memory
    Timer timer  # queued: at its deadline; waiting: at not_before, or the deadline if that is earlier
    Run* prev
    Run* next
    Flow* flow  # NULL once expired
    int64_t not_before
    int64_t due
    int64_t deadline
    int64_t close  # queued: when it wants its batch closed; waiting: its linger
    int64_t pushed
    uint32_t send
    uint32_t size  # recipients it came with
    uint32_t left  # the last so many of them are still here
    uint32_t taken_bytes  # id bytes of those that are not
    uint32_t bytes  # of memory
    uint8_t attempt
    uint8_t tier
    uint8_t cause  # LIVE in the ended list means cancelled: cancel does not touch runs
    bint waiting
    # uint16_t positions[size]; uint8_t id_lengths[size]; uint8_t ids[]

cdef struct Chain:
    Run* first
    Run* last

cdef struct Node:  # a tier, a lane or a leaf
    Timer timer  # armed while PARKED
    Link link  # its place in its parent's ring
    Link ring  # its children that have something ready
    Link halt  # while PARKED: its place among what its scope keeps
    Node* parent
    Scope* scope  # of everything, a channel or an account
    Channel* channel  # NULL: a tier
    uint32_t handle  # of its channel or account
    uint8_t tier
    uint8_t state  # NodeState
    uint64_t turn  # a tier's virtual time
    uint64_t queued  # a leaf's recipients in FIFOs
    uint64_t lingering  # of them in flows that linger

cdef struct Channel:
    Scope scope
    Node lanes[TIERS]
    uint32_t slots
    uint32_t reserved
    uint32_t cap
    uint32_t in_flight[TIERS]
    Counts* queue_wait[TIERS]  # borrowed from Histograms that live as long as the core
    Counts* batch_recipients

cdef struct Account:
    Scope scope
    Node leaves[TIERS]

cdef struct Campaign:
    Link flows
    uint32_t tenant
    uint32_t campaign

cdef struct Flow:
    Timer timer  # armed while LINGERING
    Link link  # its place in its leaf's ring
    Link sibling  # its place among its campaign's flows, oldest first
    Node* leaf
    Campaign* campaign
    Chain fifo
    Chain waiting
    uint64_t queued  # recipients in the FIFO
    uint64_t retries  # recipients waiting, attempt > 0
    uint64_t scheduled  # recipients waiting, attempt 0
    uint64_t runs
    int64_t close  # not after the earliest close of its runs
    int64_t deficit
    uint32_t content
    uint8_t state  # FlowState
    bint fresh  # its quantum is still to come

cdef struct Count:  # of one tier; all but flows and runs in recipients
    uint64_t pushed, popped, expired, cancelled
    uint64_t queued, retries, scheduled, ended
    uint64_t flows, runs

cdef struct BatchRow:
    int64_t due
    uint32_t channel, account, tenant, campaign, content, start
    uint8_t tier, closed

cdef struct ItemRow:
    int64_t pushed
    uint32_t send, id_end
    uint16_t position
    uint8_t attempt

cdef struct Output:  # what pop has formed and nobody has fetched yet
    BatchRow* batches
    ItemRow* items
    uint8_t* ids
    size_t batches_used, batches_room, items_used, items_room, ids_used, ids_room

cdef struct EndedRow:
    uint32_t send
    uint16_t position
    uint8_t cause, attempt

cdef struct Row:  # of push_many; the pointers are borrowed for the call
    uint32_t send, account, tenant, campaign, content, count, id_bytes
    uint8_t tier, attempt
    int64_t not_before, due, deadline, linger, pushed
    const uint16_t* positions
    const uint8_t* id_lengths
    const uint8_t* ids

cdef struct Queues:
    int64_t now
    int64_t lead
    Wheel wheel
    Scope everything
    Scope of_tier[TIERS]
    Limit** limits  # borrowed from their scopes, by handle
    uint32_t limit_count
    Limit* asking  # for a grant, through Limit.asking
    Node root
    Node tiers[TIERS]
    uint64_t stride[TIERS]  # a batch's worth of virtual time
    Channel** channels
    Account** accounts
    uint32_t channel_count
    uint32_t account_count
    Table flows
    Table campaigns
    IdSet seen
    Chain ended
    Output out
    Count counts[TIERS]
    Counts* lateness[TIERS]  # borrowed
    size_t memory  # of runs, flows and campaigns, bytes
    bint no_memory  # met while a batch was formed


# Functions that return NULL or -1 have run out of memory and changed nothing.
cdef Queues* queues_make(uint32_t template_weight, uint32_t basic_weight, int64_t lead, uint64_t seed) noexcept nogil
cdef void queues_free(Queues* q) noexcept nogil
cdef int queues_add_channel(Queues* q, uint32_t slots, uint32_t reserved, uint32_t cap) noexcept nogil
cdef int queues_add_account(Queues* q, uint32_t channel) noexcept nogil
cdef Limit* queues_add_limit(
    Queues* q, Scope* scope, int unit, int calendar, uint64_t number, int64_t per, uint64_t reserved
) noexcept nogil
cdef void queues_reconsider(Queues* q, Scope* scope) noexcept nogil
cdef void queues_advance(Queues* q, int64_t now) noexcept nogil
cdef Run* queues_make_run(Queues* q, const Row* row) noexcept nogil
cdef void queues_undo_run(Queues* q, Run* run) noexcept nogil
cdef void queues_push(Queues* q, Run* run) noexcept nogil
cdef void queues_pop(Queues* q, uint64_t budget) noexcept nogil
cdef void queues_release(Queues* q, Node* leaf, uint64_t recipients, uint64_t left, int64_t at) noexcept nogil
cdef uint64_t queues_cancel(Queues* q, uint32_t tenant, uint32_t campaign) noexcept nogil
cdef uint64_t queues_reap(Queues* q, EndedRow* rows, uint64_t most) noexcept nogil
cdef int64_t queues_due(const Queues* q) noexcept nogil
cdef size_t queues_memory(const Queues* q) noexcept nogil
