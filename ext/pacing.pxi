# Included by queues.pyx: pacing, on the slots, rings and rates of pace.h. docs/scheduler.md has the picture.
#
# Work is counted in calls, in two places: in the queue's lane and in its tier. A record that opens a call (the first of
# a FIFO, every cap-th behind it, and one whose recipient stands in the last call already) adds one in the slot of its
# due time, and takes it away when it leaves, expires or is reaped. The first of a FIFO is counted by its queue
# (``counted``, in ``counted_in``), the others by REC_OPENS, in their facts' slot. What waits for its not_before counts
# when that comes, but for full calls: those count at once.
#
# A paced queue that is READY stands in its lane's rings by its slot, and a lane in its tier's by that of the first.
# So earliest due first needs no search. A queue whose turn comes while a node above it is held is set aside at that
# node, and returns with it: nothing walks queues, and each pays for its own way only.
#
# What is due at once (AT_ONCE: of a tier that paces only what is due later than most) has queues of its own. They stand
# in a slot that has passed; they are not counted and not held back, and their calls take nothing of the rate.

cdef enum:  # of a haste
    DIGITS = 15  # 0: not paced, or at once
    PILE = 16  # those that are due sooner than the last one of their pile go to the next
    PILES = 48
    AT_ONCE = 64
    TRIED = 128

cdef enum:
    PASSES = 8  # of so many calls of a lane one may be of a tenant that goes ahead because it came anew
    LEAST_PASSES = 4  # so many at once

cdef int64_t NEWCOMER_NS = 10_000_000_000  # from a tenant's coming to when its first call is due
cdef int64_t NOT_YET = -(<int64_t>1 << 62)  # before all times
cdef int64_t BOUNDING_NS = <int64_t>1 << 36  # limits of such windows, or shorter ones, bound the rate


cdef inline Node* lane_of(Queues* q, const Queue* queue) noexcept nogil:
    """Of a dead queue too."""
    return q.accounts[account_of(queue)].leaves[tier_of(queue)].parent


cdef inline Node* lane_above(Node* node) noexcept nogil:
    while node.level != LANE:
        node = node.parent
    return node


cdef inline bint goes_by_due(const Node* lane) noexcept nogil:
    """Earliest due first; else by fair shares."""
    return lane.pacing != NULL and lane.pacing.pace.state != PACE_OVER


# --- due times ---

cdef inline bint due_at_once(Queues* q, uint8_t tier, const Times* times) noexcept nogil:
    """Of a paced tier: due no later after its start than most are."""
    return q.near[tier] > 0 and since(times.due, max(times.pushed, times.not_before)) <= q.near[tier]


cdef inline uint8_t haste_of(Queues* q, const Row* row) noexcept nogil:
    """How far its due time lies ahead, in powers of 4 of slots, and whether it has been tried: FIFO keeps due times in
    order only among those alike. And there, see ``let_pass``."""
    cdef int64_t ahead
    cdef uint8_t digits = 1
    cdef const Times* times = row.times
    if leaf_at(q, row.place).parent.pacing == NULL:
        return 0
    if due_at_once(q, row.place & 3, times):
        return AT_ONCE | (TRIED if row.attempt else 0)
    ahead = since(must_close(q, times.due, times.deadline), max(q.now, times.not_before)) >> PACE_NEAR_BITS
    while ahead > 0 and digits < DIGITS:
        ahead >>= 2
        digits += 1
    return digits | (TRIED if row.attempt else 0)


cdef inline int64_t due_of(const Queues* q, const Times* times) noexcept nogil:
    """What counts as its due time."""
    cdef int64_t start = max(times.pushed, times.not_before)
    return max(q.now, times.not_before) if times.due <= start else must_close(q, times.due, times.deadline)


cdef inline int64_t longest_linger(Queues* q, const Node* lane, const Times* times) noexcept nogil:
    """Until then it may wait for others; what is paced half of its time, for after that it waits for its turn."""
    cdef int64_t latest = must_close(q, times.due, times.deadline), start = max(q.now, times.not_before)
    if lane.pacing == NULL or not start < latest < INT64_MAX or due_at_once(q, lane.tier, times):
        return latest
    return start + (latest - start) // 2


cdef inline uint32_t slot_of(Queues* q, Node* lane, const Times* times) noexcept nogil:
    return pace_slot(&lane.pacing.pace, q.now, due_of(q, times))


cdef inline uint32_t passed_slot(Node* node) noexcept nogil:
    """Where what is due at once stands, in the lane of a node."""
    cdef Pacing* pacing = lane_above(node).pacing
    return 0 if pacing == NULL else pacing.pace.base - 1


