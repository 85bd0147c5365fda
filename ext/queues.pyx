# distutils: include_dirs = ext
"""The scheduling algorithm, on plain records (queues.pxd), without Python objects.

In: runs of recipients, each for one flow. Out: batches in ``Output``, and recipients that ended here (expired or
cancelled) on the ended list.
Invariants: pushed = popped + expired + cancelled + queued + waiting, per tier; a flow is in its leaf's ring iff READY;
a node is in its parent's ring iff it is OPEN and its own ring is not empty; no window is ever over its number.
Never: reads a clock, walks flows to find work, allocates while a timer fires, or lets a recipient leave after its
deadline.

One file of more than 500 lines, because the records are one state machine and the compiler sees it as a whole; what
stands alone (rings, wheel, windows, tables) is in the headers.
"""

from libc.stdint cimport INT64_MAX
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy

from ext.histogram cimport counts_observe
from ext.limits cimport (
    LIMIT_NEVER, REFUSED_NOT, Refusal, limit_make, scope_add, scope_free, scope_make, scopes_hold, scopes_most,
    scopes_refuse, scopes_settle,
)

cdef enum:
    NODE, FLOW, RUN  # whose timer it is; the timer is the first member of all three


# --- runs and chains ---

cdef inline uint16_t* positions_of(Run* run) noexcept nogil:
    return <uint16_t*>(run + 1)


cdef inline uint8_t* lengths_of(Run* run) noexcept nogil:
    return <uint8_t*>(positions_of(run) + run.size)


cdef inline uint8_t* ids_of(Run* run) noexcept nogil:
    return lengths_of(run) + run.size


cdef inline void chain_append(Chain* chain, Run* run) noexcept nogil:
    run.prev = chain.last
    run.next = NULL
    if chain.last == NULL:
        chain.first = run
    else:
        chain.last.next = run
    chain.last = run


cdef inline void chain_remove(Chain* chain, Run* run) noexcept nogil:
    if run.prev == NULL:
        chain.first = run.next
    else:
        run.prev.next = run.next
    if run.next == NULL:
        chain.last = run.prev
    else:
        run.next.prev = run.prev


cdef inline void chain_splice(Chain* chain, Chain* tail) noexcept nogil:
    if tail.first == NULL:
        return
    tail.first.prev = chain.last
    if chain.last == NULL:
        chain.first = tail.first
    else:
        chain.last.next = tail.first
    chain.last = tail.last
    tail.first = tail.last = NULL


cdef inline void free_run(Queues* q, Run* run) noexcept nogil:
    q.memory -= run.bytes
    free(run)


cdef inline int64_t since(int64_t now, int64_t time) noexcept nogil:
    """0 for a time that lies ahead; now >= 0."""
    return 0 if time >= now else INT64_MAX if time < now - INT64_MAX else now - time


cdef inline int64_t later(int64_t time, int64_t by) noexcept nogil:
    """Both >= 0."""
    return INT64_MAX if by > INT64_MAX - time else time + by


cdef inline int64_t must_close(const Queues* q, const Run* run) noexcept nogil:
    """When a batch with this run should go for the run's own sake; its deadline lies ahead, so this cannot overflow."""
    return min(run.due, INT64_MAX if run.deadline == INT64_MAX else run.deadline - q.lead)


# --- nodes ---

cdef inline void catch_up(Queues* q, Node* tier) noexcept nogil:
    """A tier that was away must not claim the turns it did not use."""
    if tier.tier == SYSTEM:
        return
    cdef Node* other = &q.tiers[TEMPLATE + BASIC - tier.tier]
    if ring_holds(&other.link):
        tier.turn = max(tier.turn, other.turn)


cdef void activate(Queues* q, Node* node) noexcept nogil:
    """The node may have got something ready: it and those above take their places."""
    while node != &q.root and node.state == OPEN and not ring_holds(&node.link) and ring_first(&node.ring) != NULL:
        if node.parent == &q.root:
            catch_up(q, node)
        ring_append(&node.parent.ring, &node.link)
        node = node.parent


