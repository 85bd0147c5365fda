# Included by queues.pyx: what will be needed soon is on its way from memory while something else is done (prefetching
# in a pipeline: Chen, Ailamaki, Gibbons, Mowry, ICDE 2004). With millions queued nearly every line is in no cache, and
# lines that are fetched together cost a tenth of what they cost one after the other.
#
# A push looks up its rows in stages, AHEAD rows apart: the slots of the table, then the queues (or, where there is none
# yet, the campaigns); then, again AHEAD, the places it writes to. A pop looks at the next three turns of the leaf: the
# campaign of the third, the queue of the second, the records of the first. What is foreseen wrongly costs time and
# nothing else: nothing here changes anything. Row by row and not in bursts, for a processor has some sixteen lines on
# their way at most.

cdef enum:
    TURNS = 4  # this one, and those that are foreseen
    GROUP = 64  # queues of a cancel whose lines are fetched together
    LINES = 4  # of a FIFO's first chunk at most
    A_RECORD = 32  # bytes, about


# --- push ---

cdef inline void foresee_queue(Queues* q, const Row* row, Target* target) noexcept nogil:
    """Its slot is here. Where no queue has its hash one will be made, and its campaign may be there."""
    cdef size_t cursor = 0
    cdef Node* leaf
    cdef Node* tenant
    target.queue = queue_at(q, table_next(&q.by_key, target.key_hash, &cursor))
    if target.queue != NULL:
        foresee(target.queue)
        return
    leaf = leaf_at(q, row.place)
    tenant = find_branch(q, leaf, row.tenant, branch_hash(leaf, row.tenant))
    target.branch_hash = branch_hash(tenant, row.campaign)
    foresee(table_home(&q.branches, target.branch_hash))


cdef inline void foresee_campaign(Queues* q, const Row* row, const Target* target) noexcept nogil:
    """Of a row without a queue; the slot is here."""
    cdef size_t cursor = 0
    cdef Node* campaign
    if target.queue != NULL:
        return
    campaign = node_at(q, table_next(&q.branches, target.branch_hash, &cursor))
    if campaign != NULL:
        foresee_lines(campaign, 3)
    else:
        foresee(table_home(&q.names, group_hash(CAMPAIGN_, row.tenant, row.campaign)))


cdef inline void foresee_tail(Queues* q, const Queue* queue, uint32_t id_bytes) noexcept nogil:
    """Where its record goes, and where that is counted."""
    cdef const char* at
    if queue.state == READY and not queue.counts_in & ALONE:
        foresee(counting(q, queue))
    if queue.fifo.tail:
        at = chunk_at(&q.store, queue.fifo.tail) + queue.fifo.tail_at
        foresee(at)
        foresee(at + sizeof(Rec) + id_bytes - 1)  # mostly in the same line


# --- cancel ---

cdef Link* foresee_siblings(Queues* q, const Node* campaign, Link* link) noexcept nogil:
    """The next queues of a campaign, and where they stand in the table; returns the first that is not among them."""
    cdef const Queue* queue
    cdef int _i
    for _i in range(GROUP):
        if link == &campaign.queues:
            break
        queue = sibling_of(link)
        link = link.next
        foresee_lines(queue, 3)
        foresee(table_home(&q.by_key, hash_of(queue, queue.content)))
    return link


# --- pop ---

cdef inline Node* turn_after(Node* node) noexcept nogil:
    """Who has a turn after this one, while nothing changes; NULL: nobody but newcomers."""
    cdef Node* parent = node.parent
    cdef Link* link = node.link.next
    if link == &parent.fresh or link == &parent.ring:
        link = parent.ring.next
    return NULL if link == &parent.ring else node_of(link)


cdef inline Node* first_below(Node* tenant) noexcept nogil:
    cdef Link* first = ring_first(&tenant.fresh)
    first = ring_first(&tenant.ring) if first == NULL else first
    return NULL if first == NULL else node_of(first)


