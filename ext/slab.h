/* Records of one size, told by u32 handles, in blocks that are mapped from the system and given back when empty (slab
   allocation: Bonwick, USENIX 1994). Taking and freeing a record is O(1); only slab_reserve maps anything.

   Records begin at lines of the cache. A handle is block << 15 | line in it; the first line of a block is nobody's, so
   that 0 is no record. Records never move. Freed ones are used again before untouched ones, the block that was last
   freed into first, so that a churned slab still hands out neighbours. What a reserve mapped is not resident until it is
   used. Empty blocks beyond `spare` go back to the system at once, and what is kept gives back its pages if it has
   touched more than a few.

   A block is a huge page of the processor's, and from the fourth one on the system is asked for such pages: among
   millions of records most of what an access costs is finding its page. So whoever has few records pays for few. */
#ifndef SURGETANK_SLAB_H
#define SURGETANK_SLAB_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "foresee.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define ASAN_IS_POISONED(at) __asan_address_is_poisoned(at)
#else
#define ASAN_IS_POISONED(at) ((void)(at), 0)
#define ASAN_POISON_MEMORY_REGION(at, size) ((void)(at), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(at, size) ((void)(at), (void)(size))
#endif

#define SLAB_BLOCK_BYTES ((size_t)2 << 20)
#define SLAB_KEPT_BYTES ((size_t)256 << 10) /* an empty block may keep resident */
#define SLAB_ALL_SOON 320                   /* bytes: a record as small is mostly written as a whole when it is taken */
#define SLAB_SMALL 3                        /* blocks without huge pages */
#define SLAB_AT_ONCE ((size_t)64 << 10)     /* of their pages are touched together */

#ifndef MADV_POPULATE_WRITE /* Linux 5.14; before, pages come one by one */
#define MADV_POPULATE_WRITE 23
#endif

enum { SLAB_LINE_BITS = 6, SLAB_SHIFT = 15 }; /* lines of 64 bytes; 2^15 of them are a block */

typedef struct SlabBlock {
    char *base;    /* owned; NULL: this number is free */
    uint32_t huge; /* resident as a whole, or not at all */
    uint32_t used; /* records taken */
    uint32_t bump; /* records from here on were never taken */
    uint32_t freed; /* the first freed one: its line; each holds the next */
    uint32_t prev, next; /* among the blocks with room, or the empty ones; number + 1 */
} SlabBlock;

typedef struct Slab {
    SlabBlock *blocks; /* owned */
    uintptr_t *bases;  /* owned, of each block: what its handles, in bytes, are added to */
    uint32_t numbers;  /* of blocks, used or not */
    uint16_t size, capacity; /* bytes of a record, whole lines; records a block */
    uint16_t soon; /* lines of the next record that are asked for */
    uint32_t partial, empty, unused; /* lists: blocks with room, without a record taken, numbers to use again */
    uint32_t mapped, empties, spare;
    size_t room;    /* records that can be taken without mapping */
    size_t touched; /* bytes that may be resident */
} Slab;

static inline void slab_make(Slab *slab, uint32_t size) {
    uint32_t line = 1u << SLAB_LINE_BITS;
    size = (size + line - 1) & ~(line - 1);
    *slab = (Slab){.size = (uint16_t)size, .spare = 1, .capacity = (uint16_t)((SLAB_BLOCK_BYTES - line) / size)};
    slab->soon = size > SLAB_ALL_SOON ? 1 : (uint16_t)(size / line);
}

static inline void *slab_line(const SlabBlock *block, uint32_t line) {
    return block->base + ((size_t)line << SLAB_LINE_BITS);
}

static inline void *slab_at(const Slab *slab, uint32_t handle) {
    return (void *)(slab->bases[handle >> SLAB_SHIFT] + ((uintptr_t)handle << SLAB_LINE_BITS));
}

/* Of the record that is the i-th of a block that was never taken from. */
static inline uint32_t slab_nth(const Slab *slab, uint32_t i) { return 1 + i * (slab->size >> SLAB_LINE_BITS); }