cdef bint may_pass(Queues* q, Pacing* own) noexcept nogil:
    """One more that comes anew goes before what is due sooner: of the calls of a lane every PASSES-th may, and after a
    while without as many as leave in NEWCOMER_NS. More would make the others late, or their rate high at the end."""
    cdef int64_t interval = PASSES * pace_interval(&own.pace)
    own.ahead = max(own.ahead, q.now - max(NEWCOMER_NS, LEAST_PASSES * interval))
    if own.ahead + interval > q.now:
        return False
    own.ahead += interval
    return True


cdef uint32_t first_slot(Queues* q, Queue* queue, const Facts* facts) noexcept nogil:
    """Where a queue stands for its first call: by its due time; but a tenant that comes anew as if that were
    NEWCOMER_NS from now, once in as long as it has until it is due. It gets ahead, and does not make the rate higher:
    many that come at once would be a peak."""
    cdef Node* tenant = queue.branch.parent
    cdef Pacing* own = tenant.parent.parent.pacing
    cdef int64_t due = must_close(q, facts.due, facts.deadline), soon = later(q.now, NEWCOMER_NS)
    cdef uint64_t key = mix64(queue.place, queue.tenant)
    cdef Early* early = &q.early[key % EARLY]
    if not tenant.newcomer:
        return facts.slot
    tenant.newcomer = False
    if due <= soon or early.key_hash == key and early.until > q.now or not may_pass(q, own):
        return facts.slot
    early.key_hash, early.until = key, due
    return pace_slot(&own.pace, q.now, soon)


# --- work ---

cdef inline void look_again(Queues* q, Node* lane) noexcept nogil:
    """More is to leave: one that is held back asks again as soon as slots may be read."""
    cdef int64_t at = max(lane.pacing.pace.read_at, q.now + 1)
    if lane.state & HELD_BACK and not timer_armed_by(&lane.pacing.timer, at):
        wheel_disarm(&q.wheel, &lane.pacing.timer)
        wheel_arm(&q.wheel, &lane.pacing.timer, at)


cdef inline uint32_t largest_call(Queues* q, const Queue* queue) noexcept nogil:
    """So many recipients one of it takes where nothing is used up."""
    cdef Node* tenant = queue.branch.parent
    cdef Scope* path[PATH]
    if q.recipient_limits == 0 or tenant.tier == SYSTEM:
        return tenant.channel.cap
    return <uint32_t>scopes_half(path, path_of(q, tenant.parent, tenant.group, tenant.scope, path), tenant.channel.cap)


cdef void count_call(Queues* q, Node* lane, uint32_t slot) noexcept nogil:
    pace_add(&lane.pacing.pace, q.now, slot, 1)
    pace_add(&lane.parent.pacing.pace, q.now, slot, 1)
    look_again(q, lane)


cdef inline void uncount_call(Node* lane, uint32_t slot) noexcept nogil:
    pace_remove(&lane.pacing.pace, slot, 1)
    pace_remove(&lane.parent.pacing.pace, slot, 1)


cdef void count_first(Queues* q, Queue* queue) noexcept nogil:
    """The first of its FIFO, if there is one, opens a call that its queue counts."""
    cdef Node* lane = lane_of(q, queue)
    cdef Rec rec
    cdef const Facts* facts
    if lane.pacing == NULL or queue.haste & AT_ONCE or queue.counted or not queue.fifo.count:
        return
    fifo_first(&q.store, &queue.fifo, &rec)
    facts = facts_at(&q.store, rec.facts & REC_FACTS)
    queue.counted = True
    if rec.facts & REC_OPENS:
        fifo_mark(&q.store, &queue.fifo, False)
        queue.opens -= 1
    else:
        count_call(q, lane, facts.slot)
    queue.counted_in, queue.slot = facts.slot, first_slot(q, queue, facts)
    if queue.opens == 0:
        queue.fifo.fill = queue.fifo.count


cdef inline void uncount(Queues* q, Queue* queue, const Rec* rec) noexcept nogil:
    """Its first record goes."""
    if queue.counted:
        stand_down(q, queue)
        uncount_call(lane_of(q, queue), queue.counted_in)
        queue.counted = False
    elif rec.facts & REC_OPENS:
        uncount_call(lane_of(q, queue), facts_at(&q.store, rec.facts & REC_FACTS).slot)
        queue.opens -= 1


