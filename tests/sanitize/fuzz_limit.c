/* limit.h: calls charged all or none over three scopes, on their way for a time of their own; at the platform, where
   each arrives somewhere between its charge and its answer, no window or period is over its number. */
#include "fuzz.h"
#include "limit.h"

#define SCOPES 3
#define FLYING 64
#define PAST 4096 /* arrivals that are remembered */
#define NS_PER_MS 1000000ll

typedef struct Flight {
    int64_t popped;
    uint64_t recipients;
} Flight;

typedef struct Arrival {
    int64_t at;
    uint64_t recipients;
} Arrival;

static Scope scopes[SCOPES];
static Scope *path[SCOPES];
static Limit *limits[2 * SCOPES];
static uint32_t limit_count_;
static Limit *asking;
static Flight flights[FLYING];
static int flying;
static Arrival arrivals[PAST];
static uint64_t arrived;
static int64_t now, day;

#define DAY_NS (20000 * NS_PER_MS)
#define GUARD (3 * NS_PER_MS)

static void add(Scope *scope, int unit, int calendar) {
    Limit *limit = fuzz_alloc(1, sizeof(Limit));
    uint64_t number = 1 + any_size(8);
    int64_t per = calendar ? DAY_NS : (int64_t)(1 + pick(once_in(2) ? 50 : 2000)) * NS_PER_MS;
    limit_make(limit, limit_count_, unit, calendar, number, per, pick(number));
    scope_add(scope, limit);
    limits[limit_count_++] = limit;
    if (once_in(3)) {
        limit->granted = 0;
        limit->portion = 1 + pick(number);
    }
}

static void tell_periods(void) {
    day = now / DAY_NS;
    for (uint32_t i = 0; i < limit_count_; i++) {
        if (!limits[i]->calendar) continue;
        limits[i]->guard = GUARD;
        limit_period(limits[i], now, day + 1, (day + 1) * DAY_NS + GUARD, (day + 2) * DAY_NS + GUARD);
    }
}

static void start(void) {
    for (int i = 0; i < SCOPES; i++) {
        scope_make(&scopes[i], &asking);
        path[i] = &scopes[i];
        if (!once_in(4)) add(&scopes[i], LIMIT_CALLS, once_in(4));
        if (!once_in(4)) add(&scopes[i], LIMIT_RECIPIENTS, once_in(4));
    }
    now = DAY_NS + GUARD;
    tell_periods();
}

/* Arrivals of one limit that share its window, or period, with the newest. */
static uint64_t shared(const Limit *limit, const Arrival *newest) {
    uint64_t sum = 0;
    for (uint64_t i = arrived > PAST ? arrived - PAST : 0; i < arrived; i++) {
        const Arrival *other = &arrivals[i % PAST];
        int same = limit->calendar ? other->at / DAY_NS == newest->at / DAY_NS
                                   : other->at <= newest->at && other->at > newest->at - limit->per;
        if (same) sum += limit->unit == LIMIT_RECIPIENTS ? other->recipients : 1;
    }
    return sum;
}

static void settle(int number) {
    Flight flight = flights[number];
    uint64_t left = once_in(6) ? 0 : once_in(4) ? pick(flight.recipients) : flight.recipients;
    int64_t at = now + (once_in(8) ? (int64_t)pick(100) * NS_PER_MS : 0);
    flights[number] = flights[--flying];
    scopes_settle(path, SCOPES, now, flight.recipients, left, at);
    if (left == 0) return;
    arrivals[arrived++ % PAST] = (Arrival){flight.popped + (int64_t)pick((uint64_t)(at - flight.popped) + 1), left};
}

/* An arrival may be followed by one that came before it: all that a window can hold are looked at when all have ended. */
static void check_arrivals(void) {
    while (flying) settle(0);
    for (uint64_t i = arrived > 300 ? arrived - 300 : 0; i < arrived; i++)
        for (uint32_t k = 0; k < limit_count_; k++) CHECK(shared(limits[k], &arrivals[i % PAST]) <= limits[k]->number);
}

static void charge(void) {
    int system = once_in(3);
    uint64_t wanted = 1 + any_size(7);
    uint64_t n = scopes_most(path, SCOPES, now, wanted, system);
    CHECK(n > 0 && n <= wanted);
    if (flying == FLYING) return;
    Refusal no = scopes_refuse(path, SCOPES, now, n, system);
    Refusal longest = scopes_longest(path, SCOPES, now, n, system);
    CHECK((longest.why == REFUSED_NOT) == (no.why == REFUSED_NOT));
    CHECK(no.until == LIMIT_NEVER || (longest.until != LIMIT_NEVER && longest.until >= no.until));
    if (no.why == REFUSED_NOT) {
        scopes_hold(path, SCOPES, n);
        flights[flying++] = (Flight){now, n};
        return;
    }
    CHECK(no.until > now);
    CHECK((no.why == REFUSED_BLOCKED) == (no.limit == NULL));
    if (no.why == REFUSED_FULL && no.limit->unit == LIMIT_RECIPIENTS) {
        Limit *limit = limits[no.limit->handle];
        uint64_t room = limit_room(limit, now, n, system), held = limit->scope->held[LIMIT_RECIPIENTS];
        CHECK(room == 1 || (room < n && limit_when(limit, now, room, held, limit_ceiling(limit, system)) == 0));
        int64_t later = now + (int64_t)any_size(40);
        uint64_t then = limit_room(limit, later, n, system);
        int64_t fits = limit_when(limit, now, then, held, limit_ceiling(limit, system));
        CHECK(then >= room && (then == 1 || fits <= later));
        CHECK(then == n || limit->granted <= then || limit_when(limit, now, then + 1, held, limit_ceiling(limit, system)) > later);
    }
    if (no.why == REFUSED_FULL && no.until != LIMIT_NEVER && once_in(2)) {
        Limit *limit = limits[no.limit->handle];
        uint64_t uses = limit->unit == LIMIT_RECIPIENTS ? n : 1, held = limit->scope->held[limit->unit];
        now = no.until;
        tell_periods();
        CHECK(limit_when(limit, now, uses, held, limit_ceiling(limit, system)) == 0);
    }
}

static void grant(void) {
    while (asking != NULL) {
        Limit *limit = asking;
        asking = limit->asking;
        uint64_t want = limit_wants(limit);
        limit_grant(limit, want);
    }
}

static void step(void) {
    uint64_t what = pick(12);
    if (what < 6)
        charge();
    else if (what < 9 && flying)
        settle((int)pick((uint64_t)flying));
    else if (what < 10)
        grant();
    else if (once_in(5) && now < (day + 1) * DAY_NS)
        now = (day + 1) * DAY_NS - (int64_t)pick(now < (day + 1) * DAY_NS - GUARD ? GUARD : 1); /* a day's end */
    else
        now += (int64_t)any_size(once_in(30) ? 36 : 22);
    if (now / DAY_NS != day && (now - GUARD) / DAY_NS != day) tell_periods();
    if (once_in(500)) scopes[pick(SCOPES)].blocked = now + (int64_t)any_size(28);
    if (once_in(400)) check_arrivals();
}

static void finish(void) {
    check_arrivals();
    for (int i = 0; i < SCOPES; i++) {
        CHECK(scopes[i].held[LIMIT_CALLS] == 0 && scopes[i].held[LIMIT_RECIPIENTS] == 0);
        scope_free(&scopes[i]);
    }
}

int main(int argc, char **argv) { return fuzz_main(argc, argv, start, step, finish); }
