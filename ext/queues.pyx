# distutils: include_dirs = ext
"""The scheduling algorithm, on plain records (queues.pxd), without Python objects.

In: rows of recipients, each row for one queue. Out: batches in ``Output``, and recipients that ended here (expired or
cancelled).
Invariants: pushed = popped + expired + cancelled + queued + waiting, per tier; a queue is in its campaign's ring iff
READY; a node that is not held and has work is in its parent's ring; no window is ever over its number.
Never: reads a clock, walks queues to find work, allocates while a timer fires, or lets a recipient leave after its
deadline.

One file of more than 500 lines, because the records are one state machine and the compiler sees it as a whole; what
stands alone (slabs, FIFOs, rings, wheel, windows, tables) is in the headers.
"""

from libc.stdint cimport INT64_MAX
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memset

from ext.histogram cimport counts_observe
from ext.limits cimport (
    LIMIT_CALLS, LIMIT_NEVER, LIMIT_RECIPIENTS, REFUSED_BLOCKED, REFUSED_GRANT, REFUSED_NOT, Refusal, limit_ceiling,
    limit_make, scope_add, scope_free, scope_make, scopes_hold, scopes_most, scopes_refuse, scopes_settle,
)

from ext.pace cimport (
    PACE_ASAP, PACE_BELOW, PACE_FASTEST, PACE_NEAR_BITS, PACE_OVER, PACE_PATIENCE_NS, beside_count, beside_rate,
    capacity_end, capacity_rate, capacity_start, pace_add, pace_expects, pace_first, pace_is_sound, pace_leave,
    pace_make, pace_rate, pace_remove, pace_slot, pace_wait, pace_wait_no_more, pace_waits, pace_when,
)

cdef enum:
    OF_NODE, OF_QUEUE, OF_PARCEL, OF_PACING  # whose timer it is

cdef enum:
    LOOKED_AT = 64  # queues of a campaign, when it is explained

cdef enum:
    SOMEWHERE = 4096  # any aligned address: only differences are taken


# --- from a link to what it is part of ---

cdef inline Node* node_of(Link* link) noexcept nogil:
    return <Node*>link  # its first member


cdef inline Node* timed_node(Timer* timer) noexcept nogil:
    return <Node*>(<char*>timer - (<size_t>&(<Node*>SOMEWHERE).timer - SOMEWHERE))


cdef inline Node* member_of(Link* link) noexcept nogil:
    return <Node*>(<char*>link - (<size_t>&(<Node*>SOMEWHERE).sibling - SOMEWHERE))


cdef inline Node* halted_node(Link* link) noexcept nogil:
    return <Node*>(<char*>link - (<size_t>&(<Node*>SOMEWHERE).halt - SOMEWHERE))


cdef inline Node* held_node(Link* link) noexcept nogil:
    return <Node*>(<char*>link - (<size_t>&(<Node*>SOMEWHERE).held - SOMEWHERE))


cdef inline Queue* queue_of(Link* link) noexcept nogil:
    return <Queue*>(<char*>link - (<size_t>&(<Queue*>SOMEWHERE).link - SOMEWHERE))


cdef inline Queue* sibling_of(Link* link) noexcept nogil:
    return <Queue*>(<char*>link - (<size_t>&(<Queue*>SOMEWHERE).sibling - SOMEWHERE))


cdef inline Queue* swept_queue(Link* link) noexcept nogil:
    return <Queue*>(<char*>link - (<size_t>&(<Queue*>SOMEWHERE).sweep - SOMEWHERE))


cdef inline Queue* aside_queue(Link* link) noexcept nogil:
    return <Queue*>(<char*>link - (<size_t>&(<Queue*>SOMEWHERE).aside - SOMEWHERE))


cdef inline const Queue* turning_queue(const PaceLink* link) noexcept nogil:
    return <const Queue*>(<const char*>link - (<size_t>&(<Queue*>SOMEWHERE).turn - SOMEWHERE))


cdef inline Node* timed_lane(Timer* timer) noexcept nogil:
    return (<Pacing*>(<char*>timer - (<size_t>&(<Pacing*>SOMEWHERE).timer - SOMEWHERE))).node


cdef inline Queue* timed_queue(Timer* timer) noexcept nogil:
    return <Queue*>(<char*>timer - (<size_t>&(<Queue*>SOMEWHERE).timer - SOMEWHERE))


# --- times ---

cdef inline int64_t since(int64_t now, int64_t time) noexcept nogil:
    """0 for a time that lies ahead; now >= 0."""
    return 0 if time >= now else INT64_MAX if time < now - INT64_MAX else now - time


cdef inline int64_t later(int64_t time, int64_t by) noexcept nogil:
    """Both >= 0."""
    return INT64_MAX if by > INT64_MAX - time else time + by


cdef inline int64_t must_close(const Queues* q, int64_t due, int64_t deadline) noexcept nogil:
    """When a batch with this recipient should go for its own sake; the deadline lies ahead: this cannot overflow."""
    return min(due, INT64_MAX if deadline == INT64_MAX else deadline - q.lead)


# --- nodes: who has work, and who may not work ---

cdef inline bint has_members(const Node* node) noexcept nogil:
    return ring_first(&node.ring) != NULL or ring_first(&node.fresh) != NULL


cdef inline void catch_up(Queues* q, Node* tier) noexcept nogil:
    """A tier that was away must not claim the turns it did not use."""
    if tier.tier == SYSTEM:
        return
    cdef Node* other = &q.tiers[TEMPLATE + BASIC - tier.tier]
    if ring_holds(&other.link):
        tier.turn = max(tier.turn, other.turn)


cdef void activate(Queues* q, Node* node) noexcept nogil:
    """A leaf, lane or tier may have got work: it and those above take their places."""
    while node != &q.root and node.state == 0 and not ring_holds(&node.link) and has_members(node):
        if node.parent == &q.root:
            catch_up(q, node)
        ring_append(&node.parent.ring, &node.link)
        place(q, node)
        node = node.parent


cdef void deactivate(Queues* q, Node* node) noexcept nogil:
    """A leaf, lane or tier leaves its parent's ring, and so does every one above that has nothing else."""
    while node != &q.root and ring_holds(&node.link):
        ring_remove(&node.link)
        place(q, node)
        node = node.parent
        if has_members(node):
            return


cdef inline void join(Queues* q, Node* node, Link* ring) noexcept nogil:
    """A tenant or campaign begins to take turns."""
    node.owed = True
    node.is_fresh = ring == &node.parent.fresh
    ring_append(ring, &node.link)
    if node.level == TENANT:
        activate(q, node.parent)


cdef inline void leave(Queues* q, Node* node) noexcept nogil:
    """A tenant or campaign takes no more turns."""
    ring_remove(&node.link)
    if node.level == TENANT and not has_members(node.parent):
        deactivate(q, node.parent)


cdef void add_ready(Queues* q, Node* node, int64_t n) noexcept nogil:
    """So many more queues are READY in a campaign (or, of a tenant, in a campaign that is no more held).

    One that has lost its last keeps its place until its turn comes, so that coming back gains it nothing; but where
    turns are by due time, no turn would come, and nothing is gained.
    """
    while True:
        node.ready += <uint32_t>n
        if node.state:
            return
        if node.ready and not ring_holds(&node.link):
            join(q, node, &node.parent.fresh)
        elif not node.ready and ring_holds(&node.link) and goes_by_due(lane_above(node)):
            leave(q, node)
        if node.level == TENANT:
            return
        node = node.parent


cdef void hold(Queues* q, Node* node, uint8_t why) noexcept nogil:
    """The node, and all below it, may not work."""
    cdef bint was_open = node.state == 0
    node.state |= why
    if not was_open:
        return
    if node.level < TENANT:
        deactivate(q, node)
        return
    ring_append(&q.held, &node.held)
    if ring_holds(&node.link):
        leave(q, node)
    node.deficit = min(node.deficit, 0)  # what is left of its turn is over
    if node.level == CAMPAIGN_:
        add_ready(q, node.parent, -<int64_t>node.ready)


cdef void let_go(Queues* q, Node* node, uint8_t why) noexcept nogil:
    node.state &= ~why
    if node.state:
        return
    if node.level >= LEAF:
        give_back(q, node)
    if node.level < TENANT:
        activate(q, node)
        return
    ring_remove(&node.held)
    if has_members(node):  # be it only what is to be tidied
        join(q, node, &node.parent.ring)
    if node.level == CAMPAIGN_ and node.ready:
        add_ready(q, node.parent, node.ready)
    free_if_idle(q, node)


cdef void park(Queues* q, Node* node, Scope* scope, Refusal no) noexcept nogil:
    """Until its time (LIMIT_NEVER: that is not known), or until the scope changes."""
    hold(q, node, PARKED)
    node.kept = no
    ring_append(&scope.parked, &node.halt)
    if no.until != LIMIT_NEVER:
        wheel_arm(&q.wheel, &node.timer, no.until)


