/* A hierarchical timing wheel (Varghese & Lauck, SOSP 1987): 8 levels of 64 slots, a bitmap a level, intrusive timers.
   Arming, disarming and finding the next event are O(1); a timer moves down at most 7 times. Nothing allocates.

   Time is in ticks of 2^20 ns, 48 bits. A timer stands at the level of the highest base-64 digit in which its tick
   differs from the wheel's, in the slot of that digit. So the lowest level in use holds the earliest timers, all slots
   of it lie ahead, and a slot moves down as a whole, in order, before anything is armed below it: timers fire by tick,
   and within a tick in the order they were armed. */
#ifndef SURGETANK_WHEEL_H
#define SURGETANK_WHEEL_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

#define WHEEL_LEVELS 8
#define WHEEL_TICK_BITS 20
#define WHEEL_NEVER INT64_MAX

typedef struct Timer {
    struct Timer *prev, *next; /* next == NULL: not armed */
    uint64_t tick : 48;
    uint64_t kind : 8;
    uint64_t level : 8;
} Timer;

typedef struct Wheel {
    uint64_t now;
    uint64_t used[WHEEL_LEVELS]; /* bit s: slot s of the level is not empty */
    Timer slots[WHEEL_LEVELS][64];
} Wheel;

/* The first tick at or after a time. */
static inline uint64_t tick_up(int64_t ns) {
    if (ns <= 0) return 0;
    return ((uint64_t)ns + ((1u << WHEEL_TICK_BITS) - 1)) >> WHEEL_TICK_BITS;
}

static inline void timer_make(Timer *timer, int kind) {
    timer->prev = timer->next = NULL;
    timer->kind = (uint64_t)kind;
}

static inline int timer_kind(const Timer *timer) { return (int)timer->kind; }

static inline int timer_armed(const Timer *timer) { return timer->next != NULL; }

/* Whether it fires no later than this time would. */
static inline int timer_armed_by(const Timer *timer, int64_t at_ns) {
    return timer->next != NULL && timer->tick <= tick_up(at_ns);
}

static inline void wheel_make(Wheel *wheel) {
    wheel->now = 0;
    for (int level = 0; level < WHEEL_LEVELS; level++) {
        wheel->used[level] = 0;
        for (int slot = 0; slot < 64; slot++) {
            Timer *head = &wheel->slots[level][slot];
            head->prev = head->next = head;
        }
    }
}

static inline void wheel_place(Wheel *wheel, Timer *timer) {
    uint64_t differs = timer->tick ^ wheel->now;
    int level = differs < 64 ? 0 : (63 - __builtin_clzll(differs)) / 6;
    unsigned slot = (timer->tick >> (6 * level)) & 63;
    Timer *head = &wheel->slots[level][slot];
    timer->level = (uint64_t)level;
    timer->prev = head->prev;
    timer->next = head;
    head->prev->next = timer;
    head->prev = timer;
    wheel->used[level] |= 1ull << slot;
}

/* The timer must not be armed; one in the past fires at the next advance. */
static inline void wheel_arm(Wheel *wheel, Timer *timer, int64_t at_ns) {
    uint64_t tick = tick_up(at_ns);
    assert(timer->next == NULL);
    timer->tick = tick < wheel->now ? wheel->now : tick;
    wheel_place(wheel, timer);
}

/* No effect on a timer that is not armed. */
static inline void wheel_disarm(Wheel *wheel, Timer *timer) {
    if (timer->next == NULL) return;
    timer->prev->next = timer->next;
    timer->next->prev = timer->prev;
    if (timer->prev == timer->next) /* only its head is left */
        wheel->used[timer->level] &= ~(1ull << ((timer->tick >> (6 * timer->level)) & 63));
    timer->prev = timer->next = NULL;
}

/* The tick of the next event (a timer, or a slot that moves down before one); UINT64_MAX: there is none. */
static inline uint64_t wheel_next(const Wheel *wheel, int *level, unsigned *slot) {
    for (*level = 0; *level < WHEEL_LEVELS; ++*level) {
        if (wheel->used[*level] == 0) continue;
        int shift = 6 * *level;
        *slot = (unsigned)__builtin_ctzll(wheel->used[*level]);
        return (wheel->now >> (shift + 6) << (shift + 6)) | ((uint64_t)*slot << shift);
    }
    return UINT64_MAX;
}

static inline void wheel_cascade(Wheel *wheel, int level, unsigned slot) {
    Timer *head = &wheel->slots[level][slot];
    Timer *timer = head->next;
    head->prev = head->next = head;
    wheel->used[level] &= ~(1ull << slot);
    while (timer != head) {
        Timer *next = timer->next;
        wheel_place(wheel, timer);
        assert(timer->level < (uint64_t)level);
        timer = next;
    }
}

/* Every bit is set iff its slot holds timers, each of which belongs there. */
static inline int wheel_is_sound(const Wheel *wheel) {
    for (int level = 0; level < WHEEL_LEVELS; level++) {
        for (unsigned slot = 0; slot < 64; slot++) {
            const Timer *head = &wheel->slots[level][slot];
            if ((wheel->used[level] >> slot & 1) != (head->next != head)) return 0;
            for (const Timer *timer = head->next; timer != head; timer = timer->next)
                if (timer->next->prev != timer || timer->level != (uint64_t)level || timer->tick < wheel->now ||
                    (timer->tick >> (6 * level) & 63) != slot)
                    return 0;
        }
    }
    return 1;
}

/* The next timer that fires at or before a time, disarmed; NULL: none is left, and the wheel stands at that time.
   Where it stops being called before it says NULL the rest is late, and in order. */
static inline Timer *wheel_fire(Wheel *wheel, int64_t now_ns) {
    uint64_t target = (uint64_t)now_ns >> WHEEL_TICK_BITS;
    int level;
    unsigned slot;
    for (;;) {
        uint64_t tick = wheel_next(wheel, &level, &slot);
        if (tick > target) {
            if (target > wheel->now) wheel->now = target;
            return NULL;
        }
        assert(tick >= wheel->now);
        wheel->now = tick;
        if (level == 0) {
            Timer *timer = wheel->slots[0][slot].next;
            wheel_disarm(wheel, timer);
            return timer;
        }
        wheel_cascade(wheel, level, slot);
    }
}

/* A time at or before the next firing and after the last advance; WHEEL_NEVER: no timer is armed. */
static inline int64_t wheel_due(const Wheel *wheel) {
    int level;
    unsigned slot;
    uint64_t tick = wheel_next(wheel, &level, &slot);
    return tick >> (63 - WHEEL_TICK_BITS) ? WHEEL_NEVER : (int64_t)(tick << WHEEL_TICK_BITS);
}

#endif