cdef void deactivate(Queues* q, Node* node) noexcept nogil:
    """The node leaves its parent's ring, and so does every one above that has nothing else."""
    while node != &q.root and ring_holds(&node.link):
        ring_remove(&node.link)
        node = node.parent
        if ring_first(&node.ring) != NULL:
            return


cdef void park(Queues* q, Node* node, Scope* scope, int64_t until) noexcept nogil:
    """Until then (LIMIT_NEVER: that is not known), or until the scope changes."""
    deactivate(q, node)
    node.state = PARKED
    ring_append(&scope.parked, &node.halt)
    if until != LIMIT_NEVER:
        wheel_arm(&q.wheel, &node.timer, until)


cdef void unpark(Queues* q, Node* node) noexcept nogil:
    wheel_disarm(&q.wheel, &node.timer)
    ring_remove(&node.halt)
    node.state = OPEN
    activate(q, node)


cdef void queues_reconsider(Queues* q, Scope* scope) noexcept nogil:
    """What the scope keeps may ask again: an answer, a grant or another number came."""
    cdef Node* node = <Node*>ring_first(&scope.parked)
    while node != NULL:
        unpark(q, node)
        node = <Node*>ring_first(&scope.parked)


# --- flows ---

cdef inline uint64_t flow_hash(const Node* leaf, uint32_t tenant, uint32_t campaign, uint32_t content) noexcept nogil:
    return mix64(mix64(<uint64_t>leaf.handle << 2 | leaf.tier, content), <uint64_t>tenant << 32 | campaign)


cdef inline uint64_t campaign_hash(uint32_t tenant, uint32_t campaign) noexcept nogil:
    return mix64(<uint64_t>tenant << 32 | campaign, 1)


cdef Campaign* find_campaign(Queues* q, uint32_t tenant, uint32_t campaign) noexcept nogil:
    cdef uint64_t key = campaign_hash(tenant, campaign)
    cdef size_t cursor = 0
    cdef Campaign* found = <Campaign*>table_next(&q.campaigns, key, &cursor)
    while found != NULL and not (found.tenant == tenant and found.campaign == campaign):
        found = <Campaign*>table_next(&q.campaigns, key, &cursor)
    return found


cdef Campaign* make_campaign(Queues* q, uint32_t tenant, uint32_t campaign) noexcept nogil:
    cdef Campaign* made = <Campaign*>calloc(1, sizeof(Campaign))
    if made == NULL:
        return NULL
    made.tenant = tenant
    made.campaign = campaign
    ring_make(&made.flows)
    if table_add(&q.campaigns, campaign_hash(tenant, campaign), made) < 0:
        free(made)
        return NULL
    q.memory += sizeof(Campaign)
    return made


cdef void free_campaign_if_empty(Queues* q, Campaign* campaign) noexcept nogil:
    if ring_first(&campaign.flows) != NULL:
        return
    table_remove(&q.campaigns, campaign_hash(campaign.tenant, campaign.campaign), campaign)
    q.memory -= sizeof(Campaign)
    free(campaign)


cdef Flow* find_flow(Queues* q, Node* leaf, uint32_t tenant, uint32_t campaign, uint32_t content) noexcept nogil:
    cdef uint64_t key = flow_hash(leaf, tenant, campaign, content)
    cdef size_t cursor = 0
    cdef Flow* found
    while True:
        found = <Flow*>table_next(&q.flows, key, &cursor)
        if found == NULL or (
            found.leaf == leaf and found.content == content
            and found.campaign.tenant == tenant and found.campaign.campaign == campaign
        ):
            return found


