/* Pacing: when the next call of a lane may leave, so that every call leaves by its due time at the lowest peak rate
   that can be known without the future; and which of those that wait is due first.

   What is still to leave is counted in calls, by due time. The rate needed is that of Optimal Available (Yao, Demers,
   Shenker, FOCS 1995): the most, over all due times d, of (calls due by d) / (d - now). It is enough only when calls
   leave earliest due first. A ratchet lets them leave up to twice as fast, but not faster than at the past peak,
   which decays by 1/64 every tau/64: what comes next finds less left, and the next peak is lower.

   Due times are kept in slots of 2^28 ns (0.27 s) up to 18 minutes ahead and of 2^34 ns (17 s) up to 19 hours; what is
   due later is counted at the end of that. A slot lies one to two slots before its due times: pacing errs towards early.
   As time passes a far slot moves, whole, to the near slot it starts in, so a call's slot alone tells where it stands.

   Who waits stands in a ring by slot: first the slot due first, inside a slot first in first out.

   Adding, removing and finding the first are O(1). The slots are read once a tick (2^26 ns, 67 ms) at most, and only those in use.
   Nothing allocates. Rates are in calls per 10^15 ns (micro-calls a second); times in ns, 0..2^62, never going back. */
#ifndef SURGETANK_PACE_H
#define SURGETANK_PACE_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

#define PACE_SLOTS 4096
#define PACE_NEAR_BITS 28
#define PACE_FAR_BITS 6 /* a far slot is 2^6 near ones */
#define PACE_TICK_BITS 26
#define PACE_LEAST_NS (1 << 26)
#define PACE_SLACK_NS (1 << 22)             /* so late may the first call leave without the next one being late too */
#define PACE_PATIENCE_NS (1ll << 31)        /* so long may something be late before that means too little capacity */
#define PACE_RATCHET_NS (1ll << 34)         /* what is due sooner is over too soon to keep a rate for */
#define PACE_NS 1000000000000000ull         /* in which a rate of 1 lets one call go */
#define PACE_CALL_A_SECOND 1000000ull       /* as a rate */
#define PACE_FASTEST (1000000000000000ull)  /* a billion calls a second: no ceiling */
#define PACE_DECAYS 64                      /* of the ratchet in tau, each by 1/64 */

enum PaceMode { PACE_ASAP, PACE_EVEN, PACE_PACED };

/* Below: calls are held back, earliest due first. Full: from three quarters of the ceiling on they leave at the ceiling's
   rate; so nothing is late that some schedule with a peak of three quarters of the ceiling sends in time. Over: some call
   has been late for a while, so there is too little capacity; nothing is held back, and fair shares take the place of
   earliest due first. */
enum PaceState { PACE_BELOW, PACE_FULL, PACE_OVER };

typedef struct PaceLink {
    struct PaceLink *prev, *next; /* prev == NULL: in no ring; its own: the first */
    void *owner;                  /* borrowed: what this link is part of */
} PaceLink;

typedef struct PaceRing {
    PaceLink *first, *last;
    uint64_t count;
} PaceRing;

typedef struct PaceSlots {
    uint64_t used[PACE_SLOTS / 64];   /* bit i: calls[i] or even[i] is not 0 */
    uint64_t waited[PACE_SLOTS / 64]; /* bit i: rings[i] is not empty */
    uint32_t calls[PACE_SLOTS];
    uint64_t even[PACE_SLOTS]; /* mode EVEN: the rates that end here */
    PaceRing rings[PACE_SLOTS];
} PaceSlots;