cdef void join_last_call(Queues* q, Queue* queue, Parcel* parcel) noexcept nogil:
    """There is room in it; but whoever stands in it already opens the next."""
    cdef Fifo rest = parcel.fifo
    cdef const uint8_t* name
    cdef Rec rec
    while True:
        name = <const uint8_t*>fifo_first(&q.store, &rest, &rec)
        if not joins(q, queue.call, name, rec.length):
            next_call(q, &queue.call)
            joins(q, queue.call, name, rec.length)
            count_call(q, lane_of(q, queue), facts_at(&q.store, rec.facts & REC_FACTS).slot)
            fifo_mark(&q.store, &rest, True)
            queue.opens += 1
            queue.fifo.fill = 0
        queue.fifo.fill += 1
        if rest.count == 1:
            return
        fifo_step(&q.store, &rest, &rec, False)


cdef void count_parcel(Queues* q, Queue* queue, Parcel* parcel) noexcept nogil:
    """A parcel is about to go behind its queue's FIFO: its first record opens a call if it does not fit the last.
    Steps: its records, if it fits, one otherwise."""
    cdef Node* lane = lane_of(q, queue)
    cdef Fifo* fifo = &queue.fifo
    cdef Rec rec
    if lane.pacing == NULL or queue.haste & AT_ONCE:
        return
    if fifo.count and not queue.mixed and not parcel.opens and fifo.fill + parcel.fifo.count <= largest_call(q, queue):
        join_last_call(q, queue, parcel)
        return
    if fifo.count:
        fifo_first(&q.store, &parcel.fifo, &rec)
        count_call(q, lane, facts_at(&q.store, rec.facts & REC_FACTS).slot)
        fifo_mark(&q.store, &parcel.fifo, True)
        parcel.opens += 1
        fifo.fill = parcel.fifo.fill
    queue.call = parcel.call
    queue.opens += parcel.opens


# --- who waits ---

cdef void place(Queues* q, Node* lane) noexcept nogil:
    """A lane stands in its tier's rings by the slot of what it has to do first, while it takes turns at all."""
    cdef Pacing* own = lane.pacing
    cdef Pace* tier
    cdef const Queue* first
    cdef uint32_t slot = 0
    cdef bint stands = ring_holds(&lane.link)
    if own == NULL or lane.level != LANE:
        return
    tier = &lane.parent.pacing.pace
    first = <const Queue*>pace_first(&own.pace)
    if ring_first(&own.returning) != NULL:
        slot = tier.base - 1
    elif first != NULL:
        slot = first.slot
    else:
        stands = False
    if pace_waits(&own.link):
        if stands and slot == own.slot:
            return
        pace_wait_no_more(tier, &own.link, own.slot)
    if stands:
        own.slot = slot
        pace_wait(tier, q.now, &own.link, slot)


cdef inline void place_last(Queues* q, Node* lane) noexcept nogil:
    """After a call: behind those that stand in the same slot of its tier, so that lanes that are late take turns."""
    cdef Pacing* own = lane.pacing
    if own == NULL or not pace_waits(&own.link):
        return
    pace_wait_no_more(&lane.parent.pacing.pace, &own.link, own.slot)
    pace_wait(&lane.parent.pacing.pace, q.now, &own.link, own.slot)  # what is late is in one slot


cdef void stand_by(Queues* q, Queue* queue) noexcept nogil:
    """A READY queue waits for its turn."""
    cdef Node* lane = lane_of(q, queue)
    cdef Pacing* own = lane.pacing
    if own == NULL or queue.state != READY or pace_waits(&queue.turn) or ring_holds(&queue.aside):
        return
    pace_wait(&own.pace, q.now, &queue.turn, queue.slot)
    if queue.haste & AT_ONCE:
        own.pace.at_once += 1
        if lane.state & HELD_BACK:
            wheel_disarm(&q.wheel, &own.timer)
            let_go(q, lane, HELD_BACK)
    if not pace_waits(&own.link) or <int32_t>(queue.slot - own.slot) < 0:
        place(q, lane)


cdef void stand_down(Queues* q, Queue* queue) noexcept nogil:
    cdef Node* lane = lane_of(q, queue)
    if lane.pacing == NULL:
        return
    if pace_waits(&queue.turn):
        pace_wait_no_more(&lane.pacing.pace, &queue.turn, queue.slot)
        lane.pacing.pace.at_once -= queue.haste & AT_ONCE > 0
        if queue.slot == lane.pacing.slot:
            place(q, lane)
    elif ring_holds(&queue.aside):
        ring_remove(&queue.aside)
        lane.pacing.pace.aside -= 1
        place(q, lane)


