# distutils: include_dirs = ext
"""The scheduling algorithm, on plain records (queues.pxd), without Python objects.

In: rows of recipients, each row for one queue. Out: batches in ``Output``, recipients that ended here (expired or
cancelled), and what is held for so long that it need not wait here.
Invariants: pushed = popped + expired + cancelled + put off + queued + waiting, per tier; a queue is in its campaign's
ring iff READY; a node that is not held and has work is in its parent's ring; no window is ever over its number.
Never: reads a clock, walks queues to find work, cannot go on for lack of memory when a timer fires, or lets a recipient
leave after its deadline.

The records are one state machine, and the compiler sees it as a whole; it is included from push.pxi (what comes in),
batch.pxi (how a batch is formed), foresight.pxi (what is fetched ahead), pacing.pxi, shares.pxi, answers.pxi, ended.pxi
(cancel and reap), away.pxi (what is held for long), making.pxi and soundness.pxi. Here is what they share, more than
500 lines of it: nodes, the states of a queue, whose turn it is. What stands alone (slabs, FIFOs, rings, wheel, windows,
tables) is in the headers.
"""

from libc.stdint cimport INT64_MAX, INT64_MIN
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memcpy, memset

from ext.histogram cimport counts_observe
from ext.limits cimport (
    LIMIT_CALLS, LIMIT_NEVER, LIMIT_RECIPIENTS, REFUSED_BLOCKED, REFUSED_FULL, REFUSED_GRANT, REFUSED_NOT, Refusal,
    limit_ceiling, limit_make, limit_roll, limit_room, refusal_is_longer, scope_add, scope_free, scope_make,
    scopes_half, scopes_hold, scopes_limit, scopes_longest, scopes_most, scopes_refuse, scopes_settle,
)

from ext.pace cimport (
    PACE_ASAP, PACE_BELOW, PACE_FASTEST, PACE_NEAR_BITS, PACE_OVER, PACE_PATIENCE_NS, beside_count, beside_rate,
    capacity_end, capacity_rate, capacity_start, pace_add, pace_expects, pace_first, pace_is_sound, pace_leave,
    pace_has_passed, pace_interval, pace_make, pace_rate, pace_remove, pace_roll, pace_slot, pace_wait,
    pace_wait_no_more, pace_waits, pace_when,
)

cdef enum:
    OF_NODE, OF_QUEUE, OF_PARCEL, OF_PACING, OF_UNANSWERED  # whose timer it is

cdef enum:
    FIRED = 1024  # timers a call, some 70 us

cdef enum:  # queues of a campaign
    LOOKED_AT = 64  # when it is explained
    COMPARED = 8  # when it is its turn

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


# --- from a handle to what it tells; NULL: 0, nothing ---

cdef inline Queue* queue_at(const Queues* q, uint32_t handle) noexcept nogil:
    return NULL if handle == 0 else <Queue*>slab_at(&q.queues, handle)


cdef inline Node* node_at(const Queues* q, uint32_t handle) noexcept nogil:
    return NULL if handle == 0 else <Node*>slab_at(&q.nodes, handle)


cdef inline Group* group_at(const Queues* q, uint32_t handle) noexcept nogil:
    return NULL if handle == 0 else <Group*>slab_at(&q.groups, handle)


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


cdef inline void catch_up(const Queues* q, uint64_t* turns, uint8_t tier) noexcept nogil:
    """A tier that was away must not claim the turns it did not use; but the other's last one, for both are away
    whenever slots are few, and whose turn it is then must stay so."""
    if tier == SYSTEM:
        return
    cdef uint8_t other = TEMPLATE + BASIC - tier
    turns[tier] = max(turns[tier], turns[other] - min(turns[other], q.stride[other]))