typedef struct Pace {
    uint8_t mode, state;
    uint8_t stale;   /* calls were added since the slots were last read */
    uint8_t overdue; /* told before a reading: who waits could have left for PACE_PATIENCE_NS */
    uint32_t base;   /* the near slot that time is in, modulo 2^32 */
    int64_t base_ns; /* its start */
    int64_t read_at; /* the slots are not read before this */
    int64_t step;    /* of the ratchet's decay; 0: there is no ratchet */
    int64_t decayed; /* the time of its last step */
    int64_t left;    /* when the last call left, or should have */
    int64_t begun;   /* when the first call was counted, after there had been none */
    uint64_t work;   /* calls counted */
    uint64_t late;   /* of them in slots that have passed */
    uint64_t waiting; /* links in rings */
    uint64_t aside;   /* who would wait here, but is held by something else */
    uint64_t at_once; /* of who waits in slots that have passed: its calls are not counted */
    uint64_t floor, ceiling;
    uint64_t need, even, ratchet, rate;
    PaceRing passed; /* who waits in slots that have passed */
    PaceSlots near, far;
} Pace;

/* The memory must be zero. tau_ns 0: no ratchet. floor: never slower than this, 1 or more. */
static inline void pace_make(Pace *pace, int mode, int64_t tau_ns, uint64_t floor) {
    pace->mode = (uint8_t)mode;
    pace->step = (tau_ns + PACE_DECAYS - 1) / PACE_DECAYS;
    pace->left = -PACE_SLACK_NS - (int64_t)PACE_NS;
    pace->floor = pace->rate = floor;
    pace->ceiling = PACE_FASTEST;
    pace->base = 1;
}

static inline uint64_t pace_rate(uint64_t calls, uint64_t ns) {
    unsigned __int128 rate = ((unsigned __int128)calls * PACE_NS + ns - 1) / ns;
    return rate > PACE_FASTEST ? PACE_FASTEST : (uint64_t)rate;
}

/* --- slots --- */

static inline void pace_put(PaceSlots *slots, uint32_t slot, int64_t calls, uint64_t even) {
    uint32_t at = slot % PACE_SLOTS;
    slots->calls[at] = (uint32_t)(slots->calls[at] + calls);
    slots->even[at] += even;
    if (slots->calls[at] || slots->even[at])
        slots->used[at / 64] |= 1ull << at % 64;
    else
        slots->used[at / 64] &= ~(1ull << at % 64);
}

/* Of the n slots from `first` on, how many stand before the first whose bit is set; n: none is. */
static inline uint32_t pace_seek(const uint64_t *bits, uint32_t first, uint32_t n) {
    uint32_t skipped = 0;
    while (skipped < n) {
        uint32_t at = (first + skipped) % PACE_SLOTS;
        uint64_t word = bits[at / 64] >> at % 64;
        if (word) {
            skipped += (uint32_t)__builtin_ctzll(word);
            break;
        }
        skipped += 64 - at % 64;
    }
    return skipped < n ? skipped : n;
}

static inline void pace_ring_append_all(PaceRing *ring, PaceRing *from) {
    if (from->first == NULL) return;
    if (ring->last != NULL) {
        ring->last->next = from->first;
        from->first->prev = ring->last;
    } else {
        ring->first = from->first;
    }
    ring->last = from->last;
    ring->count += from->count;
    *from = (PaceRing){0};
}

/* All that a slot holds goes to another, which is nearer. */
static inline void pace_hand_on(PaceSlots *slots, uint32_t slot, PaceSlots *to, uint32_t to_slot) {
    uint32_t at = slot % PACE_SLOTS, to_at = to_slot % PACE_SLOTS;
    pace_put(to, to_slot, slots->calls[at], slots->even[at]);
    pace_put(slots, slot, -(int64_t)slots->calls[at], 0 - slots->even[at]);
    if (slots->rings[at].first == NULL) return;
    pace_ring_append_all(&to->rings[to_at], &slots->rings[at]);
    slots->waited[at / 64] &= ~(1ull << at % 64);
    to->waited[to_at / 64] |= 1ull << to_at % 64;
}

static inline int pace_is_near(const Pace *pace, uint32_t slot) { return slot - pace->base < PACE_SLOTS; }

