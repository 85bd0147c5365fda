/* FIFOs of recipients: records of varying length, one behind the other in chunks of 64 to 4096 bytes.

       chunk   | next u32 | end u16 | - u16 | record | record | ...
       record  | send u32 | facts u32 | position u16 | length u8 | attempt u8 | [content u32] | id, length bytes |

   The id stands in its record: one memory access finds all of a recipient, and it is freed with it. A record never
   crosses into the next chunk. A FIFO's first chunk is small, the next are larger the more it holds. `content` stands
   there in mixed FIFOs only. Nothing here allocates: chunks_reserve comes first.

   Facts are what recipients of a send have in common, counted; sends with the same facts, taken in one after the other,
   share one record. A FIFO knows whether close and deadline ever go down from one record to the next: as long as they
   do not, its first record tells the earliest, and after that a lower bound is kept. */
#ifndef SURGETANK_FIFO_H
#define SURGETANK_FIFO_H

#include <string.h>

#include "slab.h"

#define CHUNK_SIZES 4
#define CHUNK_LINES 8 /* of a chunk are asked for; those behind them the processor asks for by itself */
#define FIFO_NEVER INT64_MAX

typedef struct Chunk {
    uint32_t next; /* chunk handle: slab handle << 2 | size; 0: none */
    uint16_t end;  /* of its records, in bytes from the chunk's start; the last chunk's stands in its FIFO */
    uint16_t unused;
} Chunk;

typedef struct Rec {
    uint32_t send;
    uint32_t facts; /* handle, and the flags below */
    uint16_t position;
    uint8_t length;
    uint8_t attempt;
} Rec;

#define REC_OPENS (1u << 31) /* it opens a call that is counted as work, in its facts' slot */
#define REC_FIRST (1u << 30) /* the content of a mixed FIFO's record was seen for the first time with it */
#define REC_FACTS (REC_FIRST - 1)

typedef struct Facts {
    int64_t pushed, due, deadline;
    int64_t close; /* when it wants its batch closed */
    int64_t not_before;
    uint32_t refs; /* recipients; 0: free */
    uint32_t slot; /* paced: of pace.h, where the calls they open are counted */
} Facts;

enum { CLOSES_FALL = 1, DEADLINES_FALL = 2 };

typedef struct Fifo {
    uint32_t head, tail; /* chunk handles, 0: empty */
    uint16_t head_at, tail_at;
    uint32_t count; /* records */
    uint32_t last;  /* facts of the last one, while count > 0 and nothing falls */
    uint32_t falls : 2;
    uint32_t fill : 30; /* paced: records since the last one that opens a call, that one included */
    int64_t close;    /* not after the earliest close */
    int64_t deadline; /* not after the earliest deadline */
} Fifo;

typedef struct Store {
    Slab chunks[CHUNK_SIZES];
    Slab facts;
    uint32_t recent[256]; /* handles of facts by hash, to share; a freed one has no refs */
} Store;

static inline uint32_t chunk_size(uint32_t size) { return 64u << (2 * size); }

static inline void store_make(Store *store) {
    memset(store, 0, sizeof *store);
    for (uint32_t size = 0; size < CHUNK_SIZES; size++) slab_make(&store->chunks[size], chunk_size(size));
    slab_make(&store->facts, sizeof(Facts));
}

static inline void store_free(Store *store) {
    for (int size = 0; size < CHUNK_SIZES; size++) slab_free_all(&store->chunks[size]);
    slab_free_all(&store->facts);
}

static inline size_t store_bytes(const Store *store) {
    size_t bytes = store->facts.touched;
    for (int size = 0; size < CHUNK_SIZES; size++) bytes += store->chunks[size].touched;
    return bytes;
}

static inline char *chunk_at(const Store *store, uint32_t chunk) {
    return slab_at(&store->chunks[chunk & 3], chunk >> 2);
}

/* Room for a run of so many recipients with so many bytes of ids; -1: no memory.
   Two records that follow each other never both fit where one chunk ends: a chunk is at least half used, or holds one. */