cdef inline Node* held_above(const Queue* queue) noexcept nogil:
    """The highest node below its lane that may not work; NULL: none."""
    cdef Node* campaign = queue.branch
    cdef Node* tenant = campaign.parent
    if tenant.parent.state:
        return tenant.parent
    return tenant if tenant.state else campaign if campaign.state else NULL


cdef void give_back(Queues* q, Node* node) noexcept nogil:
    """A node may work again: those set aside there return to their places, one a visit, and may be due before what the
    lane waits for."""
    cdef Node* lane = lane_above(node)
    if ring_first(&node.aside) == NULL:
        return
    ring_append_all(&lane.pacing.returning, &node.aside)
    if lane.state & HELD_BACK:
        wheel_disarm(&q.wheel, &lane.pacing.timer)
        let_go(q, lane, HELD_BACK)
    place(q, lane)


cdef inline bint is_limited(const Node* leaf) noexcept nogil:
    """An account whose limit is used up: its work shares what there is, so it stays where it is late."""
    return leaf.level == LEAF and leaf.state == PARKED and leaf.kept.why != REFUSED_BLOCKED


cdef inline bint is_away(Node* lane) noexcept nogil:
    """The queue of a lane that is due first cannot leave, whosever turn it is."""
    cdef const Queue* queue = <const Queue*>pace_first(&lane.pacing.pace)
    cdef Node* holds = NULL if queue == NULL else held_above(queue)
    return holds != NULL and not is_limited(holds)


cdef Queue* due_first(Queues* q, Node* lane) noexcept nogil:
    """The queue of a lane that is due first; NULL: it was set aside, and if it was late it is so from now on: how long
    it is kept tells nothing of capacity."""
    cdef Queue* queue = <Queue*>pace_first(&lane.pacing.pace)
    cdef Node* holds = held_above(queue)
    if holds == NULL:
        foresee_due(q, queue)
        return queue
    stand_down(q, queue)
    if pace_has_passed(&lane.pacing.pace, queue.slot) and not is_limited(holds):
        queue.slot = lane.pacing.pace.base - 1
    ring_append(&holds.aside, &queue.aside)
    lane.pacing.pace.aside += 1
    if lane.pacing.pace.aside == 1 or lane.pacing.pace.passed.count == lane.pacing.pace.at_once:
        lane.pacing.pace.read_at = q.now  # what of it is late counts no more
    return NULL


# --- when ---