cdef void unpark(Queues* q, Node* node) noexcept nogil:
    wheel_disarm(&q.wheel, &node.timer)
    ring_remove(&node.halt)
    let_go(q, node, PARKED)


cdef void queues_reconsider(Queues* q, Scope* scope) noexcept nogil:
    """What the scope keeps may ask again: an answer, a grant or another number came."""
    cdef Link* first = ring_first(&scope.parked)
    while first != NULL:
        unpark(q, halted_node(first))
        first = ring_first(&scope.parked)


# --- making and freeing what is below a leaf ---

cdef Group* find_group(Queues* q, uint64_t key, uint8_t level, uint32_t tenant, uint32_t campaign) noexcept nogil:
    cdef size_t cursor = 0
    cdef Group* found
    while True:
        found = <Group*>table_next(&q.names, key, &cursor)
        if found == NULL or (found.level == level and found.tenant == tenant and found.campaign == campaign):
            return found


cdef inline uint64_t group_hash(uint8_t level, uint32_t tenant, uint32_t campaign) noexcept nogil:
    return mix64(<uint64_t>tenant << 32 | campaign, level)


cdef Group* group_of(Queues* q, uint8_t level, uint32_t tenant, uint32_t campaign) noexcept nogil:
    """Found, or made; a tenant's has campaign 0."""
    cdef uint64_t key = group_hash(level, tenant, campaign)
    cdef Group* found = find_group(q, key, level, tenant, campaign)
    cdef uint32_t made
    if found != NULL:
        return found
    if slab_reserve(&q.groups, 1) < 0:
        return NULL
    made = slab_take(&q.groups)
    found = <Group*>slab_at(&q.groups, made)
    if table_add(&q.names, key, found) < 0:
        slab_free(&q.groups, made)
        return NULL
    ring_make(&found.members)
    found.key_hash = key
    found.tenant, found.campaign, found.level = tenant, campaign, level
    found.weight, found.paused = 1, False
    found.self = made
    scope_make(&found.scope, &q.asking)
    return found


cdef inline bint stays(const Group* group) noexcept nogil:
    """Something is to be remembered of it: a pause, a weight, limits, or calls on their way."""
    return group.paused or group.weight != 1 or group.scope.limits != NULL or group.scope.held[LIMIT_CALLS]


cdef void free_group_if_idle(Queues* q, Group* group) noexcept nogil:
    if ring_first(&group.members) == NULL and not stays(group):
        table_remove(&q.names, group.key_hash, group)
        slab_free(&q.groups, group.self)


cdef void set_node(
    Node* node, Node* parent, Scope* scope, Channel* channel, uint32_t handle, uint8_t level, uint8_t tier
) noexcept nogil:
    memset(node, 0, sizeof(Node))
    timer_make(&node.timer, OF_NODE)
    ring_make(&node.ring)
    ring_make(&node.fresh)
    ring_make(&node.queues)
    ring_make(&node.aside)
    node.newcomer = level == TENANT
    node.parent, node.scope, node.channel = parent, scope, channel
    node.handle, node.level, node.tier = handle, level, tier


cdef Node* branch_of(Queues* q, Node* parent, uint8_t level, uint32_t tenant, uint32_t campaign) noexcept nogil:
    """The tenant of a leaf, or the campaign of a tenant of a leaf: found, or made."""
    cdef uint32_t handle = tenant if level == TENANT else campaign
    cdef uint64_t key = mix64(<uint64_t>parent, handle)
    cdef size_t cursor = 0
    cdef Node* node
    cdef Group* group
    cdef uint32_t made
    while True:
        node = <Node*>table_next(&q.branches, key, &cursor)
        if node == NULL:
            break
        if node.parent == parent and node.handle == handle:
            return node
    group = group_of(q, level, tenant, campaign if level == CAMPAIGN_ else 0)
    if group == NULL:
        return NULL
    if slab_reserve(&q.nodes, 1) < 0:
        free_group_if_idle(q, group)
        return NULL
    made = slab_take(&q.nodes)
    node = <Node*>slab_at(&q.nodes, made)
    if table_add(&q.branches, key, node) < 0:
        slab_free(&q.nodes, made)
        free_group_if_idle(q, group)
        return NULL
    set_node(node, parent, NULL, parent.channel, handle, level, parent.tier)
    node.self, node.key_hash, node.group = made, key, group
    ring_append(&group.members, &node.sibling)
    if level == CAMPAIGN_:
        parent.children += 1
    if group.paused:
        hold(q, node, PAUSED)
    return node


cdef void free_if_idle(Queues* q, Node* node) noexcept nogil:
    """Frees a tenant or campaign that has nothing and waits for no turn; a campaign's tenant too."""
    cdef Node* parent
    while node.level >= TENANT and node.children == 0 and not ring_holds(&node.link):
        parent = node.parent
        wheel_disarm(&q.wheel, &node.timer)
        if ring_holds(&node.held):
            ring_remove(&node.held)
        if ring_holds(&node.halt):
            ring_remove(&node.halt)
        ring_remove(&node.sibling)
        free_group_if_idle(q, node.group)
        table_remove(&q.branches, node.key_hash, node)
        if node.level == CAMPAIGN_:
            parent.children -= 1
        slab_free(&q.nodes, node.self)
        node = parent


cdef inline uint32_t place_of(uint32_t account, uint8_t tier) noexcept nogil:
    return account << 2 | tier


cdef inline uint32_t account_of(const Queue* queue) noexcept nogil:
    return queue.place >> 2


cdef inline uint8_t tier_of(const Queue* queue) noexcept nogil:
    return queue.place & 3


cdef inline uint64_t queue_hash(
    uint32_t place, uint32_t tenant, uint32_t campaign, uint32_t content
) noexcept nogil:
    return mix64(<uint64_t>place << 32 | content, <uint64_t>tenant << 32 | campaign)


cdef inline Queue* find_queue(Queues* q, const Row* row, uint64_t key) noexcept nogil:
    cdef size_t cursor = 0
    cdef uint32_t place = place_of(row.account, row.tier)
    cdef uint8_t haste = haste_of(q, row)
    cdef Queue* found
    while True:
        found = <Queue*>table_next(&q.by_key, key, &cursor)
        if found == NULL or (
            found.content == row.content and found.campaign == row.campaign and found.tenant == row.tenant
            and found.place == place and found.haste == haste
        ):
            return found


cdef Queue* make_queue(Queues* q, Node* branch, const Row* row, uint64_t key, bint mixed) noexcept nogil:
    cdef uint32_t made
    cdef Queue* queue
    if slab_reserve(&q.queues, 1) < 0:
        return NULL
    made = slab_take(&q.queues)
    queue = <Queue*>slab_at(&q.queues, made)
    if not mixed and table_add(&q.by_key, key, queue) < 0:
        slab_free(&q.queues, made)
        return NULL
    memset(queue, 0, sizeof(Queue))
    fifo_make(&queue.fifo)
    timer_make(&queue.timer, OF_QUEUE)
    queue.tenant, queue.campaign, queue.content = row.tenant, row.campaign, row.content
    queue.place, queue.mixed, queue.self = place_of(row.account, row.tier), mixed, made
    queue.branch, queue.node = branch, branch.self
    queue.haste = haste_of(q, row)
    queue.slot = passed_slot(branch)
    queue.turn.owner = queue
    ring_append(&branch.queues, &queue.sibling)
    branch.children += 1
    if mixed:
        branch.mixed[queue.haste & AT_ONCE > 0] = queue
    q.counts[row.tier].flows += 1
    return queue


cdef void forget_queue(Queues* q, Queue* queue) noexcept nogil:
    """Out of the tables and off its campaign: a push of its key makes a new one."""
    cdef Node* branch = queue.branch
    if queue.mixed:
        branch.mixed[queue.haste & AT_ONCE > 0] = NULL
    else:
        table_remove(&q.by_key, hash_of(queue, queue.content), queue)
    ring_remove(&queue.sibling)
    queue.branch = NULL
    q.counts[tier_of(queue)].flows -= 1
    branch.children -= 1
    free_if_idle(q, branch)


cdef inline uint64_t hash_of(const Queue* queue, uint32_t content) noexcept nogil:
    return queue_hash(queue.place, queue.tenant, queue.campaign, content)


cdef Queue* queue_for(Queues* q, const Row* row, Target* target) noexcept nogil:
    """The queue a row belongs to, made if need be; NULL: no memory.

    A campaign has so many queues of its own in a leaf; a content beyond them goes to the campaign's mixed queue the
    first time, and gets its own the second: a million contents seen once are one queue.
    """
    cdef Queue* queue = find_queue(q, row, target.key_hash)
    cdef Node* branch
    cdef int known = 0
    target.first = False
    if queue != NULL:
        return queue
    branch = branch_of(q, &q.accounts[row.account].leaves[row.tier], TENANT, row.tenant, 0)
    if branch == NULL:
        return NULL
    cdef Node* tenant = branch
    branch = branch_of(q, tenant, CAMPAIGN_, row.tenant, row.campaign)
    if branch == NULL:
        free_if_idle(q, tenant)
        return NULL
    if branch.children >= q.own_queues:
        known = prints_add(&q.once, target.key_hash)
    if known == 0:
        queue = make_queue(q, branch, row, target.key_hash, False)
    elif known > 0:
        target.first = True
        queue = branch.mixed[haste_of(q, row) & AT_ONCE > 0]
        if queue == NULL:
            queue = make_queue(q, branch, row, target.key_hash, True)
        if queue == NULL:
            prints_remove(&q.once, target.key_hash)
    if queue == NULL:
        free_if_idle(q, branch)
    return queue