cdef Flow* make_flow(Queues* q, Node* leaf, uint32_t tenant, uint32_t campaign, uint32_t content) noexcept nogil:
    cdef Campaign* group = find_campaign(q, tenant, campaign)
    if group == NULL:
        group = make_campaign(q, tenant, campaign)
        if group == NULL:
            return NULL
    cdef Flow* flow = <Flow*>calloc(1, sizeof(Flow))
    if flow == NULL or table_add(&q.flows, flow_hash(leaf, tenant, campaign, content), flow) < 0:
        free(flow)
        free_campaign_if_empty(q, group)
        return NULL
    timer_make(&flow.timer, FLOW)
    flow.link.owner = flow.sibling.owner = flow
    flow.leaf = leaf
    flow.campaign = group
    flow.content = content
    flow.close = INT64_MAX
    ring_append(&group.flows, &flow.sibling)
    q.memory += sizeof(Flow)
    q.counts[leaf.tier].flows += 1
    return flow


cdef void forget_flow(Queues* q, Flow* flow) noexcept nogil:
    """Out of the tables: a push of its key makes a new one."""
    cdef Campaign* group = flow.campaign
    table_remove(&q.flows, flow_hash(flow.leaf, group.tenant, group.campaign, flow.content), flow)
    ring_remove(&flow.sibling)
    free_campaign_if_empty(q, group)
    flow.campaign = NULL
    q.counts[flow.leaf.tier].flows -= 1


cdef void free_flow(Queues* q, Flow* flow) noexcept nogil:
    q.memory -= sizeof(Flow)
    free(flow)


cdef inline void count_queued(Queues* q, Flow* flow, int64_t n) noexcept nogil:
    flow.queued += n
    flow.leaf.queued += n
    q.counts[flow.leaf.tier].queued += n
    if flow.state == LINGERING:
        flow.leaf.lingering += n


cdef inline void count_waiting(Queues* q, Run* run, int64_t n) noexcept nogil:
    if run.attempt:
        run.flow.retries += n
        q.counts[run.tier].retries += n
    else:
        run.flow.scheduled += n
        q.counts[run.tier].scheduled += n


cdef void rest(Queues* q, Flow* flow) noexcept nogil:
    """The flow is neither ready nor lingering any more."""
    if flow.state == LINGERING:
        wheel_disarm(&q.wheel, &flow.timer)
        flow.leaf.lingering -= flow.queued
    elif flow.state == READY:
        ring_remove(&flow.link)
        flow.deficit = min(flow.deficit, 0)
        if ring_first(&flow.leaf.ring) == NULL:
            deactivate(q, flow.leaf)
    flow.state = IDLE


cdef void make_ready(Queues* q, Flow* flow) noexcept nogil:
    rest(q, flow)
    flow.state = READY
    flow.fresh = True
    ring_append(&flow.leaf.ring, &flow.link)
    activate(q, flow.leaf)


cdef void make_linger(Queues* q, Flow* flow) noexcept nogil:
    rest(q, flow)
    flow.state = LINGERING
    flow.leaf.lingering += flow.queued
    if flow.close != INT64_MAX:
        wheel_arm(&q.wheel, &flow.timer, flow.close)


cdef void rest_if_empty(Queues* q, Flow* flow) noexcept nogil:
    """Frees a flow of which nothing is left."""
    if flow.queued:
        return
    rest(q, flow)
    flow.close = INT64_MAX
    if flow.runs == 0:
        forget_flow(q, flow)
        free_flow(q, flow)


cdef int64_t earliest_close(const Flow* flow) noexcept nogil:
    cdef int64_t close = INT64_MAX
    cdef const Run* run = flow.fifo.first
    while run != NULL:
        close = min(close, run.close)
        run = run.next
    return close


# --- the life of a run ---

cdef void end_expired(Queues* q, Run* run) noexcept nogil:
    """Its flow must know nothing of it any more."""
    wheel_disarm(&q.wheel, &run.timer)
    run.flow = NULL
    run.cause = EXPIRED_
    q.counts[run.tier].expired += run.left
    q.counts[run.tier].ended += run.left
    chain_append(&q.ended, run)


cdef void expire_queued(Queues* q, Run* run) noexcept nogil:
    chain_remove(&run.flow.fifo, run)
    count_queued(q, run.flow, -<int64_t>run.left)
    run.flow.runs -= 1
    q.counts[run.tier].runs -= 1
    end_expired(q, run)


