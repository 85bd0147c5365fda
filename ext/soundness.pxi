# Included by queues.pyx: whether the structure is what it says it is. Walks everything; tests call it after each step.

cdef struct Walk:
    size_t chunks[CHUNK_SIZES]
    uint64_t facts, queued, lingering, waiting, retries, dead
    size_t queues, nodes, parcels, held, groups


cdef const char* copy_paces(const Queues* q) noexcept nogil:
    """Of every lane and tier; the walk takes away what it finds."""
    cdef Pacing* pacing
    cdef uint32_t i
    cdef int tier
    for tier in range(TIERS):
        for i in range(q.channel_count + 1):
            pacing = q.tiers[tier].pacing if i == q.channel_count else q.channels[i].lanes[tier].pacing
            if pacing == NULL:
                continue
            if not pace_is_sound(&pacing.pace):
                return "a pace is not what it says"
            pacing.copy = <Pace*>malloc(sizeof(Pace))
            if pacing.copy == NULL:
                return "there is no memory to check the paces"
            memcpy(pacing.copy, &pacing.pace, sizeof(Pace))
    return NULL


cdef const char* unsound_paces(const Queues* q) noexcept nogil:
    """After the walk; frees the copies."""
    cdef const char* wrong = NULL
    cdef Pacing* pacing
    cdef uint32_t i
    cdef int tier
    for tier in range(TIERS):
        for i in range(q.channel_count + 1):
            pacing = q.tiers[tier].pacing if i == q.channel_count else q.channels[i].lanes[tier].pacing
            if pacing == NULL or pacing.copy == NULL:
                continue
            if pacing.copy.work or not pace_is_sound(pacing.copy):
                wrong = "calls are counted that nothing opens, or in the wrong slot"
            free(pacing.copy)
            pacing.copy = NULL
    return wrong


cdef void take_away(Node* lane, uint32_t slot) noexcept nogil:
    pace_remove(lane.pacing.copy, slot, 1)
    pace_remove(lane.parent.pacing.copy, slot, 1)


cdef uint32_t take_opens(const Queues* q, const Queue* queue, const Fifo* fifo) noexcept nogil:
    """Returns how many records of the FIFO open calls."""
    cdef Fifo copy = fifo[0]
    cdef uint32_t opens = 0
    cdef Rec rec
    while copy.count:
        fifo_first(&q.store, &copy, &rec)
        if rec.facts & REC_OPENS:
            opens += 1
            take_away(lane_of(<Queues*>q, queue), facts_at(&q.store, rec.facts & REC_FACTS).slot)
        if copy.count == 1:
            break
        fifo_step(&q.store, &copy, &rec, queue.mixed)
    return opens


cdef const char* unsound_calls(const Queues* q, const Queue* queue) noexcept nogil:
    cdef Node* lane = lane_of(<Queues*>q, queue)
    cdef const Parcel* parcel = queue.parcels
    if lane.pacing == NULL:
        return NULL
    if queue.counted != (queue.fifo.count > 0 and queue.state != DEAD and not queue.haste & AT_ONCE):
        return "the first call of a queue is not counted, or of none"
    if queue.counted:
        take_away(lane, queue.counted_in)
    if take_opens(q, queue, &queue.fifo) != queue.opens:
        return "the calls of a queue are counted wrongly"
    while parcel != NULL:
        if take_opens(q, queue, &parcel.fifo) != parcel.opens:
            return "the calls of a parcel are counted wrongly"
        parcel = NULL if parcel.next == queue.parcels else parcel.next
    if (queue.state == READY) != (pace_waits(&queue.turn) or ring_holds(&queue.aside)):
        return "a queue waits for its turn and is not ready, or the other way round"
    return NULL


