# Included by queues.pyx: the core as a whole, its channels, accounts and limits: made, measured and freed.

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
    slab_make(&q.queues, sizeof(Queue))
    slab_make(&q.nodes, sizeof(Node))
    slab_make(&q.groups, sizeof(Group))
    slab_make(&q.parcels, sizeof(Parcel))
    slab_make(&q.unanswered, sizeof(Unanswered))
    fifo_make(&q.ended)
    ring_make(&q.sweeping)
    ring_make(&q.dead)
    ring_make(&q.held)
    ring_make(&q.counting)
    q.horizon = INT64_MAX
    set_node(&q.root, NULL, NULL, NULL, 0, ROOT, 0)
    scope_make(&q.everything, &q.asking)
    for tier in range(TIERS):
        ring_make(&q.away[tier])
        scope_make(&q.of_tier[tier], &q.asking)
        set_node(&q.tiers[tier], &q.root, NULL, NULL, 0, TIER_, tier)
    return q


cdef void free_channel(Channel* channel) noexcept nogil:
    cdef int tier
    for tier in range(TIERS):
        free(channel.lanes[tier].pacing)
    scope_free(&channel.scope)
    scope_free(&channel.each)
    free(channel)


cdef int queues_add_channel(Queues* q, uint32_t slots, uint32_t reserved, uint32_t cap, bint stays) noexcept nogil:
    cdef void* grown = realloc(q.channels, (q.channel_count + 1) * sizeof(Channel*))
    cdef uint8_t tier
    if grown == NULL:
        return -1
    q.channels = <Channel**>grown
    cdef Channel* made = <Channel*>calloc(1, sizeof(Channel))
    if made == NULL or idset_reserve(&q.seen, cap) < 0:
        free(made)
        return -1
    made.slots, made.reserved, made.cap, made.stays = slots, reserved, cap, stays
    scope_make(&made.scope, &q.asking)
    scope_make(&made.each, &q.asking)
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
    q.recipient_limits += unit == LIMIT_RECIPIENTS
    return made


cdef size_t queues_memory(const Queues* q) noexcept nogil:
    """Bytes that may be resident: the records, the tables and the output."""
    cdef const Output* out = &q.out
    return (
        sizeof(Queues) + store_bytes(&q.store) + q.queues.touched + q.nodes.touched + q.groups.touched
        + q.parcels.touched + q.unanswered.touched + q.by_key.bytes + q.branches.bytes + q.names.bytes + q.once.bytes
        + q.channel_count * sizeof(Channel) + q.account_count * sizeof(Account)
        + q.targets_room * sizeof(Target) + q.pacings * sizeof(Pacing)
        + (0 if q.early == NULL else EARLY * sizeof(Early))
        + (0 if q.recent == NULL else RECENT_PRINTS * sizeof(uint32_t))
        + out.batches_room * sizeof(BatchRow) + out.items_room * 19 + out.ids_room
    )


cdef void free_tenants(Queues* q) noexcept nogil:
    """Their limits."""
    cdef int i
    cdef size_t k
    cdef Group* group
    for i in range(SHARDS):
        for k in range(q.names.shards[i].size):
            group = group_at(q, q.names.shards[i].slots[k].item)
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
    free(q.recent)
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
    slab_free_all(&q.unanswered)
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