cdef void enter(Queues* q, Run* run) noexcept nogil:
    """Into its flow's FIFO; it counts as one of the flow's runs already."""
    cdef Flow* flow = run.flow
    cdef int64_t before = flow.close
    run.close = min(later(q.now, run.close), must_close(q, run))
    if run.deadline != INT64_MAX:
        wheel_arm(&q.wheel, &run.timer, run.deadline)
    chain_append(&flow.fifo, run)
    count_queued(q, flow, run.left)
    flow.close = min(flow.close, run.close)
    if flow.state == READY:
        return
    if flow.queued >= flow.leaf.channel.cap or flow.close <= q.now:
        make_ready(q, flow)
    elif flow.state == IDLE or flow.close < before:
        make_linger(q, flow)


cdef void wake(Queues* q, Run* run) noexcept nogil:
    """A waiting run's time has come."""
    cdef Flow* flow = run.flow
    chain_remove(&flow.waiting, run)
    count_waiting(q, run, -<int64_t>run.left)
    run.waiting = False
    if run.deadline > q.now:
        enter(q, run)
        return
    flow.runs -= 1
    q.counts[run.tier].runs -= 1
    end_expired(q, run)
    rest_if_empty(q, flow)


cdef void fire_run(Queues* q, Run* run) noexcept nogil:
    cdef Flow* flow = run.flow
    if flow.state == DEAD:
        return
    if run.waiting:
        wake(q, run)
    else:
        expire_queued(q, run)
        rest_if_empty(q, flow)


cdef void queues_advance(Queues* q, int64_t now) noexcept nogil:
    """Fires what is due. Time never goes back."""
    q.now = max(q.now, now)
    cdef Timer* timer = wheel_fire(&q.wheel, q.now)
    while timer != NULL:
        if timer_kind(timer) == RUN:
            fire_run(q, <Run*>timer)
        elif timer_kind(timer) == FLOW:
            make_ready(q, <Flow*>timer)
        else:
            unpark(q, <Node*>timer)
        timer = wheel_fire(&q.wheel, q.now)


cdef Run* queues_make_run(Queues* q, const Row* row) noexcept nogil:
    """A run that belongs to its flow (made if need be) but is not in it yet; one that is too late belongs to none."""
    cdef size_t size = sizeof(Run) + row.count * 3 + row.id_bytes
    cdef Run* run = <Run*>malloc(size)
    if run == NULL:
        return NULL
    timer_make(&run.timer, RUN)
    run.not_before, run.due, run.deadline = row.not_before, row.due, row.deadline
    run.close, run.pushed = row.linger, row.pushed
    run.send, run.tier, run.attempt = row.send, row.tier, row.attempt
    run.size = run.left = row.count
    run.taken_bytes = 0
    run.bytes = <uint32_t>size
    run.cause = LIVE
    run.waiting = False
    run.flow = NULL
    memcpy(positions_of(run), row.positions, row.count * sizeof(uint16_t))
    memcpy(lengths_of(run), row.id_lengths, row.count)
    memcpy(ids_of(run), row.ids, row.id_bytes)
    if run.deadline > q.now:
        run.flow = flow_of(q, row)
        if run.flow == NULL:
            free(run)
            return NULL
        run.flow.runs += 1
    q.memory += size
    return run


cdef Flow* flow_of(Queues* q, const Row* row) noexcept nogil:
    cdef Node* leaf = &q.accounts[row.account].leaves[row.tier]
    cdef Flow* flow = find_flow(q, leaf, row.tenant, row.campaign, row.content)
    if flow == NULL:
        flow = make_flow(q, leaf, row.tenant, row.campaign, row.content)
    return flow


cdef void queues_undo_run(Queues* q, Run* run) noexcept nogil:
    """Of a run that was made but not pushed."""
    if run.flow != NULL:
        run.flow.runs -= 1
        rest_if_empty(q, run.flow)
    free_run(q, run)