/* Bytes of a block that may be resident. */
static inline size_t slab_touched(const Slab *slab, const SlabBlock *block) {
    if (!block->bump) return 0;
    if (block->huge) return SLAB_BLOCK_BYTES;
    size_t used = (size_t)slab_nth(slab, block->bump) << SLAB_LINE_BITS;
    return (used + SLAB_AT_ONCE - 1) & ~(SLAB_AT_ONCE - 1);
}

static inline void slab_link(Slab *slab, uint32_t *list, uint32_t number) {
    SlabBlock *block = &slab->blocks[number];
    block->prev = 0;
    block->next = *list;
    if (*list) slab->blocks[*list - 1].prev = number + 1;
    *list = number + 1;
}

static inline void slab_unlink(Slab *slab, uint32_t *list, uint32_t number) {
    SlabBlock *block = &slab->blocks[number];
    if (block->prev)
        slab->blocks[block->prev - 1].next = block->next;
    else
        *list = block->next;
    if (block->next) slab->blocks[block->next - 1].prev = block->prev;
}

/* Pages for a block, aligned to its size; NULL: no memory. */
static inline char *slab_pages(void) {
    size_t bytes = SLAB_BLOCK_BYTES;
    char *base = mmap(NULL, 2 * bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) return NULL;
    size_t before = (bytes - (uintptr_t)base % bytes) % bytes;
    if (before) munmap(base, before);
    munmap(base + before + bytes, bytes - before);
    return base + before;
}

static inline int slab_map(Slab *slab) {
    if (!slab->unused) {
        uint32_t more = slab->numbers ? 2 * slab->numbers : 8;
        if ((uint64_t)more << SLAB_SHIFT > 1u << 30) return -1; /* handles have 30 bits for others to add to */
        uintptr_t *bases = realloc(slab->bases, more * sizeof(uintptr_t));
        if (bases == NULL) return -1;
        slab->bases = bases;
        SlabBlock *blocks = realloc(slab->blocks, more * sizeof(SlabBlock));
        if (blocks == NULL) return -1;
        slab->blocks = blocks;
        for (uint32_t number = more; number-- > slab->numbers;) {
            blocks[number] = (SlabBlock){0};
            slab_link(slab, &slab->unused, number);
        }
        slab->numbers = more;
    }
    char *base = slab_pages();
    if (base == NULL) return -1;
    ASAN_POISON_MEMORY_REGION(base, SLAB_BLOCK_BYTES);
    uint32_t number = slab->unused - 1;
    slab_unlink(slab, &slab->unused, number);
    slab->blocks[number] = (SlabBlock){.base = base};
    slab->bases[number] = (uintptr_t)base - ((uintptr_t)number << (SLAB_SHIFT + SLAB_LINE_BITS));
    slab_link(slab, &slab->empty, number);
    slab->mapped++;
    slab->empties++;
    slab->room += slab->capacity;
    return 0;
}

static inline void slab_unmap(Slab *slab, uint32_t number) {
    SlabBlock *block = &slab->blocks[number];
    slab->touched -= slab_touched(slab, block);
    slab->mapped--;
    ASAN_UNPOISON_MEMORY_REGION(block->base, SLAB_BLOCK_BYTES);
    munmap(block->base, SLAB_BLOCK_BYTES);
    block->base = NULL;
    slab_link(slab, &slab->unused, number);
}

/* An empty block gives its pages back and is as it was when it was mapped; no effect on one that has few. */
static inline void slab_trim(Slab *slab, SlabBlock *block) {
    size_t touched = slab_touched(slab, block);
    if (touched <= SLAB_KEPT_BYTES || madvise(block->base, SLAB_BLOCK_BYTES, MADV_DONTNEED) < 0) return;
    slab->touched -= touched;
    block->bump = block->freed = 0;
}

/* The first record of an empty block is about to be taken: of which pages shall it be? What has touched some stays. */
static inline void slab_open(Slab *slab, uint32_t number) {
    SlabBlock *block = &slab->blocks[number];
    uint32_t huge = slab->mapped - slab->empties >= SLAB_SMALL;
    if (block->bump == 0 && block->huge != huge &&
        madvise(block->base, SLAB_BLOCK_BYTES, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE) == 0)
        block->huge = huge;
    slab_unlink(slab, &slab->empty, number);
    slab_link(slab, &slab->partial, number);
    slab->empties--;
}