# --- the states of a queue ---

cdef inline Node* leaf_of(const Queue* queue) noexcept nogil:
    return queue.branch.parent.parent


cdef inline Node* campaign_of(Queues* q, const Queue* queue) noexcept nogil:
    """Its branch, told by the first of its cache lines."""
    return <Node*>slab_at(&q.nodes, queue.node)


cdef inline void count_state(Queues* q, const Queue* queue, Node* leaf, int64_t n) noexcept nogil:
    """n recipients more in the state its queue is in, or less."""
    cdef Node* campaign
    if queue.state == LINGERING:
        leaf.lingering += n
    elif queue.state == READY:
        campaign = campaign_of(q, queue)
        campaign.queued += n
        campaign.parent.queued += n
        leaf.queued += n


cdef inline void count_queued(Queues* q, const Queue* queue, Node* leaf, int64_t n) noexcept nogil:
    """n recipients more in its FIFO, or less."""
    q.counts[tier_of(queue)].queued += n
    leaf.parent.queued += n
    leaf.parent.parent.queued += n
    count_state(q, queue, leaf, n)


cdef inline void count_waiting(Queues* q, Queue* queue, int64_t retries, int64_t scheduled) noexcept nogil:
    queue.retries += <uint32_t>retries
    queue.scheduled += <uint32_t>scheduled
    q.counts[tier_of(queue)].retries += retries
    q.counts[tier_of(queue)].scheduled += scheduled


cdef void arm(Queues* q, Queue* queue) noexcept nogil:
    """Its timer fires in time; perhaps too early, which costs a look."""
    cdef int64_t wake = INT64_MAX
    if not ring_holds(&queue.sweep):
        wake = queue.fifo.deadline
    if queue.state == LINGERING:
        wake = min(wake, queue.fifo.close)
    if wake == INT64_MAX or timer_armed_by(&queue.timer, wake):
        return
    wheel_disarm(&q.wheel, &queue.timer)
    wheel_arm(&q.wheel, &queue.timer, wake)


cdef void rest(Queues* q, Queue* queue) noexcept nogil:
    """The queue is neither ready nor lingering any more."""
    count_state(q, queue, leaf_of(queue), -<int64_t>queue.fifo.count)
    if queue.state == READY:
        stand_down(q, queue)
        ring_remove(&queue.link)
        add_ready(q, queue.branch, -1)
    queue.state = IDLE


cdef void make_ready(Queues* q, Queue* queue) noexcept nogil:
    rest(q, queue)
    queue.state = READY
    count_state(q, queue, leaf_of(queue), queue.fifo.count)
    ring_append(&queue.branch.ring, &queue.link)
    add_ready(q, queue.branch, 1)
    stand_by(q, queue)


cdef void make_linger(Queues* q, Queue* queue) noexcept nogil:
    rest(q, queue)
    queue.state = LINGERING
    count_state(q, queue, leaf_of(queue), queue.fifo.count)
    arm(q, queue)


cdef void settle(Queues* q, Queue* queue) noexcept nogil:
    """Its state after its FIFO has got more. What cannot merge does not wait for others."""
    if queue.state != READY:
        if queue.mixed or queue.fifo.count >= leaf_of(queue).channel.cap or queue.fifo.close <= q.now:
            make_ready(q, queue)
        elif queue.state == IDLE:
            make_linger(q, queue)
    arm(q, queue)


cdef void rest_if_empty(Queues* q, Queue* queue) noexcept nogil:
    """Frees a queue of which nothing is left."""
    if queue.fifo.count:
        return
    rest(q, queue)
    if queue.parcels == NULL:
        if ring_holds(&queue.sweep):
            ring_remove(&queue.sweep)
        wheel_disarm(&q.wheel, &queue.timer)
        forget_queue(q, queue)
        slab_free(&q.queues, queue.self)


# --- in ---

cdef uint32_t append(Queues* q, Fifo* fifo, const Row* row, const Facts* facts, bint mixed, bint first) noexcept nogil:
    """Returns how many of them open calls behind the FIFO's first, counted now."""
    cdef Node* lane = q.accounts[row.account].leaves[row.tier].parent
    cdef bint paced = lane.pacing != NULL and not due_at_once(q, row)
    cdef uint32_t cap = lane.channel.cap if paced else 0xFFFFFFFF
    cdef uint32_t fill = cap if paced and mixed and fifo.count else fifo.fill, opens = 0
    cdef Rec rec
    cdef uint32_t i
    cdef uint32_t handle = facts_hold(&q.store, facts, row.count)
    cdef const uint8_t* name = row.ids
    cdef const uint32_t* content = &row.content if mixed else NULL
    fifo_expect(&q.store, fifo, handle, facts)
    rec.send, rec.attempt = row.send, row.attempt
    rec.facts = handle | (REC_FIRST if first else 0)
    for i in range(row.count):
        rec.position, rec.length = row.positions[i], row.id_lengths[i]
        if fill >= cap:
            fill = 0
            opens += 1
            rec.facts |= REC_OPENS
            count_call(q, lane, facts.slot)
        fill += 1
        fifo_append(&q.store, fifo, &rec, content, name)
        name += rec.length
        rec.facts = handle
    if paced:
        fifo.fill = fill
    return opens


cdef void end_at_once(Queues* q, const Row* row) noexcept nogil:
    """Its deadline has passed before it came."""
    cdef uint32_t i
    for i in range(row.count):
        tell_expired(q, row.send, row.positions[i], row.attempt, row.tier)


cdef void tell_expired(Queues* q, uint32_t send, uint16_t position, uint8_t attempt, uint8_t tier) noexcept nogil:
    """There must be room for a record."""
    cdef Rec rec
    rec.send, rec.position, rec.attempt = send, position, attempt
    rec.facts, rec.length = tier + 1, 0
    fifo_append(&q.store, &q.ended, &rec, NULL, <const uint8_t*>&rec)  # no id
    q.counts[tier].expired += 1
    q.counts[tier].ended += 1


cdef Parcel* parcel_for(Queues* q, Queue* queue, int64_t until) noexcept nogil:
    """The queue's last parcel if it is for this tick, or a new one; there must be room."""
    cdef uint64_t tick = tick_up(until)
    cdef Parcel* last
    cdef Parcel* made
    cdef uint32_t handle
    if queue.parcels != NULL and queue.parcels.prev.tick == tick:
        return queue.parcels.prev
    handle = slab_take(&q.parcels)
    made = <Parcel*>slab_at(&q.parcels, handle)
    memset(made, 0, sizeof(Parcel))
    timer_make(&made.timer, OF_PARCEL)
    fifo_make(&made.fifo)
    made.self, made.queue, made.tick = handle, queue, tick
    made.prev = made.next = made
    if queue.parcels == NULL:
        queue.parcels = made
    else:
        last = queue.parcels.prev
        made.prev, made.next = last, queue.parcels
        last.next = queue.parcels.prev = made
    if until != INT64_MAX:
        wheel_arm(&q.wheel, &made.timer, until)
    return made


cdef void take_out(Queues* q, Parcel* parcel) noexcept nogil:
    cdef Queue* queue = parcel.queue
    wheel_disarm(&q.wheel, &parcel.timer)
    if queue.parcels == parcel:
        queue.parcels = NULL if parcel.next == parcel else parcel.next
    parcel.prev.next, parcel.next.prev = parcel.next, parcel.prev
    slab_free(&q.parcels, parcel.self)


cdef void wait(Queues* q, Queue* queue, const Row* row, const Facts* facts, bint first) noexcept nogil:
    cdef int64_t until = min(row.not_before, row.deadline)
    cdef Parcel* parcel = parcel_for(q, queue, until)
    parcel.opens += append(q, &parcel.fifo, row, facts, queue.mixed, first)
    if row.attempt:
        parcel.retries += row.count
        count_waiting(q, queue, row.count, 0)
    else:
        count_waiting(q, queue, 0, row.count)


cdef void wake(Queues* q, Parcel* parcel) noexcept nogil:
    """A parcel's time has come: all of it goes into its queue."""
    cdef Queue* queue = parcel.queue
    cdef uint32_t n = parcel.fifo.count
    if queue.state == DEAD:
        return
    count_waiting(q, queue, -<int64_t>parcel.retries, -<int64_t>(n - parcel.retries))
    count_parcel(q, queue, parcel)
    fifo_splice(&q.store, &queue.fifo, &parcel.fifo)
    count_queued(q, queue, leaf_of(queue), n)
    take_out(q, parcel)
    count_first(q, queue)
    settle(q, queue)


