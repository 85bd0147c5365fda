/* Two open-addressing tables (linear probing, a power of two, at most half full): Table finds records by a hash and
   leaves it to the caller to compare keys; IdSet tells whether an id is in the batch being formed and is emptied in O(1)
   by a new stamp. */
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

typedef struct TableSlot {
    uint64_t hash;
    void *item; /* borrowed; NULL: free */
} TableSlot;

typedef struct Table {
    TableSlot *slots; /* owned */
    size_t mask, used;
} Table;

/* The next record with this hash, NULL when there is none left; *cursor is 0 at first. */
static inline void *table_next(const Table *table, uint64_t hash, size_t *cursor) {
    if (table->slots == NULL) return NULL;
    for (;; ++*cursor) {
        const TableSlot *slot = &table->slots[(hash + *cursor) & table->mask];
        if (slot->item == NULL) return NULL;
        if (slot->hash == hash) {
            ++*cursor;
            return slot->item;
        }
    }
}

static inline void table_place(Table *table, uint64_t hash, void *item) {
    size_t at = hash & table->mask;
    while (table->slots[at].item != NULL) at = (at + 1) & table->mask;
    table->slots[at].hash = hash;
    table->slots[at].item = item;
}

static inline size_t table_size(const Table *table) { return table->slots == NULL ? 0 : table->mask + 1; }

/* NULL: a free slot. To walk the table; index < table_size. */
static inline void *table_item(const Table *table, size_t index) { return table->slots[index].item; }

static inline int table_resize(Table *table, size_t size) {
    Table grown = {calloc(size, sizeof(TableSlot)), size - 1, table->used};
    if (grown.slots == NULL) return -1;
    for (size_t i = 0; table->slots != NULL && i <= table->mask; i++)
        if (table->slots[i].item != NULL) table_place(&grown, table->slots[i].hash, table->slots[i].item);
    free(table->slots);
    *table = grown;
    return 0;
}

/* -1: no memory, and nothing has changed. */
static inline int table_add(Table *table, uint64_t hash, void *item) {
    size_t size = table_size(table);
    if (2 * (table->used + 1) > size && table_resize(table, size ? 2 * size : 64) < 0) return -1;
    table_place(table, hash, item);
    table->used++;
    return 0;
}

/* The record must be in the table. What stands after it moves up, so that no marks of the dead pile up. */
static inline void table_remove(Table *table, uint64_t hash, const void *item) {
    size_t at = hash & table->mask;
    while (table->slots[at].item != item) {
        assert(table->slots[at].item != NULL);
        at = (at + 1) & table->mask;
    }
    for (size_t next = (at + 1) & table->mask; table->slots[next].item != NULL; next = (next + 1) & table->mask) {
        size_t home = table->slots[next].hash & table->mask;
        if (((next - home) & table->mask) < ((next - at) & table->mask)) continue;
        table->slots[at] = table->slots[next];
        at = next;
    }
    table->slots[at].item = NULL;
    table->used--;
    size_t size = table->mask + 1;
    if (size > 1024 && 16 * table->used < size) table_resize(table, size / 4); /* no memory for less: keep it */
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

static inline uint64_t idset_hash(const IdSet *set, const uint8_t *id, size_t length) {
    uint64_t hash = mix64(set->seed, length), word;
    for (; length > 8; id += 8, length -= 8) {
        memcpy(&word, id, 8);
        hash = mix64(hash ^ word, set->seed);
    }
    word = 0;
    memcpy(&word, id, length);
    return mix64(hash ^ word, set->seed);
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
