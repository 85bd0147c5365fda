# Included by queues.pyx: a batch is formed, recipient by recipient, into the columns of Output.

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


cdef void expire_first(Queues* q, Queue* queue) noexcept nogil:
    """There must be room for a record."""
    cdef Rec rec
    fifo_first(&q.store, &queue.fifo, &rec)
    tell_expired(q, rec.send, rec.position, rec.attempt, tier_of(queue))
    remove_first(q, queue, &rec)
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


cdef struct Forming:
    Queue* queue
    BatchRow* batch
    uint32_t most
    uint32_t facts  # handle of the last ones, 0: none
    Facts* of  # they themselves
    uint32_t retries  # of those who have them, attempt > 0
    bint cut
    bint due
    Counts* waits
    Counts* late


cdef inline void account_for(Queues* q, Forming* forming, uint32_t alike) noexcept nogil:
    """So many recipients taken that have the same facts; a retry does not queue again: only first attempts' waits
    count, from when they might have gone."""
    cdef const Facts* facts = forming.of
    if alike == 0:
        return
    forming.batch.due = min(forming.batch.due, facts.due)
    if must_close(q, facts.due, facts.deadline) <= q.now:
        forming.due = True
    if alike > forming.retries:
        counts_observe(forming.waits, since(q.now, max(facts.pushed, facts.not_before)), alike - forming.retries)
    counts_observe(forming.late, since(q.now, facts.due), alike)
    facts_let_go(&q.store, forming.facts, forming.of, alike)
    forming.facts = forming.retries = 0


cdef uint32_t form(Queues* q, Forming* forming) noexcept nogil:
    """Moves recipients in FIFO order to the output; 0: all have expired (or memory is short)."""
    cdef Queue* queue = forming.queue
    cdef Output* out = &q.out
    cdef uint8_t* ids = out.ids
    cdef size_t used = out.ids_used, at = out.items_used, first = at
    cdef uint32_t most = forming.most, content
    cdef Fifo* fifo = &queue.fifo
    cdef bint mixed = queue.mixed
    cdef Rec rec, same
    cdef Facts* facts
    cdef int64_t pushed = 0
    cdef size_t run = at  # where those with the same facts begin
    cdef const uint8_t* name
    cdef Reading reading
    reading.most, reading.chunk = most, NULL
    idset_clear(&q.seen)
    fifo_foresee(&q.store, fifo, most)
    while at - first < most and fifo.count:
        name = <const uint8_t*>reading_first(&q.store, fifo, &reading, &rec, mixed)
        if rec.facts & REC_FACTS != forming.facts:
            account_for(q, forming, <uint32_t>(at - run))
            run, forming.facts = at, rec.facts & REC_FACTS
            forming.of = facts = facts_at(&q.store, forming.facts)
            pushed = facts.pushed
            if facts.deadline <= q.now:
                forming.facts = 0
                if store_reserve(&q.store, 1, 1, 0) < 0:
                    q.no_memory = True
                    break
                expire_first(q, queue)
                reading.chunk = NULL
                continue
        if mixed:
            memcpy(&content, name, sizeof(content))
            name += sizeof(content)
            if content != forming.batch.content:
                break
        if most > 1 and not idset_add(&q.seen, ids, used, name, rec.length):
            forming.cut = True
            break
        id_copy(ids + used, name, rec.length)
        used += rec.length
        out.pushed[at], out.send[at], out.id_end[at] = pushed, rec.send, <uint32_t>used
        out.position[at], out.attempt[at] = rec.position, rec.attempt
        at += 1
        if queue.counted or rec.facts & ~<uint32_t>REC_FACTS:
            fifo_first(&q.store, fifo, &same)
            remove_first(q, queue, &same)
            reading.chunk = NULL
        else:
            reading_skip(&q.store, fifo, &reading, &rec, mixed)
        if rec.attempt:
            forming.retries += 1
    account_for(q, forming, <uint32_t>(at - run))
    out.ids_used, out.items_used = used, at
    count_queued(q, queue, leaf_of(queue), -<int64_t>(at - first))
    return <uint32_t>(at - first)
