/* What a channel can deliver, learned from its answers: calls that ended, times its slots, by the slot time they took
   (Little's law). With all slots in use that is the rate at which calls end; with fewer, what it would be if calls took
   no longer then. It remembers the last few hundred calls, or the last minute in which all slots were in use.
   Rates and times as in pace.h. */
#ifndef SURGETANK_CAPACITY_H
#define SURGETANK_CAPACITY_H

#include <assert.h>
#include <stdint.h>

#include "pace.h"

#define CAPACITY_FEWEST 16 /* calls must have ended before anything is known */
#define CAPACITY_MOST 512  /* or this many nanoseconds of all slots, and half is forgotten: */
#define CAPACITY_MOST_NS (1ll << 36)

typedef struct Capacity {
    int64_t at;         /* slot time is counted up to here */
    uint64_t slot_ns;   /* of slots in use */
    uint64_t ended;     /* calls */
    uint32_t in_flight; /* calls */
    uint8_t known;
} Capacity;

static inline void capacity_pass(Capacity *capacity, int64_t now_ns, uint32_t slots) {
    int64_t passed = now_ns - capacity->at;
    if (passed > CAPACITY_MOST_NS) passed = CAPACITY_MOST_NS;
    capacity->slot_ns += (uint64_t)passed * capacity->in_flight;
    capacity->at = now_ns;
    if (capacity->ended < CAPACITY_MOST && capacity->slot_ns < (uint64_t)CAPACITY_MOST_NS * slots) return;
    capacity->slot_ns /= 2;
    capacity->ended /= 2;
}

static inline void capacity_start(Capacity *capacity, int64_t now_ns, uint32_t slots) {
    capacity_pass(capacity, now_ns, slots);
    capacity->in_flight++;
}

static inline void capacity_end(Capacity *capacity, int64_t now_ns, uint32_t slots) {
    assert(capacity->in_flight);
    capacity_pass(capacity, now_ns, slots);
    capacity->in_flight--;
    capacity->ended++;
    if (capacity->ended >= CAPACITY_FEWEST) capacity->known = 1;
}

/* The rate of `slots` of them; at least a call a second, and PACE_FASTEST while nothing is known. */
static inline uint64_t capacity_rate(const Capacity *capacity, uint32_t slots) {
    unsigned __int128 rate = (unsigned __int128)capacity->ended * slots * PACE_NS;
    if (!capacity->known || capacity->slot_ns == 0) return PACE_FASTEST;
    rate /= capacity->slot_ns;
    if (rate < PACE_CALL_A_SECOND) return PACE_CALL_A_SECOND;
    return rate > PACE_FASTEST ? PACE_FASTEST : (uint64_t)rate;
}

/* How fast calls leave that nothing paces, as a mean that forgets an eighth every second: they take their part of the
   capacity first. Memory that is zero is a new one. */
#define BESIDE_BITS 16
#define BESIDE_STEP_NS (1ll << 30)
#define BESIDE_NS (8ull * BESIDE_STEP_NS << BESIDE_BITS)

typedef struct Beside {
    int64_t at;
    uint64_t sum; /* of calls, each 1 << BESIDE_BITS at first */
} Beside;

static inline void beside_pass(Beside *beside, int64_t now_ns) {
    while (beside->sum && now_ns - beside->at >= BESIDE_STEP_NS) {
        beside->sum -= (beside->sum + 7) / 8;
        beside->at += BESIDE_STEP_NS;
    }
    if (beside->sum == 0) beside->at = now_ns;
}

static inline void beside_count(Beside *beside, int64_t now_ns) {
    beside_pass(beside, now_ns);
    beside->sum += 1 << BESIDE_BITS;
}

static inline uint64_t beside_rate(Beside *beside, int64_t now_ns) {
    beside_pass(beside, now_ns);
    return pace_rate(beside->sum, BESIDE_NS);
}

#endif