static inline int store_reserve(Store *store, size_t runs, size_t recipients, size_t id_bytes) {
    size_t bytes = recipients * (sizeof(Rec) + sizeof(uint32_t)) + id_bytes;
    if (slab_reserve(&store->facts, runs) < 0 || slab_reserve(&store->chunks[0], 2 * runs) < 0) return -1;
    for (uint32_t size = 1; size < CHUNK_SIZES; size++)
        if (slab_reserve(&store->chunks[size], runs + 2 * bytes / (chunk_size(size) - sizeof(Chunk)) + 1) < 0) return -1;
    return 0;
}

/* --- facts --- */

static inline Facts *facts_at(const Store *store, uint32_t facts) { return slab_at(&store->facts, facts); }

static inline uint32_t *facts_recent(Store *store, const Facts *facts) {
    uint64_t hash = (uint64_t)facts->due * 0x9e3779b97f4a7c15ull ^ (uint64_t)facts->close * 0xd6e8feb86659fd93ull;
    return &store->recent[hash >> 56];
}

static inline int facts_same(const Facts *a, const Facts *b) {
    return a->due == b->due && a->close == b->close && a->pushed == b->pushed && a->deadline == b->deadline &&
           a->not_before == b->not_before && a->slot == b->slot;
}

/* The handle of these facts, `n` recipients more in its count; there must be room. */
static inline uint32_t facts_hold(Store *store, const Facts *like, uint32_t n) {
    uint32_t *recent = facts_recent(store, like);
    if (*recent) {
        Facts *facts = facts_at(store, *recent);
        if (facts_same(facts, like) && facts->refs < 1u << 31) {
            facts->refs += n;
            return *recent;
        }
    }
    *recent = slab_take(&store->facts);
    Facts *facts = facts_at(store, *recent);
    *facts = *like;
    facts->refs = n;
    return *recent;
}

/* `facts` are those of the handle. */
static inline void facts_let_go(Store *store, uint32_t handle, Facts *facts, uint32_t n) {
    assert(facts->refs >= n);
    facts->refs -= n;
    if (facts->refs) return;
    uint32_t *recent = facts_recent(store, facts);
    if (*recent == handle) *recent = 0;
    slab_free(&store->facts, handle);
}

static inline void facts_drop(Store *store, uint32_t handle, uint32_t n) {
    facts_let_go(store, handle, facts_at(store, handle), n);
}

/* The recipients that all facts together count, into *refs; 1: the slab contradicts itself. For checks: walks all. */
static inline int facts_refs(const Store *store, uint64_t *refs) {
    const Slab *slab = &store->facts;
    if (slab_taken(slab) == SIZE_MAX) return 1;
    *refs = 0;
    for (uint32_t number = 0; number < slab->numbers; number++)
        for (uint32_t i = 0; slab->blocks[number].base != NULL && i < slab->blocks[number].bump; i++) {
            const Facts *facts = slab_line(&slab->blocks[number], slab_nth(slab, i));
            if (!ASAN_IS_POISONED(facts)) *refs += facts->refs;
        }
    return 0;
}

/* --- FIFOs --- */

static inline void fifo_make(Fifo *fifo) {
    memset(fifo, 0, sizeof *fifo);
    fifo->close = fifo->deadline = FIFO_NEVER;
}

/* A new last chunk with room for a record of so many bytes. */
static inline void fifo_grow(Store *store, Fifo *fifo, uint32_t bytes) {
    uint32_t size = fifo->count < 2 ? 0 : fifo->count < 32 ? 1 : fifo->count < 512 ? 2 : 3;
    while (chunk_size(size) < sizeof(Chunk) + bytes) size++;
    uint32_t made = slab_take(&store->chunks[size]) << 2 | size;
    ((Chunk *)chunk_at(store, made))->next = 0;
    if (fifo->tail) {
        Chunk *last = (Chunk *)chunk_at(store, fifo->tail);
        last->next = made;
        last->end = fifo->tail_at;
    } else {
        fifo->head = made;
        fifo->head_at = sizeof(Chunk);
    }
    fifo->tail = made;
    fifo->tail_at = sizeof(Chunk);
}

