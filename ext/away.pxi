# Included by queues.pyx: what is held for longer than the horizon is put off, it need not wait in memory.
#
# A node that is held for so long stands in ``away`` from when that begins, and again whenever something below it gets
# READY, until nothing is left to be taken: so nothing is walked to find it, and whoever is not held pays nothing.

cdef inline Node* away_node(Link* link) noexcept nogil:
    return <Node*>(<char*>link - (<size_t>&(<Node*>SOMEWHERE).away - SOMEWHERE))


cdef inline int64_t held_until(const Node* node) noexcept nogil:
    """Until then a pause, a block or a limit holds the node itself, at least; 0: nothing does, or that is not known."""
    cdef int64_t until = node.paused_until if node.state & PAUSED else 0
    if node.state & PARKED and node.kept.until != LIMIT_NEVER:
        until = max(until, node.kept.until)
    return until


cdef inline bint held_long(const Queues* q, const Node* node) noexcept nogil:
    return held_until(node) > later(q.now, q.horizon) and (node.channel == NULL or not node.channel.stays)


cdef inline void note_held(Queues* q, Node* node) noexcept nogil:
    """A held node that may have work."""
    if held_long(q, node) and not ring_holds(&node.away):
        ring_append(&q.away[node.tier], &node.away)


cdef inline bint put_off_later(const Queues* q, const Node* node) noexcept nogil:
    """Not now, though it should be; for queues_unsound."""
    return held_long(q, node) and not ring_holds(&node.away)


cdef Node* child_of(const Node* node) noexcept nogil:
    """Of a node above campaigns: one that has work, or had; NULL: there is none, but of channels whose work stays."""
    cdef Link* link = ring_first(&node.fresh)
    if link == NULL:
        link = ring_first(&node.ring)
    while node.level == TIER_ and link != NULL and node_of(link).channel.stays:
        link = NULL if link.next == &node.ring else link.next
    return NULL if link == NULL else node_of(link)


cdef Node* way_down(Node* node) noexcept nogil:
    """From a node as far down as work leads: to a campaign, or to what has lost its work; nothing below it: itself."""
    cdef Node* below
    while node.level < CAMPAIGN_:
        below = child_of(node)
        if below == NULL or below.level >= TENANT and below.ready == 0:
            return node if below == NULL else below
        node = below
    return node


cdef uint8_t longest_hold(const Node* campaign, int64_t* until) noexcept nogil:
    """What keeps it longest, itself or above it, and until when."""
    cdef const Node* node = campaign
    cdef uint8_t cause = BY_PAUSE
    until[0] = 0
    while node != NULL:
        if held_until(node) > until[0]:
            until[0] = held_until(node)
            cause = BY_PAUSE if node.state & PAUSED and node.paused_until == until[0] else (
                BY_REST if node.kept.why == REFUSED_BLOCKED else BY_LIMIT
            )
        node = node.parent
    return cause


cdef uint64_t put_off_queue(
    Queues* q, Queue* queue, EndedRow* rows, int64_t* untils, uint64_t most
) noexcept nogil:
    """Of a READY queue, the first ones, and those of the last one's send: there is room for PUT_OFF_WHOLE more."""
    cdef Node* leaf = leaf_of(queue)
    cdef int64_t until
    cdef uint8_t cause = longest_hold(queue.branch, &until)
    cdef uint64_t n = 0
    cdef Rec rec
    while queue.fifo.count:
        fifo_first(&q.store, &queue.fifo, &rec)
        if n >= most and (rec.send != rows[n - 1].send or n >= most + PUT_OFF_WHOLE):
            break
        fill(&rows[n], &rec, cause)
        untils[n] = until
        remove_first(q, queue, &rec)
        facts_drop(&q.store, rec.facts & REC_FACTS, 1)
        n += 1
    count_queued(q, queue, leaf, -<int64_t>n)
    q.counts[leaf.tier].put_off += n
    fifo_renew(&q.store, &queue.fifo)
    count_first(q, queue)
    stand_by(q, queue)
    rest_if_empty(q, queue)
    return n


cdef uint64_t queues_put_off(Queues* q, uint8_t tier, EndedRow* rows, int64_t* untils, uint64_t most) noexcept nogil:
    """Fills rows and returns how many; at most so many steps, and PUT_OFF_WHOLE."""
    cdef uint64_t n = 0, steps = 0
    cdef Node* node
    cdef Node* below
    while steps < most and ring_first(&q.away[tier]) != NULL:
        node = away_node(ring_first(&q.away[tier]))
        below = way_down(node) if held_long(q, node) else NULL
        if below != NULL and below.level == CAMPAIGN_ and ring_first(&below.ring) != NULL:
            n += put_off_queue(q, queue_of(ring_first(&below.ring)), rows + n, untils + n, most - steps)
        elif below == NULL or below == node:
            ring_remove(&node.away)
            if below == node and node.state & PARKED:
                unpark(q, node)  # who comes next may fit
        else:
            tidy(q, below)
        steps = max(steps + 1, n)
    return n


cdef bint queues_puts_off(const Queues* q, uint8_t tier) noexcept nogil:
    return ring_first(&q.away[tier]) != NULL
