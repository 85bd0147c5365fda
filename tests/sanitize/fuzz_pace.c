/* pace.h and capacity.h: calls and who waits are counted where they are due, whatever time does; the one due first is
   first; and once the time that was told has come, a call may leave. */
#include "capacity.h"
#include "fuzz.h"
#include "pace.h"

#define CALLS 600
#define WAITERS 60
#define SLOTS 5
#define LATEST (1ll << 61)

typedef struct Call {
    uint32_t slot, calls;
} Call;

typedef struct Waiter {
    PaceLink link;
    uint32_t slot;
} Waiter;

static Pace *pace, *ahead_of_it; /* the latter is looked at whenever a slot is told, the former may lag */
static Capacity capacity;
static Call calls[CALLS];
static Waiter waiters[WAITERS];
static uint32_t count;
static uint64_t work;
static int64_t now;
static int in_flight;

static void start(void) {
    pace = fuzz_alloc(1, sizeof(Pace));
    int64_t tau = once_in(2) ? 0 : (int64_t)(1 + any_size(44));
    ahead_of_it = fuzz_alloc(1, sizeof(Pace));
    pace_make(ahead_of_it, PACE_PACED, 0, 1);
    pace_make(pace, once_in(4) ? PACE_EVEN : PACE_PACED, tau, once_in(2) ? 1 : PACE_CALL_A_SECOND);
    now = (int64_t)(once_in(4) ? (1ull << 60) - (pick(5000) << PACE_NEAR_BITS) : any_size(50)); /* slots wrap there */
    for (int i = 0; i < WAITERS; i++) waiters[i].link.owner = &waiters[i];
    capacity.at = now;
}

static int64_t some_due(void) {
    int64_t ahead = (int64_t)any_size(once_in(3) ? 48 : 40);
    return once_in(8) ? now - ahead : once_in(50) ? INT64_MAX : now + ahead;
}

static void check_slots(const PaceSlots *slots, uint64_t *counted, uint64_t *waiting) {
    for (uint32_t at = 0; at < PACE_SLOTS; at++) {
        int used = (slots->used[at / 64] >> at % 64) & 1, waited = (slots->waited[at / 64] >> at % 64) & 1;
        CHECK(used == (slots->calls[at] != 0 || slots->even[at] != 0));
        CHECK(waited == (slots->rings[at].first != NULL));
        *counted += slots->calls[at];
        for (const PaceLink *link = slots->rings[at].first; link != NULL; link = link->next) ++*waiting;
    }
}

static void check(void) {
    uint64_t counted = pace->late, waiting = 0;
    check_slots(&pace->near, &counted, &waiting);
    check_slots(&pace->far, &counted, &waiting);
    for (const PaceLink *link = pace->passed.first; link != NULL; link = link->next) waiting++;
    CHECK(counted == work && pace->work == work);
    CHECK(waiting == pace->waiting);
}

/* Who waits for the earliest slot, as far as slots can still be told apart: far ones cannot within 2^6. */
static void check_first(void) {
    Waiter *first = pace_first(pace);
    int32_t earliest = INT32_MAX;
    for (int i = 0; i < WAITERS; i++)
        if (pace_waits(&waiters[i].link) && (int32_t)(waiters[i].slot - pace->base) < earliest)
            earliest = (int32_t)(waiters[i].slot - pace->base);
    CHECK((first == NULL) == (earliest == INT32_MAX));
    if (first == NULL) return;
    int32_t ahead = (int32_t)(first->slot - pace->base);
    CHECK(ahead < 0 ? earliest < 0 : ahead - earliest < 64);
    CHECK(ahead >= PACE_SLOTS || ahead < 0 || ahead == earliest);
}

static void turn_waiter(void) {
    Waiter *waiter = &waiters[pick(WAITERS)];
    if (pace_waits(&waiter->link)) {
        pace_wait_no_more(pace, &waiter->link, waiter->slot);
        CHECK(!pace_waits(&waiter->link));
    } else {
        waiter->slot = pace_slot(once_in(2) ? pace : ahead_of_it, now, some_due());
        pace_wait(pace, now, &waiter->link, waiter->slot);
    }
}

static void add(void) {
    if (count == CALLS) return;
    Call call = {pace_slot(pace, now, some_due()), (uint32_t)(1 + any_size(10))};
    pace_add(pace, now, call.slot, call.calls);
    work += call.calls;
    calls[count++] = call;
}

static void remove_some(uint32_t at, uint32_t n) {
    pace_remove(pace, calls[at].slot, n);
    work -= n;
    calls[at].calls -= n;
    if (calls[at].calls == 0) calls[at] = calls[--count];
}

static void take_away(void) {
    if (count == 0) return;
    uint32_t at = (uint32_t)pick(count);
    remove_some(at, once_in(2) ? calls[at].calls : 1 + (uint32_t)pick(calls[at].calls));
}

static void leave(void) {
    for (int tries = 0; tries < 200; tries++) {
        int64_t when = pace_when(pace, now);
        CHECK(when == 0 || when > now);
        CHECK(pace->rate >= pace->floor && pace->rate >= pace->need && pace->rate <= PACE_FASTEST);
        if (count) {
            uint32_t slot = calls[pick(count)].slot;
            CHECK(pace_before(pace, slot) < work);
            CHECK(pace_expects(pace, slot) >= pace->left + pace_interval(pace));
        }
        if (when == 0) {
            pace_leave(pace, now);
            CHECK(pace->left <= now);
            CHECK(pace->left >= now - PACE_LEAST_NS || pace->left >= now - pace_interval(pace));
            return;
        }
        now = when;
    }
    CHECK(!"a call may leave when its time has come");
}

static void turn_capacity(void) {
    if (in_flight < SLOTS && once_in(2)) {
        capacity_start(&capacity, now, SLOTS);
        in_flight++;
    } else if (in_flight) {
        capacity_end(&capacity, now, SLOTS);
        in_flight--;
    }
    uint64_t rate = capacity_rate(&capacity, SLOTS);
    CHECK(rate >= PACE_CALL_A_SECOND && rate <= PACE_FASTEST);
    if (once_in(20)) pace->ceiling = once_in(2) ? PACE_FASTEST : rate;
}

static void step(void) {
    uint64_t what = pick(10);
    if (once_in(4) && now < LATEST) now += (int64_t)any_size(once_in(50) ? 47 : 33);
    if (what < 3)
        add();
    else if (what < 5)
        take_away();
    else if (what < 7)
        turn_waiter();
    else if (what < 9)
        for (uint64_t n = 1 + pick(6); n; n--) leave();
    else
        turn_capacity();
    if (once_in(10)) {
        pace_roll(pace, now);
        check_first();
    }
    if (once_in(100)) check();
}

static void finish(void) {
    while (count) remove_some(0, calls[0].calls);
    for (int i = 0; i < WAITERS; i++)
        if (pace_waits(&waiters[i].link)) pace_wait_no_more(pace, &waiters[i].link, waiters[i].slot);
    check();
    CHECK(pace->work == 0 && pace->waiting == 0 && pace->late == 0);
    free(pace);
    free(ahead_of_it);
}

int main(int argc, char **argv) { return fuzz_main(argc, argv, start, step, finish); }
