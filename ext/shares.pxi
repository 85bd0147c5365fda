# Included by queues.pyx: limits that every tenant has on a channel, each for itself.
#
# The channel keeps the rules. A share, a group of (tenant, channel), has limits made after them and is a scope of the
# path of that tenant's batches there. It is made with the tenant's first node on the channel and lives while it has
# nodes, calls on their way, or uses that count. One that has only the last waits in ``counting``; each new one looks at
# two of those, so that no more wait than came within the longest window, and nothing walks them.

cdef inline Group* share_at(Scope* scope) noexcept nogil:
    return <Group*>(<char*>scope - (<size_t>&(<Group*>SOMEWHERE).scope - SOMEWHERE))


cdef Group* find_share(Queues* q, uint32_t tenant, uint32_t channel) noexcept nogil:
    """NULL: there is none."""
    if q.channels[channel].each.limits == NULL:
        return NULL
    return find_group(q, group_hash(SHARE, tenant, channel), SHARE, tenant, channel)


cdef Group* share_of(Queues* q, uint32_t tenant, uint32_t channel) noexcept nogil:
    """Found, or made; NULL: no memory. The channel has rules."""
    cdef const Limit* rule = q.channels[channel].each.limits
    cdef Group* share = group_of(q, SHARE, tenant, channel)
    cdef Limit* made
    if share == NULL or share.scope.limits != NULL:
        return share
    memset(&share.members, 0, sizeof(Link))  # its place among those that only count
    let_shares_go(q)
    while rule != NULL:
        made = <Limit*>malloc(sizeof(Limit))
        if made == NULL:
            free_share(q, share)
            return NULL
        limit_make(made, rule.handle, rule.unit, False, rule.number, rule.per, rule.reserved)
        scope_add(&share.scope, made)
        rule = rule.next
    return share


cdef void free_share(Queues* q, Group* share) noexcept nogil:
    if ring_holds(&share.members):
        ring_remove(&share.members)
    scope_free(&share.scope)
    table_remove(&q.names, share.key_hash, share.self)
    slab_free(&q.groups, share.self)


cdef inline bint share_counts(Queues* q, Group* share) noexcept nogil:
    cdef Limit* limit = share.scope.limits
    while limit != NULL:
        limit_roll(limit, q.now)
        if limit.total != limit.gone:
            return True
        limit = limit.next
    return False


cdef void leave_share(Queues* q, Group* share) noexcept nogil:
    """It has one node less, or one call less on its way."""
    if share.nodes or share.scope.held[LIMIT_CALLS]:
        return
    if not share_counts(q, share):
        free_share(q, share)
    elif not ring_holds(&share.members):
        ring_append(&q.counting, &share.members)


cdef void let_shares_go(Queues* q) noexcept nogil:
    cdef Group* share
    cdef int _i
    for _i in range(2):
        if ring_first(&q.counting) == NULL:
            return
        share = <Group*>ring_first(&q.counting)
        ring_remove(&share.members)
        leave_share(q, share)
