"""The records of the core and what can be done with them; no Python object anywhere, nothing needs the GIL.

    root -> tier (3) -> lane (tier x channel) -> leaf (tier x account) -> tenant -> campaign -> queue

A queue is the unit of merging: what may share a call. A node stands in its parent's ring while it has work and is not
held, so nothing ever walks queues to find some. docs/scheduler.md has the pictures.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from ext.histogram cimport Counts
from ext.limits cimport Limit, Link, Refusal, Scope
from ext.pace cimport Beside, Capacity, Pace, PaceLink


cdef extern from "foresee.h" nogil:
    void foresee(const void* at)
    void foresee_lines(const void* at, size_t lines)


cdef extern from "ring.h" nogil:
    void ring_make(Link* head)
    bint ring_holds(const Link* link)
    Link* ring_first(const Link* head)
    void ring_append(Link* head, Link* link)
    void ring_remove(Link* link)
    void ring_append_all(Link* head, Link* from_)
    void ring_to_tail(Link* head, Link* link)


cdef extern from "wheel.h" nogil:
    ctypedef struct Timer:
        Timer* prev
        Timer* next
    ctypedef struct Wheel:
        pass

    void timer_make(Timer* timer, int kind)
    int timer_kind(const Timer* timer)
    bint timer_armed_by(const Timer* timer, int64_t at_ns)
    void wheel_make(Wheel* wheel)
    void wheel_arm(Wheel* wheel, Timer* timer, int64_t at_ns)
    void wheel_disarm(Wheel* wheel, Timer* timer)
    Timer* wheel_fire(Wheel* wheel, int64_t now_ns)
    int64_t wheel_due(const Wheel* wheel)
    bint wheel_is_sound(const Wheel* wheel)
    uint64_t tick_up(int64_t ns)


cdef extern from "slab.h" nogil:
    ctypedef struct Slab:
        size_t touched

    void slab_make(Slab* slab, uint32_t size)
    void* slab_at(const Slab* slab, uint32_t handle)
    int slab_reserve(Slab* slab, size_t records)
    uint32_t slab_take(Slab* slab)
    void slab_free(Slab* slab, uint32_t handle)
    void slab_free_all(Slab* slab)
    size_t slab_taken(const Slab* slab)


cdef extern from "recent.h" nogil:
    enum:
        RECENT_PRINTS

    bint recent_add(uint32_t* prints, uint64_t hash)


cdef extern from "fifo.h" nogil:
    enum:
        CHUNK_SIZES, REC_OPENS, REC_FIRST, REC_FACTS, CLOSES_FALL, DEADLINES_FALL
    ctypedef struct Rec:
        uint32_t send, facts
        uint16_t position
        uint8_t length, attempt
    ctypedef struct Facts:
        int64_t pushed, due, deadline, close, not_before
        uint32_t refs, slot
    ctypedef struct Fifo:
        uint32_t head, tail
        uint16_t head_at, tail_at
        uint32_t count, last, falls, fill
        int64_t close, deadline
    ctypedef struct Reading:
        uint32_t most
        const char* chunk
    ctypedef struct Store:
        Slab chunks[CHUNK_SIZES]
        Slab facts

    void store_make(Store* store)
    void store_free(Store* store)
    size_t store_bytes(const Store* store)
    int store_reserve(Store* store, size_t runs, size_t recipients, size_t id_bytes)
    char* chunk_at(const Store* store, uint32_t chunk)
    Facts* facts_at(const Store* store, uint32_t facts)
    uint32_t facts_hold(Store* store, const Facts* like, uint32_t n)
    bint facts_refs(const Store* store, uint64_t* refs)
    void facts_drop(Store* store, uint32_t handle, uint32_t n)
    void facts_let_go(Store* store, uint32_t handle, Facts* facts, uint32_t n)
    void id_copy(void* to, const void* from_, size_t length)
    void fifo_make(Fifo* fifo)
    void fifo_expect(const Store* store, Fifo* fifo, uint32_t handle, const Facts* facts, bint latest)
    void fifo_append(Store* store, Fifo* fifo, const Rec* rec, const uint32_t* content, const uint8_t* id)
    const char* fifo_first(const Store* store, const Fifo* fifo, Rec* rec)
    void fifo_step(const Store* store, Fifo* fifo, const Rec* rec, bint mixed)
    void fifo_foresee(const Store* store, const Fifo* fifo, uint32_t most)
    void fifo_skip(Store* store, Fifo* fifo, const Rec* rec, bint mixed)
    const char* reading_first(const Store* store, const Fifo* fifo, Reading* reading, Rec* rec, bint mixed)
    void reading_skip(Store* store, Fifo* fifo, Reading* reading, const Rec* rec, bint mixed)
    void fifo_mark(Store* store, Fifo* fifo, bint opens)
    void fifo_renew(const Store* store, Fifo* fifo)
    void fifo_splice(Store* store, Fifo* fifo, Fifo* more)
    bint fifo_is_sound(const Store* store, const Fifo* fifo, bint mixed, size_t* chunks, uint64_t* facts)


cdef extern from "table.h" nogil:
    enum:
        SHARDS
    ctypedef struct TableSlot:
        uint32_t item
    ctypedef struct TableShard:
        TableSlot* slots
        size_t size
    ctypedef struct Table:
        TableShard shards[64]
        size_t bytes
    ctypedef struct Prints:
        size_t bytes
    ctypedef struct IdSet:
        void* slots
        size_t mask
        uint64_t seed

    uint64_t mix64(uint64_t a, uint64_t b)
    TableSlot* table_home(const Table* table, uint64_t key_hash)
    uint32_t table_next(const Table* table, uint64_t key_hash, size_t* cursor)
    int table_add(Table* table, uint64_t key_hash, uint32_t item)
    void table_remove(Table* table, uint64_t key_hash, uint32_t item)
    void table_free(Table* table)
    int prints_add(Prints* prints, uint64_t key_hash)
    void prints_remove(Prints* prints, uint64_t key_hash)
    void prints_free(Prints* prints)
    int idset_reserve(IdSet* ids, size_t most)
    void idset_clear(IdSet* ids)
    uint64_t idset_hash(const IdSet* ids, const uint8_t* name, size_t length)
    bint idset_add(IdSet* ids, const uint8_t* base, size_t at, const uint8_t* name, size_t length)


cdef enum:
    SYSTEM, TEMPLATE, BASIC, TIERS

cdef enum:
    FRESH_RUN = 8  # turns of newcomers before one of the others
    LEAST_COST = 16  # a call counts as at least the cap / 16 recipients in fair turns
    EARLY = 4096  # tenants of which it is remembered that they came anew

cdef enum:
    ALONE = 1 << 30  # of Queue.counts_in

cdef enum Closed:
    CAP, LINGER_OVER, DUE, CUT

cdef enum Cause:
    LIVE, EXPIRED_, CANCELLED_
    BY_PAUSE, BY_REST, BY_LIMIT  # put off: what holds it longest

cdef enum:
    PUT_OFF_WHOLE = 10_000  # so many more are put off rather than a part of a send

cdef enum Level:
    ROOT, TIER_, LANE, LEAF, TENANT, CAMPAIGN_
    SHARE  # of groups alone: a tenant on a channel that has rules for each

cdef enum Held:  # bits of Node.state; 0: open
    PARKED = 1  # until its timer, or until its scope changes: a limit is used up, or the platform said to wait
    BLOCKED = 2  # a lane, until release gives it a slot
    PAUSED = 4  # until it is resumed
    HELD_BACK = 16  # a lane, until the time of its next call

cdef enum QueueState:
    IDLE  # nothing in its FIFO
    LINGERING  # waiting for more to merge
    READY  # in its campaign's ring
    DEAD  # cancelled: on the list of the dead until all of it is reaped


cdef struct Parcel:  # what waits in one queue for one tick
    Timer timer  # at not_before, or the deadline if that is earlier
    Parcel* prev  # of the same queue, circular
    Parcel* next
    Queue* queue
    Fifo fifo
    uint64_t tick
    uint32_t retries  # recipients with attempt > 0
    uint32_t opens  # records with REC_OPENS
    uint32_t call  # like a queue's
    uint32_t self

cdef struct Queue:
    # Line by line of the cache. A push touches the first one only, a batch the first two.
    Fifo fifo
    uint32_t content
    uint32_t place  # place_of its account and tier
    uint32_t campaign, tenant
    uint32_t counts_in  # READY: the handle of its campaign; or of its tenant, and ALONE
    uint8_t state  # QueueState
    uint8_t mixed
    uint8_t haste  # paced: of all its records; AT_ONCE: it is due at once, and not paced
    uint8_t counted  # paced: its first record's call is counted in `counted_in`
    # --
    Link link  # READY: in its campaign's ring; DEAD: in the list of the dead
    Node* branch  # its campaign
    PaceLink turn  # paced: in its lane's rings while READY, and not set aside
    uint32_t counted_in  # paced: the slot of its first call
    uint32_t slot  # paced: where it stands in its lane's rings; the same, or sooner
    uint32_t opens  # paced: records with REC_OPENS in its FIFO
    uint32_t self
    # --
    Timer timer  # not after the end of lingering and the earliest deadline
    Link sibling  # among its campaign's queues, oldest first
    Parcel* parcels  # the oldest
    uint32_t retries  # recipients waiting, attempt > 0
    uint32_t scheduled  # recipients waiting, attempt 0
    Link sweep  # in the list of those whose first record has expired
    Link aside  # paced: among those set aside at a node, or returning to their lane
    int64_t last_due  # paced: of all that has come into it
    uint32_t call  # paced: the number of the last call that opens in its FIFO

cdef struct Group:  # a tenant, or a tenant's campaign, over all leaves; or a share
    Link members  # its nodes; of a share its place in Queues.counting
    Scope scope  # a tenant's, or a share's
    uint64_t key_hash
    uint32_t tenant, campaign  # of a share: the channel
    uint32_t nodes  # a share's
    uint32_t weight
    uint32_t self
    uint8_t level  # TENANT, CAMPAIGN_ or SHARE
    uint8_t paused
    int64_t paused_until  # like a node's

cdef struct Node:
    # Line by line of the cache. A push touches the first one only, a batch the first two.
    Link link  # its place in its parent's ring
    Link ring  # its children that take turns (a campaign's: READY queues)
    Link fresh  # its children that came anew and go first
    Node* parent
    # Recipients in READY queues, of a leaf or tenant; of a campaign if it has more than one of these; of a lane or tier
    # in all FIFOs.
    uint64_t queued
    # --
    int64_t deficit
    Channel* channel  # NULL: a tier
    Group* group  # of a tenant or campaign
    Scope* scope  # of a lane its channel's, of a leaf its account's, of a tenant its share's or NULL
    Pacing* pacing  # of a paced tier and its lanes
    uint32_t ready  # READY queues below that nothing below holds
    uint32_t children  # a tenant's campaigns, a campaign's queues, at work or not
    uint32_t weight  # its group's
    uint32_t self
    uint8_t level, tier
    uint8_t state  # Held
    uint8_t owed  # its turn begins with a quantum
    uint8_t is_fresh  # it stands in the ring of the fresh
    uint8_t newcomer  # a tenant that came anew, of which no call was counted yet
    uint8_t fresh_had  # so many last turns in a row were of its fresh ring, FRESH_RUN at most
    # --
    Link queues  # a campaign: all of its queues
    Queue* mixed[2]  # of a campaign, NULL: none; the second one's are due at once
    Link sibling  # a tenant or campaign: among its group's members
    uint64_t key_hash
    uint32_t handle  # channel, account, tenant or campaign
    Link aside  # paced queues below that are READY and whose turn came while it was held
    Link halt  # while PARKED: its place among what a scope keeps
    Link held  # a tenant or campaign that is not open: its place among all of these
    Timer timer  # armed while PARKED
    Refusal kept  # while PARKED: what its scope said
    uint64_t lingering  # a leaf's in queues that linger
    int64_t paused_until  # while PAUSED: until then at least; 0: that is not known
    Link away  # held for longer than the horizon: its place among those whose work is put off

cdef struct Pacing:  # of a lane, or of a tier over all its lanes
    Pace pace  # who waits in its rings: queues, or lanes
    Timer timer  # a lane's, armed while HELD_BACK
    Node* node
    PaceLink link  # a lane's, in its tier's rings
    uint32_t slot  # where that stands
    Link returning  # a lane's: set aside, and on their way back
    int64_t ahead  # a lane's: until when its share of calls for those that come anew is used up
    Pace* copy  # owned, while it is checked

cdef struct Unanswered:  # a call that may still arrive
    Timer timer  # armed
    int64_t at  # until when
    Node* leaf
    uint32_t tenant  # its group, which stays while calls are held
    uint32_t recipients, left
    uint32_t self

cdef struct Early:  # a tenant that came anew, and until when that gains it nothing more
    uint64_t key_hash
    int64_t until

cdef struct Channel:
    Scope scope
    Scope each  # its limits are rules for each tenant; nothing is charged to it
    Node lanes[TIERS]
    uint32_t slots
    uint32_t reserved
    uint32_t cap
    uint32_t in_flight[TIERS]
    uint64_t turns[TIERS]  # virtual times of its lanes
    bint is_paced  # a lane of it is
    bint stays  # its work is never put off
    Capacity capacity
    Beside beside
    Counts* queue_wait[TIERS]  # borrowed from Histograms that live as long as the core
    Counts* batch_recipients

cdef struct Account:
    Scope scope
    Node leaves[TIERS]
    int64_t closes[TIERS], deadlines[TIERS]  # the latest ones pushed into each leaf
    uint64_t turns[TIERS]  # virtual times of its leaves

cdef enum Why:  # a campaign's recipients have not left yet
    TURN  # nothing holds them: others go first, or they go now
    OF_PAUSE, OF_SLOT
    OF_BLOCK, OF_LIMIT, OF_GRANT  # as a scope refuses: REFUSED_...
    OF_LINGER
    OF_TIME  # a not_before, or the wait before a retry
    OF_RATE  # paced: its lane waits for the time of its next call

cdef struct Reason:  # of one campaign in one leaf
    uint64_t ready  # recipients that may go as far as time is concerned
    int64_t until  # INT64_MAX: not known
    uint64_t rate  # OF_RATE: at which calls leave
    uint32_t account
    uint32_t limit  # handle + 1; 0: none
    uint8_t tier
    uint8_t why  # Why
    uint8_t level  # Level of what holds it: whose pause, scope or rate

cdef struct Count:  # of one tier; all but flows in recipients
    uint64_t pushed, popped, expired, cancelled, put_off
    uint64_t queued, retries, scheduled, ended
    uint64_t flows  # queues

cdef struct Kept:  # recipients in READY queues, of a tier
    uint64_t paused
    uint64_t throttled  # and not paused
    uint64_t paced  # and only held back
    uint64_t open

cdef struct BatchRow:
    int64_t due
    uint32_t channel, account, tenant, campaign, content, start
    uint8_t tier, closed

cdef struct Output:  # what pop has formed and nobody has fetched yet; a column each
    BatchRow* batches
    int64_t* pushed
    uint32_t* send
    uint32_t* id_end
    uint16_t* position
    uint8_t* attempt
    uint8_t* ids
    size_t batches_used, batches_room, items_used, items_room, ids_used, ids_room

cdef struct EndedRow:
    uint32_t send
    uint16_t position
    uint8_t cause, attempt

cdef struct Times:  # of rows of a push
    int64_t pushed, due, deadline, not_before, linger

cdef struct Row:  # of a push; the pointers are borrowed for the call
    uint32_t content, place, campaign, tenant  # of its queue, as there
    uint32_t send, count, id_bytes
    uint8_t attempt
    const Times* times  # rows that follow each other and have the same ones share them
    const uint16_t* positions
    const uint8_t* id_lengths
    const uint8_t* ids

cdef struct Target:  # where a row goes
    Queue* queue  # NULL: nowhere, its deadline has passed
    uint64_t key_hash, branch_hash
    uint8_t haste
    uint8_t alike  # its times and its leaf are those of the row before it
    uint8_t first  # of its content in a mixed queue

cdef struct Queues:
    int64_t now
    int64_t lead
    int64_t horizon  # what is held for longer is put off
    uint32_t own_queues  # of a campaign in a leaf; contents beyond share its mixed one until they are seen again
    Wheel wheel
    Scope everything
    Scope of_tier[TIERS]
    Limit** limits  # borrowed from their scopes, by handle
    uint32_t limit_count
    Limit* asking  # for a grant, through Limit.asking
    Node root
    Node tiers[TIERS]
    uint64_t turns[TIERS]  # their virtual times
    uint64_t stride[TIERS]  # a batch's worth of that
    Channel** channels
    Account** accounts
    uint32_t channel_count
    uint32_t account_count
    Store store
    Slab queues, nodes, groups, parcels, unanswered
    Table by_key, branches, names  # queues; tenants' and campaigns' nodes; groups
    Prints once  # contents that stand in mixed queues
    IdSet seen
    Fifo ended  # recipients that expired at push or pop; their facts are the tier + 1
    Link sweeping  # queues whose first record has expired
    Link dead  # queues that were cancelled
    Link held  # tenants and campaigns that are not open
    Link counting  # shares without nodes or calls, whose uses count
    Link away[TIERS]  # held nodes that may have work to put off
    Output out
    Target* targets
    size_t targets_room
    Count counts[TIERS]
    uint8_t pacing[TIERS]  # PaceMode
    int64_t tau
    int64_t near[TIERS]  # what is due so soon after its start is due at once; 0: nothing is
    uint64_t floor
    Early* early  # NULL: no tier is paced
    uint32_t* recent  # likewise: recipients of each FIFO's last call, see recent.h
    uint32_t calls  # opened, modulo 2^32
    uint32_t recipient_limits  # how many limits count recipients
    size_t pacings
    Counts* lateness[TIERS]  # borrowed
    bint no_memory  # met while a batch was formed


# Functions that return NULL or -1 have run out of memory and changed nothing.
cdef Queues* queues_make(
    uint32_t template_weight, uint32_t basic_weight, int64_t lead, uint32_t own_queues, uint64_t seed
) noexcept nogil
cdef void queues_free(Queues* q) noexcept nogil
cdef int queues_pace(
    Queues* q, uint8_t tier, int mode, int64_t tau, uint64_t floor, int64_t near
) noexcept nogil
cdef int queues_add_channel(Queues* q, uint32_t slots, uint32_t reserved, uint32_t cap, bint stays) noexcept nogil
cdef int queues_add_account(Queues* q, uint32_t channel) noexcept nogil
cdef Limit* queues_add_limit(
    Queues* q, Scope* scope, int unit, int calendar, uint64_t number, int64_t per, uint64_t reserved
) noexcept nogil
cdef void queues_reconsider(Queues* q, Scope* scope) noexcept nogil
cdef void queues_advance(Queues* q, int64_t now) noexcept nogil
cdef inline uint32_t place_of(uint32_t account, uint8_t tier) noexcept nogil:
    return account << 2 | tier
# n rows with so many recipients, whose ids have so many bytes, in all; account < account_count, tier < TIERS,
# 1 <= count <= 65,536, id lengths 1..255, linger >= 0
cdef int queues_push(Queues* q, const Row* rows, size_t n, size_t recipients, size_t id_bytes) noexcept nogil
cdef void queues_pop(Queues* q, uint64_t budget) noexcept nogil
cdef void queues_release(
    Queues* q, Node* leaf, Group* tenant, uint64_t recipients, uint64_t left, int64_t at
) noexcept nogil
cdef Group* queues_tenant(Queues* q, uint32_t tenant) noexcept nogil  # NULL: nothing of it, and nothing to keep
cdef Group* queues_make_tenant(Queues* q, uint32_t tenant) noexcept nogil
cdef void queues_pause(Queues* q, Node* node, bint paused, int64_t until) noexcept nogil
cdef int queues_pause_group(
    Queues* q, uint8_t level, uint32_t tenant, uint32_t campaign, bint paused, int64_t until
) noexcept nogil
cdef int queues_reweight(Queues* q, uint8_t level, uint32_t tenant, uint32_t campaign, uint32_t weight) noexcept nogil
cdef void queues_reweight_tier(Queues* q, uint8_t tier, uint32_t weight) noexcept nogil
cdef size_t queues_explain(
    Queues* q, uint32_t tenant, uint32_t campaign, Reason* reasons, size_t most
) noexcept nogil
cdef Kept queues_kept(const Queues* q, uint8_t tier) noexcept nogil
cdef uint64_t queues_cancel(Queues* q, uint32_t tenant, uint32_t campaign, int tier) noexcept nogil  # tier -1: all
cdef uint64_t queues_queued(const Queues* q, uint8_t tier, uint32_t channel) noexcept nogil
cdef uint64_t queues_reap(Queues* q, EndedRow* rows, uint64_t most) noexcept nogil
cdef uint64_t queues_put_off(Queues* q, uint8_t tier, EndedRow* rows, int64_t* untils, uint64_t most) noexcept nogil
cdef bint queues_puts_off(const Queues* q, uint8_t tier) noexcept nogil
cdef bint queues_has_ended(const Queues* q) noexcept nogil
cdef bint queues_has_work(const Queues* q) noexcept nogil
cdef int64_t queues_due(const Queues* q) noexcept nogil
cdef size_t queues_memory(const Queues* q) noexcept nogil
cdef const char* queues_unsound(const Queues* q) noexcept nogil  # what is wrong with the structure; NULL: nothing
