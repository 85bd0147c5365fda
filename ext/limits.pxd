"""The limits of limit.h, for who includes them."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t


cdef extern from "ring.h" nogil:
    ctypedef struct Link:
        Link* prev
        Link* next


cdef extern from "limit.h" nogil:
    enum:
        LIMIT_CALLS, LIMIT_RECIPIENTS
        REFUSED_NOT, REFUSED_BLOCKED, REFUSED_FULL, REFUSED_GRANT
    const int64_t LIMIT_NEVER
    const uint64_t LIMIT_ENDLESS

    ctypedef struct Scope
    ctypedef struct Limit:
        Limit* next
        Scope* scope
        Limit* asking
        uint32_t handle
        uint8_t unit
        uint8_t calendar
        uint64_t number, reserved, total, gone, granted, portion
        int64_t per, guard, period
    ctypedef struct Scope:
        int64_t blocked
        uint64_t held[2]
        Limit* limits
        Link parked
    ctypedef struct Refusal:
        int why
        int scope
        const Limit* limit
        int64_t until

    void limit_make(
        Limit* limit, uint32_t handle, int unit, int calendar, uint64_t number, int64_t per, uint64_t reserved
    )
    uint64_t limit_ceiling(const Limit* limit, int system)
    void limit_roll(Limit* limit, int64_t now)
    void limit_count(Limit* limit, int64_t at, uint64_t n)
    void limit_period(Limit* limit, int64_t now, int64_t period, int64_t ends, int64_t ends_next)
    int64_t limit_when(Limit* limit, int64_t now, uint64_t n, uint64_t held, uint64_t ceiling)
    uint64_t limit_wants(Limit* limit)
    void limit_grant(Limit* limit, uint64_t n)
    void scope_make(Scope* scope, Limit** asking)
    void scope_free(Scope* scope)
    Limit* scope_limit(const Scope* scope, int unit, int calendar, int64_t per)
    void scope_add(Scope* scope, Limit* limit)
    bint scopes_limit(Scope** path, int length, int64_t now)
    uint64_t limit_room(const Limit* limit, int64_t at, uint64_t n, int system)
    uint64_t scopes_half(Scope** path, int length, uint64_t n)
    uint64_t scopes_most(Scope** path, int length, int64_t now, uint64_t n, int system)
    bint refusal_is_longer(const Refusal* than, const Refusal* no)
    Refusal scopes_longest(Scope** path, int length, int64_t now, uint64_t n, int system)
    Refusal scopes_refuse(Scope** path, int length, int64_t now, uint64_t n, int system)
    void scopes_hold(Scope** path, int length, uint64_t n)
    void scopes_settle(Scope** path, int length, int64_t now, uint64_t n, uint64_t left, int64_t at)