cdef void put(Queues* q, const Row* row, Target* target) noexcept nogil:
    """There is room for it."""
    cdef Queue* queue = target.queue
    cdef Node* leaf = &q.accounts[row.account].leaves[row.tier]
    cdef Facts facts
    q.counts[row.tier].pushed += row.count
    if queue == NULL:
        end_at_once(q, row)
        return
    facts.pushed, facts.due, facts.deadline, facts.not_before = row.pushed, row.due, row.deadline, row.not_before
    facts.close = min(later(max(q.now, row.not_before), row.linger), must_close(q, row.due, row.deadline))
    facts.slot = 0 if leaf.parent.pacing == NULL else slot_of(q, leaf.parent, row)
    if row.not_before > q.now:
        wait(q, queue, row, &facts, target.first)
        return
    queue.opens += append(q, &queue.fifo, row, &facts, queue.mixed, target.first)
    count_queued(q, queue, leaf, row.count)
    count_first(q, queue)
    if queue.state != READY or queue.fifo.deadline == row.deadline:
        settle(q, queue)


cdef void aim_no_more(Queues* q, size_t n) noexcept nogil:
    """Undoes what ``aim`` did for the first n rows: queues that have nothing were made by it, each once."""
    cdef Link made
    cdef Queue* queue
    cdef size_t i
    ring_make(&made)
    for i in range(n):
        queue = q.targets[i].queue
        if queue == NULL:
            continue
        if q.targets[i].first:
            prints_remove(&q.once, q.targets[i].key_hash)
        if not queue.fifo.count and queue.parcels == NULL and not ring_holds(&queue.link):
            ring_append(&made, &queue.link)
    while ring_first(&made) != NULL:
        queue = queue_of(ring_first(&made))
        ring_remove(&queue.link)
        rest_if_empty(q, queue)


cdef int aim(Queues* q, const Row* rows, size_t n) noexcept nogil:
    """Finds or makes the queue of every row; while one is looked up the memory of those behind it is on its way."""
    cdef size_t i
    cdef Target* target
    cdef Queue* queue
    for i in range(n + 2 * AHEAD):
        if i < n:
            target = &q.targets[i]
            target.queue = NULL
            target.key_hash = queue_hash(
                place_of(rows[i].account, rows[i].tier), rows[i].tenant, rows[i].campaign, rows[i].content
            )
            foresee(table_home(&q.by_key, target.key_hash))
        if AHEAD <= i < n + AHEAD:
            foresee_queue(q, &q.targets[i - AHEAD])
        if i < 2 * AHEAD or rows[i - 2 * AHEAD].deadline <= q.now:
            continue
        target = &q.targets[i - 2 * AHEAD]
        queue = queue_for(q, &rows[i - 2 * AHEAD], target)
        if queue == NULL:
            aim_no_more(q, i - 2 * AHEAD)
            return -1
        target.queue = queue
    return 0


cdef int queues_push(Queues* q, const Row* rows, size_t n) noexcept nogil:
    cdef size_t i, recipients = 0, id_bytes = 0
    for i in range(n):
        recipients += rows[i].count
        id_bytes += rows[i].id_bytes
    if (
        store_reserve(&q.store, n, recipients, id_bytes) < 0 or slab_reserve(&q.parcels, n) < 0
        or more_room(<void**>&q.targets, &q.targets_room, n, sizeof(Target)) < 0 or aim(q, rows, n) < 0
    ):
        return -1
    for i in range(n + 2 * AHEAD):
        if i < n:
            foresee(q.targets[i].queue)
        if AHEAD <= i < n + AHEAD and q.targets[i - AHEAD].queue != NULL:
            foresee_tail(q, q.targets[i - AHEAD].queue, rows[i - AHEAD].id_bytes)
        if i >= 2 * AHEAD:
            put(q, &rows[i - 2 * AHEAD], &q.targets[i - 2 * AHEAD])
    return 0


# --- time ---

cdef void fire_queue(Queues* q, Queue* queue) noexcept nogil:
    if queue.state == DEAD:
        return
    if queue.state == LINGERING and queue.fifo.close <= q.now:
        make_ready(q, queue)
    if queue.fifo.deadline <= q.now and not ring_holds(&queue.sweep):
        ring_append(&q.sweeping, &queue.sweep)
    arm(q, queue)


cdef void queues_advance(Queues* q, int64_t now) noexcept nogil:
    """Fires what is due. Time never goes back."""
    q.now = max(q.now, now)
    cdef Timer* timer = wheel_fire(&q.wheel, q.now)
    while timer != NULL:
        if timer_kind(timer) == OF_QUEUE:
            fire_queue(q, timed_queue(timer))
        elif timer_kind(timer) == OF_PARCEL:
            wake(q, <Parcel*>timer)
        elif timer_kind(timer) == OF_PACING:
            let_go(q, timed_lane(timer), HELD_BACK)
        else:
            unpark(q, timed_node(timer))
        timer = wheel_fire(&q.wheel, q.now)


# --- forming a batch ---

cdef int more_room(void** at, size_t* room, size_t need, size_t size) noexcept nogil:
    if need <= room[0]:
        return 0
    cdef size_t grown = max(need, 2 * room[0])
    cdef void* moved = realloc(at[0], grown * size)
    if moved == NULL:
        return -1
    at[0] = moved
    room[0] = grown
    return 0


cdef int room_for(Output* out, size_t recipients) noexcept nogil:
    """For a batch of so many."""
    cdef size_t need = out.items_used + recipients, room = out.items_room
    if more_room(<void**>&out.batches, &out.batches_room, out.batches_used + 1, sizeof(BatchRow)) < 0:
        return -1
    if more_room(<void**>&out.ids, &out.ids_room, out.ids_used + 255 * recipients, 1) < 0:
        return -1
    if need <= room:
        return 0
    need = max(need, 2 * room)
    return columns_room(out, need)


cdef int columns_room(Output* out, size_t rows) noexcept nogil:
    """Either all columns have so many rows, or those that grew are longer than anyone knows."""
    cdef size_t room[5]
    cdef int i
    for i in range(5):
        room[i] = out.items_room
    if (
        more_room(<void**>&out.pushed, &room[0], rows, sizeof(int64_t)) < 0
        or more_room(<void**>&out.send, &room[1], rows, sizeof(uint32_t)) < 0
        or more_room(<void**>&out.id_end, &room[2], rows, sizeof(uint32_t)) < 0
        or more_room(<void**>&out.position, &room[3], rows, sizeof(uint16_t)) < 0
        or more_room(<void**>&out.attempt, &room[4], rows, sizeof(uint8_t)) < 0
    ):
        return -1
    out.items_room = rows
    return 0


cdef void expire_first(Queues* q, Queue* queue, const Rec* rec) noexcept nogil:
    """There must be room for a record."""
    tell_expired(q, rec.send, rec.position, rec.attempt, tier_of(queue))
    remove_first(q, queue, rec)
    count_queued(q, queue, leaf_of(queue), -1)
    facts_drop(&q.store, rec.facts & REC_FACTS, 1)


cdef inline void remove_first(Queues* q, Queue* queue, const Rec* rec) noexcept nogil:
    """Its facts are the caller's to drop."""
    cdef Rec same
    cdef uint32_t content
    if rec.facts & REC_FIRST:
        memcpy(&content, fifo_first(&q.store, &queue.fifo, &same), sizeof(content))
        prints_remove(&q.once, hash_of(queue, content))
    uncount(q, queue, rec)
    fifo_skip(&q.store, &queue.fifo, rec, queue.mixed)


cdef inline void emit(Output* out, const Rec* rec, const uint8_t* name, int64_t pushed) noexcept nogil:
    cdef size_t i = out.items_used
    id_copy(out.ids + out.ids_used, name, rec.length)
    out.ids_used += rec.length
    out.pushed[i], out.send[i], out.position[i], out.attempt[i] = pushed, rec.send, rec.position, rec.attempt
    out.id_end[i] = <uint32_t>out.ids_used
    out.items_used = i + 1


cdef struct Forming:
    Queue* queue
    BatchRow* batch
    uint32_t most
    uint32_t facts  # handle of the last ones, 0: none
    uint32_t alike  # of the last recipients have them
    uint32_t retries  # of those, attempt > 0
    bint cut
    bint due


cdef void account_for(Queues* q, Forming* forming) noexcept nogil:
    """The recipients taken that have the same facts; a retry does not queue again: only first attempts' waits count,
    from when they might have gone."""
    cdef Facts* facts
    cdef Channel* channel
    if forming.alike:
        facts = facts_at(&q.store, forming.facts)
        channel = leaf_of(forming.queue).channel
        forming.batch.due = min(forming.batch.due, facts.due)
        if must_close(q, facts.due, facts.deadline) <= q.now:
            forming.due = True
        if forming.alike > forming.retries:
            counts_observe(
                channel.queue_wait[tier_of(forming.queue)], since(q.now, max(facts.pushed, facts.not_before)),
                forming.alike - forming.retries,
            )
        counts_observe(q.lateness[tier_of(forming.queue)], since(q.now, facts.due), forming.alike)
        facts_drop(&q.store, forming.facts, forming.alike)
    forming.facts = forming.alike = forming.retries = 0


