/* table.h: what was added is found, by hashes that collide, until it is removed. */
#include "fuzz.h"
#include "table.h"

#define ITEMS 3000
#define HASHES 400 /* few, so that they meet */
#define IDS 300

static Table table;
static Prints prints;
static IdSet ids;

static uint64_t hashes[HASHES];
static int of[ITEMS]; /* the hash's number, -1: not there */
static int printed[HASHES];

static uint8_t room[64 * IDS];
static size_t at[IDS], length[IDS], end, count;

static void start(void) {
    for (int i = 0; i < HASHES; i++) {
        hashes[i] = draw();
        if (once_in(2)) hashes[i] &= 0x3ull << 58 | 0x7; /* two shards' homes */
        if (i && once_in(4)) hashes[i] = hashes[pick((uint64_t)i)] ^ 1ull << pick(4); /* alike as prints */
    }
    for (int i = 0; i < ITEMS; i++) of[i] = -1;
    CHECK(idset_reserve(&ids, IDS) == 0);
    ids.seed = draw();
}

static void turn_table(void) {
    int item = (int)pick(ITEMS), hash = (int)pick(HASHES);
    if (of[item] < 0) {
        CHECK(table_add(&table, hashes[hash], (uint32_t)item + 1) == 0);
        of[item] = hash;
    } else {
        table_remove(&table, hashes[of[item]], (uint32_t)item + 1);
        of[item] = -1;
    }
}

static int same(uint64_t a, uint64_t b) { return a >> 58 == b >> 58 && (uint32_t)a == (uint32_t)b; }

static void find(uint64_t hash) {
    size_t cursor = 0, expected = 0, found = 0;
    for (int i = 0; i < ITEMS; i++) expected += of[i] >= 0 && same(hashes[of[i]], hash);
    for (uint32_t item; (item = table_next(&table, hash, &cursor)); found++)
        CHECK(of[item - 1] >= 0 && same(hashes[of[item - 1]], hash));
    CHECK(found == expected);
}

static int alike(int a, int b) { return print_of(hashes[a]) == print_of(hashes[b]) && hashes[a] >> 58 == hashes[b] >> 58; }

static void turn_prints(void) {
    int hash = (int)pick(HASHES), known = -1;
    for (int i = 0; i < HASHES && known < 0; i++)
        if (printed[i] && alike(i, hash)) known = i;
    if (known >= 0 && once_in(2)) {
        prints_remove(&prints, hashes[known]);
        printed[known] = 0;
        return;
    }
    CHECK(prints_add(&prints, hashes[hash]) == (known < 0));
    if (known < 0) printed[hash] = 1;
}

static void turn_ids(void) {
    uint8_t id[64];
    size_t bytes = 1 + pick(once_in(4) ? 64 : 3);
    int known = 0;
    if (count == IDS || once_in(100)) {
        idset_clear(&ids);
        count = end = 0;
        if (once_in(10)) ids.stamp = UINT32_MAX; /* the next one wraps */
    }
    for (size_t i = 0; i < bytes; i++) id[i] = (uint8_t)('a' + pick(3));
    if (ids.stamp == 0) idset_clear(&ids);
    for (size_t i = 0; i < count; i++) known |= length[i] == bytes && memcmp(room + at[i], id, bytes) == 0;
    CHECK(idset_add(&ids, room, end, id, bytes) == !known);
    if (known) return;
    memcpy(room + end, id, bytes);
    at[count] = end;
    length[count++] = bytes;
    end += bytes;
}

static void step(void) {
    uint64_t turns = once_in(300) ? 2000 : 1;
    while (turns--) turn_table();
    turn_prints();
    turn_ids();
    if (once_in(10)) find(hashes[pick(HASHES)]);
}

static void finish(void) {
    for (int i = 0; i < ITEMS; i++)
        if (of[i] >= 0) table_remove(&table, hashes[of[i]], (uint32_t)i + 1);
    for (int i = 0; i < SHARDS; i++) CHECK(table.shards[i].used == 0);
    table_free(&table);
    prints_free(&prints);
    free(ids.slots);
}

int main(int argc, char **argv) { return fuzz_main(argc, argv, start, step, finish); }