cdef void activate(Queues* q, Node* node) noexcept nogil:
    """A leaf, lane or tier may have got work: it and those above take their places."""
    while node != &q.root and node.state == 0 and not ring_holds(&node.link) and has_members(node):
        if node.level == TIER_:
            catch_up(q, q.turns, node.tier)
        elif node.level == LANE:
            catch_up(q, node.channel.turns, node.tier)
        else:
            catch_up(q, q.accounts[node.handle].turns, node.tier)
        ring_append(&node.parent.ring, &node.link)
        place(q, node)
        node = node.parent
    if node.state:
        note_held(q, node)


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
            note_held(q, node)
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
    if ring_holds(&node.away):
        ring_remove(&node.away)
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
    note_held(q, node)
    ring_append(&scope.parked, &node.halt)
    if no.until != LIMIT_NEVER:
        wheel_arm(&q.wheel, &node.timer, no.until)


cdef void unpark(Queues* q, Node* node) noexcept nogil:
    wheel_disarm(&q.wheel, &node.timer)
    ring_remove(&node.halt)
    let_go(q, node, PARKED)


cdef void ask_again(Queues* q, Node* node) noexcept nogil:
    """Of what is below it some will not leave for now: if that is what did not fit, others may. And above."""
    while node != &q.root:
        if node.state & PARKED:
            unpark(q, node)
        node = node.parent


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
        found = group_at(q, table_next(&q.names, key, &cursor))
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
    if table_add(&q.names, key, made) < 0:
        slab_free(&q.groups, made)
        return NULL
    ring_make(&found.members)
    found.key_hash = key
    found.tenant, found.campaign, found.level = tenant, campaign, level
    found.weight, found.paused, found.paused_until, found.nodes = 1, False, 0, 0
    found.self = made
    scope_make(&found.scope, &q.asking)
    return found


cdef inline bint stays(const Group* group) noexcept nogil:
    """Something is to be remembered of it: a pause, a weight, limits, or calls on their way."""
    return group.paused or group.weight != 1 or group.scope.limits != NULL or group.scope.held[LIMIT_CALLS]


cdef void free_group_if_idle(Queues* q, Group* group) noexcept nogil:
    if ring_first(&group.members) == NULL and not stays(group):
        table_remove(&q.names, group.key_hash, group.self)
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


cdef inline uint64_t branch_hash(const Node* parent, uint32_t handle) noexcept nogil:
    return mix64(<uint64_t>parent, handle)


cdef Node* find_branch(Queues* q, const Node* parent, uint32_t handle, uint64_t key) noexcept nogil:
    cdef size_t cursor = 0
    cdef Node* node
    while True:
        node = node_at(q, table_next(&q.branches, key, &cursor))
        if node == NULL or (node.parent == parent and node.handle == handle):
            return node


cdef Node* branch_of(Queues* q, Node* parent, uint8_t level, uint32_t tenant, uint32_t campaign) noexcept nogil:
    """The tenant of a leaf, or the campaign of a tenant of a leaf: found, or made."""
    cdef uint32_t handle = tenant if level == TENANT else campaign
    cdef uint64_t key = branch_hash(parent, handle)
    cdef Node* node = find_branch(q, parent, handle, key)
    cdef Group* group
    cdef Group* share = NULL
    cdef uint32_t made
    if node != NULL:
        return node
    group = group_of(q, level, tenant, campaign if level == CAMPAIGN_ else 0)
    if group == NULL:
        return NULL
    if level == TENANT and parent.channel.each.limits != NULL:
        share = share_of(q, tenant, parent.parent.handle)
        if share == NULL:
            free_group_if_idle(q, group)
            return NULL
    made = 0 if slab_reserve(&q.nodes, 1) < 0 else slab_take(&q.nodes)
    node = NULL if made == 0 else <Node*>slab_at(&q.nodes, made)
    if node == NULL or table_add(&q.branches, key, made) < 0:
        if node != NULL:
            slab_free(&q.nodes, made)
        if share != NULL:
            leave_share(q, share)
        free_group_if_idle(q, group)
        return NULL
    set_node(node, parent, NULL if share == NULL else &share.scope, parent.channel, handle, level, parent.tier)
    if share != NULL:
        share.nodes += 1
    node.self, node.key_hash, node.group, node.weight = made, key, group, group.weight
    ring_append(&group.members, &node.sibling)
    if level == CAMPAIGN_:
        parent.children += 1
    if group.paused:
        node.paused_until = group.paused_until
        hold(q, node, PAUSED)
    return node


