/* Limits: at most `number` calls or recipients in any half-open window of length `per`, wherever it starts (ROLLING),
   or in any period of a calendar (CALENDAR), counted where the platform counts, at arrival.

   A use passes three states. *Granted*: it may be charged; the durable record says so already (limits that are not
   durable have an endless grant). *Held*: its call is on its way, from before it is written until its answer. *Counted*:
   it arrived at some time not after the answer, so it is counted from the answer on. A call i that is freed `per` after
   its answer at e_i, before a call j is charged, arrived at a_i <= e_i <= now - per <= a_j - per: the two share no window,
   however long either was on its way. So held + counted <= number at every charge means that no window at the platform
   is over, and what is paid for it is the time on the way: N P / (P + J) can be used, J = from charge to answer.

   A rolling limit is a log of (time, running total), oldest first. Uses within per / 1000 of each other share an entry,
   at the latest one's time: at most 1002 entries, and at most 1/1000 of the window is given away. Its memory grows with
   what is in the window, to 16 KiB at most, and stays: what a window had in it once it will have again. Where there is
   none to be had, an entry takes in more than it should, which only frees it later: nothing here can fail.

   `reserved` of a limit is kept for system: the other tiers see a lower ceiling on the same counters. */
#ifndef SURGETANK_LIMIT_H
#define SURGETANK_LIMIT_H

#include <assert.h>
#include <stdint.h>
#include <stdlib.h>

#include "ring.h"

#define LIMIT_GRAINS 1000
#define LIMIT_ENTRIES 1024 /* a power of two, LIMIT_GRAINS + 2 at least */
#define LIMIT_FEW 4        /* likewise */
#define LIMIT_NEVER INT64_MAX
#define LIMIT_ENDLESS UINT64_MAX

enum { LIMIT_CALLS, LIMIT_RECIPIENTS };

typedef struct Use {
    int64_t at;    /* of the latest use in it */
    uint64_t upto; /* everything counted until then */
} Use;

typedef struct Limit {
    struct Limit *next;   /* owned: the next of the same scope */
    struct Scope *scope;  /* borrowed: its own */
    struct Limit *asking; /* borrowed: the next that asks for a grant */
    uint32_t handle;
    uint8_t unit;
    uint8_t calendar;
    uint8_t asks; /* on the list, or asked for and not granted yet */
    uint64_t number, reserved;
    uint64_t total, gone; /* counted ever; of it, what has left the window or the period */
    int64_t per;
    /* rolling */
    int64_t grain, opened; /* when the newest entry was begun */
    Use *uses;             /* `few`, or owned; entry i stands at i % room */
    uint32_t first, count, room;
    Use few[LIMIT_FEW];
    /* calendar: periods end `guard` after the platform's do, by our clock */
    int64_t ends, ends_next, guard, period;
    uint64_t edge; /* counted within 2 guards of the end: it may belong to the next period too */
    /* durable */
    uint64_t granted, portion, want;
} Limit;

typedef struct Scope { /* everything, a tier, a channel, an account, a recipient class, or a tenant */
    int64_t blocked;  /* nothing of it leaves before this time */
    uint64_t held[2]; /* calls and recipients on their way */
    Limit *limits;    /* owned, in order of addition */
    Limit **asking;   /* borrowed: the first of those that ask for a grant */
    Link parked;      /* what this scope keeps from leaving */
} Scope;

enum { REFUSED_NOT, REFUSED_BLOCKED, REFUSED_FULL, REFUSED_GRANT };

typedef struct Refusal {
    int why;            /* REFUSED_... */
    int scope;          /* which of the path */
    const Limit *limit; /* borrowed; NULL: the scope is blocked */
    int64_t until;      /* LIMIT_NEVER: not known before an answer or a grant */
} Refusal;

/* --- one limit --- */

/* number and per in 1..2^60, reserved < number. A calendar limit's first period never ends: see limit_period. */
static inline void limit_make(
    Limit *limit, uint32_t handle, int unit, int calendar, uint64_t number, int64_t per, uint64_t reserved
) {
    *limit = (Limit){
        .handle = handle,
        .unit = (uint8_t)unit,
        .calendar = (uint8_t)calendar,
        .number = number,
        .reserved = reserved,
        .per = per,
        .grain = (per + LIMIT_GRAINS - 1) / LIMIT_GRAINS,
        .ends = LIMIT_NEVER,
        .ends_next = LIMIT_NEVER,
        .granted = LIMIT_ENDLESS,
        .uses = limit->few,
        .room = LIMIT_FEW,
    };
}