cdef uint64_t least_of_limits(Scope* scope, uint64_t rate, uint64_t recipients) noexcept nogil:
    """The rate that a scope's windows allow in the long run to calls of so many recipients. Windows longer than
    BOUNDING_NS are not looked at: what they allow depends on what they have seen."""
    cdef const Limit* limit = scope.limits
    cdef uint64_t calls
    while limit != NULL:
        if not limit.calendar and limit.per <= BOUNDING_NS:
            calls = limit_ceiling(limit, False)
            if limit.unit == LIMIT_RECIPIENTS:
                calls = max(calls // recipients, <uint64_t>1)
            rate = min(rate, pace_rate(calls, <uint64_t>limit.per))
        limit = limit.next
    return rate


cdef uint64_t ceiling_of(Queues* q, Node* node) noexcept nogil:
    """What can leave of a lane or tier: the least of its limits and of what the channel was seen to deliver, less what
    leaves there unpaced."""
    cdef uint64_t rate = PACE_FASTEST, beside
    cdef uint64_t recipients = max(node.queued // max(node.pacing.pace.work, <uint64_t>1), <uint64_t>1)
    cdef Channel* channel = node.channel
    if node.level == LANE:
        rate = capacity_rate(&channel.capacity, channel.slots - channel.reserved)
        beside = beside_rate(&channel.beside, q.now)
        rate = rate if rate == PACE_FASTEST else rate - beside if rate > beside else 1
        rate = least_of_limits(&channel.scope, rate, recipients)
    rate = least_of_limits(&q.everything, rate, recipients)
    return least_of_limits(&q.of_tier[node.tier], rate, recipients)


cdef inline bint has_patience(const Pace* pace, const Queue* queue) noexcept nogil:
    """It is not late, or has not been for long; who is due at once is told by ``waits_long``."""
    cdef int32_t slots = min(<int32_t>(pace.base - 1 - queue.slot), <int32_t>(pace.base - 1 - queue.counted_in))
    return queue.haste & AT_ONCE or slots < PACE_PATIENCE_NS >> PACE_NEAR_BITS


cdef bint is_overdue(const Node* node) noexcept nogil:
    """Who waits in a lane or tier, and could leave, has been late for longer than patience lasts: the first, or the
    last one that is late, where those who had a call stand again."""
    cdef const Pace* pace = &node.pacing.pace
    cdef void* first = pace_first(pace)
    if first == NULL:
        return False
    if node.level == TIER_:
        first = pace_first(&(<Node*>first).pacing.pace)
        return first != NULL and not has_patience(pace, <const Queue*>first)
    if not has_patience(pace, <const Queue*>first):
        return True
    return pace.passed.count > 1 and not has_patience(pace, <const Queue*>pace.passed.last.owner)


cdef int64_t leaves_at(Queues* q, Node* node) noexcept nogil:
    """When the next call of a lane or tier may leave; 0: now."""
    cdef Pace* pace = &node.pacing.pace
    if q.now >= pace.read_at:
        pace_roll(pace, q.now)
        pace.ceiling = ceiling_of(q, node)
        pace.overdue = is_overdue(node)
    return pace_when(pace, q.now)


cdef bint waits_long(Queues* q, Queue* queue) noexcept nogil:
    """It is due at once, and could have left long ago: there is too little capacity."""
    cdef Rec rec
    cdef const Facts* facts
    if not queue.haste & AT_ONCE or held_above(queue) != NULL:
        return False
    fifo_first(&q.store, &queue.fifo, &rec)
    facts = facts_at(&q.store, rec.facts & REC_FACTS)
    return since(q.now, max(facts.pushed, facts.not_before)) >= PACE_PATIENCE_NS


cdef bint held_back(Queues* q, Node* lane) noexcept nogil:
    """Whether nothing of a lane may leave now. Then its turn is over, or it waits until its time comes.

    A lane near its ceiling does not ask its tier. What is due at once leaves whatever the rates are.
    """
    cdef Pacing* own = lane.pacing
    cdef Link* back = ring_first(&own.returning)
    cdef int64_t when
    if back != NULL:
        ring_remove(back)
        own.pace.aside -= 1
        stand_by(q, aside_queue(back))
        place(q, lane)
        return True
    if pace_first(&own.pace) == NULL:
        return False  # there are only places to tidy
    when = leaves_at(q, lane)
    if own.pace.at_once and waits_long(q, <Queue*>pace_first(&own.pace)):
        own.pace.state = PACE_OVER
    if own.pace.at_once:
        return False
    if when == 0 and own.pace.state == PACE_BELOW:
        when = leaves_at(q, lane.parent)
    if when == 0:
        return False
    hold(q, lane, HELD_BACK)
    wheel_arm(&q.wheel, &own.timer, when)
    return True


cdef void note_call(Queues* q, Node* lane, const Queue* queue) noexcept nogil:
    """A call leaves: the next one waits, or has so much less of the capacity."""
    cdef Channel* channel = lane.channel
    if not channel.is_paced:
        return
    capacity_start(&channel.capacity, q.now, channel.slots)
    if lane.pacing == NULL or queue.haste & AT_ONCE:
        beside_count(&channel.beside, q.now)
        return
    pace_leave(&lane.pacing.pace, q.now)
    if lane.pacing.pace.state == PACE_BELOW:
        pace_leave(&lane.parent.pacing.pace, q.now)


# --- making ---

cdef int make_pacing(Queues* q, Node* node) noexcept nogil:
    """Of a lane or tier; -1: no memory."""
    cdef Pacing* made = <Pacing*>calloc(1, sizeof(Pacing))
    if made == NULL:
        return -1
    pace_make(&made.pace, q.pacing[node.tier], q.tau, q.floor)
    timer_make(&made.timer, OF_PACING)
    ring_make(&made.returning)
    made.ahead = NOT_YET
    made.link.owner = made.node = node
    node.pacing = made
    q.pacings += 1
    return 0


cdef int queues_pace(
    Queues* q, uint8_t tier, int mode, int64_t tau, uint64_t floor, int64_t near
) noexcept nogil:
    """Before there are channels. -1: no memory."""
    q.pacing[tier], q.tau, q.floor, q.near[tier] = <uint8_t>mode, tau, floor, near
    if mode == PACE_ASAP:
        return 0
    if q.early == NULL:
        q.early = <Early*>calloc(EARLY, sizeof(Early))
    if q.recent == NULL:
        q.recent = <uint32_t*>calloc(RECENT_PRINTS, sizeof(uint32_t))
    if q.early == NULL or q.recent == NULL:
        return -1
    return make_pacing(q, &q.tiers[tier])