cdef const char* unsound_lane(const Queues* q, const Node* lane) noexcept nogil:
    """Where it stands in its tier's rings."""
    cdef const Queue* first
    if lane.pacing == NULL:
        return NULL
    first = <const Queue*>pace_first(&lane.pacing.pace)
    if pace_waits(&lane.pacing.link) != (
        ring_holds(&lane.link) and (first != NULL or ring_first(&lane.pacing.returning) != NULL)
    ):
        return "a lane takes turns and does not wait for them, or the other way round"
    if pace_waits(&lane.pacing.link) and ring_first(&lane.pacing.returning) == NULL and first.slot != lane.pacing.slot:
        return "a lane waits in another slot than what it has to do first"
    if lane.state & HELD_BACK and not timer_armed_by(&lane.pacing.timer, INT64_MAX - 1):
        return "a lane is held back for ever"
    return NULL


cdef inline bint holds(const Link* head, const Link* link) noexcept nogil:
    cdef const Link* each = head.next
    while each != head:
        if each == link:
            return True
        each = each.next
    return False


cdef const char* unsound_fifos(const Queues* q, const Queue* queue, Walk* walk) noexcept nogil:
    cdef const Parcel* parcel = queue.parcels
    cdef uint64_t retries = 0, scheduled = 0
    if not fifo_is_sound(&q.store, &queue.fifo, queue.mixed, walk.chunks, &walk.facts):
        return "a queue's FIFO is not what it says"
    while parcel != NULL:
        walk.parcels += 1
        retries += parcel.retries
        scheduled += parcel.fifo.count - parcel.retries
        if not parcel.fifo.count or not fifo_is_sound(&q.store, &parcel.fifo, queue.mixed, walk.chunks, &walk.facts):
            return "a parcel's FIFO is not what it says"
        parcel = NULL if parcel.next == queue.parcels else parcel.next
    if retries != queue.retries or scheduled != queue.scheduled:
        return "what waits in a queue is counted wrongly"
    walk.queues += 1
    return unsound_calls(q, queue)


cdef const char* unsound_queue(const Queues* q, const Queue* queue, Walk* walk) noexcept nogil:
    cdef int64_t wake = INT64_MAX
    if (queue.state == IDLE) != (queue.fifo.count == 0) or queue.state == DEAD:
        return "a queue is idle and not empty, or the other way round"
    if not queue.fifo.count and queue.parcels == NULL:
        return "an empty queue was not freed"
    if (queue.state == READY) != holds(&queue.branch.ring, &queue.link):
        return "a queue is in its campaign's ring and not ready, or the other way round"
    if queue.state == LINGERING and (tick_up(queue.fifo.close) <= <uint64_t>q.now >> 20 or queue.mixed):
        return "a queue lingers too long"
    if queue.state == LINGERING:
        wake = queue.fifo.close
        walk.lingering += queue.fifo.count
    if not ring_holds(&queue.sweep):
        wake = min(wake, queue.fifo.deadline)
    if wake != INT64_MAX and not timer_armed_by(&queue.timer, wake):
        return "a queue's timer is late"
    walk.queued += queue.fifo.count
    walk.waiting += queue.retries + queue.scheduled
    walk.retries += queue.retries
    return unsound_fifos(q, queue, walk)


cdef const char* unsound_branch(
    const Queues* q, const Node* node, uint32_t ready, uint64_t queued, Walk* walk
) noexcept nogil:
    walk.nodes += 1
    if node.ready != ready or ready_below(node) != queued:
        return "the ready queues below a node are counted wrongly"
    if ring_holds(&node.link) != (holds(&node.parent.ring, &node.link) or holds(&node.parent.fresh, &node.link)):
        return "a branch is linked and in no ring of its parent"
    if node.state and ring_holds(&node.link) or not node.state and node.ready and not ring_holds(&node.link):
        return "a branch takes turns and is held, or has work and takes none"
    if node.is_fresh and ring_holds(&node.link) != holds(&node.parent.fresh, &node.link) and not node.state:
        return "a branch is fresh in the wrong ring"
    if node.children == 0 and not ring_holds(&node.link):
        return "a branch without children was not freed"
    if (node.state != 0) != ring_holds(&node.held) or (node.state & PAUSED != 0) != node.group.paused:
        return "a branch is held and not among the held, or paused and its group is not, or the other way round"
    if node.weight != node.group.weight:
        return "a branch has another weight than its group"
    if (node.state & PARKED != 0) != ring_holds(&node.halt):
        return "a branch is parked and no scope keeps it, or the other way round"
    if node.state == 0 and (ring_holds(&node.away) or node.timer.next != NULL):
        return "a branch is open, and its work is to be put off or its timer runs"
    if node.ready and put_off_later(q, node):
        return "a branch is held for long, has work, and nobody is to put that off"
    walk.held += node.state != 0
    return NULL


