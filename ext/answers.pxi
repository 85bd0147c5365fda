# Included by queues.pyx: a call ends, and is counted in the limits it was charged to.
#
# One without an answer may arrive until it has timed out at the platform, and stays held until then: were it counted at
# that time at once, it would stand in the logs before calls that are answered sooner, and take them along.

cdef inline int path_of_call(Queues* q, Node* leaf, Group* tenant, Group** share, Scope** path) noexcept nogil:
    """As ``path_of``, of a call that has left; tells the tenant's share on that channel, too: NULL, there is none."""
    share[0] = find_share(q, tenant.tenant, leaf.parent.handle)
    return path_of(q, leaf, tenant, NULL if share[0] == NULL else &share[0].scope, path)


cdef void settle_call(
    Queues* q, Node* leaf, Group* tenant, uint64_t recipients, uint64_t left, int64_t at
) noexcept nogil:
    """``left`` of its recipients were on the call and had arrived by ``at``."""
    cdef Scope* path[PATH]
    cdef Group* share
    cdef int i, length = path_of_call(q, leaf, tenant, &share, path)
    scopes_settle(path, length, q.now, recipients, left, at)
    for i in range(4):
        queues_reconsider(q, path[i])
    if tenant.scope.limits != NULL:
        queues_reconsider(q, &tenant.scope)
    free_group_if_idle(q, tenant)
    if share != NULL:
        share.nodes += 1  # it stays while its nodes change
        queues_reconsider(q, &share.scope)
        share.nodes -= 1
        leave_share(q, share)


cdef bint settle_later(
    Queues* q, Node* leaf, Group* tenant, uint64_t recipients, uint64_t left, int64_t at
) noexcept nogil:
    """False: no memory, or no limit that could wait for it."""
    cdef Scope* path[PATH]
    cdef Group* share
    cdef int length = path_of_call(q, leaf, tenant, &share, path)
    cdef Unanswered* call
    cdef uint32_t made
    if not scopes_limit(path, length, INT64_MAX) or slab_reserve(&q.unanswered, 1) < 0:
        return False
    made = slab_take(&q.unanswered)
    call = <Unanswered*>slab_at(&q.unanswered, made)
    timer_make(&call.timer, OF_UNANSWERED)
    call.leaf, call.tenant, call.self = leaf, tenant.self, made
    call.recipients, call.left = <uint32_t>recipients, <uint32_t>left
    call.at = at
    wheel_arm(&q.wheel, &call.timer, at)
    return True


cdef void settle_unanswered(Queues* q, Unanswered* call) noexcept nogil:
    cdef Unanswered done = call[0]
    slab_free(&q.unanswered, done.self)
    settle_call(q, done.leaf, group_at(q, done.tenant), done.recipients, done.left, done.at)


cdef void queues_release(
    Queues* q, Node* leaf, Group* tenant, uint64_t recipients, uint64_t left, int64_t at
) noexcept nogil:
    """A call has ended: ``left`` of its recipients were on it and have arrived, or may until ``at``."""
    cdef Channel* channel = leaf.channel
    cdef Node* lane
    cdef uint8_t i
    if not left or at <= q.now or not settle_later(q, leaf, tenant, recipients, left, at):
        settle_call(q, leaf, tenant, recipients, left, at)
    channel.in_flight[leaf.tier] -= 1
    if channel.is_paced:
        capacity_end(&channel.capacity, q.now, channel.slots)
    for i in range(TIERS):
        lane = &channel.lanes[i]
        if lane.state & BLOCKED and has_slot(channel, i):
            let_go(q, lane, BLOCKED)
