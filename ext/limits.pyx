# distutils: include_dirs = ext
"""The limits of the core by themselves, without queues: to try out a policy, and to be held against a plain model.

In: scopes with limits, calls as they leave and end. Out: whether a call may leave, and if not, what keeps it and until
when. Times are integer ns of any clock that never goes back.
Never: checks what it is given beyond its types; the core does (ext.schedule).
"""

from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport malloc

from ext.limits cimport (
    LIMIT_NEVER, REFUSED_BLOCKED, REFUSED_FULL, REFUSED_GRANT, REFUSED_NOT, Limit, Refusal, Scope, limit_ceiling,
    limit_count, limit_grant, limit_make, limit_period, limit_roll, limit_wants, limit_when, scope_add, scope_free,
    scope_limit, scope_make, scopes_hold, scopes_most, scopes_refuse, scopes_settle,
)

NEVER = LIMIT_NEVER
FREE, BLOCKED, FULL, GRANT = REFUSED_NOT, REFUSED_BLOCKED, REFUSED_FULL, REFUSED_GRANT

cdef enum:
    SCOPES = 6


cdef class Limits:
    """Six scopes, 0..5; every call passes all of them."""

    cdef Scope scopes[SCOPES]
    cdef Scope* path[SCOPES]
    cdef Limit* asking
    cdef list limits  # addresses, by handle

    def __cinit__(self):
        cdef int i
        self.limits = []
        for i in range(SCOPES):
            scope_make(&self.scopes[i], &self.asking)
            self.path[i] = &self.scopes[i]

    def __dealloc__(self):
        cdef int i
        for i in range(SCOPES):
            scope_free(&self.scopes[i])

    cdef Limit* limit(self, handle) except NULL:
        return <Limit*><size_t>self.limits[handle]

    def add_limit(
        self, int scope, int handle, int unit, uint64_t number, int64_t per_ns, uint64_t reserved=0,
        bint calendar=False,
    ):
        cdef Limit* made = <Limit*>malloc(sizeof(Limit))
        if made == NULL:
            raise MemoryError
        limit_make(made, <unsigned int>len(self.limits), unit, calendar, number, per_ns, reserved)
        scope_add(&self.scopes[scope], made)
        self.limits.append(<size_t>made)
        return len(self.limits) - 1

    def most(self, int64_t now_ns, uint64_t n, bint system=False):
        return scopes_most(self.path, SCOPES, now_ns, n, system)

    def refuse(self, int64_t now_ns, uint64_t n, bint system=False):
        cdef Refusal no = scopes_refuse(self.path, SCOPES, now_ns, n, system)
        return no.why, no.scope, None if no.limit == NULL else no.limit.handle, no.until

    def hold(self, uint64_t n):
        scopes_hold(self.path, SCOPES, n)

    def settle(self, int64_t now_ns, uint64_t n, uint64_t left):
        scopes_settle(self.path, SCOPES, now_ns, n, left, now_ns)

    def block(self, int scope, int64_t until_ns):
        self.scopes[scope].blocked = until_ns

    def set_limit(
        self, int scope, int handle, int unit, uint64_t number, int64_t per_ns, uint64_t reserved=0,
        bint calendar=False,
    ):
        limit = scope_limit(&self.scopes[scope], unit, calendar, per_ns)
        if limit == NULL:
            return self.add_limit(scope, handle, unit, number, per_ns, reserved, calendar)
        limit.number, limit.reserved = number, reserved
        return limit.handle

    def set_period(self, handle, int64_t now_ns, int64_t period, int64_t ends_ns, int64_t next_ns, int64_t guard_ns=0):
        limit = self.limit(handle)
        limit.guard = guard_ns
        limit_period(limit, now_ns, period, ends_ns, next_ns)

    def restore(self, handle, int64_t at_ns, uint64_t n):
        limit_count(self.limit(handle), at_ns, n)

    def ration(self, handle, uint64_t portion):
        limit = self.limit(handle)
        limit.granted, limit.portion = 0, portion

    def asked(self):
        wants = []
        while self.asking != NULL:
            wants.append((self.asking.handle, limit_wants(self.asking)))
            self.asking = self.asking.asking
        return wants

    def grant(self, handle, uint64_t n):
        limit_grant(self.limit(handle), n)

    def use(self, handle, int64_t now_ns):
        limit = self.limit(handle)
        limit_roll(limit, now_ns)
        return limit.total, limit.total - limit.gone, limit.scope.held[limit.unit], limit.granted

    def free_at(self, handle, int64_t now_ns):
        limit = self.limit(handle)
        return max(now_ns, limit_when(limit, now_ns, 1, limit.scope.held[limit.unit], limit_ceiling(limit, False)))
