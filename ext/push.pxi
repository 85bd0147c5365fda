# Included by queues.pyx: what comes in. A push finds or makes the queue of every row first, so that one for which there
# is no memory changes nothing; then it puts all of them where they belong. Rows that follow each other and have the
# same times share their facts, and the sums above campaigns are brought up to date once for all of them.

cdef enum:
    AHEAD = 16  # rows between asking for a line and its use


cdef struct Pushing:  # what rows of a push that follow each other have in common
    Node* leaf  # NULL: there was none yet
    bint waits  # for its not_before
    bint paced
    bint latest  # no close or deadline that came into this leaf is later
    Facts facts
    Facts* held  # those in the store; NULL: they are not there yet
    uint32_t handle  # of that
    # Recipients not yet counted: in parcels, in queues that are not READY, and in READY ones.
    uint64_t waiting, resting, ready


cdef void count_pushed(Queues* q, Pushing* pushing) noexcept nogil:
    """Of one leaf."""
    cdef Node* leaf = pushing.leaf
    cdef Count* count = &q.counts[leaf.tier]
    cdef uint64_t queued = pushing.resting + pushing.ready
    count.pushed += queued + pushing.waiting
    count.queued += queued
    leaf.queued += pushing.ready
    leaf.parent.queued += queued
    leaf.parent.parent.queued += queued
    pushing.waiting = pushing.resting = pushing.ready = 0


cdef void begin_facts(Queues* q, Pushing* pushing, const Row* row) noexcept nogil:
    """Of a row that is not like the one before it."""
    cdef Facts* facts = &pushing.facts
    cdef const Times* times = row.times
    cdef Account* account = q.accounts[row.place >> 2]
    cdef uint8_t tier = row.place & 3
    if pushing.leaf != NULL:
        count_pushed(q, pushing)
    pushing.leaf = &account.leaves[tier]
    pushing.waits, pushing.paced = times.not_before > q.now, pushing.leaf.parent.pacing != NULL
    facts.pushed, facts.due = times.pushed, times.due
    facts.deadline, facts.not_before = times.deadline, times.not_before
    facts.close = min(later(max(q.now, times.not_before), times.linger), longest_linger(q, pushing.leaf.parent, times))
    facts.slot = slot_of(q, pushing.leaf.parent, times) if pushing.paced else 0
    pushing.latest = facts.close >= account.closes[tier] and facts.deadline >= account.deadlines[tier]
    account.closes[tier] = max(account.closes[tier], facts.close)
    account.deadlines[tier] = max(account.deadlines[tier], facts.deadline)
    pushing.held = NULL


cdef inline uint32_t hold_facts(Queues* q, Pushing* pushing, uint32_t n) noexcept nogil:
    """For n recipients more."""
    if pushing.held != NULL and pushing.held.refs < <uint32_t>1 << 31:
        pushing.held.refs += n
        return pushing.handle
    pushing.handle = facts_hold(&q.store, &pushing.facts, n)
    pushing.held = facts_at(&q.store, pushing.handle)
    return pushing.handle


cdef inline void next_call(Queues* q, uint32_t* call) noexcept nogil:
    q.calls += 1
    call[0] = q.calls


cdef inline bint joins(Queues* q, uint32_t call, const uint8_t* name, uint8_t length) noexcept nogil:
    """From now on it stands in the call; False: it did already."""
    return recent_add(q.recent, mix64(idset_hash(&q.seen, name, length), call))


cdef uint32_t append(
    Queues* q, Queue* queue, Fifo* fifo, uint32_t* call, const Row* row, Pushing* pushing, bint first
) noexcept nogil:
    """To a FIFO of the queue. Returns how many of them open calls behind the FIFO's first, counted now."""
    cdef uint32_t handle = hold_facts(q, pushing, row.count)
    cdef Node* lane = pushing.leaf.parent
    cdef bint mixed = queue.mixed
    cdef bint paced = pushing.paced and not queue.haste & AT_ONCE
    cdef uint32_t cap = largest_call(q, queue) if paced else 0xFFFFFFFF
    cdef uint32_t fill = cap if paced and mixed and fifo.count else fifo.fill, opens = 0
    cdef bint repeats = paced and not mixed and row.count < cap  # a send does not repeat its own
    cdef Rec rec
    cdef uint32_t i
    cdef const uint8_t* name = row.ids
    cdef const uint32_t* content = &row.content if mixed else NULL
    if fifo.count == 0:
        next_call(q, call)
    fifo_expect(&q.store, fifo, handle, &pushing.facts, pushing.latest)
    rec.send, rec.attempt = row.send, row.attempt
    rec.facts = handle | (REC_FIRST if first else 0)
    for i in range(row.count):
        rec.position, rec.length = row.positions[i], row.id_lengths[i]
        if fill >= cap or repeats and not joins(q, call[0], name, rec.length):
            fill = 0
            opens += 1
            rec.facts |= REC_OPENS
            count_call(q, lane, pushing.facts.slot)
            next_call(q, call)
            if repeats:
                joins(q, call[0], name, rec.length)
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
        tell_expired(q, row.send, row.positions[i], row.attempt, row.place & 3)


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


cdef void wait(Queues* q, Queue* queue, const Row* row, Pushing* pushing, bint first) noexcept nogil:
    cdef int64_t until = min(pushing.facts.not_before, pushing.facts.deadline)
    cdef Parcel* parcel = parcel_for(q, queue, until)
    parcel.opens += append(q, queue, &parcel.fifo, &parcel.call, row, pushing, first)
    if row.attempt:
        parcel.retries += row.count
        count_waiting(q, queue, row.count, 0)
    else:
        count_waiting(q, queue, 0, row.count)


