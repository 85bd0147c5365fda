/* A limit: at most `number` in any half-open window of length `per`, wherever the window starts.

   Time is cut into buckets of width w = ceil(per / 64). What is charged now counts against the last 65 buckets, which
   cover every window that ends in this one: never over, and at least 64/65 of the number can be used. `reserved` of it
   is kept for system: the other tiers see a lower ceiling on the same counters. */
#ifndef SURGETANK_WINDOW_H
#define SURGETANK_WINDOW_H

#include <assert.h>
#include <stdint.h>

#define WINDOW_BUCKETS 65

typedef struct Window {
    struct Window *next; /* owned: the next limit of the same scope */
    int64_t width;
    int64_t newest; /* index of the newest bucket */
    uint64_t number, reserved;
    uint64_t sum;
    uint64_t counts[WINDOW_BUCKETS]; /* bucket i stands at i % 65 */
    int recipients;                  /* what is counted: recipients, or calls */
} Window;

/* number and per in 1..2^60, reserved < number. */
static inline void window_make(Window *window, int recipients, uint64_t number, int64_t per_ns, uint64_t reserved) {
    window->next = NULL;
    window->width = (per_ns + 63) / 64;
    window->newest = 0;
    window->number = number;
    window->reserved = reserved;
    window->sum = 0;
    window->recipients = recipients;
    for (int i = 0; i < WINDOW_BUCKETS; i++) window->counts[i] = 0;
}

static inline uint64_t window_ceiling(const Window *window, int system) {
    return system ? window->number : window->number - window->reserved;
}

/* Drop the buckets that have left. */
static inline void window_roll(Window *window, int64_t now_ns) {
    int64_t index = now_ns / window->width;
    int64_t first = window->newest + 1;
    if (first < index - (WINDOW_BUCKETS - 1)) first = index - (WINDOW_BUCKETS - 1);
    for (int64_t i = first; i <= index; i++) {
        uint64_t *count = &window->counts[i % WINDOW_BUCKETS];
        window->sum -= *count;
        *count = 0;
    }
    if (index > window->newest) window->newest = index;
}

/* When n could be charged under this ceiling (n <= ceiling) if nothing else were: 0 = now. */
static inline int64_t window_when(Window *window, int64_t now_ns, uint64_t n, uint64_t ceiling) {
    assert(n <= ceiling);
    window_roll(window, now_ns);
    if (window->sum + n <= ceiling) return 0;
    uint64_t must_leave = window->sum + n - ceiling, left = 0;
    int64_t index = window->newest - WINDOW_BUCKETS;
    while (left < must_leave) {
        index++;
        assert(index <= window->newest);
        if (index >= 0) left += window->counts[index % WINDOW_BUCKETS];
    }
    return (index + WINDOW_BUCKETS) * window->width;
}

static inline void window_charge(Window *window, int64_t now_ns, uint64_t n) {
    window_roll(window, now_ns);
    window->counts[window->newest % WINDOW_BUCKETS] += n;
    window->sum += n;
}

#endif