static inline uint64_t limit_ceiling(const Limit *limit, int system) {
    return system ? limit->number : limit->number - limit->reserved;
}

static inline Use *limit_use(const Limit *limit, uint32_t i) {
    return &limit->uses[(limit->first + i) & (limit->room - 1)];
}

static inline void limit_next_period(Limit *limit) {
    limit->gone = limit->total - limit->edge;
    limit->edge = 0;
    limit->period++;
    limit->ends = limit->ends_next;
    limit->ends_next = LIMIT_NEVER;
}

/* Let go what no window or period from now on shares with what is counted. */
static inline void limit_roll(Limit *limit, int64_t now) {
    if (limit->calendar) {
        while (limit->ends <= now) limit_next_period(limit);
        return;
    }
    while (limit->count && limit_use(limit, 0)->at <= now - limit->per) {
        limit->gone = limit_use(limit, 0)->upto;
        limit->first++;
        limit->count--;
    }
}

static inline int limit_grow(Limit *limit) {
    uint32_t room = 2 * limit->room;
    Use *uses = room > LIMIT_ENTRIES ? NULL : malloc(room * sizeof(Use));
    if (uses == NULL) return -1;
    for (uint32_t i = 0; i < limit->count; i++) uses[i] = *limit_use(limit, i);
    if (limit->uses != limit->few) free(limit->uses);
    limit->uses = uses;
    limit->first = 0;
    limit->room = room;
    return 0;
}

/* n uses until a time. */
static inline void limit_count(Limit *limit, int64_t at, uint64_t n) {
    limit->total += n;
    if (limit->calendar) {
        if (limit->ends != LIMIT_NEVER && at >= limit->ends - 2 * limit->guard) limit->edge += n;
        return;
    }
    if (limit->count && at < limit_use(limit, limit->count - 1)->at) at = limit_use(limit, limit->count - 1)->at;
    int merges = limit->count && (at < limit->opened + limit->grain || (limit->count == limit->room && limit_grow(limit) < 0));
    if (!merges) {
        limit->count++;
        limit->opened = at;
    }
    *limit_use(limit, limit->count - 1) = (Use){at, limit->total};
}

/* When n could be charged under this ceiling (n <= ceiling) with so many held, if nothing else were: 0 = now. */
static inline int64_t limit_when(Limit *limit, int64_t now, uint64_t n, uint64_t held, uint64_t ceiling) {
    assert(n <= ceiling);
    limit_roll(limit, now);
    uint64_t counted = limit->total - limit->gone;
    if (counted + held + n <= ceiling) return 0;
    uint64_t must_leave = counted + held + n - ceiling;
    if (must_leave > counted) return LIMIT_NEVER;
    if (limit->calendar) return must_leave > counted - limit->edge ? limit->ends_next : limit->ends;
    uint32_t low = 0, high = limit->count - 1; /* the first entry with which enough has left */
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        if (limit_use(limit, middle)->upto - limit->gone >= must_leave) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return limit_use(limit, low)->at + limit->per;
}

/* What of all that is counted so far still is at a time, now or later. */
static inline uint64_t limit_counted(const Limit *limit, int64_t at) {
    uint64_t counted = limit->total - limit->gone;
    if (limit->calendar) return at < limit->ends ? counted : at < limit->ends_next ? limit->edge : 0;
    uint32_t low = 0, high = limit->count; /* the first entry that counts then */
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        if (limit_use(limit, middle)->at > at - limit->per) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return low == 0 ? counted : limit->total - limit_use(limit, low - 1)->upto;
}

/* Which period it is, and when it and the one after it end (`guard` included). A clock that was set back keeps what
   is counted; one that was set forward begins the period it shows. */