static inline int pace_has_passed(const Pace *pace, uint32_t slot) { return (int32_t)(slot - pace->base) < 0; }

/* From now to the start of a slot, but not less than a tick: what has passed leaves within that. */
static inline uint64_t pace_ahead(const Pace *pace, int64_t now_ns, uint32_t slot) {
    int64_t ahead = pace->base_ns - now_ns + ((int64_t)(int32_t)(slot - pace->base) << PACE_NEAR_BITS);
    return ahead < PACE_LEAST_NS ? PACE_LEAST_NS : (uint64_t)ahead;
}

/* --- time --- */

/* Time enters the slot that is so many further on, 64 at most. */
static inline void pace_step(Pace *pace, uint32_t slots) {
    uint32_t end = pace->base + PACE_SLOTS, far = (end + 63) >> PACE_FAR_BITS, seen = 0;
    for (; (seen += pace_seek(pace->near.used, pace->base + seen, slots - seen)) < slots; seen++) {
        uint32_t at = (pace->base + seen) % PACE_SLOTS;
        pace->late += pace->near.calls[at];
        pace->even -= pace->near.even[at];
        pace_put(&pace->near, at, -(int64_t)pace->near.calls[at], 0 - pace->near.even[at]);
    }
    seen = 0;
    for (; (seen += pace_seek(pace->near.waited, pace->base + seen, slots - seen)) < slots; seen++) {
        uint32_t at = (pace->base + seen) % PACE_SLOTS;
        pace_ring_append_all(&pace->passed, &pace->near.rings[at]);
        pace->near.waited[at / 64] &= ~(1ull << at % 64);
    }
    pace->base += slots;
    pace->base_ns += (int64_t)slots << PACE_NEAR_BITS;
    if ((far << PACE_FAR_BITS) - end < slots) pace_hand_on(&pace->far, far, &pace->near, far << PACE_FAR_BITS);
}

static inline void pace_roll(Pace *pace, int64_t now_ns) {
    int64_t slots = (now_ns - pace->base_ns) >> PACE_NEAR_BITS;
    if (pace->work == 0 && pace->even == 0 && pace->waiting == 0) {
        pace->base += (uint32_t)slots;
        pace->base_ns += slots << PACE_NEAR_BITS;
        return;
    }
    for (; slots > 64; slots -= 64) pace_step(pace, 64);
    if (slots > 0) pace_step(pace, (uint32_t)slots);
}

/* --- work --- */

/* The slot of a due time, as far as it can be told apart at this distance. */
static inline uint32_t pace_slot(Pace *pace, int64_t now_ns, int64_t due_ns) {
    pace_roll(pace, now_ns);
    int64_t ahead = (due_ns < pace->base_ns ? -1 : (due_ns - pace->base_ns) >> PACE_NEAR_BITS) - 1;
    uint32_t farthest = ((pace->base >> PACE_FAR_BITS) + PACE_SLOTS - 1) << PACE_FAR_BITS;
    if (ahead < 0) return pace->base - 1;
    if (ahead < PACE_SLOTS) return pace->base + (uint32_t)ahead;
    if (ahead >= (int64_t)(farthest - pace->base)) return farthest;
    return (pace->base + (uint32_t)ahead) >> PACE_FAR_BITS << PACE_FAR_BITS;
}

/* Calls that should leave by a slot, found now or before; fewer than 2^32 in all. */
static inline void pace_add(Pace *pace, int64_t now_ns, uint32_t slot, uint32_t calls) {
    uint64_t even = 0;
    pace_roll(pace, now_ns);
    pace->stale = 1;
    if (pace->work == 0) pace->begun = now_ns;
    pace->work += calls;
    if (pace_has_passed(pace, slot)) {
        pace->late += calls;
        return;
    }
    if (pace->mode == PACE_EVEN) even = calls * pace_rate(1, pace_ahead(pace, now_ns, slot));
    pace->even += even;
    if (pace_is_near(pace, slot))
        pace_put(&pace->near, slot, calls, even);
    else
        pace_put(&pace->far, slot >> PACE_FAR_BITS, calls, even);
}

