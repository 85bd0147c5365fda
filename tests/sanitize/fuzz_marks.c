/* marks.h and bits.h: which offsets are done, and which recipients of open ones, against bytes; and what is written down
   is read back the same. */
#include "bits.h"
#include "fuzz.h"
#include "marks.h"

#define SPAN 20000 /* offsets a life */
#define RECIPIENTS 200

enum { UNREAD, OPEN, DONE };

static Marks marks;
static uint8_t state[SPAN];   /* by offset - base */
static uint8_t settled[SPAN]; /* the first recipient of an open record, + 1; 0: none */
static int64_t base, end;     /* read up to here, counted from base */

static void begin(void) {
    base = (int64_t)any_size(40);
    end = 0;
    memset(state, UNREAD, sizeof state);
    memset(settled, 0, sizeof settled);
    CHECK(marks_make(&marks, base) == 0);
    if (once_in(2)) return;
    CHECK(marks_reserve(&marks, base + 64 * 65) == 0); /* a map that a commit left */
    for (int64_t word = 0; word < 64; word++) {
        uint64_t bits = once_in(3) ? draw() & draw() : 0;
        marks_set(&marks, base + word * 64, bits);
        for (int64_t bit = 0; bit < 64; bit++)
            if (bits >> bit & 1) state[word * 64 + bit] = DONE;
    }
    if (once_in(4)) {
        marks_forget(&marks);
        memset(state, UNREAD, sizeof state);
    }
}

static void open_next(void) {
    int64_t offset = end + (int64_t)(once_in(10) ? any_size(9) : 0);
    if (offset >= SPAN) return;
    int known = marks_open(&marks, base + offset, 1000 + offset);
    CHECK(known == (state[offset] == DONE));
    for (; end < offset; end++) state[end] = DONE; /* nobody was given these */
    if (!known) state[offset] = OPEN;
    end = offset + 1;
}

static void complete(void) {
    if (end == 0) return;
    int64_t offset = once_in(2) ? (int64_t)pick((uint64_t)end) : end - 1 - (int64_t)pick(end > 200 ? 200 : (uint64_t)end);
    CHECK(marks_complete(&marks, base + offset) == (state[offset] == OPEN));
    state[offset] = DONE;
}

static void settle(void) {
    if (end == 0) return;
    int64_t offset = end - 1 - (int64_t)pick(end > 300 ? 300 : (uint64_t)end);
    if (state[offset] != OPEN) {
        CHECK(marks_settled(&marks, base + offset) == NULL);
        return;
    }
    uint32_t who = (uint32_t)pick(RECIPIENTS);
    Settled *one = marks_settled(&marks, base + offset);
    CHECK((one != NULL) == (settled[offset] != 0));
    if (one != NULL) CHECK(one->bits[(settled[offset] - 1) / 64] >> (settled[offset] - 1) % 64 & 1);
    one = marks_settle(&marks, base + offset, who / 64 + 1);
    CHECK(one != NULL && one->words > who / 64);
    one->bits[who / 64] |= 1ull << who % 64;
    if (!settled[offset]) settled[offset] = (uint8_t)(who + 1);
}

static void check(void) {
    int64_t first = 0;
    uint64_t open = 0;
    while (first < end && state[first] == DONE) first++;
    for (int64_t offset = 0; offset < SPAN; offset++) {
        open += state[offset] == OPEN;
        if (offset >= first) CHECK(marks_done(&marks, base + offset) == (state[offset] == DONE));
    }
    CHECK(marks.open == open);
    CHECK(marks.watermark == base + (open ? first : end));
    if (open) CHECK(marks_oldest_ms(&marks) == 1000 + first);
}

/* --- bits.h --- */

static void check_varint(void) {
    uint64_t value = any_size(63) >> 1, got;
    size_t size = varint_size(value);
    uint8_t *bytes = fuzz_alloc(size, 1); /* of its exact size: what reads on is caught */
    CHECK(varint_put(bytes, value) == bytes + size);
    CHECK(varint_get(bytes, bytes + size, &got) == bytes + size && got == value);
    CHECK(size == 1 || varint_get(bytes, bytes + size - 1, &got) == NULL);
    free(bytes);
    size = 1 + pick(2 * VARINT_BYTES);
    bytes = fuzz_alloc(size, 1);
    for (size_t i = 0; i < size; i++) bytes[i] = (uint8_t)(draw() | (once_in(9) ? 0 : 0x80)); /* what anybody may write */
    const uint8_t *after = varint_get(bytes, bytes + size, &got);
    CHECK(after == NULL || (after > bytes && after <= bytes + size && got >> 63 == 0));
    free(bytes);
}

static void check_bits(void) {
    size_t words = pick(9), used;
    uint64_t *bits = fuzz_alloc(words ? words : 1, sizeof(uint64_t)), got;
    for (size_t i = 0; i < words; i++) bits[i] = once_in(3) ? 0 : once_in(3) ? ~0ull : draw() & draw();
    used = bits_used(bits, words);
    CHECK(used <= 64 * words && (used == 0 || bits[(used - 1) / 64] >> (used - 1) % 64 & 1));
    size_t size = bits_runs_size(bits, used);
    uint8_t *bytes = fuzz_alloc(size ? size : 1, 1);
    CHECK(bits_put_runs(bits, used, bytes) == bytes + size);
    size_t at = 0;
    int value = 0;
    for (const uint8_t *read = bytes; read < bytes + size; value = !value) {
        read = varint_get(read, bytes + size, &got);
        CHECK(read != NULL && at + got <= used);
        for (; got; got--, at++) CHECK((int)(bits[at / 64] >> at % 64 & 1) == value);
    }
    CHECK(at == used);
    bytes = realloc(bytes, bits_set_size(used) + 1);
    CHECK(bytes != NULL && bits_put_set(bits, used, bytes) == bytes + bits_set_size(used));
    for (size_t i = 0; i < used; i++) CHECK((bytes[i / 8] >> i % 8 & 1) == (bits[i / 64] >> i % 64 & 1));
    free(bytes);
    free(bits);
}

static void step(void) {
    uint64_t what = pick(10);
    if (what < 5)
        open_next();
    else if (what < 8)
        complete();
    else
        settle();
    if (once_in(300)) check();
    check_varint();
    if (once_in(10)) check_bits();
    if (end == SPAN || once_in(5000)) {
        check();
        marks_free(&marks);
        begin();
    }
}

static void finish(void) {
    check();
    marks_free(&marks);
}

int main(int argc, char **argv) { return fuzz_main(argc, argv, begin, step, finish); }