cdef void queues_push(Queues* q, Run* run) noexcept nogil:
    q.counts[run.tier].pushed += run.left
    if run.flow == NULL:
        end_expired(q, run)
        return
    q.counts[run.tier].runs += 1
    if run.not_before <= q.now:
        enter(q, run)
        return
    run.waiting = True
    chain_append(&run.flow.waiting, run)
    count_waiting(q, run, run.left)
    if run.not_before != INT64_MAX or run.deadline != INT64_MAX:
        wheel_arm(&q.wheel, &run.timer, min(run.not_before, run.deadline))


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
    if more_room(<void**>&out.batches, &out.batches_room, out.batches_used + 1, sizeof(BatchRow)) < 0:
        return -1
    return more_room(<void**>&out.items, &out.items_room, out.items_used + recipients, sizeof(ItemRow))


cdef uint32_t take(Queues* q, Run* run, uint32_t most) noexcept nogil:
    """Moves up to ``most`` recipients of a run to the output; fewer: the next one's id is in the batch already (or
    memory is short)."""
    cdef Output* out = &q.out
    cdef uint32_t taken = 0
    cdef uint32_t at = run.size - run.left
    cdef const uint8_t* lengths = lengths_of(run) + at
    cdef const uint8_t* name = ids_of(run) + run.taken_bytes
    cdef const uint16_t* positions = positions_of(run) + at
    cdef ItemRow* item
    cdef size_t here = <size_t>(<uint8_t*>run + run.bytes - name)  # id bytes left in the run
    if more_room(<void**>&out.ids, &out.ids_room, out.ids_used + min(here, <size_t>255 * most), 1) < 0:
        q.no_memory = True
        return 0
    while taken < most and idset_add(&q.seen, out.ids, out.ids_used, name, lengths[taken]):
        memcpy(out.ids + out.ids_used, name, lengths[taken])
        name += lengths[taken]
        out.ids_used += lengths[taken]
        item = &out.items[out.items_used]
        item.pushed, item.send, item.attempt = run.pushed, run.send, run.attempt
        item.position = positions[taken]
        item.id_end = <uint32_t>out.ids_used
        out.items_used += 1
        taken += 1
    run.taken_bytes = <uint32_t>(name - ids_of(run))
    run.left -= taken
    return taken


cdef void observe(Queues* q, Channel* channel, const Run* run, uint32_t n) noexcept nogil:
    """A retry does not queue again: only the first attempt's wait counts, from when it might have gone."""
    if run.attempt == 0:
        counts_observe(channel.queue_wait[run.tier], since(q.now, max(run.pushed, run.not_before)), n)
    counts_observe(q.lateness[run.tier], since(q.now, run.due), n)


cdef uint32_t form(Queues* q, Flow* flow, uint32_t most, BatchRow* batch) noexcept nogil:
    """Moves recipients in FIFO order to the output, up to ``most``; 0: all have expired (or memory is short)."""
    cdef uint32_t taken = 0, n
    cdef bint cut = False, due = False, more = most < flow.queued
    cdef Run* run = flow.fifo.first
    cdef Run* next_run
    batch.due = INT64_MAX
    idset_clear(&q.seen)
    while run != NULL and taken < most and not cut:
        next_run = run.next
        prefetch(next_run)
        if run.deadline <= q.now:
            expire_queued(q, run)
            run = next_run
            continue
        n = take(q, run, min(run.left, most - taken))
        cut = run.left > 0 and taken + n < most
        if n:
            batch.due = min(batch.due, run.due)
            due = due or must_close(q, run) <= q.now
            observe(q, flow.leaf.channel, run, n)
            count_queued(q, flow, -<int64_t>n)
            taken += n
        if run.left == 0:
            finish(q, run)
        run = next_run
    batch.closed = CUT if cut else CAP if more or taken == flow.leaf.channel.cap else DUE if due else LINGER_OVER
    return taken


