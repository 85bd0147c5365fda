/* wheel.h and ring.h: timers fire when their tick has come, by tick and then in the order they were armed, and no other
   ones do; rings hold what was put into them, in order. */
#include "fuzz.h"
#include "ring.h"
#include "wheel.h"

#define TIMERS 400
#define LINKS 40
#define RINGS 3
#define LATEST (1ll << 61)

typedef struct Alarm {
    Timer timer; /* first: a fired timer is its alarm */
    uint64_t tick, order;
} Alarm;

static Wheel wheel;
static Alarm alarms[TIMERS];
static int64_t now;
static uint64_t orders;

static Link heads[RINGS], links[LINKS];
static int held[RINGS][LINKS], used[RINGS]; /* numbers of links, in order */

static int64_t some_time(void) {
    int64_t ahead = (int64_t)any_size(once_in(10) ? 60 : 40);
    return once_in(10) ? now - ahead : now + ahead > LATEST ? LATEST : now + ahead;
}

static void arm(Alarm *alarm, int64_t at) {
    wheel_arm(&wheel, &alarm->timer, at);
    alarm->tick = tick_up(at) < wheel.now ? wheel.now : tick_up(at);
    alarm->order = orders++;
    CHECK(timer_armed(&alarm->timer) && timer_armed_by(&alarm->timer, at > now ? at : now));
}

static Alarm *earliest(void) {
    Alarm *first = NULL;
    for (int i = 0; i < TIMERS; i++) {
        Alarm *alarm = &alarms[i];
        if (!timer_armed(&alarm->timer)) continue;
        if (first == NULL || alarm->tick < first->tick || (alarm->tick == first->tick && alarm->order < first->order))
            first = alarm;
    }
    return first;
}

static void advance(int64_t to) {
    uint64_t target = (uint64_t)to >> WHEEL_TICK_BITS;
    now = to;
    while (!once_in(20)) {
        Alarm *due = earliest();
        int64_t next = wheel_due(&wheel);
        CHECK(due == NULL ? next == WHEEL_NEVER : next <= (int64_t)(due->tick << WHEEL_TICK_BITS));
        Alarm *fired = (Alarm *)wheel_fire(&wheel, now);
        CHECK(fired == (due != NULL && due->tick <= target ? due : NULL));
        if (fired == NULL) break;
        CHECK(!timer_armed(&fired->timer) && timer_kind(&fired->timer) == (fired - alarms) % 7);
        if (once_in(4)) arm(fired, now + (2ll << WHEEL_TICK_BITS) + (int64_t)any_size(45));
    }
}

static void turn_rings(void) {
    int ring = (int)pick(RINGS), link = (int)pick(LINKS);
    if (!ring_holds(&links[link])) {
        ring_append(&heads[ring], &links[link]);
        held[ring][used[ring]++] = link;
        return;
    }
    for (ring = 0; ring < RINGS; ring++) {
        int at = 0;
        while (at < used[ring] && held[ring][at] != link) at++;
        if (at == used[ring]) continue;
        memmove(&held[ring][at], &held[ring][at + 1], sizeof(int) * (size_t)(used[ring] - at - 1));
        if (once_in(2)) {
            held[ring][used[ring] - 1] = link;
            ring_to_tail(&heads[ring], &links[link]);
        } else {
            used[ring]--;
            ring_remove(&links[link]);
        }
        return;
    }
    CHECK(!"a link that is held is in one of the rings");
}

static void check_rings(void) {
    for (int ring = 0; ring < RINGS; ring++) {
        const Link *each = heads[ring].next;
        CHECK(ring_first(&heads[ring]) == (used[ring] ? &links[held[ring][0]] : NULL));
        for (int at = 0; at < used[ring]; at++, each = each->next) CHECK(each == &links[held[ring][at]]);
        CHECK(each == &heads[ring]);
    }
}

static void start(void) {
    wheel_make(&wheel);
    for (int i = 0; i < TIMERS; i++) timer_make(&alarms[i].timer, i % 7);
    for (int ring = 0; ring < RINGS; ring++) ring_make(&heads[ring]);
}

static void step(void) {
    Alarm *alarm = &alarms[pick(TIMERS)];
    if (once_in(6)) {
        advance(now + (int64_t)any_size(now < LATEST / 2 && once_in(20) ? 58 : 38));
    } else if (timer_armed(&alarm->timer)) {
        wheel_disarm(&wheel, &alarm->timer);
        wheel_disarm(&wheel, &alarm->timer); /* no effect */
        CHECK(!timer_armed(&alarm->timer));
    } else {
        arm(alarm, some_time());
    }
    if (once_in(8)) CHECK(wheel_is_sound(&wheel));
    turn_rings();
    if (once_in(8)) check_rings();
}

static void finish(void) {
    CHECK(wheel_is_sound(&wheel));
    check_rings();
}

int main(int argc, char **argv) { return fuzz_main(argc, argv, start, step, finish); }