cdef const char* unsound_campaign(const Queues* q, const Node* node, Walk* walk) noexcept nogil:
    cdef const char* wrong
    cdef uint32_t ready = 0, children = 0
    cdef uint64_t queued = 0
    cdef const Queue* queue
    cdef Link* link = ring_first(&node.queues)
    while link != NULL:
        queue = sibling_of(link)
        children += 1
        ready += queue.state == READY
        queued += queue.fifo.count if queue.state == READY else 0
        wrong = unsound_queue(q, queue, walk)
        if wrong != NULL:
            return wrong
        if (
            queue.mixed != (queue == node.mixed[queue.haste & AT_ONCE > 0])
            or queue.branch != node
        ):
            return "a queue is not its campaign's"
        link = NULL if link.next == &node.queues else link.next
    if children != node.children or ready < 2 and node.queued:
        return "a campaign's queues are counted wrongly"
    return unsound_branch(q, node, ready, queued, walk)


cdef const char* unsound_groups(const Queues* q, Walk* walk) noexcept nogil:
    """All shares, then all campaigns, then all tenants."""
    cdef const char* wrong = NULL
    cdef uint8_t level
    cdef int i
    cdef size_t k
    cdef Group* group
    cdef Link* link
    for level in range(SHARE, TENANT - 1, -1):
        for i in range(SHARDS):
            for k in range(q.names.shards[i].size):
                group = group_at(q, q.names.shards[i].slots[k].item)
                if group == NULL or group.level != level:
                    continue
                walk.groups += 1
                if level == SHARE:
                    if not group.nodes and not group.scope.held[LIMIT_CALLS] and not ring_holds(&group.members):
                        return "a share is of no use and does not wait to go"
                    continue
                if ring_first(&group.members) == NULL and not stays(group):
                    return "a group without members was not freed"
                link = group.members.next
                while link != &group.members:
                    wrong = unsound_campaign(q, member_of(link), walk) if level == CAMPAIGN_ else (
                        unsound_tenant(q, member_of(link), walk)
                    )
                    if wrong != NULL:
                        return wrong
                    link = link.next
    return NULL


cdef const char* unsound_tenant(const Queues* q, const Node* tenant, Walk* walk) noexcept nogil:
    """Its campaigns are found in the table of branches."""
    cdef uint32_t ready = 0, children = 0
    cdef uint64_t queued = 0
    cdef int i
    cdef size_t k
    cdef const Node* node
    for i in range(SHARDS):
        for k in range(q.branches.shards[i].size):
            node = node_at(q, q.branches.shards[i].slots[k].item)
            if node != NULL and node.parent == tenant:
                children += 1
                ready += 0 if node.state else node.ready
                queued += ready_below(node)
    if children != tenant.children:
        return "a tenant's campaigns are counted wrongly"
    return unsound_branch(q, tenant, ready, queued, walk)


cdef const char* unsound_above(const Queues* q, const Node* node) noexcept nogil:
    """A leaf, lane or tier."""
    if ring_holds(&node.link) != (node.state == 0 and has_members(node)):
        return "a node takes turns and has none below, or the other way round"
    if ring_holds(&node.link) != holds(&node.parent.ring, &node.link):
        return "a node is linked and in no ring of its parent"
    if child_of(node) != NULL and put_off_later(q, node):
        return "a node is held for long, has work, and nobody is to put that off"
    return NULL