cdef uint32_t form(Queues* q, Forming* forming) noexcept nogil:
    """Moves recipients in FIFO order to the output; 0: all have expired (or memory is short)."""
    cdef Queue* queue = forming.queue
    cdef Output* out = &q.out
    cdef uint32_t taken = 0, content
    cdef Rec rec
    cdef const Facts* facts = NULL
    cdef const uint8_t* name
    idset_clear(&q.seen)
    fifo_foresee(&q.store, &queue.fifo)
    while taken < forming.most and queue.fifo.count:
        name = <const uint8_t*>fifo_first(&q.store, &queue.fifo, &rec)
        if rec.facts & REC_FACTS != forming.facts:
            account_for(q, forming)
            forming.facts = rec.facts & REC_FACTS
            facts = facts_at(&q.store, forming.facts)
        if facts.deadline <= q.now:
            forming.facts = 0
            if store_reserve(&q.store, 1, 1, 0) < 0:
                q.no_memory = True
                break
            expire_first(q, queue, &rec)
            continue
        if queue.mixed:
            memcpy(&content, name, sizeof(content))
            name += sizeof(content)
            if content != forming.batch.content:
                break
        if forming.most > 1 and not idset_add(&q.seen, out.ids, out.ids_used, name, rec.length):
            forming.cut = True
            break
        emit(out, &rec, name, facts.pushed)
        remove_first(q, queue, &rec)
        forming.alike += 1
        forming.retries += rec.attempt > 0
        taken += 1
    account_for(q, forming)
    count_queued(q, queue, leaf_of(queue), -<int64_t>taken)
    return taken


# --- what may go ---

cdef inline Node* next_tier(Queues* q) noexcept nogil:
    cdef Node* tiers = q.tiers
    if ring_holds(&tiers[SYSTEM].link):
        return &tiers[SYSTEM]
    if not ring_holds(&tiers[BASIC].link):
        return &tiers[TEMPLATE] if ring_holds(&tiers[TEMPLATE].link) else NULL
    if not ring_holds(&tiers[TEMPLATE].link):
        return &tiers[BASIC]
    return &tiers[TEMPLATE] if tiers[TEMPLATE].turn <= tiers[BASIC].turn else &tiers[BASIC]


cdef inline bint has_slot(const Channel* channel, uint8_t tier) noexcept nogil:
    cdef uint32_t others = channel.in_flight[TEMPLATE] + channel.in_flight[BASIC]
    if others + channel.in_flight[SYSTEM] >= channel.slots:
        return False
    return tier == SYSTEM or others < channel.slots - channel.reserved


cdef enum:
    PATH = 5


cdef inline void path_of(Queues* q, Node* leaf, Group* tenant, Scope** path) noexcept nogil:
    """Whose limits a batch of a tenant in a leaf is charged to, the widest first."""
    path[0], path[1], path[2], path[3] = &q.everything, &q.of_tier[leaf.tier], leaf.parent.scope, leaf.scope
    path[4] = &tenant.scope


cdef inline Node* keeps(Node* tenant, int scope) noexcept nogil:
    """What must wait when this scope of the path refuses: all of it that is below one node."""
    cdef int _up
    for _up in range(4 - max(scope, 1)):
        tenant = tenant.parent
    return tenant


cdef uint32_t planned(Queues* q, Node* tenant, uint32_t n) noexcept nogil:
    """What a batch of up to n wants: more than a limit's whole number would wait for ever."""
    cdef Scope* path[PATH]
    path_of(q, tenant.parent, tenant.group, path)
    return <uint32_t>scopes_most(path, PATH, n, tenant.tier == SYSTEM)


cdef bint refused(Queues* q, Node* tenant, uint32_t n) noexcept nogil:
    """True: n recipients may not go in one call now, and what keeps them is parked."""
    cdef Scope* path[PATH]
    path_of(q, tenant.parent, tenant.group, path)
    cdef Refusal no = scopes_refuse(path, PATH, q.now, n, tenant.tier == SYSTEM)
    if no.why == REFUSED_NOT:
        return False
    park(q, keeps(tenant, no.scope), path[no.scope], no)
    return True


cdef void charge(Queues* q, const Queue* queue, uint32_t n) noexcept nogil:
    cdef Scope* path[PATH]
    cdef Node* tenant = queue.branch.parent
    cdef Node* leaf = tenant.parent
    path_of(q, leaf, tenant.group, path)
    scopes_hold(path, PATH, n)
    leaf.channel.in_flight[leaf.tier] += 1
    note_call(q, leaf.parent, queue)
    leaf.parent.parent.turn += q.stride[leaf.tier]
    q.counts[leaf.tier].popped += n
    counts_observe(leaf.channel.batch_recipients, n, 1)


cdef void tidy(Queues* q, Node* node) noexcept nogil:
    """The turn of one that has lost its work: it leaves; of a tenant, first its campaigns that have."""
    cdef Node* first = node
    if node.level == TENANT and has_members(node):
        first = node_of(ring_first(&node.fresh) if ring_first(&node.fresh) != NULL else ring_first(&node.ring))
    leave(q, first)
    free_if_idle(q, first)


cdef Node* turn_of(Queues* q, Node* parent) noexcept nogil:
    """Whose turn it is among a leaf's tenants or a tenant's campaigns (deficit round robin: Shreedhar & Varghese 1996).

    Those that came anew go before the others (fq_codel's list of new flows, RFC 8290), but after FRESH_RUN of them the
    others have a turn, so that no stream of newcomers starves them. NULL: it was the turn of one without work.
    """
    cdef Link* first = ring_first(&parent.fresh)
    if first == NULL or parent.fresh_had >= FRESH_RUN and ring_first(&parent.ring) != NULL:
        first = ring_first(&parent.ring)
    cdef Node* node = node_of(first)
    if node.ready == 0:
        tidy(q, node)
        return NULL
    if node.owed:
        node.owed = False
        node.deficit += <int64_t>node.channel.cap * node.group.weight  # a batch's debt is less: it may go
    return node


cdef inline void end_turn(Node* node) noexcept nogil:
    node.parent.fresh_had = min(node.parent.fresh_had, FRESH_RUN - 1) + 1 if node.is_fresh else 0
    node.is_fresh = False
    node.owed = True
    ring_remove(&node.link)
    ring_append(&node.parent.ring, &node.link)


cdef void pay(Node* node, uint32_t cost) noexcept nogil:
    """For a batch, out of the deficit of this turn; without work there is nothing to save it for."""
    node.deficit -= cost
    if node.ready == 0:
        node.deficit = min(node.deficit, 0)
    if node.ready == 0 or node.deficit <= 0:
        end_turn(node)


cdef inline Node* choose_lane(Node* tier) noexcept nogil:
    cdef void* first = pace_first(&tier.pacing.pace) if goes_by_due(tier) else NULL
    return <Node*>first if first != NULL else node_of(ring_first(&tier.ring))


cdef Queue* choose(Queues* q, Node* lane) noexcept nogil:
    """The queue of a lane whose turn it is; NULL: a turn was nobody's."""
    if goes_by_due(lane) and pace_first(&lane.pacing.pace) != NULL:
        return due_first(q, lane)
    cdef Node* leaf = node_of(ring_first(&lane.ring))
    cdef Node* tenant = turn_of(q, leaf)
    cdef Node* campaign = NULL if tenant == NULL else turn_of(q, tenant)
    if campaign == NULL:
        return NULL
    foresee_turns(q, tenant, campaign)
    return queue_of(ring_first(&campaign.ring))


