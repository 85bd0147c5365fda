/* Counts of int64 values by ascending upper bounds (a value equal to a bound is within it), and their exact sum. */
#ifndef SURGETANK_HISTOGRAM_H
#define SURGETANK_HISTOGRAM_H

#include <stddef.h>
#include <stdint.h>

typedef struct Counts {
    size_t size;      /* of edges; counts has one more, for what is above all of them */
    int64_t *edges;   /* owned */
    uint64_t *counts; /* owned */
    size_t last;      /* where a value was counted last: often the next one belongs there too */
    int64_t above, upto; /* what belongs there is more than the one and at most the other */
    __int128 sum;     /* nanoseconds of many recipients leave 64 bits within hours */
} Counts;

static inline size_t counts_find(const Counts *counts, int64_t value) {
    size_t low = 0, high = counts->size;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (counts->edges[middle] < value)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static inline void counts_observe(Counts *counts, int64_t value, uint64_t n) {
    if (value <= counts->above || value > counts->upto) {
        size_t at = counts->last = counts_find(counts, value);
        counts->above = at ? counts->edges[at - 1] : INT64_MIN;
        counts->upto = at < counts->size ? counts->edges[at] : INT64_MAX;
    }
    counts->counts[counts->last] += n;
    counts->sum += (__int128)value * (int64_t)n;
}

static inline int64_t counts_sum_high(const Counts *counts) { return (int64_t)(counts->sum >> 64); }

static inline uint64_t counts_sum_low(const Counts *counts) { return (uint64_t)counts->sum; }

#endif