static inline void limit_period(Limit *limit, int64_t now, int64_t period, int64_t ends, int64_t ends_next) {
    limit_roll(limit, now);
    if (limit->period == 0) limit->period = period;
    while (limit->period < period) limit_next_period(limit);
    limit->ends = ends;
    limit->ends_next = ends_next;
}

/* --- grants --- */

static inline void limit_ask(Limit *limit, uint64_t want) {
    if (want > limit->want) limit->want = want;
    if (limit->asks) return;
    limit->asks = 1;
    limit->asking = *limit->scope->asking;
    *limit->scope->asking = limit;
}

static inline void limit_spend(Limit *limit, uint64_t n) {
    if (limit->granted == LIMIT_ENDLESS) return;
    assert(n <= limit->granted);
    limit->granted -= n;
    if (2 * limit->granted < limit->portion) limit_ask(limit, limit->portion);
}

/* The grant it asks for now; it asks no more until limit_grant. */
static inline uint64_t limit_wants(Limit *limit) {
    uint64_t want = limit->want > limit->portion ? limit->want : limit->portion;
    limit->want = 0;
    return want > limit->granted ? want - limit->granted : 0;
}

static inline void limit_grant(Limit *limit, uint64_t n) {
    limit->granted += n;
    limit->asks = 0;
    if (2 * limit->granted < limit->portion) limit_ask(limit, limit->portion);
}

/* --- scopes --- */

static inline void scope_make(Scope *scope, Limit **asking) {
    *scope = (Scope){.asking = asking};
    ring_make(&scope->parked);
}

static inline void scope_free(Scope *scope) {
    while (scope->limits != NULL) {
        Limit *limit = scope->limits;
        scope->limits = limit->next;
        if (limit->uses != limit->few) free(limit->uses);
        free(limit);
    }
}

/* The limit of this unit, kind and length; NULL: there is none. */
static inline Limit *scope_limit(const Scope *scope, int unit, int calendar, int64_t per) {
    Limit *limit = scope->limits;
    while (limit != NULL && !(limit->unit == unit && limit->calendar == calendar && limit->per == per)) limit = limit->next;
    return limit;
}

static inline void scope_add(Scope *scope, Limit *limit) {
    Limit **at = &scope->limits;
    while (*at != NULL) at = &(*at)->next;
    *at = limit;
    limit->scope = scope;
}

/* False: no scope of the path is blocked or has limits, and any call may be charged. */
static inline int scopes_limit(Scope *const *path, int length, int64_t now) {
    int some = 0;
    for (int i = 0; i < length; i++) some |= (path[i]->blocked > now) | (path[i]->limits != NULL);
    return some;
}

/* Half of the number of a limit of recipients, in one call, at most: one that takes all of it waits for ever while others
   now and then use a little. */
static inline uint64_t limit_half(const Limit *limit, uint64_t n) {
    uint64_t ceiling = limit_ceiling(limit, 0), half = ceiling > 1 ? ceiling / 2 : 1;
    return limit->unit != LIMIT_RECIPIENTS || n < half ? n : half;
}

/* What of n recipients there is room for in a limit of recipients, now or at a later time if nothing else comes; 1 at
   least. */
static inline uint64_t limit_room(const Limit *limit, int64_t at, uint64_t n, int system) {
    uint64_t ceiling = limit_ceiling(limit, system);
    uint64_t used = limit_counted(limit, at) + limit->scope->held[limit->unit];
    uint64_t room = used < ceiling ? ceiling - used : 1;
    if (limit->granted && limit->granted < room) room = limit->granted;
    return n < room ? n : room;
}

/* What a batch of up to n recipients may be at most where nothing is used up, of all but system. */
static inline uint64_t scopes_half(Scope *const *path, int length, uint64_t n) {
    for (int i = 0; i < length; i++)
        for (const Limit *limit = path[i]->limits; limit != NULL; limit = limit->next) n = limit_half(limit, n);
    return n;
}

/* And now. What is system's does not wait for more room than there is: others fill all but what is reserved, so that there
   never would be more. */
static inline uint64_t scopes_most(Scope *const *path, int length, int64_t now, uint64_t n, int system) {
    if (!system) return scopes_half(path, length, n);
    for (int i = 0; i < length; i++)
        for (Limit *limit = path[i]->limits; limit != NULL; limit = limit->next)
            if (limit->unit == LIMIT_RECIPIENTS) n = limit_room(limit, now, n, 1);
    return n;
}