cdef void free_if_idle(Queues* q, Node* node) noexcept nogil:
    """Frees a tenant or campaign that has nothing and waits for no turn; a campaign's tenant too."""
    cdef Node* parent
    while node.level >= TENANT and node.children == 0 and not ring_holds(&node.link):
        parent = node.parent
        if node.state:  # else no timer runs, and no list of those that are held has it
            wheel_disarm(&q.wheel, &node.timer)
            ring_remove(&node.held)
            if ring_holds(&node.halt):
                ring_remove(&node.halt)
            if ring_holds(&node.away):
                ring_remove(&node.away)
        ring_remove(&node.sibling)
        free_group_if_idle(q, node.group)
        if node.level == TENANT and node.scope != NULL:
            share_at(node.scope).nodes -= 1
            leave_share(q, share_at(node.scope))
        table_remove(&q.branches, node.key_hash, node.self)
        if node.level == CAMPAIGN_:
            parent.children -= 1
        slab_free(&q.nodes, node.self)
        node = parent


cdef inline uint32_t account_of(const Queue* queue) noexcept nogil:
    return queue.place >> 2


cdef inline uint8_t tier_of(const Queue* queue) noexcept nogil:
    return queue.place & 3


cdef inline Node* leaf_at(const Queues* q, uint32_t place) noexcept nogil:
    return &q.accounts[place >> 2].leaves[place & 3]


cdef inline uint64_t queue_hash(
    uint32_t place, uint32_t tenant, uint32_t campaign, uint32_t content
) noexcept nogil:
    return mix64(<uint64_t>place << 32 | content, <uint64_t>tenant << 32 | campaign)


cdef inline bint is_queue_of(const Queue* queue, const Row* row, uint8_t haste) noexcept nogil:
    return memcmp(&queue.content, &row.content, 4 * sizeof(uint32_t)) == 0 and queue.haste == haste


cdef Queue* find_queue(Queues* q, const Row* row, const Target* target) noexcept nogil:
    cdef size_t cursor = 0
    cdef Queue* found
    while True:
        found = queue_at(q, table_next(&q.by_key, target.key_hash, &cursor))
        if found == NULL or is_queue_of(found, row, target.haste):
            return found


cdef Queue* make_queue(Queues* q, Node* branch, const Row* row, const Target* target, bint mixed) noexcept nogil:
    cdef uint32_t made
    cdef Queue* queue
    if slab_reserve(&q.queues, 1) < 0:
        return NULL
    made = slab_take(&q.queues)
    queue = <Queue*>slab_at(&q.queues, made)
    if not mixed and table_add(&q.by_key, target.key_hash, made) < 0:
        slab_free(&q.queues, made)
        return NULL
    memset(queue, 0, sizeof(Queue))
    fifo_make(&queue.fifo)
    timer_make(&queue.timer, OF_QUEUE)
    queue.tenant, queue.campaign, queue.content, queue.place = row.tenant, row.campaign, row.content, row.place
    queue.mixed, queue.self = mixed, made
    queue.branch = branch
    queue.haste = target.haste
    queue.last_due = INT64_MIN
    queue.slot = passed_slot(branch)
    queue.turn.owner = queue
    ring_append(&branch.queues, &queue.sibling)
    branch.children += 1
    if mixed:
        branch.mixed[queue.haste & AT_ONCE > 0] = queue
    q.counts[tier_of(queue)].flows += 1
    return queue


