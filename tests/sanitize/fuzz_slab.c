/* slab.h: records keep what was written into them, handles are told apart, and what is taken is what was taken. */
#include "fuzz.h"
#include "slab.h"

#define MOST 12000

typedef struct Held {
    uint32_t handle;
    uint64_t mark;
} Held;

static Slab slab;
static Held held[MOST];
static uint32_t count, target, size;

static void stamp(const Held *of) {
    char *record = slab_at(&slab, of->handle);
    for (uint32_t at = 0; at + 8 <= size; at += 8) memcpy(record + at, &of->mark, 8);
}

static void compare(const Held *of) {
    const char *record = slab_at(&slab, of->handle);
    for (uint32_t at = 0; at + 8 <= size; at += 8) CHECK(memcmp(record + at, &of->mark, 8) == 0);
}

static void start(void) {
    size = 16 * (uint32_t)(1 + pick(80));
    slab_make(&slab, size);
}

static void take(uint32_t n) {
    if (n > MOST - count) n = MOST - count;
    CHECK(slab_reserve(&slab, n) == 0);
    CHECK(slab.room >= n);
    for (; n; n--, count++) {
        held[count] = (Held){slab_take(&slab), draw()};
        CHECK(held[count].handle != 0);
        stamp(&held[count]);
    }
}

static void give(uint32_t n) {
    if (n > count) n = count;
    for (; n; n--) {
        uint32_t at = once_in(3) ? (uint32_t)pick(count) : count - 1;
        compare(&held[at]);
        slab_free(&slab, held[at].handle);
        held[at] = held[--count];
    }
}

static void step(void) {
    if (once_in(200)) target = (uint32_t)(once_in(3) ? 0 : pick(MOST));
    if (count < target || (count == target && once_in(2)))
        take((uint32_t)any_size(9));
    else
        give((uint32_t)any_size(9));
    if (count) compare(&held[pick(count)]);
    CHECK(slab_taken(&slab) == count);
}

static void finish(void) {
    give(count);
    CHECK(slab_taken(&slab) == 0);
    slab_free_all(&slab);
}

int main(int argc, char **argv) { return fuzz_main(argc, argv, start, step, finish); }
