/* What of one partition is done: a ring of bits, one an offset, from the watermark's word on; and of the records that
   are open their timestamps, and which of their recipients are settled, in blocks of 64 that are freed once all of a
   word is done.

   A bit is set for a record that is complete, for an offset nobody was given (compaction, control records), and for
   what a restored map says. Bits of offsets not read are 0 unless restored; bits below the watermark mean nothing.
   Outside the words of watermark..max(position, end) every word is 0 and has no block.

   Memory: a quarter of a byte for each offset between watermark and position, 520 B for each word with an open one,
   a bit for each recipient of a record in such a word some of whose recipients were settled before it was complete. */
#ifndef SURGETANK_MARKS_H
#define SURGETANK_MARKS_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define WORD 64
#define LEAST_WORDS 16

typedef struct Settled {
    struct Settled *next; /* owned; offsets ascend */
    int64_t offset;
    uint32_t words;
    uint64_t bits[]; /* by position: settled */
} Settled;

typedef struct Block {
    int64_t stamps[WORD]; /* ms; of open records */
    Settled *settled;     /* owned */
} Block;

typedef struct Marks {
    uint64_t *done; /* owned; the word of an offset stands at (offset / 64) & mask */
    Block **blocks; /* owned, like each; NULL: nothing of that word is open */
    size_t mask;
    int64_t watermark; /* the first offset that is not done; the position when nothing is open */
    int64_t position;  /* the next offset to read */
    int64_t end;       /* >= position; from here on nothing is known to be done */
    uint64_t open;     /* records read and not done */
    int64_t last;      /* the offset last read, and its timestamp */
    int64_t last_ms;
} Marks;

static inline size_t marks_at(const Marks *marks, int64_t offset) { return (size_t)(offset / WORD) & marks->mask; }

static inline uint64_t marks_bit(int64_t offset) { return (uint64_t)1 << (offset % WORD); }

static inline int marks_resize(Marks *marks, size_t size) {
    Marks grown = *marks;
    grown.mask = size - 1;
    grown.done = calloc(size, sizeof(uint64_t));
    grown.blocks = calloc(size, sizeof(Block *));
    if (grown.done == NULL || grown.blocks == NULL) {
        free(grown.done);
        free(grown.blocks);
        return -1;
    }
    for (int64_t word = marks->watermark / WORD; marks->done != NULL && word * WORD < marks->end; word++) {
        size_t from = marks_at(marks, word * WORD), to = marks_at(&grown, word * WORD);
        grown.done[to] = marks->done[from];
        grown.blocks[to] = marks->blocks[from];
    }
    free(marks->done);
    free(marks->blocks);
    *marks = grown;
    return 0;
}

/* -1: no memory. */
static inline int marks_make(Marks *marks, int64_t position) {
    memset(marks, 0, sizeof(Marks));
    marks->watermark = marks->position = marks->end = marks->last = position;
    return marks_resize(marks, LEAST_WORDS);
}

/* The block of the word at `at`, made when there is none. NULL: no memory. */
static inline Block *marks_block(Marks *marks, size_t at) {
    if (marks->blocks[at] == NULL) marks->blocks[at] = calloc(1, sizeof(Block));
    return marks->blocks[at];
}

static inline void marks_free_block(Marks *marks, size_t at) {
    Block *block = marks->blocks[at];
    if (block == NULL) return;
    for (Settled *one = block->settled, *next; one != NULL; one = next) {
        next = one->next;
        free(one);
    }
    free(block);
    marks->blocks[at] = NULL;
}

static inline void marks_free(Marks *marks) {
    for (size_t at = 0; marks->blocks != NULL && at <= marks->mask; at++) marks_free_block(marks, at);
    free(marks->done);
    free(marks->blocks);
    marks->done = NULL;
    marks->blocks = NULL;
}

/* Room for the word of `offset` (>= position); gives back what a backlog long gone has taken. -1: no memory. */
static inline int marks_reserve(Marks *marks, int64_t offset) {
    size_t words = (size_t)((offset > marks->end ? offset : marks->end) / WORD - marks->watermark / WORD) + 1;
    size_t size = marks->mask + 1;
    while (size < words) size *= 2;
    while (size > LEAST_WORDS && size / 8 > words) size /= 2;
    return size == marks->mask + 1 ? 0 : marks_resize(marks, size);
}

/* Move the watermark over what is done, and clear the words it leaves. Cost: amortised by the words passed. */
static inline void marks_advance(Marks *marks) {
    while (marks->watermark < marks->position) {
        size_t at = marks_at(marks, marks->watermark);
        int64_t rest = WORD - marks->watermark % WORD;
        uint64_t undone = ~marks->done[at] >> (marks->watermark % WORD);
        int64_t step = undone ? __builtin_ctzll(undone) : rest;
        if (step > marks->position - marks->watermark) step = marks->position - marks->watermark;
        marks->watermark += step;
        if (step < rest) return;
        marks->done[at] = 0;
        marks_free_block(marks, at);
    }
}

/* Nothing is open and nothing known: go on at `offset`, however far that is. */
static inline void marks_jump(Marks *marks, int64_t offset) {
    assert(marks->open == 0 && marks->watermark == marks->position && marks->end == marks->position);
    size_t at = marks_at(marks, marks->position);
    marks->done[at] = 0;
    marks_free_block(marks, at);
    marks->watermark = marks->position = marks->end = offset;
}

/* The offsets from..end - 1 (the ring holds them) are done. */
static inline void marks_fill(Marks *marks, int64_t from, int64_t end) {
    while (from < end) {
        int64_t to = (from / WORD + 1) * WORD;
        if (to > end) to = end;
        uint64_t bits = to - from == WORD ? ~(uint64_t)0 : (marks_bit(to - from) - 1) << (from % WORD);
        size_t at = marks_at(marks, from);
        marks->done[at] |= bits;
        if (marks->done[at] == ~(uint64_t)0) marks_free_block(marks, at);
        from = to;
    }
}