/* Calls counted in a slot have left, or never will. */
static inline void pace_remove(Pace *pace, uint32_t slot, uint32_t calls) {
    assert(pace->work >= calls);
    pace->work -= calls;
    if (pace_has_passed(pace, slot)) {
        assert(pace->late >= calls);
        pace->late -= calls;
    } else if (pace_is_near(pace, slot)) {
        pace_put(&pace->near, slot, -(int64_t)calls, 0);
    } else {
        pace_put(&pace->far, slot >> PACE_FAR_BITS, -(int64_t)calls, 0);
    }
}

/* --- who is first --- */

static inline PaceRing *pace_ring(Pace *pace, uint32_t slot, uint64_t **word) {
    PaceSlots *slots = pace_is_near(pace, slot) ? &pace->near : &pace->far;
    uint32_t at = (slots == &pace->near ? slot : slot >> PACE_FAR_BITS) % PACE_SLOTS;
    *word = pace_has_passed(pace, slot) ? NULL : &slots->waited[at / 64];
    return *word == NULL ? &pace->passed : &slots->rings[at];
}

static inline uint64_t pace_bit(const Pace *pace, uint32_t slot) {
    return 1ull << (pace_is_near(pace, slot) ? slot : slot >> PACE_FAR_BITS) % 64;
}

/* One waits, and its next call is due in this slot, which pace_slot told now or before, of any pace: one that lags behind
   would take a near slot for a far one. The link must be in no ring. */
static inline void pace_wait(Pace *pace, int64_t now_ns, PaceLink *link, uint32_t slot) {
    uint64_t *word;
    pace_roll(pace, now_ns);
    PaceRing *ring = pace_ring(pace, slot, &word);
    assert(link->prev == NULL);
    assert(pace_has_passed(pace, slot) || pace_is_near(pace, slot) || slot % (1 << PACE_FAR_BITS) == 0);
    pace->waiting++;
    ring->count++;
    link->prev = ring->last == NULL ? link : ring->last;
    link->next = NULL;
    if (ring->last == NULL)
        ring->first = link;
    else
        ring->last->next = link;
    ring->last = link;
    if (word != NULL) *word |= pace_bit(pace, slot);
}

static inline int pace_waits(const PaceLink *link) { return link->prev != NULL; }

/* It waits no more; `slot`: the one it was given. */
static inline void pace_wait_no_more(Pace *pace, PaceLink *link, uint32_t slot) {
    uint64_t *word;
    PaceRing *ring = pace_ring(pace, slot, &word);
    assert(link->prev != NULL);
    pace->waiting--;
    ring->count--;
    if (ring->first == link)
        ring->first = link->next;
    else
        link->prev->next = link->next;
    if (link->next == NULL)
        ring->last = ring->first == NULL ? NULL : link->prev;
    else
        link->next->prev = link->prev == link ? link->next : link->prev;
    link->prev = link->next = NULL;
    if (word != NULL && ring->first == NULL) *word &= ~pace_bit(pace, slot);
}

/* The owner of the link that is due first; NULL: nobody waits. */
static inline void *pace_first(const Pace *pace) {
    uint32_t far = (pace->base + PACE_SLOTS + 63) >> PACE_FAR_BITS, seen;
    if (pace->passed.first != NULL) return pace->passed.first->owner;
    seen = pace_seek(pace->near.waited, pace->base, PACE_SLOTS);
    if (seen < PACE_SLOTS) return pace->near.rings[(pace->base + seen) % PACE_SLOTS].first->owner;
    seen = pace_seek(pace->far.waited, far, PACE_SLOTS);
    return seen < PACE_SLOTS ? pace->far.rings[(far + seen) % PACE_SLOTS].first->owner : NULL;
}

/* --- the rate --- */