/* Records with these facts come next. `latest`: neither their close nor their deadline is before any other's in it, so
   that nobody need look at the last ones. */
static inline void fifo_expect(const Store *store, Fifo *fifo, uint32_t handle, const Facts *facts, int latest) {
    uint32_t before = fifo->last;
    fifo->last = handle;
    if (fifo->count) {
        if (latest || before == handle) return;
        if (fifo->falls != (CLOSES_FALL | DEADLINES_FALL)) {
            const Facts *last = facts_at(store, before);
            if (facts->close < last->close) fifo->falls |= CLOSES_FALL;
            if (facts->deadline < last->deadline) fifo->falls |= DEADLINES_FALL;
        }
    }
    if (facts->close < fifo->close) fifo->close = facts->close;
    if (facts->deadline < fifo->deadline) fifo->deadline = facts->deadline;
}

/* Most ids are short: no call, and no loop. length > 0. */
static inline void id_copy(void *to, const void *from, size_t length) {
    char *at = to, *end = at + length;
    const char *of = from, *of_end = of + length;
    if (length > 32) {
        memcpy(at, of, length);
    } else if (length >= 16) {
        memcpy(at, of, 16);
        memcpy(end - 16, of_end - 16, 16);
    } else if (length >= 8) {
        memcpy(at, of, 8);
        memcpy(end - 8, of_end - 8, 8);
    } else if (length >= 4) {
        memcpy(at, of, 4);
        memcpy(end - 4, of_end - 4, 4);
    } else {
        at[0] = of[0];
        at[length / 2] = of[length / 2];
        end[-1] = of_end[-1];
    }
}

static inline uint32_t rec_bytes(const Rec *rec, int mixed) {
    return (uint32_t)(sizeof(Rec) + (mixed ? sizeof(uint32_t) : 0)) + rec->length;
}

/* `content` is NULL but in a mixed FIFO; there must be room. */
static inline void fifo_append(Store *store, Fifo *fifo, const Rec *rec, const uint32_t *content, const uint8_t *id) {
    uint32_t bytes = rec_bytes(rec, content != NULL);
    if (!fifo->tail || fifo->tail_at + bytes > chunk_size(fifo->tail & 3)) fifo_grow(store, fifo, bytes);
    char *at = chunk_at(store, fifo->tail) + fifo->tail_at;
    memcpy(at, &rec->send, sizeof rec->send); /* field by field: each goes from its register to its place */
    memcpy(at + offsetof(Rec, facts), &rec->facts, sizeof rec->facts);
    memcpy(at + offsetof(Rec, position), &rec->position, sizeof rec->position);
    at[offsetof(Rec, length)] = (char)rec->length;
    at[offsetof(Rec, attempt)] = (char)rec->attempt;
    at += sizeof *rec;
    if (content != NULL) {
        memcpy(at, content, sizeof *content);
        at += sizeof *content;
    }
    if (rec->length) id_copy(at, id, rec->length);
    fifo->tail_at += (uint16_t)bytes;
    fifo->count++;
}

/* Where the first record stands; the FIFO is not empty. */
static inline const char *fifo_first(const Store *store, const Fifo *fifo, Rec *rec) {
    const char *at = chunk_at(store, fifo->head) + fifo->head_at;
    memcpy(rec, at, sizeof *rec);
    return at + sizeof *rec;
}

/* The first record opens a call that is counted in its facts' slot, or does not. */
static inline void fifo_mark(Store *store, Fifo *fifo, int opens) {
    char *at = chunk_at(store, fifo->head) + fifo->head_at;
    Rec rec;
    memcpy(&rec, at, sizeof rec);
    rec.facts = opens ? rec.facts | REC_OPENS : rec.facts & ~REC_OPENS;
    memcpy(at, &rec, sizeof rec);
}

static inline uint32_t fifo_end(const Fifo *fifo, const Chunk *head) {
    return fifo->head == fifo->tail ? fifo->tail_at : head->end;
}