cdef void forget_queue(Queues* q, Queue* queue) noexcept nogil:
    """Out of the tables and off its campaign: a push of its key makes a new one."""
    cdef Node* branch = queue.branch
    if queue.mixed:
        branch.mixed[queue.haste & AT_ONCE > 0] = NULL
    else:
        table_remove(&q.by_key, hash_of(queue, queue.content), queue.self)
    ring_remove(&queue.sibling)
    queue.branch = NULL
    q.counts[tier_of(queue)].flows -= 1
    branch.children -= 1
    free_if_idle(q, branch)


cdef inline uint64_t hash_of(const Queue* queue, uint32_t content) noexcept nogil:
    return queue_hash(queue.place, queue.tenant, queue.campaign, content)


cdef Queue* new_queue_for(Queues* q, const Row* row, Target* target) noexcept nogil:
    """The queue of a row that finds none of its own, made if need be; NULL: no memory.

    A campaign has so many queues of its own in a leaf; a content beyond them goes to the campaign's mixed queue the
    first time, and gets its own the second: a million contents seen once are one queue.
    """
    cdef Queue* queue = NULL
    cdef Node* branch
    cdef int known = 0
    branch = branch_of(q, leaf_at(q, row.place), TENANT, row.tenant, 0)
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
        queue = make_queue(q, branch, row, target, False)
    elif known > 0:
        target.first = True
        queue = branch.mixed[target.haste & AT_ONCE > 0]
        if queue == NULL:
            queue = make_queue(q, branch, row, target, True)
        if queue == NULL:
            prints_remove(&q.once, target.key_hash)
    if queue == NULL:
        free_if_idle(q, branch)
    return queue


# --- the states of a queue ---

cdef inline Node* leaf_of(const Queue* queue) noexcept nogil:
    return queue.branch.parent.parent


cdef inline Node* counting(const Queues* q, const Queue* queue) noexcept nogil:
    """Where the recipients of a READY queue are counted first."""
    return <Node*>slab_at(&q.nodes, queue.counts_in & ~<uint32_t>ALONE)


cdef inline void count_ready(Queues* q, const Queue* queue, int64_t n) noexcept nogil:
    """n recipients more in a READY queue, or less, for its campaign and tenant.

    The only one of its campaign is counted by its tenant alone: with many flows a push would find the campaign in no
    cache, and who asks can look at the queue.
    """
    cdef Node* node = counting(q, queue)
    node.queued += n
    if not queue.counts_in & ALONE:
        node.parent.queued += n


cdef inline void count_in_campaign(Queue* queue, bint alone) noexcept nogil:
    """From now on, or no more; the tenant's sum is the same."""
    cdef Node* campaign = queue.branch
    if alone:
        queue.counts_in = campaign.parent.self | ALONE
        campaign.queued = 0
    else:
        queue.counts_in = campaign.self
        campaign.queued = queue.fifo.count


cdef inline uint64_t ready_below(const Node* node) noexcept nogil:
    """Recipients in READY queues of a tenant or campaign."""
    if node.level == CAMPAIGN_ and node.ready == 1:
        return queue_of(node.ring.next).fifo.count
    return node.queued


cdef inline void count_state(Queues* q, const Queue* queue, Node* leaf, int64_t n) noexcept nogil:
    """n recipients more in the state its queue is in, or less."""
    if queue.state == LINGERING:
        leaf.lingering += n
    elif queue.state == READY:
        count_ready(q, queue, n)
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
        if queue.branch.ready == 1:
            count_in_campaign(queue_of(ring_first(&queue.branch.ring)), True)
    queue.state = IDLE


cdef void make_ready(Queues* q, Queue* queue) noexcept nogil:
    cdef Node* campaign = queue.branch
    rest(q, queue)
    if campaign.ready == 1:
        count_in_campaign(queue_of(ring_first(&campaign.ring)), False)
    queue.counts_in = campaign.self if campaign.ready else campaign.parent.self | ALONE
    queue.state = READY
    count_state(q, queue, leaf_of(queue), queue.fifo.count)
    ring_append(&campaign.ring, &queue.link)
    add_ready(q, campaign, 1)
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


# --- time ---

