/* How often each recipient got a message: at most `number` in any window of length `per`, for as many recipients as there
   is memory, and never one too many.

   A table is sets of eight entries, 256 bytes. An entry is one recipient's: up to five (time, count) groups, times in
   ticks of per / 4096. A sixth time is folded: the two that lie closest become one, at the later's time. So up to five
   messages are told apart exactly, to a tick; a steady stream of more counts each up to a fifth of the window longer.
   The eighth entry of a set is shared by those who found no room of their own; who gets room later takes a copy of the
   shared one along. Two recipients with equal tags (1 in 9,000 at a full set) are taken for one. Every one of these errs
   in the same direction: what is counted is never less than what was sent. Nothing allocates; stale entries are reused. */
#ifndef SURGETANK_FREQUENCY_H
#define SURGETANK_FREQUENCY_H

#include <stdint.h>
#include <string.h>

#define FREQUENCY_GROUPS 5
#define FREQUENCY_OWN 7
#define FREQUENCY_TICKS 4096

typedef struct Often {
    uint16_t tag;
    uint16_t n[FREQUENCY_GROUPS]; /* 0: the group is free */
    uint32_t at[FREQUENCY_GROUPS];
} Often;

typedef struct OftenSet {
    Often own[FREQUENCY_OWN];
    Often shared;
} OftenSet;

typedef struct OftenTable {
    OftenSet *sets; /* borrowed */
    uint64_t count;
    int64_t tick; /* ns */
    uint32_t number;
} OftenTable;

/* per in 1 s..2^60 ns, number in 1..60000. */
static inline void often_make(OftenTable *table, OftenSet *sets, uint64_t count, uint32_t number, int64_t per) {
    *table = (OftenTable){sets, count, (per + FREQUENCY_TICKS - 1) / FREQUENCY_TICKS, number};
}

static inline uint32_t often_tick(const OftenTable *table, int64_t ns) { return (uint32_t)(uint64_t)(ns / table->tick); }

/* Ticks wrap after a million windows. */
static inline int32_t often_since(uint32_t now, uint32_t at) { return (int32_t)(now - at); }

/* Forget what no window from now on holds; what is left. */
static inline uint32_t often_left(Often *often, uint32_t now) {
    uint32_t left = 0;
    for (int i = 0; i < FREQUENCY_GROUPS; i++) {
        if (often->n[i] && often_since(now, often->at[i]) > FREQUENCY_TICKS) often->n[i] = 0;
        left += often->n[i];
    }
    return left;
}

static inline void often_fold(Often *often) {
    int older = 0, newer = 1;
    int32_t least = INT32_MAX;
    for (int i = 0; i < FREQUENCY_GROUPS; i++) {
        for (int j = 0; j < FREQUENCY_GROUPS; j++) {
            int32_t gap = often_since(often->at[j], often->at[i]);
            if (i == j || gap < 0 || gap >= least) continue;
            older = i, newer = j, least = gap;
        }
    }
    uint32_t sum = (uint32_t)often->n[older] + often->n[newer];
    often->n[newer] = sum > UINT16_MAX ? UINT16_MAX : (uint16_t)sum;
    often->n[older] = 0;
}

static inline void often_add(Often *often, uint32_t at) {
    int free = -1;
    for (int i = 0; i < FREQUENCY_GROUPS; i++) {
        if (often->n[i] == 0) {
            free = i;
        } else if (often->at[i] == at) {
            if (often->n[i] < UINT16_MAX) often->n[i]++;
            return;
        }
    }
    if (free < 0) {
        often_fold(often);
        often_add(often, at);
        return;
    }
    often->n[free] = 1;
    often->at[free] = at;
}

/* Take one back that was added at that time: it stands in the earliest group that is not before. */
static inline void often_remove(Often *often, uint32_t at) {
    int found = -1;
    for (int i = 0; i < FREQUENCY_GROUPS; i++) {
        if (often->n[i] == 0 || often_since(often->at[i], at) < 0) continue;
        if (found < 0 || often_since(often->at[found], often->at[i]) > 0) found = i;
    }
    if (found >= 0 && often->n[found] < UINT16_MAX) often->n[found]--;
}

static inline OftenSet *often_set(const OftenTable *table, uint64_t hash) {
    return &table->sets[(uint64_t)(((__uint128_t)hash * table->count) >> 64)];
}

/* The recipient's own entry; NULL: it has none. */
static inline Often *often_own(OftenSet *set, uint64_t hash, uint32_t now) {
    for (int i = 0; i < FREQUENCY_OWN; i++)
        if (set->own[i].tag == (uint16_t)hash && often_left(&set->own[i], now)) return &set->own[i];
    return NULL;
}

/* Where the recipient counts from now on. */
static inline Often *often_entry(OftenSet *set, uint64_t hash, uint32_t now) {
    Often *own = often_own(set, hash, now);
    if (own != NULL) return own;
    for (int i = 0; i < FREQUENCY_OWN; i++) {
        if (often_left(&set->own[i], now)) continue;
        often_left(&set->shared, now);
        set->own[i] = set->shared;
        set->own[i].tag = (uint16_t)hash;
        return &set->own[i];
    }
    return &set->shared;
}

/* When the recipient may get another message, ns; 0: now. `kept` of the number are not for this one. */
static inline int64_t often_when(const OftenTable *table, uint64_t hash, int64_t now_ns, uint32_t kept) {
    uint32_t number = table->number - kept;
    uint32_t now = often_tick(table, now_ns);
    OftenSet *set = often_set(table, hash);
    Often *often = often_own(set, hash, now);
    if (often == NULL) often = &set->shared;
    uint32_t left = often_left(often, now);
    if (left < number) return 0;
    Often copy = *often; /* let the oldest go until there is room */
    int oldest = 0;
    while (left >= number) {
        oldest = -1;
        for (int i = 0; i < FREQUENCY_GROUPS; i++)
            if (copy.n[i] && (oldest < 0 || often_since(copy.at[oldest], copy.at[i]) > 0)) oldest = i;
        left -= copy.n[oldest];
        copy.n[oldest] = 0;
    }
    int64_t ticks = (int64_t)often_since(copy.at[oldest], now) + FREQUENCY_TICKS + 1;
    return (now_ns / table->tick + ticks) * table->tick;
}

static inline void often_count(const OftenTable *table, uint64_t hash, int64_t now_ns, int64_t at_ns) {
    often_add(often_entry(often_set(table, hash), hash, often_tick(table, now_ns)), often_tick(table, at_ns));
}

static inline void often_uncount(const OftenTable *table, uint64_t hash, int64_t now_ns, int64_t at_ns) {
    OftenSet *set = often_set(table, hash);
    Often *own = often_own(set, hash, often_tick(table, now_ns));
    often_remove(own == NULL ? &set->shared : own, often_tick(table, at_ns));
}

/* Add to `looked` the sets looked at, one in `step`, and to `full` those without room for another recipient. */
static inline void often_fill(
    const OftenTable *table, int64_t now_ns, uint64_t step, uint64_t *looked, uint64_t *full
) {
    uint32_t now = often_tick(table, now_ns);
    for (uint64_t i = 0; i < table->count; i += step) {
        int used = 0;
        for (int k = 0; k < FREQUENCY_OWN; k++) used += often_left(&table->sets[i].own[k], now) > 0;
        *full += used == FREQUENCY_OWN;
        *looked += 1;
    }
}

#endif
