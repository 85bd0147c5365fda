/* Three open-addressing tables (linear probing, powers of two): Table finds records by a hash and leaves it to the caller
   to compare keys; Prints tells whether a 32-bit print may be known, 4 bytes each; IdSet tells whether an id is in the
   batch being formed and is emptied in O(1) by a new stamp.

   Table and Prints are cut into 64 shards by the hash: one shard grows or shrinks at a time, so that no call ever moves
   more than a sixty-fourth of what there is. */
#ifndef SURGETANK_TABLE_H
#define SURGETANK_TABLE_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static inline uint64_t mix64(uint64_t a, uint64_t b) {
    __uint128_t product = (__uint128_t)(a ^ 0x9e3779b97f4a7c15ull) * (b ^ 0xd6e8feb86659fd93ull);
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

#define SHARDS 64
#define SHARD_LEAST 128 /* slots, of one that holds anything: with fewer it would grow by chance now and then */

typedef struct TableSlot {
    uint32_t hash; /* its lower half */
    uint32_t item; /* a handle; 0: free */
} TableSlot;

typedef struct TableShard {
    TableSlot *slots; /* owned */
    size_t size, used;
} TableShard;

typedef struct Table {
    TableShard shards[SHARDS];
    size_t bytes;
} Table;

static inline TableSlot *table_home(const Table *table, uint64_t hash) {
    const TableShard *shard = &table->shards[hash >> 58];
    return shard->size ? &shard->slots[hash & (shard->size - 1)] : NULL;
}

/* The next record with this hash (its shard and its lower half), 0 when there is none left; *cursor is 0 at first. */
static inline uint32_t table_next(const Table *table, uint64_t hash, size_t *cursor) {
    const TableShard *shard = &table->shards[hash >> 58];
    if (shard->size == 0) return 0;
    for (;; ++*cursor) {
        const TableSlot *slot = &shard->slots[(hash + *cursor) & (shard->size - 1)];
        if (slot->item == 0) return 0;
        if (slot->hash == (uint32_t)hash) {
            ++*cursor;
            return slot->item;
        }
    }
}

static inline void table_place(TableShard *shard, uint32_t hash, uint32_t item) {
    size_t at = hash & (shard->size - 1);
    while (shard->slots[at].item) at = (at + 1) & (shard->size - 1);
    shard->slots[at] = (TableSlot){hash, item};
}

static inline int table_resize(Table *table, TableShard *shard, size_t size) {
    TableShard other = {calloc(size, sizeof(TableSlot)), size, shard->used};
    if (other.slots == NULL) return -1;
    for (size_t i = 0; i < shard->size; i++)
        if (shard->slots[i].item) table_place(&other, shard->slots[i].hash, shard->slots[i].item);
    free(shard->slots);
    table->bytes += (other.size - shard->size) * sizeof(TableSlot);
    *shard = other;
    return 0;
}

/* -1: no memory, and nothing has changed. */
static inline int table_add(Table *table, uint64_t hash, uint32_t item) {
    TableShard *shard = &table->shards[hash >> 58];
    size_t size = shard->size;
    if (2 * (shard->used + 1) > size && table_resize(table, shard, size ? 2 * size : SHARD_LEAST) < 0) return -1;
    table_place(shard, (uint32_t)hash, item);
    shard->used++;
    return 0;
}

/* The record must be in the table. What stands after it moves up, so that no marks of the dead pile up. */
static inline void table_remove(Table *table, uint64_t hash, uint32_t item) {
    TableShard *shard = &table->shards[hash >> 58];
    size_t mask = shard->size - 1, at = hash & mask;
    while (shard->slots[at].item != item) {
        assert(shard->slots[at].item);
        at = (at + 1) & mask;
    }
    for (size_t next = (at + 1) & mask; shard->slots[next].item; next = (next + 1) & mask) {
        size_t home = shard->slots[next].hash & mask;
        if (((next - home) & mask) < ((next - at) & mask)) continue;
        shard->slots[at] = shard->slots[next];
        at = next;
    }
    shard->slots[at].item = 0;
    shard->used--;
    if (shard->size >= 4 * SHARD_LEAST && 16 * shard->used < shard->size)
        table_resize(table, shard, shard->size / 4); /* no memory for less: keep it */
}

static inline void table_free(Table *table) {
    for (int i = 0; i < SHARDS; i++) free(table->shards[i].slots);
}

typedef struct PrintShard {
    uint32_t *slots; /* owned; 0: free */
    uint32_t size, used;
} PrintShard;

typedef struct Prints {
    PrintShard shards[SHARDS];
    size_t bytes;
} Prints;

/* Never 0. */
static inline uint32_t print_of(uint64_t hash) { return (uint32_t)(hash >> 26) | 1; }

static inline uint32_t print_home(const PrintShard *shard, uint32_t print) {
    return (print * 0x9e3779b1u >> 7) & (shard->size - 1);
}