cdef void fire_queue(Queues* q, Queue* queue) noexcept nogil:
    if queue.state == DEAD:
        return
    if queue.state == LINGERING and queue.fifo.close <= q.now:
        make_ready(q, queue)
    if queue.fifo.deadline <= q.now and not ring_holds(&queue.sweep):
        ring_append(&q.sweeping, &queue.sweep)
    arm(q, queue)


cdef inline void fire(Queues* q, Timer* timer) noexcept nogil:
    if timer_kind(timer) == OF_QUEUE:
        fire_queue(q, timed_queue(timer))
    elif timer_kind(timer) == OF_PARCEL:
        wake(q, <Parcel*>timer)
    elif timer_kind(timer) == OF_PACING:
        let_go(q, timed_lane(timer), HELD_BACK)
    elif timer_kind(timer) == OF_UNANSWERED:
        settle_unanswered(q, <Unanswered*>timer)
    else:
        unpark(q, timed_node(timer))


cdef void queues_advance(Queues* q, int64_t now) noexcept nogil:
    """Fires what is due, FIRED timers at most: the rest is fired by the next call. Time never goes back."""
    cdef Timer* timer
    cdef int _i
    q.now = max(q.now, now)
    for _i in range(FIRED):
        timer = wheel_fire(&q.wheel, q.now)
        if timer == NULL:
            return
        fire(q, timer)


# --- what may go ---

cdef inline Node* next_tier(Queues* q) noexcept nogil:
    cdef Node* tiers = q.tiers
    if ring_holds(&tiers[SYSTEM].link):
        return &tiers[SYSTEM]
    if not ring_holds(&tiers[BASIC].link):
        return &tiers[TEMPLATE] if ring_holds(&tiers[TEMPLATE].link) else NULL
    if not ring_holds(&tiers[TEMPLATE].link):
        return &tiers[BASIC]
    return &tiers[TEMPLATE] if q.turns[TEMPLATE] <= q.turns[BASIC] else &tiers[BASIC]


cdef inline bint has_slot(const Channel* channel, uint8_t tier) noexcept nogil:
    cdef uint32_t others = channel.in_flight[TEMPLATE] + channel.in_flight[BASIC]
    if others + channel.in_flight[SYSTEM] >= channel.slots:
        return False
    return tier == SYSTEM or others < channel.slots - channel.reserved


cdef enum:
    PATH = 6


cdef inline int path_of(Queues* q, Node* leaf, Group* tenant, Scope* share, Scope** path) noexcept nogil:
    """Whose limits a batch of a tenant in a leaf is charged to, the widest first; how many. share: or NULL."""
    path[0], path[1], path[2], path[3] = &q.everything, &q.of_tier[leaf.tier], leaf.parent.scope, leaf.scope
    path[4], path[5] = &tenant.scope, share
    return PATH - (share == NULL)


cdef inline Node* keeps(Node* tenant, int scope) noexcept nogil:
    """What must wait when this scope of the path refuses: all of it that is below one node."""
    cdef int _up
    for _up in range(4 - max(scope, 1)):
        tenant = tenant.parent
    return tenant