cdef inline void append_all(Queues* q, Fifo* fifo, const Row* row, Pushing* pushing) noexcept nogil:
    """What ``append`` does where there are neither contents nor calls to tell apart."""
    cdef uint32_t handle = hold_facts(q, pushing, row.count), i = 0
    cdef const uint8_t* name = row.ids
    cdef Rec rec
    fifo_expect(&q.store, fifo, handle, &pushing.facts, pushing.latest)
    rec.send, rec.facts, rec.attempt = row.send, handle, row.attempt
    while True:  # once at least, mostly
        rec.position, rec.length = row.positions[i], row.id_lengths[i]
        fifo_append(&q.store, fifo, &rec, NULL, name)
        i += 1
        if i == row.count:
            return
        name += rec.length


cdef inline void put(Queues* q, const Row* row, Target* target, Pushing* pushing) noexcept nogil:
    """There is room for it."""
    cdef Queue* queue = target.queue
    if queue == NULL:
        q.counts[row.place & 3].pushed += row.count
        end_at_once(q, row)
        return
    if not target.alike:  # else the one before it was put, too: it had the same deadline
        begin_facts(q, pushing, row)
    if pushing.waits:
        pushing.waiting += row.count
        wait(q, queue, row, pushing, target.first)
        return
    if queue.mixed or pushing.paced:
        queue.opens += append(q, queue, &queue.fifo, &queue.call, row, pushing, target.first)
        count_first(q, queue)
    else:
        append_all(q, &queue.fifo, row, pushing)
    if queue.state == READY:
        count_ready(q, queue, row.count)
        pushing.ready += row.count
    else:
        pushing.resting += row.count
        count_state(q, queue, pushing.leaf, row.count)
    if queue.state != READY or queue.fifo.deadline == pushing.facts.deadline:
        settle(q, queue)


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


cdef inline void begin_aim(Queues* q, const Row* row, Target* target, bint is_first) noexcept nogil:
    target.alike = not is_first and row.times == (row - 1).times and row.place == (row - 1).place
    if target.alike and row.attempt == (row - 1).attempt:
        target.haste = (target - 1).haste
    else:
        target.haste = haste_of(q, row)
    target.key_hash = queue_hash(row.place, row.tenant, row.campaign, row.content)
    foresee(table_home(&q.by_key, target.key_hash))


cdef inline void let_pass(Queues* q, const Row* row, Target* target, int64_t due) noexcept nogil:
    """A row that is due before the last one of its queue goes to the next of some piles, and past it."""
    cdef int64_t soon = later(due, <int64_t>1 << PACE_NEAR_BITS)
    while target.queue != NULL and target.queue.last_due > soon and target.haste & PILES != PILES:
        target.haste += PILE
        target.queue = find_queue(q, row, target)


cdef inline int end_aim(Queues* q, const Row* row, Target* target) noexcept nogil:
    """What was found by its hash may be another's, and what was not found may have been made meanwhile."""
    target.first = False
    if row.times.deadline <= q.now:
        target.queue = NULL
        return 0
    if target.queue == NULL or not is_queue_of(target.queue, row, target.haste):
        target.queue = find_queue(q, row, target)
    cdef bint paced = target.haste & DIGITS > 0
    cdef int64_t due = due_of(q, row.times) if paced else 0
    if paced:
        let_pass(q, row, target, due)
    if target.queue == NULL:
        target.queue = new_queue_for(q, row, target)
    if paced and target.queue != NULL:
        target.queue.last_due = max(target.queue.last_due, due)
    return -(target.queue == NULL)


cdef int aim(Queues* q, const Row* rows, size_t n) noexcept nogil:
    """Finds or makes the queue of every row, which passes a stage each AHEAD rows.

    What is below 0 is, unsigned, beyond the last."""
    cdef size_t i
    cdef Target* targets = q.targets
    for i in range(n + 3 * AHEAD):
        if i < n:
            begin_aim(q, &rows[i], &targets[i], i == 0)
        if i - AHEAD < n:
            foresee_queue(q, &rows[i - AHEAD], &targets[i - AHEAD])
        if i - 2 * AHEAD < n:
            foresee_campaign(q, &rows[i - 2 * AHEAD], &targets[i - 2 * AHEAD])
        if i - 3 * AHEAD < n and end_aim(q, &rows[i - 3 * AHEAD], &targets[i - 3 * AHEAD]) < 0:
            aim_no_more(q, i - 3 * AHEAD)
            return -1
    return 0


cdef void put_all(Queues* q, const Row* rows, size_t n) noexcept nogil:
    cdef size_t i
    cdef Target* targets = q.targets
    cdef Pushing pushing
    memset(&pushing, 0, sizeof(pushing))
    for i in range(n + AHEAD):
        if i < n and targets[i].queue != NULL:
            foresee_tail(q, targets[i].queue, rows[i].id_bytes)
        if i >= AHEAD:
            put(q, &rows[i - AHEAD], &targets[i - AHEAD], &pushing)
    if pushing.leaf != NULL:
        count_pushed(q, &pushing)


cdef int queues_push(Queues* q, const Row* rows, size_t n, size_t recipients, size_t id_bytes) noexcept nogil:
    if (
        store_reserve(&q.store, n, recipients, id_bytes) < 0 or slab_reserve(&q.parcels, n) < 0
        or more_room(<void**>&q.targets, &q.targets_room, n, sizeof(Target)) < 0 or aim(q, rows, n) < 0
    ):
        return -1
    put_all(q, rows, n)
    return 0