/* Moves a copy of a FIFO to its next record; there is one. */
static inline void fifo_step(const Store *store, Fifo *copy, const Rec *rec, int mixed) {
    const Chunk *head = (const Chunk *)chunk_at(store, copy->head);
    copy->head_at += (uint16_t)rec_bytes(rec, mixed);
    copy->count--;
    if (copy->head_at < fifo_end(copy, head)) return;
    copy->head = head->next;
    copy->head_at = sizeof(Chunk);
}

/* The chunk behind the first one, or its first lines, are on their way if so many records like the first may reach it. */
static inline void fifo_foresee(const Store *store, const Fifo *fifo, uint32_t most) {
    const char *head = chunk_at(store, fifo->head);
    if (fifo->head == fifo->tail) return;
    uint32_t bytes = (uint32_t)sizeof(Rec) + (uint8_t)head[fifo->head_at + offsetof(Rec, length)];
    uint32_t left = (uint32_t)(((const Chunk *)head)->end - fifo->head_at);
    if (left > (uint64_t)bytes * most) return;
    uint32_t next = ((const Chunk *)head)->next, lines = chunk_size(next & 3) / FORESEE_LINE;
    foresee_lines(chunk_at(store, next), lines < CHUNK_LINES ? lines : CHUNK_LINES);
}

/* Its first chunk holds no more records: the next is the first, and what stands behind that is on its way. */
static inline void fifo_leave(Store *store, Fifo *fifo, const Chunk *head) {
    uint32_t chunk = fifo->head;
    if (fifo->count) {
        fifo->head = head->next;
        fifo->head_at = sizeof(Chunk);
        fifo_foresee(store, fifo, UINT32_MAX);
    } else {
        fifo_make(fifo);
    }
    slab_free(&store->chunks[chunk & 3], chunk >> 2);
}

/* Removes the first record; its facts are the caller's to drop. */
static inline void fifo_skip(Store *store, Fifo *fifo, const Rec *rec, int mixed) {
    const Chunk *head = (const Chunk *)chunk_at(store, fifo->head);
    fifo->head_at += (uint16_t)rec_bytes(rec, mixed);
    fifo->count--;
    if (fifo->head_at >= fifo_end(fifo, head)) fifo_leave(store, fifo, head);
}

#define FACTS_AHEAD 8

typedef struct Reading { /* of a FIFO from its front */
    uint32_t most;     /* so many records will be read at most */
    const char *chunk; /* NULL: at first, and after the FIFO was changed otherwise */
    const char *at, *end; /* the first record; behind the last one of the chunk */
    const char *ahead;    /* from here on no facts are on their way yet */
} Reading;

static inline void reading_ahead(const Store *store, Reading *reading, int mixed) {
    uint32_t facts;
    if (reading->ahead >= reading->end) return;
    memcpy(&facts, reading->ahead + offsetof(Rec, facts), sizeof facts);
    foresee(facts_at(store, facts & REC_FACTS));
    reading->ahead += sizeof(Rec) + (mixed ? sizeof(uint32_t) : 0) + (uint8_t)reading->ahead[offsetof(Rec, length)];
}

static inline void reading_begin(const Store *store, const Fifo *fifo, Reading *reading, int mixed) {
    reading->chunk = chunk_at(store, fifo->head);
    reading->at = reading->ahead = reading->chunk + fifo->head_at;
    reading->end = reading->chunk + fifo_end(fifo, (const Chunk *)reading->chunk);
    for (uint32_t n = 1; n < FACTS_AHEAD && n < reading->most; n++) reading_ahead(store, reading, mixed);
}

/* fifo_first for who takes many: where the first record stands is known, and the facts of the FACTS_AHEAD behind it in
   its chunk are on their way. */