cdef void finish(Queues* q, Run* run) noexcept nogil:
    """All of its recipients have left."""
    wheel_disarm(&q.wheel, &run.timer)
    chain_remove(&run.flow.fifo, run)
    run.flow.runs -= 1
    q.counts[run.tier].runs -= 1
    free_run(q, run)


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
    PATH = 4


cdef inline void path_of(Queues* q, Node* leaf, Scope** path) noexcept nogil:
    """Whose limits a batch of the leaf is charged to, the widest first."""
    path[0] = &q.everything
    path[1] = &q.of_tier[leaf.tier]
    path[2] = leaf.parent.scope
    path[3] = leaf.scope


cdef inline Node* keeps(Node* leaf, int scope) noexcept nogil:
    """What must wait when this scope of the path refuses: all of it that is below one node."""
    return leaf.parent.parent if scope < 2 else leaf.parent if scope == 2 else leaf


cdef uint32_t planned(Queues* q, Node* leaf, const Flow* flow) noexcept nogil:
    """What the next batch wants: more than a limit's whole number would wait for ever."""
    cdef Scope* path[PATH]
    path_of(q, leaf, path)
    return <uint32_t>scopes_most(path, PATH, min(flow.queued, <uint64_t>leaf.channel.cap), leaf.tier == SYSTEM)


cdef bint refused(Queues* q, Node* leaf, uint32_t n) noexcept nogil:
    """True: n recipients may not go in one call now, and what keeps them is parked."""
    cdef Scope* path[PATH]
    path_of(q, leaf, path)
    cdef Refusal no = scopes_refuse(path, PATH, q.now, n, leaf.tier == SYSTEM)
    if no.why == REFUSED_NOT:
        return False
    park(q, keeps(leaf, no.scope), path[no.scope], no.until)
    return True


cdef void charge(Queues* q, Node* leaf, uint32_t n) noexcept nogil:
    cdef Scope* path[PATH]
    path_of(q, leaf, path)
    scopes_hold(path, PATH, n)
    leaf.channel.in_flight[leaf.tier] += 1
    leaf.parent.parent.turn += q.stride[leaf.tier]
    q.counts[leaf.tier].popped += n
    counts_observe(leaf.channel.batch_recipients, n, 1)


cdef void after_batch(Queues* q, Flow* flow, uint32_t n) noexcept nogil:
    """Where the flow stands now, and the turns of its leaf and lane are over."""
    cdef Node* leaf = flow.leaf
    flow.deficit -= n
    if flow.queued and flow.queued < leaf.channel.cap:
        flow.close = earliest_close(flow)
        if flow.close > q.now:
            make_linger(q, flow)
    if flow.state == READY and flow.queued and flow.deficit <= 0:
        flow.fresh = True
        ring_to_tail(&leaf.ring, &flow.link)
    rest_if_empty(q, flow)
    if ring_holds(&leaf.link):
        ring_to_tail(&leaf.parent.ring, &leaf.link)
    if ring_holds(&leaf.parent.link):
        ring_to_tail(&leaf.parent.parent.ring, &leaf.parent.link)


cdef uint32_t send_batch(Queues* q, Flow* flow, uint32_t most) noexcept nogil:
    cdef Node* leaf = flow.leaf
    if room_for(&q.out, most) < 0:
        q.no_memory = True
        return 0
    cdef BatchRow* batch = &q.out.batches[q.out.batches_used]
    batch.start = <uint32_t>q.out.items_used
    batch.tier, batch.channel, batch.account = leaf.tier, leaf.parent.handle, leaf.handle
    batch.tenant, batch.campaign, batch.content = flow.campaign.tenant, flow.campaign.campaign, flow.content
    cdef uint32_t n = form(q, flow, most, batch)
    if n:
        q.out.batches_used += 1
        charge(q, leaf, n)
        after_batch(q, flow, n)
    else:
        rest_if_empty(q, flow)
    return n


