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
    size_t at = counts->last;
    if ((at && value <= counts->edges[at - 1]) || (at < counts->size && value > counts->edges[at]))
        at = counts->last = counts_find(counts, value);
    counts->counts[at] += n;
    counts->sum += (__int128)value * (int64_t)n;
}

static inline int64_t counts_sum_high(const Counts *counts) { return (int64_t)(counts->sum >> 64); }

static inline uint64_t counts_sum_low(const Counts *counts) { return (uint64_t)counts->sum; }

#endif