static inline int prints_resize(Prints *prints, PrintShard *shard, uint32_t size) {
    PrintShard other = {calloc(size, sizeof(uint32_t)), size, shard->used};
    if (other.slots == NULL) return -1;
    for (uint32_t i = 0; i < shard->size; i++) {
        if (shard->slots[i] == 0) continue;
        uint32_t at = print_home(&other, shard->slots[i]);
        while (other.slots[at] != 0) at = (at + 1) & (size - 1);
        other.slots[at] = shard->slots[i];
    }
    free(shard->slots);
    prints->bytes += ((size_t)other.size - shard->size) * sizeof(uint32_t);
    *shard = other;
    return 0;
}

/* 1: it was not there and is now; 0: it may have been there before; -1: no memory, and nothing has changed. */
static inline int prints_add(Prints *prints, uint64_t hash) {
    PrintShard *shard = &prints->shards[hash >> 58];
    uint32_t print = print_of(hash), at;
    if (4 * (shard->used + 1) > 3 * shard->size && prints_resize(prints, shard, shard->size ? 2 * shard->size : SHARD_LEAST) < 0)
        return -1;
    for (at = print_home(shard, print); shard->slots[at] != 0; at = (at + 1) & (shard->size - 1))
        if (shard->slots[at] == print) return 0;
    shard->slots[at] = print;
    shard->used++;
    return 1;
}

/* It must be there. */
static inline void prints_remove(Prints *prints, uint64_t hash) {
    PrintShard *shard = &prints->shards[hash >> 58];
    uint32_t mask = shard->size - 1, print = print_of(hash), at = print_home(shard, print);
    while (shard->slots[at] != print) {
        assert(shard->slots[at] != 0);
        at = (at + 1) & mask;
    }
    for (uint32_t next = (at + 1) & mask; shard->slots[next] != 0; next = (next + 1) & mask) {
        uint32_t home = print_home(shard, shard->slots[next]);
        if (((next - home) & mask) < ((next - at) & mask)) continue;
        shard->slots[at] = shard->slots[next];
        at = next;
    }
    shard->slots[at] = 0;
    shard->used--;
    if (shard->size >= 4 * SHARD_LEAST && 16 * shard->used < shard->size)
        prints_resize(prints, shard, shard->size / 4); /* no memory for less: keep it */
}

static inline void prints_free(Prints *prints) {
    for (int i = 0; i < SHARDS; i++) free(prints->shards[i].slots);
}

typedef struct IdSlot {
    uint32_t stamp, tag, at, length;
} IdSlot;

typedef struct IdSet {
    IdSlot *slots; /* owned */
    size_t mask;
    uint32_t stamp;
    uint64_t seed; /* ids come from outside: without it somebody could choose ones that collide */
} IdSet;

/* Room for `most` ids; -1: no memory, and nothing has changed. */
static inline int idset_reserve(IdSet *set, size_t most) {
    size_t size = 64;
    while (size < 2 * most) size *= 2;
    if (set->slots != NULL && size <= set->mask + 1) return 0;
    IdSlot *slots = calloc(size, sizeof(IdSlot));
    if (slots == NULL) return -1;
    free(set->slots);
    set->slots = slots;
    set->mask = size - 1;
    set->stamp = 0;
    return 0;
}

static inline void idset_clear(IdSet *set) {
    if (++set->stamp == 0) {
        memset(set->slots, 0, (set->mask + 1) * sizeof(IdSlot));
        set->stamp = 1;
    }
}

/* length > 0. The last two words overlap, so that nothing is copied byte by byte. */
static inline uint64_t idset_hash(const IdSet *set, const uint8_t *id, size_t length) {
    uint64_t hash = set->seed ^ length, first = 0, last = 0;
    const uint8_t *end = id + length;
    for (; end - id > 16; id += 8) {
        memcpy(&first, id, 8);
        hash = mix64(hash ^ first, set->seed);
    }
    if (length >= 8) {
        memcpy(&first, id, 8);
        memcpy(&last, end - 8, 8);
    } else if (length >= 4) {
        memcpy(&first, id, 4);
        memcpy(&last, end - 4, 4);
    } else {
        first = id[0] | (uint64_t)id[length / 2] << 8 | (uint64_t)end[-1] << 16;
    }
    return mix64(hash ^ first, set->seed ^ last);
}

/* Add the id that is about to stand at ids[at]; 0: it is in the set already. */
static inline int idset_add(IdSet *set, const uint8_t *ids, size_t at, const uint8_t *id, size_t length) {
    uint64_t hash = idset_hash(set, id, length);
    IdSlot entry = {set->stamp, (uint32_t)(hash >> 32), (uint32_t)at, (uint32_t)length};
    for (size_t i = hash & set->mask;; i = (i + 1) & set->mask) {
        IdSlot *slot = &set->slots[i];
        if (slot->stamp != set->stamp) {
            *slot = entry;
            return 1;
        }
        if (slot->tag == entry.tag && slot->length == entry.length && memcmp(ids + slot->at, id, length) == 0) return 0;
    }
}

#endif