/* The larger of two rates that are still calls by ns. */
static inline void pace_most(uint64_t *calls, uint64_t *ns, uint64_t more, uint64_t within) {
    if ((unsigned __int128)more * *ns <= (unsigned __int128)*calls * within) return;
    *calls = more;
    *ns = within;
}

/* What is late and could leave. While some are held by something else, nobody knows whose the late calls are: no more
   than there are who wait and are late, for what is held must not hurry the others. */
static inline uint64_t pace_late(const Pace *pace) {
    uint64_t most = pace->passed.count - pace->at_once;
    return pace->aside && pace->late > most ? most : pace->late;
}

/* Read all slots: the rate needed for everything, and for what is due late enough to keep a rate for. */
static inline void pace_read(Pace *pace, int64_t now_ns, uint64_t *kept) {
    uint64_t due = pace_late(pace), calls = due, ns = PACE_LEAST_NS, later_calls = 0, later_ns = 1;
    uint32_t far = (pace->base + PACE_SLOTS + 63) >> PACE_FAR_BITS;
    for (uint32_t seen = 0; (seen += pace_seek(pace->near.used, pace->base + seen, PACE_SLOTS - seen)) < PACE_SLOTS; seen++) {
        uint64_t ahead = pace_ahead(pace, now_ns, pace->base + seen);
        due += pace->near.calls[(pace->base + seen) % PACE_SLOTS];
        pace_most(&calls, &ns, due, ahead);
        if (ahead >= PACE_RATCHET_NS) pace_most(&later_calls, &later_ns, due, ahead);
    }
    for (uint32_t seen = 0; (seen += pace_seek(pace->far.used, far + seen, PACE_SLOTS - seen)) < PACE_SLOTS; seen++) {
        uint64_t ahead = pace_ahead(pace, now_ns, (far + seen) << PACE_FAR_BITS);
        due += pace->far.calls[(far + seen) % PACE_SLOTS];
        pace_most(&calls, &ns, due, ahead);
        pace_most(&later_calls, &later_ns, due, ahead);
    }
    assert(due + pace->late == pace->work + pace_late(pace));
    pace->need = pace_rate(calls, ns);
    *kept = pace_rate(later_calls, later_ns);
}

static inline void pace_decay(Pace *pace, int64_t now_ns) {
    while (pace->ratchet && now_ns - pace->decayed >= pace->step) {
        pace->ratchet -= (pace->ratchet + PACE_DECAYS - 1) / PACE_DECAYS;
        pace->decayed += pace->step;
    }
    if (pace->ratchet == 0) pace->decayed = now_ns;
}

/* Bring rate and state up to date: at most once a tick, and whoever asks in between gets the last ones. */
static inline void pace_control(Pace *pace, int64_t now_ns) {
    uint64_t kept;
    if (now_ns < pace->read_at) return;
    pace->read_at = now_ns + (1 << PACE_TICK_BITS);
    pace->stale = 0;
    pace_roll(pace, now_ns);
    pace_read(pace, now_ns, &kept);
    if (pace->mode == PACE_EVEN) {
        kept = 0;
        pace->need = pace_rate(pace_late(pace), PACE_LEAST_NS);
        if (pace->need < pace->even) pace->need = pace->even;
    }
    pace->rate = pace->need > pace->floor ? pace->need : pace->floor;
    pace->state = pace->overdue ? PACE_OVER : pace->need >= pace->ceiling / 4 * 3 ? PACE_FULL : PACE_BELOW;
    if (pace->step) {
        pace_decay(pace, now_ns);
        if (pace->ratchet < kept) pace->ratchet = kept;
        uint64_t faster = 2 * pace->need < pace->ratchet ? 2 * pace->need : pace->ratchet;
        if (pace->rate < faster) pace->rate = faster;
    }
    if (pace->state == PACE_FULL && pace->rate < pace->ceiling) pace->rate = pace->ceiling;
}

