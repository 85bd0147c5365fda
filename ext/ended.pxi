# Included by queues.pyx: what was cancelled or has expired, and how it is told of (reap).

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
    cdef Link* unseen
    cdef Node* node
    cdef Queue* queue
    cdef uint64_t n = 0
    while member != NULL:
        node = member_of(member)
        member = NULL if member.next == &group.members else member.next
        if tier >= 0 and node.tier != tier:
            continue
        node.children += 1  # so that it does not go with its last queue
        link = unseen = node.queues.next
        while link != &node.queues:
            if link == unseen:
                unseen = foresee_siblings(q, node, link)
            queue = sibling_of(link)
            n += <uint64_t>queue.fifo.count + queue.retries + queue.scheduled
            cancel_queue(q, queue)
            link = node.queues.next
        ask_again(q, node.parent)
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
    if n:
        ask_again(q, queue.branch.parent)
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
    """Something may go now, or timers are still to be fired."""
    return ring_first(&q.root.ring) != NULL or wheel_due(&q.wheel) <= q.now


cdef int64_t queues_due(const Queues* q) noexcept nogil:
    return q.now if queues_has_ended(q) or queues_has_work(q) else wheel_due(&q.wheel)