static inline const char *reading_first(const Store *store, const Fifo *fifo, Reading *reading, Rec *rec, int mixed) {
    if (reading->chunk == NULL) reading_begin(store, fifo, reading, mixed);
    reading_ahead(store, reading, mixed);
    memcpy(&rec->send, reading->at, sizeof rec->send);
    memcpy(&rec->facts, reading->at + offsetof(Rec, facts), sizeof rec->facts);
    memcpy(&rec->position, reading->at + offsetof(Rec, position), sizeof rec->position);
    rec->length = (uint8_t)reading->at[offsetof(Rec, length)];
    rec->attempt = (uint8_t)reading->at[offsetof(Rec, attempt)];
    return reading->at + sizeof *rec;
}

/* fifo_skip, likewise. */
static inline void reading_skip(Store *store, Fifo *fifo, Reading *reading, const Rec *rec, int mixed) {
    uint32_t bytes = rec_bytes(rec, mixed);
    fifo->head_at += (uint16_t)bytes;
    fifo->count--;
    reading->at += bytes;
    if (reading->at < reading->end) return;
    fifo_leave(store, fifo, (const Chunk *)reading->chunk);
    reading->chunk = NULL;
}

/* After the first records have left: what is the earliest now, where that is known. */
static inline void fifo_renew(const Store *store, Fifo *fifo) {
    Rec rec;
    if (!fifo->count || fifo->falls == (CLOSES_FALL | DEADLINES_FALL)) return;
    fifo_first(store, fifo, &rec);
    const Facts *facts = facts_at(store, rec.facts & REC_FACTS);
    if (!(fifo->falls & CLOSES_FALL)) fifo->close = facts->close;
    if (!(fifo->falls & DEADLINES_FALL)) fifo->deadline = facts->deadline;
}

/* Whether it is what it says: walks all of it, and counts its chunks into chunks[]. */
static inline int fifo_is_sound(const Store *store, const Fifo *fifo, int mixed, size_t *chunks, uint64_t *facts) {
    Fifo copy = *fifo;
    int64_t close = FIFO_NEVER, deadline = FIFO_NEVER, falls = 0;
    const Facts *last = NULL;
    if (!fifo->count) return !fifo->head && !fifo->tail && !fifo->falls && fifo->close == FIFO_NEVER;
    for (uint32_t chunk = fifo->head;; chunk = ((Chunk *)chunk_at(store, chunk))->next) {
        chunks[chunk & 3]++;
        if (chunk == fifo->tail) break;
    }
    for (uint32_t i = 0; i < fifo->count; i++) {
        Rec rec;
        fifo_first(store, &copy, &rec);
        const Facts *of = facts_at(store, rec.facts & REC_FACTS);
        if (!of->refs) return 0;
        if (last && of->close < last->close) falls |= CLOSES_FALL;
        if (last && of->deadline < last->deadline) falls |= DEADLINES_FALL;
        if (of->close < close) close = of->close;
        if (of->deadline < deadline) deadline = of->deadline;
        last = of;
        ++*facts;
        if (i + 1 < fifo->count) fifo_step(store, &copy, &rec, mixed);
    }
    return copy.head == fifo->tail && (falls & ~fifo->falls) == 0 && fifo->close <= close &&
           (fifo->falls & CLOSES_FALL || fifo->close == close) &&
           (fifo->falls & DEADLINES_FALL || fifo->deadline == deadline);
}

/* All of `more`, of which nothing has been removed, behind what is there; `more` is empty after it. O(1). */
static inline void fifo_splice(Store *store, Fifo *fifo, Fifo *more) {
    Rec rec;
    if (!fifo->count) {
        *fifo = *more;
        fifo_make(more);
        return;
    }
    fifo_first(store, more, &rec);
    uint32_t last = more->last, first = rec.facts & REC_FACTS;
    fifo_expect(store, fifo, first, facts_at(store, first), 0);
    Chunk *tail = (Chunk *)chunk_at(store, fifo->tail);
    tail->next = more->head;
    tail->end = fifo->tail_at;
    fifo->tail = more->tail;
    fifo->tail_at = more->tail_at;
    fifo->count += more->count;
    fifo->last = last;
    fifo->falls |= more->falls;
    if (more->close < fifo->close) fifo->close = more->close;
    if (more->deadline < fifo->deadline) fifo->deadline = more->deadline;
    fifo_make(more);
}

#endif