static inline int64_t scope_refuses(Scope *scope, Limit *limit, int64_t now, uint64_t n, int system, int *why) {
    uint64_t uses = limit->unit == LIMIT_RECIPIENTS ? n : 1, held = scope->held[limit->unit];
    int64_t until = limit_when(limit, now, uses, held, limit_ceiling(limit, system));
    *why = REFUSED_FULL;
    if (until || uses <= limit->granted) return until;
    *why = REFUSED_GRANT;
    limit_ask(limit, uses);
    return LIMIT_NEVER;
}

/* Whether one call with n recipients (n <= scopes_most) may be charged to every scope of the path now; if not, the
   first that refuses. */
static inline Refusal scopes_refuse(Scope *const *path, int length, int64_t now, uint64_t n, int system) {
    Refusal no = {REFUSED_NOT, 0, NULL, 0};
    for (int i = 0; i < length; i++)
        if (path[i]->blocked > now) return (Refusal){REFUSED_BLOCKED, i, NULL, path[i]->blocked};
    for (int i = 0; i < length; i++) {
        for (Limit *limit = path[i]->limits; limit != NULL; limit = limit->next) {
            no.until = scope_refuses(path[i], limit, now, n, system, &no.why);
            no.scope = i;
            no.limit = limit;
            if (no.until) return no;
        }
    }
    return (Refusal){REFUSED_NOT, 0, NULL, 0};
}

/* Of two refusals, whether the second lasts longer; how long one does may not be known, which tells less than any time. */
static inline int refusal_is_longer(const Refusal *than, const Refusal *no) {
    if (no->why == REFUSED_NOT || than->why == REFUSED_NOT) return no->why != REFUSED_NOT;
    return no->until != LIMIT_NEVER && (than->until == LIMIT_NEVER || no->until > than->until);
}

/* Of all that refuse such a call now, the one that does so longest. For who asks why something waits. */
static inline Refusal scopes_longest(Scope *const *path, int length, int64_t now, uint64_t n, int system) {
    Refusal longest = {REFUSED_NOT, 0, NULL, 0};
    for (int i = 0; i < length; i++) {
        Refusal no = {REFUSED_BLOCKED, i, NULL, path[i]->blocked};
        if (no.until > now && refusal_is_longer(&longest, &no)) longest = no;
        for (Limit *limit = path[i]->limits; limit != NULL; limit = limit->next) {
            no = (Refusal){REFUSED_NOT, i, limit, 0};
            no.until = scope_refuses(path[i], limit, now, n, system, &no.why);
            if (no.until && refusal_is_longer(&longest, &no)) longest = no;
        }
    }
    return longest;
}

/* Charge a call that is about to leave; nothing may have been charged since scopes_refuse said REFUSED_NOT. */
static inline void scopes_hold(Scope *const *path, int length, uint64_t n) {
    for (int i = 0; i < length; i++) {
        path[i]->held[LIMIT_CALLS] += 1;
        path[i]->held[LIMIT_RECIPIENTS] += n;
        for (Limit *limit = path[i]->limits; limit != NULL; limit = limit->next)
            limit_spend(limit, limit->unit == LIMIT_RECIPIENTS ? n : 1);
    }
}

/* A call that was held ended now: `left` of its n recipients were on it and had arrived by `at`; 0: it never left. */
static inline void scopes_settle(
    Scope *const *path, int length, int64_t now, uint64_t n, uint64_t left, int64_t at
) {
    for (int i = 0; i < length; i++) {
        path[i]->held[LIMIT_CALLS] -= 1;
        path[i]->held[LIMIT_RECIPIENTS] -= n;
        for (Limit *limit = path[i]->limits; limit != NULL; limit = limit->next) {
            uint64_t held = limit->unit == LIMIT_RECIPIENTS ? n : 1;
            uint64_t used = limit->unit == LIMIT_RECIPIENTS ? left : left > 0;
            limit_roll(limit, now);
            if (used) limit_count(limit, at, used);
            if (limit->granted != LIMIT_ENDLESS) limit->granted += held - used;
        }
    }
}

#endif