cdef inline int64_t has_until(const Queues* q, const Queue* queue) noexcept nogil:
    """So long its next batch may wait for room: to the horizon, but half of the time to its first deadline at most."""
    cdef int64_t wait = min(q.horizon, INT64_MAX - q.now)
    if queue.fifo.deadline < INT64_MAX:
        wait = min(wait, max(queue.fifo.deadline - q.lead - q.now, <int64_t>0) // 2)
    return q.now + wait


cdef Refusal ask(Queues* q, const Queue* queue, Scope** path, int length, uint32_t* n) noexcept nogil:
    """How many of a queue's next n recipients go in a call, and what refuses them now. Where so many would have to wait
    too long, for a day's limit mostly, those go that there will be room for in time."""
    cdef Refusal no
    cdef uint32_t room
    cdef bint system = tier_of(queue) == SYSTEM
    cdef int64_t until = has_until(q, queue)
    n[0] = <uint32_t>scopes_most(path, length, q.now, n[0], system)
    no = scopes_refuse(path, length, q.now, n[0], system)
    while no.why == REFUSED_FULL and no.limit.unit == LIMIT_RECIPIENTS and until < no.until < LIMIT_NEVER:
        room = <uint32_t>limit_room(no.limit, until, n[0], system)
        if room == n[0]:
            break
        n[0] = room
        no = scopes_refuse(path, length, q.now, n[0], system)
    return no


cdef bint refused(Queues* q, const Queue* queue, Scope** path, int length, uint32_t* n) noexcept nogil:
    """True: n recipients may not go in one call now, and what keeps them is parked. Else n is how many may."""
    cdef Refusal no = ask(q, queue, path, length, n)
    if no.why == REFUSED_NOT:
        return False
    park(q, keeps(queue.branch.parent, no.scope), path[no.scope], no)
    return True


cdef void charge(Queues* q, const Queue* queue, Scope** path, int length, uint32_t n) noexcept nogil:
    cdef Node* leaf = leaf_of(queue)
    scopes_hold(path, length, n)
    leaf.channel.in_flight[leaf.tier] += 1
    note_call(q, leaf.parent, queue)
    q.counts[leaf.tier].popped += n
    counts_observe(leaf.channel.batch_recipients, n, 1)


cdef void tidy(Queues* q, Node* node) noexcept nogil:
    """The turn of one that has lost its work: it leaves; of a tenant, first its campaigns that have."""
    cdef Node* first = node
    if node.level == TENANT and has_members(node):
        first = node_of(ring_first(&node.fresh) if ring_first(&node.fresh) != NULL else ring_first(&node.ring))
    foresee_tidy(q, first)
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
        node.deficit += <int64_t>node.channel.cap * node.weight  # a batch's debt is less: it may go
    return node


cdef inline void end_turn(Node* node) noexcept nogil:
    node.parent.fresh_had = min(node.parent.fresh_had, FRESH_RUN - 1) + 1 if node.is_fresh else 0
    node.is_fresh = False
    node.owed = True
    ring_remove(&node.link)
    ring_append(&node.parent.ring, &node.link)


cdef inline uint32_t cost_of(uint32_t n, uint32_t cap) noexcept nogil:
    """A batch's, in fair turns."""
    return max(n, (cap + LEAST_COST - 1) // LEAST_COST)


cdef void pay(Node* node, uint32_t cost) noexcept nogil:
    """For a batch, out of the deficit of this turn; without work there is nothing to save it for."""
    node.deficit -= cost
    if node.ready == 0:
        node.deficit = min(node.deficit, 0)
    if node.ready == 0 or node.deficit <= 0:
        end_turn(node)


cdef inline Node* behind(Node* node, Node* others, const uint64_t* turns) noexcept nogil:
    """Of template's and basic's nodes in a channel or account, where both have something to send by fair shares, the
    one that had less there: elsewhere one of them may have had more."""
    cdef Node* other = node if node.tier == SYSTEM else &others[TEMPLATE + BASIC - node.tier]
    if not ring_holds(&other.link) or turns[other.tier] >= turns[node.tier]:
        return node
    cdef Node* lane = lane_above(other)
    return node if goes_by_due(lane) or not ring_holds(&lane.link) or lane.parent.state else other


cdef inline Node* choose_lane(Node* tier) noexcept nogil:
    cdef void* first = pace_first(&tier.pacing.pace) if goes_by_due(tier) else NULL
    cdef Node* lane = <Node*>first if first != NULL else node_of(ring_first(&tier.ring))
    return behind(lane, lane.channel.lanes, lane.channel.turns)


cdef inline Queue* first_due(Node* lane, Node* campaign) noexcept nogil:
    """Of the campaign's next queues the one that is due first, where due times are known; else the next."""
    cdef Link* link = ring_first(&campaign.ring)
    cdef Queue* first = queue_of(link)
    cdef Queue* queue
    cdef int _i
    if lane.pacing == NULL:
        return first
    for _i in range(COMPARED - 1):
        link = link.next
        if link == &campaign.ring:
            break
        queue = queue_of(link)
        if <int32_t>(queue.slot - first.slot) < 0:
            first = queue
    return first


cdef Queue* choose(Queues* q, Node* lane) noexcept nogil:
    """The queue of a lane whose turn it is; NULL: a turn was nobody's."""
    if lane.pacing != NULL and (goes_by_due(lane) and pace_first(&lane.pacing.pace) != NULL or is_away(lane)):
        return due_first(q, lane)
    cdef Node* leaf = node_of(ring_first(&lane.ring))
    leaf = behind(leaf, q.accounts[leaf.handle].leaves, q.accounts[leaf.handle].turns)
    cdef Node* tenant = turn_of(q, leaf)
    cdef Node* campaign = NULL if tenant == NULL else turn_of(q, tenant)
    if campaign == NULL:
        return NULL
    foresee_turns(q, tenant, campaign)
    return first_due(leaf.parent, campaign)


cdef void after_batch(Queues* q, Queue* queue, uint32_t n) noexcept nogil:
    """Where the queue stands now, and whose turns are over."""
    cdef Node* campaign = queue.branch
    cdef Node* tenant = campaign.parent
    cdef Node* leaf = tenant.parent
    cdef uint32_t cap = leaf.channel.cap
    cdef uint32_t cost = cost_of(n, cap)
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
        place_last(q, leaf.parent)


cdef inline uint32_t next_batch(Queues* q, const Queue* queue, uint32_t* content) noexcept nogil:
    """How many could go in one batch as far as the queue knows, and their content."""
    cdef uint32_t most = min(queue.fifo.count, queue.branch.channel.cap)
    content[0] = queue.content
    return next_alike(q, queue, most, content) if queue.mixed else most


cdef uint32_t next_alike(Queues* q, const Queue* queue, uint32_t most, uint32_t* content) noexcept nogil:
    """Of a mixed queue."""
    cdef uint32_t n, other
    cdef Fifo fifo = queue.fifo
    cdef Rec rec
    memcpy(content, fifo_first(&q.store, &fifo, &rec), sizeof(content[0]))
    for n in range(1, most):
        fifo_step(&q.store, &fifo, &rec, True)
        memcpy(&other, fifo_first(&q.store, &fifo, &rec), sizeof(other))
        if other != content[0]:
            return n
    return most


cdef uint32_t send_batch(
    Queues* q, Queue* queue, Scope** path, int length, uint32_t most, uint32_t content, bint more
) noexcept nogil:
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
    forming.waits, forming.late = leaf.channel.queue_wait[leaf.tier], q.lateness[leaf.tier]
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
    charge(q, queue, path, length, n)
    after_batch(q, queue, n)
    return n


cdef uint32_t visit(Queues* q, Node* tier) noexcept nogil:
    """One turn of a tier: a batch goes (its size is returned), or a node that may not go leaves its ring."""
    cdef Node* lane = choose_lane(tier)
    cdef Node* tenant
    cdef Node* leaf
    cdef Queue* queue
    cdef Scope* path[PATH]
    cdef uint32_t content, there, most, n
    cdef int length
    if not has_slot(lane.channel, lane.tier):
        hold(q, lane, BLOCKED)
        return 0
    if lane.pacing != NULL and held_back(q, lane):
        return 0
    queue = choose(q, lane)
    if queue == NULL:
        return 0
    tenant = queue.branch.parent
    length = path_of(q, tenant.parent, tenant.group, tenant.scope, path)
    most = there = next_batch(q, queue, &content)
    if scopes_limit(path, length, q.now) and refused(q, queue, path, length, &most):
        return 0
    leaf = tenant.parent
    n = send_batch(q, queue, path, length, most, content, most < there)
    if n:  # whoever's batch it was: the turns that led to it are over
        q.turns[tier.tier] += q.stride[tier.tier]
        lane.channel.turns[lane.tier] += q.stride[lane.tier]
        q.accounts[leaf.handle].turns[leaf.tier] += q.stride[leaf.tier]
    return n


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


# --- what an operator changes ---

cdef void queues_pause(Queues* q, Node* node, bint paused, int64_t until) noexcept nogil:
    """Nothing of the node leaves until it is resumed; it takes no turns meanwhile, and claims none afterwards."""
    if paused:
        hold(q, node, PAUSED)
        node.paused_until = until
        note_held(q, node)
        ask_again(q, node.parent)
        free_if_idle(q, node)
    elif node.state & PAUSED:
        let_go(q, node, PAUSED)


cdef int queues_pause_group(
    Queues* q, uint8_t level, uint32_t tenant, uint32_t campaign, bint paused, int64_t until
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
    group.paused, group.paused_until = True, until  # it stays while its nodes change
    member = ring_first(&group.members)
    while member != NULL:
        node = member_of(member)
        member = NULL if member.next == &group.members else member.next
        queues_pause(q, node, paused, until)
    group.paused = paused
    free_group_if_idle(q, group)
    return 0


cdef int queues_reweight(
    Queues* q, uint8_t level, uint32_t tenant, uint32_t campaign, uint32_t weight
) noexcept nogil:
    """From its next turn on; what it owes stays, and what it has left of this one up to what the new weight gives.
    O(its nodes). -1: no memory, and nothing has changed."""
    cdef Group* group = group_of(q, level, tenant, campaign)
    cdef Link* member
    cdef Node* node
    if group == NULL:
        return -1
    group.weight = weight
    member = group.members.next
    while member != &group.members:
        node = member_of(member)
        node.weight, node.deficit = weight, min(node.deficit, <int64_t>node.channel.cap * weight)
        member = member.next
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
            kept_by(&kept, above)[0] -= ready_below(node)
            kept_by(&kept, above | node.state)[0] += ready_below(node)
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
            n -= ready_below(node)
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
    reason.level = SHARE if no.scope == 5 else <uint8_t>no.scope  # ROOT is everything's, and so on down
    reason.until, reason.rate = no.until, 0
    reason.limit = 0 if no.limit == NULL else no.limit.handle + 1


cdef Refusal parked_longest(const Node* campaign) noexcept nogil:
    """What a node above it is parked for, with another's batch maybe: that is who refuses next."""
    cdef const Node* node = campaign.parent
    cdef Refusal longest
    longest.why = REFUSED_NOT
    while node != NULL:
        if node.state & PARKED and refusal_is_longer(&longest, &node.kept):
            longest = node.kept
        node = node.parent
    return longest


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
    cdef Refusal no, parked
    cdef uint32_t content, n
    cdef int length
    memset(reason, 0, sizeof(Reason))
    reason.tier, reason.account, reason.ready = leaf.tier, leaf.handle, ready_below(campaign)
    reason.until = INT64_MAX
    if explain_pause(campaign, reason):
        return
    if ring_first(&campaign.ring) == NULL:
        explain_time(campaign, reason)
        return
    parked = parked_longest(campaign)
    paced = paced and parked.why == REFUSED_NOT
    if paced:
        explain_rate(campaign, reason)
    elif parked.why == REFUSED_NOT and not has_slot(leaf.channel, leaf.tier):
        reason.why, reason.level = OF_SLOT, LANE
        return
    queue = queue_of(ring_first(&campaign.ring))
    length = path_of(q, leaf, tenant.group, tenant.scope, path)
    n = next_batch(q, queue, &content)
    ask(q, queue, path, length, &n)
    no = scopes_longest(path, length, q.now, n, leaf.tier == SYSTEM)
    if parked.why != REFUSED_NOT and not refusal_is_longer(&parked, &no):
        no = parked
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


include "push.pxi"
include "batch.pxi"
include "foresight.pxi"
include "shares.pxi"
include "pacing.pxi"
include "answers.pxi"
include "ended.pxi"
include "away.pxi"
include "making.pxi"
include "soundness.pxi"
