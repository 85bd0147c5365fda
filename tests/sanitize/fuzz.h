/* What every driver here has in common: a seed, a number of steps, a generator, and a check that says where it failed.
   A driver does random operations on one of the C parts of ext/ and holds it to a plain model after each. */
#ifndef SURGETANK_FUZZ_H
#define SURGETANK_FUZZ_H

#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t fuzz_seed, fuzz_state, fuzz_step;

#define CHECK(truth)                                                                                               \
    do {                                                                                                           \
        if (!(truth)) {                                                                                            \
            fprintf(stderr, "%s:%d: seed %" PRIu64 ", step %" PRIu64 ": not so: %s\n", __FILE__, __LINE__,         \
                    fuzz_seed, fuzz_step, #truth);                                                                 \
            exit(1);                                                                                               \
        }                                                                                                          \
    } while (0)

/* splitmix64 (Steele, Lea, Flood, OOPSLA 2014). */
static inline uint64_t draw(void) {
    uint64_t z = fuzz_state += 0x9e3779b97f4a7c15ull;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}

/* 0..n - 1 */
static inline uint64_t pick(uint64_t n) { return draw() % n; }

/* Once in n. */
static inline int once_in(uint64_t n) { return pick(n) == 0; }

/* 0..2^bits - 1, small ones as likely as large ones. */
static inline uint64_t any_size(int bits) { return draw() >> (63 - pick((uint64_t)bits)); }

static inline void *fuzz_alloc(size_t n, size_t size) {
    void *made = calloc(n, size);
    CHECK(made != NULL);
    return made;
}

/* DRIVER SEED STEPS: each step is a call of `step`, `finish` comes last and frees everything. */
static inline int fuzz_main(int argc, char **argv, void (*start)(void), void (*step)(void), void (*finish)(void)) {
    if (argc != 3) {
        fprintf(stderr, "usage: %s SEED STEPS\n", argv[0]);
        return 2;
    }
    fuzz_seed = fuzz_state = strtoull(argv[1], NULL, 10);
    uint64_t steps = strtoull(argv[2], NULL, 10);
    start();
    for (fuzz_step = 0; fuzz_step < steps; fuzz_step++) step();
    finish();
    return 0;
}

#endif