/* The offsets whose bits are set, counted from `offset` on, are done. The ring holds them all, and one word more. */
static inline void marks_set(Marks *marks, int64_t offset, uint64_t bits) {
    if (!bits) return;
    marks->done[marks_at(marks, offset)] |= bits << (offset % WORD);
    if (offset % WORD) marks->done[marks_at(marks, offset + WORD)] |= bits >> (WORD - offset % WORD);
    marks->end = offset + WORD - __builtin_clzll(bits);
}

/* The record at `offset` (>= position, < 2^62) was read; 1: it is done already. -1: no memory, nothing has changed. */
static inline int marks_open(Marks *marks, int64_t offset, int64_t stamp_ms) {
    assert(offset >= marks->position);
    if (marks->open == 0 && marks->end == marks->position) marks_jump(marks, offset);
    if (marks_reserve(marks, offset) < 0) return -1;
    size_t at = marks_at(marks, offset);
    int known = (marks->done[at] & marks_bit(offset)) != 0;
    if (!known && marks_block(marks, at) == NULL) return -1;
    marks_fill(marks, marks->position, offset); /* nobody was given these */
    marks->position = offset + 1;
    marks->last = offset;
    marks->last_ms = stamp_ms;
    if (marks->end < marks->position) marks->end = marks->position;
    if (!known) {
        marks->blocks[at]->stamps[offset % WORD] = stamp_ms;
        marks->open++;
    }
    if (marks->open <= 1) marks_advance(marks);
    return known;
}

static inline int marks_done(const Marks *marks, int64_t offset) {
    if (offset < marks->watermark || offset >= marks->end) return offset < marks->watermark;
    return (marks->done[marks_at(marks, offset)] & marks_bit(offset)) != 0;
}

/* Where what is settled of the record stands, or would: the first of the block from its offset on. */
static inline Settled **settled_at(Block *block, int64_t offset) {
    Settled **at = &block->settled;
    while (*at != NULL && (*at)->offset < offset) at = &(*at)->next;
    return at;
}

/* What is settled of the record, NULL: nothing. */
static inline Settled *marks_settled(const Marks *marks, int64_t offset) {
    if (marks_done(marks, offset) || offset >= marks->end) return NULL;
    Block *block = marks->blocks[marks_at(marks, offset)];
    if (block == NULL || block->settled == NULL) return NULL;
    Settled *one = *settled_at(block, offset);
    return one != NULL && one->offset == offset ? one : NULL;
}

/* The same with room for `words` words, made when there is none (`offset` < end). NULL: no memory. */
static inline Settled *marks_settle(Marks *marks, int64_t offset, uint32_t words) {
    Block *block = marks_block(marks, marks_at(marks, offset));
    if (block == NULL) return NULL;
    Settled **at = settled_at(block, offset), *one = *at;
    int found = one != NULL && one->offset == offset;
    if (found && one->words >= words) return one;
    Settled *made = calloc(1, sizeof(Settled) + words * sizeof(uint64_t));
    if (made == NULL) return NULL;
    made->offset = offset;
    made->words = words;
    made->next = found ? one->next : one;
    if (found) memcpy(made->bits, one->bits, one->words * sizeof(uint64_t));
    *at = made;
    if (found) free(one);
    return made;
}

/* 0: no such record is open, and nothing has changed. */
static inline int marks_complete(Marks *marks, int64_t offset) {
    if (offset < marks->watermark || offset >= marks->position) return 0;
    size_t at = marks_at(marks, offset);
    if (marks->done[at] & marks_bit(offset)) return 0;
    marks->done[at] |= marks_bit(offset);
    marks->open--;
    if (marks->done[at] == ~(uint64_t)0) marks_free_block(marks, at);
    if (offset == marks->watermark) marks_advance(marks);
    return 1;
}

/* Timestamp of the record at the watermark; only while something is open. */
static inline int64_t marks_oldest_ms(const Marks *marks) {
    assert(marks->open > 0);
    return marks->blocks[marks_at(marks, marks->watermark)]->stamps[marks->watermark % WORD];
}

/* The 64 bits from `offset` on, which is the anchor or above: 0 from `end` on. */
static inline uint64_t marks_word(const Marks *marks, int64_t offset) {
    int64_t word = offset / WORD, below = marks->watermark / WORD;
    uint64_t found[2];
    for (int i = 0; i < 2; i++, word++) {
        if (word < below)
            found[i] = ~(uint64_t)0;
        else
            found[i] = word * WORD < marks->end ? marks->done[marks_at(marks, word * WORD)] : 0;
    }
    int shift = (int)(offset % WORD);
    return shift ? found[0] >> shift | found[1] << (WORD - shift) : found[0];
}

/* The offset a commit names. The watermark, except when what comes next is known to be done in part though its record
   was not read yet: then the record read last, as its timestamp is known. */
static inline int64_t marks_anchor(const Marks *marks) {
    return marks->open || marks->end == marks->position ? marks->watermark : marks->last;
}

/* Nothing was read yet: forget what was said to be done. */
static inline void marks_forget(Marks *marks) {
    assert(marks->open == 0 && marks->watermark == marks->position);
    for (int64_t word = marks->position / WORD; word * WORD < marks->end; word++) {
        marks->done[marks_at(marks, word * WORD)] = 0;
        marks_free_block(marks, marks_at(marks, word * WORD));
    }
    marks->end = marks->position;
}

#endif