cdef const char* unsound_dead(const Queues* q, Walk* walk) noexcept nogil:
    cdef const Link* link = q.dead.next
    cdef const char* wrong
    cdef const Queue* queue
    while link != &q.dead:
        queue = queue_of(<Link*>link)
        wrong = unsound_fifos(q, queue, walk)
        if wrong != NULL:
            return wrong
        if queue.state != DEAD:
            return "what is among the dead is not dead"
        walk.dead += <uint64_t>queue.fifo.count + queue.retries + queue.scheduled
        link = link.next
    return NULL


cdef const char* unsound_counts(const Queues* q, const Walk* walk) noexcept nogil:
    cdef uint64_t queued = 0, waiting = 0, retries = 0, ended = 0, in_leaves = 0, lingering = 0
    cdef const Count* count
    cdef int tier
    cdef uint32_t i
    for tier in range(TIERS):
        count = &q.counts[tier]
        queued += count.queued
        waiting += count.retries + count.scheduled
        retries += count.retries
        ended += count.ended
        if count.pushed != (
            count.popped + count.expired + count.cancelled + count.put_off + count.queued + count.retries
            + count.scheduled
        ):
            return "pushed is not popped + expired + cancelled + put off + queued + waiting"
        for i in range(q.account_count):
            in_leaves += q.accounts[i].leaves[tier].queued + q.accounts[i].leaves[tier].lingering
            lingering += q.accounts[i].leaves[tier].lingering
    if queued != walk.queued or queued != in_leaves or waiting != walk.waiting or retries != walk.retries:
        return "what is queued or waits is counted wrongly"
    if lingering != walk.lingering or ended != walk.dead + q.ended.count:
        return "what lingers or has ended is counted wrongly"
    return NULL


cdef const char* unsound_memory(const Queues* q, Walk* walk) noexcept nogil:
    """Every chunk is in one FIFO or free, every record in its place or free."""
    cdef uint64_t held = 0
    cdef uint32_t chunk = q.ended.head
    cdef int i
    while chunk:
        walk.chunks[chunk & 3] += 1
        chunk = 0 if chunk == q.ended.tail else (<uint32_t*>chunk_at(&q.store, chunk))[0]
    for i in range(CHUNK_SIZES):
        if slab_taken(&q.store.chunks[i]) != walk.chunks[i]:
            return "a chunk is lost or in two chains"
    if facts_refs(&q.store, &held) or held != walk.facts:
        return "facts are counted wrongly"
    if slab_taken(&q.queues) != walk.queues or slab_taken(&q.nodes) != walk.nodes:
        return "a queue or a node is lost"
    if slab_taken(&q.groups) != walk.groups or held_nodes(q) != walk.held:
        return "a group or a held node is lost"
    if slab_taken(&q.parcels) != walk.parcels:
        return "a parcel is lost"
    return NULL


cdef size_t held_nodes(const Queues* q) noexcept nogil:
    cdef const Link* link = q.held.next
    cdef size_t n = 0
    while link != &q.held:
        n += 1
        link = link.next
    return n


cdef const char* queues_unsound(const Queues* q) noexcept nogil:
    cdef Walk walk
    cdef const char* wrong
    cdef uint32_t i
    cdef int tier
    memset(&walk, 0, sizeof(walk))
    wrong = copy_paces(q)
    if wrong == NULL:
        wrong = unsound_groups(q, &walk)
    if wrong == NULL:
        wrong = unsound_dead(q, &walk)
    cdef const char* paces = unsound_paces(q)
    if wrong == NULL:
        wrong = paces
    for tier in range(TIERS):
        if wrong == NULL:
            wrong = unsound_above(q, &q.tiers[tier])
        for i in range(q.channel_count):
            if wrong == NULL:
                wrong = unsound_above(q, &q.channels[i].lanes[tier])
            if wrong == NULL:
                wrong = unsound_lane(q, &q.channels[i].lanes[tier])
        for i in range(q.account_count):
            if wrong == NULL:
                wrong = unsound_above(q, &q.accounts[i].leaves[tier])
    if wrong == NULL:
        wrong = unsound_counts(q, &walk)
    if wrong == NULL:
        wrong = unsound_memory(q, &walk)
    if wrong == NULL and not wheel_is_sound(&q.wheel):
        wrong = "the wheel's bits and slots disagree"
    return wrong