cdef uint32_t visit(Queues* q, Node* tier) noexcept nogil:
    """One turn of a tier: a batch goes (its size is returned), or a node that may not go leaves its ring."""
    cdef Node* lane = <Node*>ring_first(&tier.ring)
    cdef Node* leaf = <Node*>ring_first(&lane.ring)
    cdef Flow* flow = <Flow*>ring_first(&leaf.ring)
    if not has_slot(lane.channel, tier.tier):
        deactivate(q, lane)
        lane.state = BLOCKED
        return 0
    if flow.fresh:
        flow.fresh = False
        flow.deficit += lane.channel.cap  # more than a batch can have left it in debt: it may go
    cdef uint32_t most = planned(q, leaf, flow)
    if refused(q, leaf, most):
        return 0
    return send_batch(q, flow, most)


cdef void queues_pop(Queues* q, uint64_t budget) noexcept nogil:
    """Until the budget is used: a visit is one step, a recipient another. At most budget + the largest cap steps."""
    cdef uint64_t steps = 0
    cdef Node* tier = next_tier(q)
    q.no_memory = False
    while tier != NULL and steps < budget and not q.no_memory:
        steps += 1 + visit(q, tier)
        tier = next_tier(q)


cdef void queues_release(Queues* q, Node* leaf, uint64_t recipients, uint64_t left, int64_t at) noexcept nogil:
    """A call has ended: ``left`` of its recipients were on it and had arrived by ``at``."""
    cdef Channel* channel = leaf.channel
    cdef Scope* path[PATH]
    cdef Node* lane
    cdef uint8_t i
    path_of(q, leaf, path)
    scopes_settle(path, PATH, q.now, recipients, left, at)
    for i in range(PATH):
        queues_reconsider(q, path[i])
    channel.in_flight[leaf.tier] -= 1
    for i in range(TIERS):
        lane = &channel.lanes[i]
        if lane.state == BLOCKED and has_slot(channel, i):
            lane.state = OPEN
            activate(q, lane)


# --- what ended ---

cdef void cancel_flow(Queues* q, Flow* flow) noexcept nogil:
    """Its runs go to the ended list as they are: whole chains, their timers still armed."""
    cdef Count* count = &q.counts[flow.leaf.tier]
    cdef uint64_t n = flow.queued + flow.retries + flow.scheduled
    rest(q, flow)
    count.cancelled += n
    count.ended += n
    count.retries -= flow.retries
    count.scheduled -= flow.scheduled
    count.runs -= flow.runs
    count_queued(q, flow, -<int64_t>flow.queued)
    flow.state = DEAD
    chain_splice(&q.ended, &flow.fifo)
    chain_splice(&q.ended, &flow.waiting)
    forget_flow(q, flow)


cdef uint64_t queues_cancel(Queues* q, uint32_t tenant, uint32_t campaign) noexcept nogil:
    """Recipients cancelled. O(flows of the campaign), whatever they hold."""
    cdef Campaign* group = find_campaign(q, tenant, campaign)
    cdef Flow* flow
    cdef uint64_t n = 0
    cdef bint last = group == NULL
    while not last:
        flow = <Flow*>ring_first(&group.flows)
        n += flow.queued + flow.retries + flow.scheduled
        last = flow.sibling.next == &group.flows  # the campaign goes with its last flow
        cancel_flow(q, flow)
    return n


cdef void free_ended(Queues* q, Run* run) noexcept nogil:
    cdef Flow* flow = run.flow
    chain_remove(&q.ended, run)
    wheel_disarm(&q.wheel, &run.timer)
    free_run(q, run)
    if flow == NULL:
        return
    flow.runs -= 1
    if flow.runs == 0:
        free_flow(q, flow)


cdef uint64_t queues_reap(Queues* q, EndedRow* rows, uint64_t most) noexcept nogil:
    """Fills rows in the order they ended and returns how many; a run may be split."""
    cdef uint64_t n = 0
    cdef EndedRow* row
    cdef Run* run = q.ended.first
    while run != NULL and n < most:
        row = &rows[n]
        row.send, row.attempt = run.send, run.attempt
        row.cause = EXPIRED_ if run.cause == EXPIRED_ else CANCELLED_
        row.position = positions_of(run)[run.size - run.left]
        run.left -= 1
        q.counts[run.tier].ended -= 1
        n += 1
        if run.left == 0:
            free_ended(q, run)
            run = q.ended.first
    return n


