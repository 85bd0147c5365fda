/* fifo.h: recipients leave each FIFO in the order they came, with their ids, contents and facts; and no chunk or count
   is lost on the way. */
#include "fuzz.h"
#include "fifo.h"

#define FIFOS 8
#define MOST 3000 /* recipients a FIFO */
#define MOST_RUN 40

typedef struct Item {
    Rec rec; /* without its facts' handle */
    uint32_t content;
    Facts facts;
    uint8_t id[255];
} Item;

typedef struct Line {
    Fifo fifo;
    Item *items; /* a ring */
    uint32_t first, count;
    int mixed, touched; /* touched: something was removed */
} Line;

static Store store;
static Line lines[FIFOS];

static Item *item_at(const Line *line, uint32_t i) { return &line->items[(line->first + i) % MOST]; }

static void start(void) {
    store_make(&store);
    for (int i = 0; i < FIFOS; i++) {
        fifo_make(&lines[i].fifo);
        lines[i].items = fuzz_alloc(MOST, sizeof(Item));
        lines[i].mixed = i % 2;
    }
}

static int64_t some_time(void) { return once_in(4) ? FIFO_NEVER : (int64_t)any_size(6); }

static void append(Line *line, uint32_t n) {
    Facts facts = {.pushed = (int64_t)pick(3), .due = some_time(), .deadline = some_time(), .close = some_time()};
    Item items[MOST_RUN];
    size_t id_bytes = 0;
    if (n > MOST - line->count) n = MOST - line->count;
    if (n == 0) return;
    for (uint32_t i = 0; i < n; i++) {
        Item *item = &items[i];
        item->rec = (Rec){.send = (uint32_t)draw(), .position = (uint16_t)draw(), .attempt = (uint8_t)draw()};
        item->rec.length = (uint8_t)(once_in(5) ? pick(256) : pick(20));
        item->content = (uint32_t)draw();
        item->facts = facts;
        for (int k = 0; k < item->rec.length; k++) item->id[k] = (uint8_t)draw();
        id_bytes += item->rec.length;
    }
    CHECK(store_reserve(&store, 1, n, id_bytes) == 0);
    uint32_t handle = facts_hold(&store, &facts, n);
    static int64_t close, deadline; /* the latest of all lines */
    int latest = facts.close >= close && facts.deadline >= deadline;
    close = facts.close > close ? facts.close : close;
    deadline = facts.deadline > deadline ? facts.deadline : deadline;
    fifo_expect(&store, &line->fifo, handle, facts_at(&store, handle), latest);
    for (uint32_t i = 0; i < n; i++) {
        Rec rec = items[i].rec;
        rec.facts = handle;
        fifo_append(&store, &line->fifo, &rec, line->mixed ? &items[i].content : NULL, items[i].id);
        *item_at(line, line->count++) = items[i];
    }
}

static void compare(const Line *line, const Fifo *fifo, const Item *item, Rec *rec) {
    const char *at = fifo_first(&store, fifo, rec);
    CHECK(rec->send == item->rec.send && rec->position == item->rec.position && rec->attempt == item->rec.attempt);
    CHECK(rec->length == item->rec.length);
    CHECK(facts_same(facts_at(&store, rec->facts), &item->facts));
    if (line->mixed) {
        CHECK(memcmp(at, &item->content, sizeof item->content) == 0);
        at += sizeof item->content;
    }
    CHECK(memcmp(at, item->id, rec->length) == 0);
}

static void skip(Line *line, uint32_t n) {
    Reading reading = {.most = n};
    Rec rec, read;
    for (; n && line->count; n--) {
        compare(line, &line->fifo, item_at(line, 0), &rec);
        if (once_in(3)) {
            fifo_skip(&store, &line->fifo, &rec, line->mixed);
            reading.chunk = NULL;
        } else {
            reading_first(&store, &line->fifo, &reading, &read, line->mixed);
            CHECK(memcmp(&read, &rec, sizeof rec) == 0);
            reading_skip(&store, &line->fifo, &reading, &rec, line->mixed);
        }
        facts_drop(&store, rec.facts, 1);
        line->first = (line->first + 1) % MOST;
        line->count--;
        line->touched = 1;
    }
    fifo_renew(&store, &line->fifo);
    if (line->count == 0) line->touched = 0;
}

static void walk(const Line *line) {
    Fifo copy = line->fifo;
    Rec rec;
    for (uint32_t i = 0; i < line->count; i++) {
        compare(line, &copy, item_at(line, i), &rec);
        if (i + 1 < line->count) fifo_step(&store, &copy, &rec, line->mixed);
    }
}

static void splice(Line *to, Line *from) {
    if (to == from || to->mixed != from->mixed || from->touched || !from->count || to->count + from->count > MOST) return;
    if (!to->count) to->touched = 0;
    fifo_splice(&store, &to->fifo, &from->fifo);
    for (uint32_t i = 0; i < from->count; i++) *item_at(to, to->count++) = *item_at(from, i);
    from->count = 0;
}

static void check(void) {
    size_t chunks[CHUNK_SIZES] = {0};
    uint64_t counted = 0, refs = 0;
    for (int i = 0; i < FIFOS; i++) {
        CHECK(lines[i].fifo.count == lines[i].count);
        CHECK(fifo_is_sound(&store, &lines[i].fifo, lines[i].mixed, chunks, &counted));
    }
    for (int size = 0; size < CHUNK_SIZES; size++) CHECK(slab_taken(&store.chunks[size]) == chunks[size]);
    CHECK(!facts_refs(&store, &refs) && refs == counted);
}

static void step(void) {
    Line *line = &lines[pick(FIFOS)];
    uint64_t what = pick(10);
    if (what < 4)
        append(line, (uint32_t)(1 + pick(MOST_RUN)));
    else if (what < 8)
        skip(line, (uint32_t)(once_in(20) ? MOST : any_size(7)));
    else if (what < 9)
        splice(line, &lines[pick(FIFOS)]);
    else
        walk(line);
    if (once_in(20)) check();
}

static void finish(void) {
    check();
    for (int i = 0; i < FIFOS; i++) {
        skip(&lines[i], MOST);
        free(lines[i].items);
    }
    check();
    CHECK(slab_taken(&store.facts) == 0);
    store_free(&store);
}

int main(int argc, char **argv) { return fuzz_main(argc, argv, start, step, finish); }
