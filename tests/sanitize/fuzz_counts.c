/* frequency.h, histogram.h and siphash.h: nobody gets more than the number in any window, whatever folds and shares;
   counts and sums are those of a plain list; hashes are the published ones. */
#include "frequency.h"
#include "fuzz.h"
#include "histogram.h"
#include "siphash.h"

#define PEOPLE 60
#define TIMES 64
#define EDGES 12
#define PER 4096000000000ll /* a tick is a second, near enough */

typedef struct Person {
    uint64_t hash;
    int64_t at[TIMES]; /* got a message, oldest first */
    int count;
} Person;

static OftenTable table;
static OftenSet *sets;
static Person people[PEOPLE];
static int64_t now;

static Counts counts;
static int64_t edges[EDGES];
static uint64_t tally[EDGES + 1], plain[EDGES + 1];
static __int128 sum;

static void check_siphash(void) {
    static const uint8_t empty[16] = {0xa3, 0x81, 0x7f, 0x04, 0xba, 0x25, 0xa8, 0xe6,
                                      0x6d, 0xf6, 0x72, 0x14, 0xc7, 0x55, 0x02, 0x93};
    static const uint8_t zero[16] = {0xda, 0x87, 0xc1, 0xd8, 0x6b, 0x99, 0xaf, 0x44,
                                     0x34, 0x76, 0x59, 0x11, 0x9b, 0x22, 0xfc, 0x45};
    uint8_t key[16], out[16], other[16];
    for (int i = 0; i < 16; i++) key[i] = (uint8_t)i;
    siphash128(key, key, 0, out);
    CHECK(memcmp(out, empty, 16) == 0);
    siphash128(key, key, 1, out);
    CHECK(memcmp(out, zero, 16) == 0);
    for (size_t length = 1; length < 70; length++) {
        uint8_t *data = fuzz_alloc(length, 1); /* of its exact size */
        siphash128(key, data, length, out);
        data[pick(length)] ^= (uint8_t)(1u << pick(8));
        siphash128(key, data, length, other);
        CHECK(memcmp(out, other, 16) != 0);
        free(data);
    }
}

static void start(void) {
    uint64_t n = 1 + pick(12);
    sets = fuzz_alloc(n, sizeof(OftenSet));
    often_make(&table, sets, n, (uint32_t)(1 + pick(8)), PER);
    for (int i = 0; i < PEOPLE; i++) people[i].hash = draw();
    if (once_in(2)) people[1].hash = people[0].hash ^ 1ull << 20; /* equal tags */
    counts = (Counts){.size = EDGES, .edges = edges, .counts = tally};
    for (int i = 0; i < EDGES; i++) edges[i] = 10 * i - 30;
    now = (int64_t)any_size(55);
    check_siphash();
}

static void forget_old(Person *person) {
    int old = 0;
    while (old < person->count && person->at[old] <= now - PER) old++;
    person->count -= old;
    memmove(person->at, person->at + old, sizeof(int64_t) * (size_t)person->count);
}

static void send_to(Person *person) {
    uint32_t kept = (uint32_t)pick(table.number);
    int64_t when = often_when(&table, person->hash, now, kept);
    forget_old(person);
    CHECK(when == 0 || when > now);
    if (when && !once_in(50)) return;
    if (when == 0) CHECK(person->count < (int)(table.number - kept));
    if (person->count == TIMES) return;
    if (once_in(10) && when) now = when; /* by then there is room */
    if (often_when(&table, person->hash, now, kept)) return;
    often_count(&table, person->hash, now, now);
    person->at[person->count++] = now;
}

static void take_back(Person *person) {
    forget_old(person);
    if (person->count == 0) return;
    int at = (int)pick((uint64_t)person->count);
    often_uncount(&table, person->hash, now, person->at[at]);
    memmove(person->at + at, person->at + at + 1, sizeof(int64_t) * (size_t)(person->count - at - 1));
    person->count--;
}

static void observe(void) {
    int64_t value = (int64_t)pick(140) - 40;
    uint64_t n = any_size(20);
    int at = 0;
    while (at < EDGES && edges[at] < value) at++;
    plain[at] += n;
    sum += (__int128)value * (__int128)n;
    counts_observe(&counts, value, n);
    CHECK(memcmp(plain, tally, sizeof tally) == 0);
    CHECK(counts.sum == sum && counts_sum_low(&counts) == (uint64_t)sum && counts_sum_high(&counts) == (int64_t)(sum >> 64));
}

static void step(void) {
    uint64_t looked = 0, full = 0;
    Person *person = &people[pick(PEOPLE)];
    if (once_in(8))
        take_back(person);
    else
        send_to(person);
    if (once_in(3)) now += (int64_t)any_size(once_in(100) ? 44 : 38);
    observe();
    if (once_in(100)) {
        often_fill(&table, now, 1 + pick(3), &looked, &full);
        CHECK(full <= looked && looked <= table.count);
    }
}

static void finish(void) { free(sets); }

int main(int argc, char **argv) { return fuzz_main(argc, argv, start, step, finish); }