cdef int64_t queues_due(const Queues* q) noexcept nogil:
    if q.ended.first != NULL or ring_first(&q.root.ring) != NULL:
        return q.now
    return wheel_due(&q.wheel)


# --- making and freeing ---

cdef void make_node(
    Node* node, Node* parent, Scope* scope, Channel* channel, uint32_t handle, uint8_t tier
) noexcept nogil:
    timer_make(&node.timer, NODE)
    node.link.owner = node.halt.owner = node
    ring_make(&node.ring)
    node.parent, node.scope, node.channel = parent, scope, channel
    node.handle, node.tier = handle, tier


cdef Queues* queues_make(uint32_t template_weight, uint32_t basic_weight, int64_t lead, uint64_t seed) noexcept nogil:
    cdef Queues* q = <Queues*>calloc(1, sizeof(Queues))
    cdef uint8_t tier
    if q == NULL:
        return NULL
    q.lead = lead
    q.seen.seed = seed
    q.stride[TEMPLATE] = (1 << 20) // template_weight
    q.stride[BASIC] = (1 << 20) // basic_weight
    wheel_make(&q.wheel)
    make_node(&q.root, NULL, NULL, NULL, 0, 0)
    scope_make(&q.everything, &q.asking)
    for tier in range(TIERS):
        scope_make(&q.of_tier[tier], &q.asking)
        make_node(&q.tiers[tier], &q.root, NULL, NULL, 0, tier)
    return q


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
        make_node(&made.lanes[tier], &q.tiers[tier], &made.scope, made, q.channel_count, tier)
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
        make_node(&made.leaves[tier], &into.lanes[tier], &made.scope, into, q.account_count, tier)
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
    """Bytes asked for: the runs with their recipients, the flows, the tables and the output."""
    cdef const Output* out = &q.out
    return (
        sizeof(Queues) + q.memory + (table_size(&q.flows) + table_size(&q.campaigns)) * sizeof(TableSlot)
        + q.channel_count * sizeof(Channel) + q.account_count * sizeof(Account)
        + out.batches_room * sizeof(BatchRow) + out.items_room * sizeof(ItemRow) + out.ids_room
    )


cdef void free_chain(Queues* q, Chain* chain) noexcept nogil:
    cdef Run* run = chain.first
    cdef Run* after
    while run != NULL:
        after = run.next
        free_run(q, run)
        run = after


cdef void free_flows(Queues* q) noexcept nogil:
    """The ended runs first: their timers stand among those of the others."""
    cdef size_t i
    cdef EndedRow row
    cdef Flow* flow
    while queues_reap(q, &row, 1):
        pass
    for i in range(table_size(&q.flows)):
        flow = <Flow*>table_item(&q.flows, i)
        if flow != NULL:
            free_chain(q, &flow.fifo)
            free_chain(q, &flow.waiting)
            free(flow)
    for i in range(table_size(&q.campaigns)):
        free(table_item(&q.campaigns, i))


cdef void queues_free(Queues* q) noexcept nogil:
    cdef uint32_t i
    if q == NULL:
        return
    free_flows(q)
    scope_free(&q.everything)
    for i in range(TIERS):
        scope_free(&q.of_tier[i])
    free(q.limits)
    for i in range(q.channel_count):
        scope_free(&q.channels[i].scope)
        free(q.channels[i])
    for i in range(q.account_count):
        scope_free(&q.accounts[i].scope)
        free(q.accounts[i])
    free(q.channels)
    free(q.accounts)
    free(q.flows.slots)
    free(q.campaigns.slots)
    free(q.seen.slots)
    free(q.out.batches)
    free(q.out.items)
    free(q.out.ids)
    free(q)
