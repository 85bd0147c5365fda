/* The prints of recent.h against lists: of each line the last ones that were new, the oldest pushed out. */
#include "recent.h"

#include "fuzz.h"

#define LINES (RECENT_PRINTS / RECENT_LINE)
#define SOME 8 /* lines that are used: the first and the last among them */

static uint32_t *prints;
static uint32_t known[SOME][RECENT_LINE]; /* the latest first; 0: none yet */

static void start(void) { prints = fuzz_alloc(RECENT_PRINTS, sizeof *prints); }

static void step(void) {
    uint32_t which = (uint32_t)pick(SOME), print = (uint32_t)(1 + 2 * pick(24)), there = 0;
    uint32_t line = which == 0 ? 0 : LINES - which;
    for (int i = 0; i < RECENT_LINE; i++) there |= known[which][i] == print;
    CHECK(recent_add(prints, (uint64_t)print << 32 | line | (uint32_t)draw() / LINES * LINES) == !there);
    if (there) return;
    for (int i = RECENT_LINE - 1; i > 0; i--) known[which][i] = known[which][i - 1];
    known[which][0] = print;
}

static void finish(void) {
    for (uint32_t line = 0; line < LINES; line++) {
        uint32_t which = line == 0 ? 0 : LINES - line;
        for (int i = 0; i < RECENT_LINE; i++)
            CHECK(prints[line * RECENT_LINE + (uint32_t)i] == (which < SOME ? known[which][i] : 0));
    }
    free(prints);
}

int main(int argc, char **argv) { return fuzz_main(argc, argv, start, step, finish); }