cdef inline void foresee_batch(Queues* q, const Queue* queue, uint32_t cap) noexcept nogil:
    """The queue is here already. If it will be empty then, what it must be taken out of."""
    cdef const char* first
    cdef size_t last = min(LINES * 64, (cap + 1) * A_RECORD) - 1  # and the one behind them, which is looked at
    if queue.fifo.head:
        first = chunk_at(&q.store, queue.fifo.head) + queue.fifo.head_at
        foresee_lines(first, last // 64 + 1)
        foresee(first + last)
    if queue.fifo.count <= cap:
        foresee(table_home(&q.by_key, hash_of(queue, queue.content)))
        foresee(queue.timer.prev)
        foresee(queue.timer.next)
        foresee(queue.sibling.prev)
        foresee(queue.sibling.next)


cdef inline void foresee_end(Queues* q, const Node* campaign) noexcept nogil:
    """It has lost its work, and its turn will be its last."""
    foresee(table_home(&q.branches, campaign.key_hash))
    foresee(table_home(&q.names, group_hash(CAMPAIGN_, campaign.parent.handle, campaign.handle)))
    foresee_lines(campaign.group, 2)


cdef inline void foresee_tidy(Queues* q, Node* node) noexcept nogil:
    """After the last turn of one that has lost its work: often it was not the only one."""
    cdef Node* soon = turn_after(node)
    cdef Node* then
    if soon == NULL or soon.level != CAMPAIGN_:
        return
    then = turn_after(soon)
    if then != NULL:
        foresee_lines(then, 3)
    if soon.ready == 0:
        foresee_end(q, soon)


cdef struct Left:  # of a tenant's or a campaign's turn, while it lasts
    int64_t deficit, ready


cdef inline Left left_of(const Node* node, uint32_t quantum) noexcept nogil:
    cdef Left left
    left.deficit, left.ready = node.deficit + <int64_t>quantum * node.weight, node.ready
    return left


cdef inline bint goes_on(Left* left, int64_t cost, bint empties) noexcept nogil:
    """After a batch."""
    left.deficit -= cost
    left.ready -= empties
    return left.deficit > 0 and left.ready > 0


cdef void foresee_turns(Queues* q, Node* tenant, Node* campaign) noexcept nogil:
    """After this turn of a tenant and its campaign, if the next batches are as large as this one and leave as much: who
    has small batches has many turns."""
    cdef Node* tenants[TURNS]
    cdef Node* campaigns[TURNS]
    cdef Link* queue = ring_first(&campaign.ring)
    cdef uint32_t cap = tenant.channel.cap, count = queue_of(queue).fifo.count
    cdef bint empties = count <= cap, same
    cdef size_t node_lines = 3 if empties else 2, queue_lines = 4 if empties else 2
    cdef int64_t cost = cost_of(min(count, cap), cap)
    cdef Left of_tenant = left_of(tenant, 0), of_campaign = left_of(campaign, 0)
    cdef int turn, before
    tenants[0], campaigns[0] = tenant, campaign
    for turn in range(1, TURNS):
        same = goes_on(&of_campaign, cost, empties) and queue != NULL
        if goes_on(&of_tenant, cost, empties):
            tenants[turn] = tenants[turn - 1]
        else:
            same = False
            tenants[turn] = turn_after(tenants[turn - 1])
            if tenants[turn] == NULL:
                return
            of_tenant = left_of(tenants[turn], cap)
        if same:
            if turn == TURNS - 1:
                return
            campaigns[turn] = campaigns[turn - 1]
            queue = queue.next if queue.next != &campaigns[turn].ring else queue.next.next
        else:
            campaigns[turn] = NULL
            for before in range(turn - 1, -1, -1):
                if tenants[before] == tenants[turn]:
                    campaigns[turn] = turn_after(campaigns[before])
                    break
            else:
                campaigns[turn] = first_below(tenants[turn])
            if campaigns[turn] == NULL:
                return
            if turn == TURNS - 1:
                foresee_lines(campaigns[turn], node_lines)
                return
            of_campaign = left_of(campaigns[turn], cap)
            queue = ring_first(&campaigns[turn].ring)
            if turn == TURNS - 2:
                foresee(campaigns[turn].link.next)  # its neighbour, when its turn ends
        if queue == NULL:
            foresee_end(q, campaigns[turn])
        elif turn == 1:
            foresee_batch(q, queue_of(queue), cap)
        else:
            foresee_lines(queue_of(queue), queue_lines)


cdef inline void foresee_due(Queues* q, const Queue* queue) noexcept nogil:
    """After this turn, where turns are by due time."""
    cdef const PaceLink* link = queue.turn.next
    cdef const Queue* soon
    if link == NULL:
        return
    soon = turning_queue(link)
    foresee_batch(q, soon, queue.branch.channel.cap)
    foresee_lines(soon.branch, 3)
    if link.next != NULL:
        foresee_lines(turning_queue(link.next), 3)