static inline int64_t pace_interval(const Pace *pace) { return (int64_t)(PACE_NS / pace->rate); }

/* When the next call may leave, or must be asked for again: 0 = now. */
static inline int64_t pace_when(Pace *pace, int64_t now_ns) {
    pace_control(pace, now_ns);
    int64_t when = pace->left + pace_interval(pace);
    if (pace->state == PACE_OVER || when <= now_ns) return 0;
    return pace->stale && pace->read_at < when ? pace->read_at : when;
}

/* Calls that are due before a slot; of one that has passed nobody knows the order, so 0. Reads the slots in use. */
static inline uint64_t pace_before(const Pace *pace, uint32_t slot) {
    uint32_t far = (pace->base + PACE_SLOTS + 63) >> PACE_FAR_BITS;
    uint32_t near = pace_is_near(pace, slot) ? slot - pace->base : PACE_SLOTS;
    uint32_t fars = pace_is_near(pace, slot) ? 0 : (slot - (far << PACE_FAR_BITS)) >> PACE_FAR_BITS;
    uint64_t calls = pace->late;
    if (pace_has_passed(pace, slot)) return 0;
    for (uint32_t seen = 0; (seen += pace_seek(pace->near.used, pace->base + seen, near - seen)) < near; seen++)
        calls += pace->near.calls[(pace->base + seen) % PACE_SLOTS];
    for (uint32_t seen = 0; (seen += pace_seek(pace->far.used, far + seen, fars - seen)) < fars; seen++)
        calls += pace->far.calls[(far + seen) % PACE_SLOTS];
    return calls;
}

/* About when the first call of a slot leaves: when those due before it have, at the rate of now, but by the slot's own
   time; not before the next call. For who asks why something waits: nothing changes by it. */
static inline int64_t pace_expects(const Pace *pace, uint32_t slot) {
    int64_t own = pace->base_ns + (int64_t)(int32_t)(slot - pace->base) * (1ll << PACE_NEAR_BITS);
    int64_t next = pace->left + pace_interval(pace);
    __int128 when = pace->left + (__int128)pace_interval(pace) * (pace_before(pace, slot) + 1);
    if (when > own) when = own;
    return when < next ? next : (int64_t)when;
}

/* Whether all is where it says: counts, bits and rings. For checks: walks everything. */
static inline int pace_is_sound(const Pace *pace) {
    const PaceSlots *both[2] = {&pace->near, &pace->far};
    uint64_t work = pace->late, waiting = 0;
    for (const PaceLink *link = pace->passed.first; link != NULL; link = link->next) waiting++;
    if (waiting != pace->passed.count || pace->at_once > waiting) return 0;
    for (int i = 0; i < 2; i++)
        for (uint32_t at = 0; at < PACE_SLOTS; at++) {
            const PaceSlots *slots = both[i];
            work += slots->calls[at];
            if (slots->calls[at] >> 31) return 0;
            if ((slots->used[at / 64] >> at % 64 & 1) != (slots->calls[at] || slots->even[at])) return 0;
            if ((slots->waited[at / 64] >> at % 64 & 1) != (slots->rings[at].first != NULL)) return 0;
            for (const PaceLink *link = slots->rings[at].first; link != NULL; link = link->next) waiting++;
        }
    return work == pace->work && waiting == pace->waiting;
}

/* A call leaves. Who asks too seldom, or must wait for the rate of others too, may be late by a tick or a call and still
   keep the rate; but what was not there could not leave, and is not made up for. */
static inline void pace_leave(Pace *pace, int64_t now_ns) {
    int64_t interval = pace_interval(pace);
    int64_t least = now_ns - (interval > PACE_LEAST_NS ? interval : PACE_LEAST_NS);
    if (least < pace->begun - PACE_SLACK_NS) least = pace->begun - PACE_SLACK_NS;
    pace->left += interval;
    if (pace->left < least) pace->left = least;
    if (pace->left > now_ns) pace->left = now_ns;
}

#endif