/* So many records can be taken after this; -1: no memory, and no record has changed. */
static inline int slab_reserve(Slab *slab, size_t records) {
    if (records <= slab->room) return 0;
    uint32_t blocks = (uint32_t)((records + slab->capacity - 1) / slab->capacity);
    if (slab->spare < blocks) slab->spare = blocks;
    while (slab->room < records)
        if (slab_map(slab) < 0) return -1;
    return 0;
}

/* More of a block is touched than so much. A missing page costs as much as a hundred records, and among large pushes it
   is the small ones that meet it: who takes a record and gives it back is the first on each page. */
static inline void slab_touch(Slab *slab, const SlabBlock *block, size_t touched) {
    size_t more = slab_touched(slab, block) - touched;
    if (more && !block->huge) madvise(block->base + touched, more, MADV_POPULATE_WRITE);
    slab->touched += more;
}

/* There must be room. The record holds whatever it held last. */
static inline uint32_t slab_take(Slab *slab) {
    assert(slab->room > 0);
    if (!slab->partial) slab_open(slab, slab->empty - 1);
    uint32_t number = slab->partial - 1;
    SlabBlock *block = &slab->blocks[number];
    uint32_t line = block->freed;
    if (line) {
        ASAN_UNPOISON_MEMORY_REGION(slab_line(block, line), slab->size);
        block->freed = *(uint32_t *)slab_line(block, line);
        if (block->freed) foresee_lines(slab_line(block, block->freed), slab->soon);
    } else {
        size_t touched = slab_touched(slab, block);
        line = slab_nth(slab, block->bump++);
        ASAN_UNPOISON_MEMORY_REGION(slab_line(block, line), slab->size);
        slab_touch(slab, block, touched);
    }
    slab->room--;
    if (++block->used == slab->capacity) slab_unlink(slab, &slab->partial, number);
    return number << SLAB_SHIFT | line;
}

static inline void slab_free(Slab *slab, uint32_t handle) {
    uint32_t number = handle >> SLAB_SHIFT;
    SlabBlock *block = &slab->blocks[number];
    void *record = slab_at(slab, handle);
    assert(block->used > 0);
    *(uint32_t *)record = block->freed;
    ASAN_POISON_MEMORY_REGION(record, slab->size);
    block->freed = handle & ((1u << SLAB_SHIFT) - 1);
    slab->room++;
    if (block->used-- == slab->capacity) slab_link(slab, &slab->partial, number);
    if (block->used) return;
    slab_unlink(slab, &slab->partial, number);
    if (slab->empties >= slab->spare) {
        slab->room -= slab->capacity;
        slab_unmap(slab, number);
        return;
    }
    slab_trim(slab, block);
    slab_link(slab, &slab->empty, number);
    slab->empties++;
}

/* Records taken, counted from the blocks; SIZE_MAX: the lists and counts of the blocks contradict each other. */
static inline size_t slab_taken(const Slab *slab) {
    size_t taken = 0, room = 0, touched = 0, mapped = 0, empties = 0, listed = 0;
    for (uint32_t number = 0; number < slab->numbers; number++) {
        const SlabBlock *block = &slab->blocks[number];
        if (block->base == NULL) continue;
        taken += block->used;
        room += slab->capacity - block->used;
        touched += slab_touched(slab, block);
        mapped++;
        empties += block->used == 0;
    }
    for (uint32_t at = slab->partial; at; at = slab->blocks[at - 1].next)
        listed += slab->capacity - slab->blocks[at - 1].used;
    for (uint32_t at = slab->empty; at; at = slab->blocks[at - 1].next) listed += slab->capacity;
    int sound = room == slab->room && touched == slab->touched && mapped == slab->mapped && empties == slab->empties &&
                listed == room;
    return sound ? taken : SIZE_MAX;
}

static inline void slab_free_all(Slab *slab) {
    for (uint32_t number = 0; number < slab->numbers; number++)
        if (slab->blocks[number].base != NULL) slab_unmap(slab, number);
    free(slab->blocks);
    free(slab->bases);
    slab->blocks = NULL;
    slab->bases = NULL;
}

#endif