cdef void after_batch(Queues* q, Queue* queue, uint32_t n) noexcept nogil:
    """Where the queue stands now, and whose turns are over."""
    cdef Node* campaign = queue.branch
    cdef Node* tenant = campaign.parent
    cdef Node* leaf = tenant.parent
    cdef uint32_t cap = leaf.channel.cap
    cdef uint32_t cost = max(n, (cap + LEAST_COST - 1) // LEAST_COST)
    if not queue.fifo.count:
        rest(q, queue)
    elif not queue.mixed and queue.fifo.count < cap and queue.fifo.close > q.now:
        make_linger(q, queue)
    else:
        ring_to_tail(&campaign.ring, &queue.link)
        if queue.haste & AT_ONCE:  # its place is the same, behind the others there
            stand_down(q, queue)
        stand_by(q, queue)
    if not goes_by_due(leaf.parent):
        pay(campaign, cost)
        pay(tenant, cost)
    rest_if_empty(q, queue)
    if ring_holds(&leaf.link):
        ring_to_tail(&leaf.parent.ring, &leaf.link)
    if ring_holds(&leaf.parent.link):
        ring_to_tail(&leaf.parent.parent.ring, &leaf.parent.link)


cdef uint32_t next_batch(Queues* q, const Queue* queue, uint32_t* content) noexcept nogil:
    """How many could go in one batch as far as the queue knows, and their content."""
    cdef uint32_t most = min(queue.fifo.count, leaf_of(queue).channel.cap), n, other
    cdef Fifo fifo = queue.fifo
    cdef Rec rec
    content[0] = queue.content
    if not queue.mixed:
        return most
    memcpy(content, fifo_first(&q.store, &fifo, &rec), sizeof(content[0]))
    for n in range(1, most):
        fifo_step(&q.store, &fifo, &rec, True)
        memcpy(&other, fifo_first(&q.store, &fifo, &rec), sizeof(other))
        if other != content[0]:
            return n
    return most


cdef uint32_t send_batch(Queues* q, Queue* queue, uint32_t most, uint32_t content, bint more) noexcept nogil:
    cdef Node* leaf = leaf_of(queue)
    cdef Output* out = &q.out
    cdef Forming forming
    cdef BatchRow* batch
    cdef uint32_t n
    if room_for(out, most) < 0:
        q.no_memory = True
        return 0
    batch = &out.batches[out.batches_used]
    batch.start, batch.due = <uint32_t>out.items_used, INT64_MAX
    batch.tier, batch.channel, batch.account = leaf.tier, leaf.parent.handle, leaf.handle
    batch.tenant, batch.campaign, batch.content = queue.tenant, queue.campaign, content
    memset(&forming, 0, sizeof(forming))
    forming.queue, forming.batch, forming.most = queue, batch, most
    n = form(q, &forming)
    fifo_renew(&q.store, &queue.fifo)
    count_first(q, queue)
    if n == 0:
        stand_by(q, queue)
        rest_if_empty(q, queue)
        return 0
    more = more or n == leaf.channel.cap
    batch.closed = CUT if forming.cut else CAP if more else DUE if forming.due else LINGER_OVER
    out.batches_used += 1
    charge(q, queue, n)
    after_batch(q, queue, n)
    return n


cdef uint32_t visit(Queues* q, Node* tier) noexcept nogil:
    """One turn of a tier: a batch goes (its size is returned), or a node that may not go leaves its ring."""
    cdef Node* lane = choose_lane(tier)
    cdef Queue* queue
    cdef uint32_t content, there, most
    if not has_slot(lane.channel, tier.tier):
        hold(q, lane, BLOCKED)
        return 0
    if lane.pacing != NULL and held_back(q, lane):
        return 0
    queue = choose(q, lane)
    if queue == NULL:
        return 0
    there = next_batch(q, queue, &content)
    most = planned(q, queue.branch.parent, there)
    if refused(q, queue.branch.parent, most):
        return 0
    return send_batch(q, queue, most, content, most < there)


cdef void queues_pop(Queues* q, uint64_t budget) noexcept nogil:
    """Until the budget is used: a visit is one step, a recipient another. At most budget + the largest cap steps."""
    cdef uint64_t steps = 0
    cdef Node* tier = next_tier(q)
    q.no_memory = False
    while tier != NULL and steps < budget and not q.no_memory:
        steps += 1 + visit(q, tier)
        tier = next_tier(q)


cdef Group* queues_tenant(Queues* q, uint32_t tenant) noexcept nogil:
    return find_group(q, group_hash(TENANT, tenant, 0), TENANT, tenant, 0)


cdef Group* queues_make_tenant(Queues* q, uint32_t tenant) noexcept nogil:
    return group_of(q, TENANT, tenant, 0)


cdef void queues_release(
    Queues* q, Node* leaf, Group* tenant, uint64_t recipients, uint64_t left, int64_t at
) noexcept nogil:
    """A call has ended: ``left`` of its recipients were on it and had arrived by ``at``."""
    cdef Channel* channel = leaf.channel
    cdef Scope* path[PATH]
    cdef Node* lane
    cdef uint8_t i
    path_of(q, leaf, tenant, path)
    scopes_settle(path, PATH, q.now, recipients, left, at)
    for i in range(PATH - 1):
        queues_reconsider(q, path[i])
    if tenant.scope.limits != NULL:
        queues_reconsider(q, &tenant.scope)
    free_group_if_idle(q, tenant)
    channel.in_flight[leaf.tier] -= 1
    if channel.is_paced:
        capacity_end(&channel.capacity, q.now, channel.slots)
    for i in range(TIERS):
        lane = &channel.lanes[i]
        if lane.state & BLOCKED and has_slot(channel, i):
            let_go(q, lane, BLOCKED)


# --- what an operator changes ---

cdef void queues_pause(Queues* q, Node* node, bint paused) noexcept nogil:
    """Nothing of the node leaves until it is resumed; it takes no turns meanwhile, and claims none afterwards."""
    if paused:
        hold(q, node, PAUSED)
        free_if_idle(q, node)
    elif node.state & PAUSED:
        let_go(q, node, PAUSED)


cdef int queues_pause_group(
    Queues* q, uint8_t level, uint32_t tenant, uint32_t campaign, bint paused
) noexcept nogil:
    """O(its nodes). -1: no memory, and nothing has changed."""
    cdef uint64_t key = group_hash(level, tenant, campaign)
    cdef Group* group = find_group(q, key, level, tenant, campaign)
    cdef Link* member
    cdef Node* node
    if group == NULL and not paused:
        return 0
    if group == NULL:
        group = group_of(q, level, tenant, campaign)
        if group == NULL:
            return -1
    group.paused = True  # it stays while its nodes change
    member = ring_first(&group.members)
    while member != NULL:
        node = member_of(member)
        member = NULL if member.next == &group.members else member.next
        queues_pause(q, node, paused)
    group.paused = paused
    free_group_if_idle(q, group)
    return 0


cdef int queues_reweight(
    Queues* q, uint8_t level, uint32_t tenant, uint32_t campaign, uint32_t weight
) noexcept nogil:
    """From its next turn on; what it has left of this one, or owes, stays. -1: no memory, and nothing has changed."""
    cdef Group* group = group_of(q, level, tenant, campaign)
    if group == NULL:
        return -1
    group.weight = weight
    free_group_if_idle(q, group)
    return 0


cdef void queues_reweight_tier(Queues* q, uint8_t tier, uint32_t weight) noexcept nogil:
    q.stride[tier] = (1 << 20) // weight


cdef Kept queues_kept(const Queues* q, uint8_t tier) noexcept nogil:
    cdef Kept kept
    cdef const Link* link = q.held.next
    cdef const Node* node
    cdef uint8_t above
    cdef uint32_t i
    memset(&kept, 0, sizeof(kept))
    for i in range(q.account_count):
        node = &q.accounts[i].leaves[tier]
        kept_by(&kept, node.state | node.parent.state | node.parent.parent.state)[0] += node.queued
    while link != &q.held:
        node = held_node(<Link*>link)
        link = link.next
        if node.tier == tier:
            above = above_of(node)
            kept_by(&kept, above)[0] -= node.queued
            kept_by(&kept, above | node.state)[0] += node.queued
    return kept


cdef inline uint64_t* kept_by(Kept* kept, uint8_t state) noexcept nogil:
    return &kept.paused if state & PAUSED else &kept.throttled if state & PARKED else (
        &kept.paced if state & HELD_BACK else &kept.open
    )


cdef uint64_t queues_queued(const Queues* q, uint8_t tier, uint32_t channel) noexcept nogil:
    """Recipients in READY queues of a channel that no pause keeps."""
    cdef const Channel* of = q.channels[channel]
    cdef const Link* link = q.held.next
    cdef const Node* node
    cdef uint64_t n = 0
    cdef uint32_t i
    for i in range(q.account_count):
        node = &q.accounts[i].leaves[tier]
        if node.channel == of and not (node.state | above_of(node)) & PAUSED:
            n += node.queued
    while link != &q.held:
        node = held_node(<Link*>link)
        link = link.next
        if node.tier == tier and node.channel == of and node.state & PAUSED and not above_of(node) & PAUSED:
            n -= node.queued
    return n


cdef inline uint8_t above_of(const Node* node) noexcept nogil:
    """What holds those above a node."""
    cdef uint8_t state = 0
    while node.parent != NULL:
        node = node.parent
        state |= node.state
    return state


# --- why something waits ---

cdef bint explain_pause(const Node* campaign, Reason* reason) noexcept nogil:
    """The pause that is widest."""
    cdef const Node* node = campaign
    cdef bint found = False
    while node != NULL:
        if node.state & PAUSED:
            reason.why, reason.level, found = OF_PAUSE, node.level, True
        node = node.parent
    return found


cdef void explain_refusal(const Refusal* no, Reason* reason) noexcept nogil:
    reason.why = OF_BLOCK + <uint8_t>(no.why - REFUSED_BLOCKED)
    reason.level = <uint8_t>no.scope  # ROOT is everything's, and so on down
    reason.until, reason.rate = no.until, 0
    reason.limit = 0 if no.limit == NULL else no.limit.handle + 1


cdef bint explain_parked(const Node* campaign, Reason* reason) noexcept nogil:
    """A node above it is parked, with another's batch maybe: that is who refuses next. The one that waits longest."""
    cdef const Node* node = campaign.parent
    cdef bint found = False
    while node != NULL:
        if node.state & PARKED and (not found or node.kept.until > reason.until):
            explain_refusal(&node.kept, reason)
            found = True
        node = node.parent
    return found


cdef void explain_time(const Node* campaign, Reason* reason) noexcept nogil:
    """Nothing of it is ready: the earliest end of lingering or waiting among its first queues."""
    cdef const Link* link = campaign.queues.next
    cdef const Queue* queue
    cdef int64_t wakes
    cdef int _i
    reason.until = INT64_MAX
    for _i in range(LOOKED_AT):
        if link == &campaign.queues:
            return
        queue = sibling_of(<Link*>link)
        link = link.next
        if queue.state == LINGERING and (queue.fifo.close < reason.until or reason.why == TURN):
            reason.why, reason.until = OF_LINGER, queue.fifo.close
        if queue.parcels != NULL:
            wakes = earliest(queue)
            if wakes < reason.until or reason.why == TURN:
                reason.why, reason.until = OF_TIME, wakes


cdef int64_t earliest(const Queue* queue) noexcept nogil:
    """When the first of its parcels wakes, among those looked at."""
    cdef const Parcel* parcel = queue.parcels
    cdef uint64_t tick = parcel.tick
    cdef int _i
    for _i in range(LOOKED_AT):
        tick = min(tick, parcel.tick)
        parcel = parcel.next
        if parcel == queue.parcels:
            break
    return INT64_MAX if tick > <uint64_t>INT64_MAX >> 20 else <int64_t>(tick << 20)


cdef void explain_rate(const Node* campaign, Reason* reason) noexcept nogil:
    """Its lane is held back: until about when what is due before it has left, at the rate of the lane or of its tier,
    whichever takes longer; a tier's is read when its lanes ask, and says nothing when more has come since. Of its READY
    queues the first ones are looked at."""
    cdef const Node* lane = campaign.parent.parent.parent
    cdef const Pace* pace = &lane.pacing.pace
    cdef const Pace* tier = &lane.parent.pacing.pace
    cdef const Link* link = campaign.ring.next
    cdef uint32_t slot = queue_of(<Link*>link).slot
    cdef int _i
    for _i in range(LOOKED_AT):
        if link == &campaign.ring:
            break
        if <int32_t>(queue_of(<Link*>link).slot - slot) < 0:
            slot = queue_of(<Link*>link).slot
        link = link.next
    reason.why, reason.level = OF_RATE, LANE
    reason.rate, reason.until = pace.rate, pace_expects(pace, slot)
    if not tier.stale and pace_expects(tier, slot) > reason.until:
        reason.level, reason.rate, reason.until = TIER_, tier.rate, pace_expects(tier, slot)


cdef void explain_node(Queues* q, Node* campaign, Reason* reason) noexcept nogil:
    cdef Node* tenant = campaign.parent
    cdef Node* leaf = tenant.parent
    cdef bint paced = leaf.parent.state & HELD_BACK
    cdef Scope* path[PATH]
    cdef Queue* queue
    cdef Refusal no
    cdef uint32_t content, n
    memset(reason, 0, sizeof(Reason))
    reason.tier, reason.account, reason.ready = leaf.tier, leaf.handle, campaign.queued
    reason.until = INT64_MAX
    if explain_pause(campaign, reason):
        return
    if ring_first(&campaign.ring) == NULL:
        explain_time(campaign, reason)
        return
    if explain_parked(campaign, reason):
        return
    if paced:
        explain_rate(campaign, reason)
    elif not has_slot(leaf.channel, leaf.tier):
        reason.why, reason.level = OF_SLOT, LANE
        return
    queue = queue_of(ring_first(&campaign.ring))
    n = planned(q, tenant, next_batch(q, queue, &content))
    path_of(q, leaf, tenant.group, path)
    no = scopes_refuse(path, PATH, q.now, n, leaf.tier == SYSTEM)
    if paced and (no.why == REFUSED_GRANT or no.until < reason.until):
        return  # refused or not, that is over before its time comes
    if no.why != REFUSED_NOT:
        explain_refusal(&no, reason)
    else:
        reason.until = q.now  # its turn


cdef size_t queues_explain(
    Queues* q, uint32_t tenant, uint32_t campaign, Reason* reasons, size_t most
) noexcept nogil:
    """One reason for each leaf it is queued in, at most so many; returns how many. Steps: leaves, each times levels,
    scopes, and LOOKED_AT."""
    cdef Group* group = find_group(q, group_hash(CAMPAIGN_, tenant, campaign), CAMPAIGN_, tenant, campaign)
    cdef Link* member = NULL if group == NULL else ring_first(&group.members)
    cdef size_t n = 0
    while member != NULL and n < most:
        if member_of(member).children:
            explain_node(q, member_of(member), &reasons[n])
            reasons[n].until = max(reasons[n].until, q.now)  # within a tick of its time
            n += 1
        member = NULL if member.next == &group.members else member.next
    return n


# --- what ended ---

cdef void cancel_queue(Queues* q, Queue* queue) noexcept nogil:
    """It goes to the dead as it is: its records where they stand, its parcels' timers still armed."""
    cdef Count* count = &q.counts[tier_of(queue)]
    cdef uint64_t n = <uint64_t>queue.fifo.count + queue.retries + queue.scheduled
    cdef Node* leaf = leaf_of(queue)
    rest(q, queue)
    if queue.counted:
        uncount_call(leaf.parent, queue.counted_in)
        queue.counted = False
    count_queued(q, queue, leaf, -<int64_t>queue.fifo.count)
    count.retries -= queue.retries
    count.scheduled -= queue.scheduled
    count.cancelled += n
    count.ended += n
    if ring_holds(&queue.sweep):
        ring_remove(&queue.sweep)
    wheel_disarm(&q.wheel, &queue.timer)
    forget_queue(q, queue)
    queue.state = DEAD
    ring_append(&q.dead, &queue.link)


cdef uint64_t queues_cancel(Queues* q, uint32_t tenant, uint32_t campaign, int tier) noexcept nogil:
    """Recipients cancelled. O(queues of the campaign), whatever they hold."""
    cdef Group* group = find_group(q, group_hash(CAMPAIGN_, tenant, campaign), CAMPAIGN_, tenant, campaign)
    cdef Link* member = NULL if group == NULL else ring_first(&group.members)
    cdef Link* link
    cdef Node* node
    cdef Queue* queue
    cdef uint64_t n = 0
    while member != NULL:
        node = member_of(member)
        member = NULL if member.next == &group.members else member.next
        if tier >= 0 and node.tier != tier:
            continue
        node.children += 1  # so that it does not go with its last queue
        link = ring_first(&node.queues)
        while link != NULL:
            queue = sibling_of(link)
            n += <uint64_t>queue.fifo.count + queue.retries + queue.scheduled
            cancel_queue(q, queue)
            link = ring_first(&node.queues)
        node.children -= 1
        free_if_idle(q, node)
    return n


cdef inline void fill(EndedRow* row, const Rec* rec, uint8_t cause) noexcept nogil:
    row.send, row.position, row.attempt, row.cause = rec.send, rec.position, rec.attempt, cause


cdef uint64_t reap_told(Queues* q, EndedRow* rows, uint64_t most) noexcept nogil:
    cdef uint64_t n = 0
    cdef Rec rec
    while n < most and q.ended.count:
        fifo_first(&q.store, &q.ended, &rec)
        fill(&rows[n], &rec, EXPIRED_)
        q.counts[rec.facts - 1].ended -= 1
        fifo_skip(&q.store, &q.ended, &rec, False)
        n += 1
    return n


cdef uint64_t sweep(Queues* q, Queue* queue, EndedRow* rows, uint64_t most) noexcept nogil:
    """Takes the expired ones from its front, and takes it off the list if there are no more.

    One that expires behind others which may still go is told of when those have gone.
    """
    cdef uint64_t n = 0
    cdef Rec rec
    cdef Node* leaf = leaf_of(queue)
    while n < most and queue.fifo.count:
        fifo_first(&q.store, &queue.fifo, &rec)
        if facts_at(&q.store, rec.facts & REC_FACTS).deadline > q.now:
            break
        fill(&rows[n], &rec, EXPIRED_)
        remove_first(q, queue, &rec)
        facts_drop(&q.store, rec.facts & REC_FACTS, 1)
        count_queued(q, queue, leaf, -1)
        q.counts[tier_of(queue)].expired += 1
        n += 1
    fifo_renew(&q.store, &queue.fifo)
    count_first(q, queue)
    stand_by(q, queue)
    if n < most or not queue.fifo.count:
        if queue.fifo.count:
            queue.fifo.deadline = facts_at(&q.store, rec.facts & REC_FACTS).deadline
        ring_remove(&queue.sweep)
        arm(q, queue)
        rest_if_empty(q, queue)
    return n


cdef void free_dead(Queues* q, Queue* queue) noexcept nogil:
    ring_remove(&queue.link)
    slab_free(&q.queues, queue.self)


cdef uint64_t reap_dead(Queues* q, EndedRow* rows, uint64_t most) noexcept nogil:
    """The FIFO of the oldest dead queue, then its parcels one after the other."""
    cdef uint64_t n = 0
    cdef Rec rec
    cdef Queue* queue = queue_of(ring_first(&q.dead))
    while n < most:
        if not queue.fifo.count:
            if queue.parcels == NULL:
                free_dead(q, queue)
                return n
            queue.retries -= queue.parcels.retries
            queue.scheduled -= queue.parcels.fifo.count - queue.parcels.retries
            queue.opens += queue.parcels.opens
            fifo_splice(&q.store, &queue.fifo, &queue.parcels.fifo)
            take_out(q, queue.parcels)
        fifo_first(&q.store, &queue.fifo, &rec)
        fill(&rows[n], &rec, CANCELLED_)
        remove_first(q, queue, &rec)
        facts_drop(&q.store, rec.facts & REC_FACTS, 1)
        q.counts[tier_of(queue)].ended -= 1
        n += 1
    fifo_renew(&q.store, &queue.fifo)
    return n


cdef uint64_t queues_reap(Queues* q, EndedRow* rows, uint64_t most) noexcept nogil:
    """Fills rows and returns how many: what expired at push or pop, then what stands expired in queues, then what was
    cancelled; each in the order it ended."""
    cdef uint64_t n = reap_told(q, rows, most), steps = n
    while steps < most and ring_first(&q.sweeping) != NULL:
        n += sweep(q, swept_queue(ring_first(&q.sweeping)), rows + n, most - steps)
        steps = max(steps + 1, n)
    while steps < most and ring_first(&q.dead) != NULL:
        n += reap_dead(q, rows + n, most - steps)
        steps = max(steps + 1, n)
    return n


cdef bint queues_has_ended(const Queues* q) noexcept nogil:
    return q.ended.count or ring_first(&q.sweeping) != NULL or ring_first(&q.dead) != NULL


cdef bint queues_has_work(const Queues* q) noexcept nogil:
    return ring_first(&q.root.ring) != NULL


cdef int64_t queues_due(const Queues* q) noexcept nogil:
    return q.now if queues_has_ended(q) or queues_has_work(q) else wheel_due(&q.wheel)


# --- making and freeing ---

cdef Queues* queues_make(
    uint32_t template_weight, uint32_t basic_weight, int64_t lead, uint32_t own_queues, uint64_t seed
) noexcept nogil:
    cdef Queues* q = <Queues*>calloc(1, sizeof(Queues))
    cdef uint8_t tier
    if q == NULL:
        return NULL
    q.lead, q.own_queues = lead, own_queues
    q.seen.seed = seed
    queues_reweight_tier(q, TEMPLATE, template_weight)
    queues_reweight_tier(q, BASIC, basic_weight)
    wheel_make(&q.wheel)
    store_make(&q.store)
    slab_make(&q.queues, sizeof(Queue) + 63 & ~63)  # whole lines of the cache
    slab_make(&q.nodes, sizeof(Node) + 63 & ~63)
    slab_make(&q.groups, sizeof(Group))
    slab_make(&q.parcels, sizeof(Parcel))
    fifo_make(&q.ended)
    ring_make(&q.sweeping)
    ring_make(&q.dead)
    ring_make(&q.held)
    set_node(&q.root, NULL, NULL, NULL, 0, ROOT, 0)
    scope_make(&q.everything, &q.asking)
    for tier in range(TIERS):
        scope_make(&q.of_tier[tier], &q.asking)
        set_node(&q.tiers[tier], &q.root, NULL, NULL, 0, TIER_, tier)
    return q


cdef void free_channel(Channel* channel) noexcept nogil:
    cdef int tier
    for tier in range(TIERS):
        free(channel.lanes[tier].pacing)
    scope_free(&channel.scope)
    free(channel)


cdef int queues_add_channel(Queues* q, uint32_t slots, uint32_t reserved, uint32_t cap) noexcept nogil:
    cdef void* grown = realloc(q.channels, (q.channel_count + 1) * sizeof(Channel*))
    cdef uint8_t tier
    if grown == NULL:
        return -1
    q.channels = <Channel**>grown
    cdef Channel* made = <Channel*>calloc(1, sizeof(Channel))
    if made == NULL or idset_reserve(&q.seen, cap) < 0:
        free(made)
        return -1
    made.slots, made.reserved, made.cap = slots, reserved, cap
    scope_make(&made.scope, &q.asking)
    for tier in range(TIERS):
        set_node(&made.lanes[tier], &q.tiers[tier], &made.scope, made, q.channel_count, LANE, tier)
        made.is_paced = made.is_paced or q.pacing[tier] != PACE_ASAP
        if q.pacing[tier] != PACE_ASAP and make_pacing(q, &made.lanes[tier]) < 0:
            free_channel(made)
            return -1
    q.channels[q.channel_count] = made
    q.channel_count += 1
    return 0


cdef int queues_add_account(Queues* q, uint32_t channel) noexcept nogil:
    cdef void* grown = realloc(q.accounts, (q.account_count + 1) * sizeof(Account*))
    cdef uint8_t tier
    if grown == NULL:
        return -1
    q.accounts = <Account**>grown
    cdef Account* made = <Account*>calloc(1, sizeof(Account))
    cdef Channel* into = q.channels[channel]
    if made == NULL:
        return -1
    scope_make(&made.scope, &q.asking)
    for tier in range(TIERS):
        set_node(&made.leaves[tier], &into.lanes[tier], &made.scope, into, q.account_count, LEAF, tier)
    q.accounts[q.account_count] = made
    q.account_count += 1
    return 0


cdef Limit* queues_add_limit(
    Queues* q, Scope* scope, int unit, int calendar, uint64_t number, int64_t per, uint64_t reserved
) noexcept nogil:
    cdef void* grown = realloc(q.limits, (q.limit_count + 1) * sizeof(Limit*))
    cdef Limit* made
    if grown == NULL:
        return NULL
    q.limits = <Limit**>grown
    made = <Limit*>malloc(sizeof(Limit))
    if made == NULL:
        return NULL
    limit_make(made, q.limit_count, unit, calendar, number, per, reserved)
    scope_add(scope, made)
    q.limits[q.limit_count] = made
    q.limit_count += 1
    return made


cdef size_t queues_memory(const Queues* q) noexcept nogil:
    """Bytes that may be resident: the records, the tables and the output."""
    cdef const Output* out = &q.out
    return (
        sizeof(Queues) + store_bytes(&q.store) + q.queues.touched + q.nodes.touched + q.groups.touched
        + q.parcels.touched + q.by_key.bytes + q.branches.bytes + q.names.bytes + q.once.bytes
        + q.channel_count * sizeof(Channel) + q.account_count * sizeof(Account)
        + q.targets_room * sizeof(Target) + q.pacings * sizeof(Pacing)
        + (0 if q.early == NULL else EARLY * sizeof(Early))
        + out.batches_room * sizeof(BatchRow) + out.items_room * 19 + out.ids_room
    )


cdef void free_tenants(Queues* q) noexcept nogil:
    """Their limits."""
    cdef int i
    cdef size_t k
    cdef Group* group
    for i in range(SHARDS):
        for k in range(q.names.shards[i].size):
            group = <Group*>q.names.shards[i].slots[k].item
            if group != NULL:
                scope_free(&group.scope)


cdef void queues_free(Queues* q) noexcept nogil:
    cdef uint32_t i
    cdef int tier
    if q == NULL:
        return
    free_tenants(q)
    scope_free(&q.everything)
    for tier in range(TIERS):
        scope_free(&q.of_tier[tier])
        free(q.tiers[tier].pacing)
    free(q.early)
    free(q.limits)
    for i in range(q.channel_count):
        free_channel(q.channels[i])
    for i in range(q.account_count):
        scope_free(&q.accounts[i].scope)
        free(q.accounts[i])
    free(q.channels)
    free(q.accounts)
    store_free(&q.store)
    slab_free_all(&q.queues)
    slab_free_all(&q.nodes)
    slab_free_all(&q.groups)
    slab_free_all(&q.parcels)
    table_free(&q.by_key)
    table_free(&q.branches)
    table_free(&q.names)
    prints_free(&q.once)
    free(q.seen.slots)
    free(q.targets)
    free(q.out.batches)
    free(q.out.pushed)
    free(q.out.send)
    free(q.out.id_end)
    free(q.out.position)
    free(q.out.attempt)
    free(q.out.ids)
    free(q)


include "foresight.pxi"
include "pacing.pxi"
include "soundness.pxi"
