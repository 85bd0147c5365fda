/* Which recipients stand in the last call of each FIFO: prints of 31 bits, of the last RECENT_PRINTS that came at most.

   A line of the cache holds RECENT_LINE prints, the latest first; one that comes to a full line pushes out the oldest.
   So an id that is added may have been forgotten since (after a quarter of a million others), and one that was never
   added is taken for known once in 2^31 / RECENT_LINE times. Nothing is removed: who asks for another set mixes another
   number into the hash. */
#ifndef SURGETANK_RECENT_H
#define SURGETANK_RECENT_H

#include <stdint.h>
#include <string.h>

#define RECENT_LINE 16
#define RECENT_PRINTS (1u << 18)

/* 0: it is there already. `prints`: RECENT_PRINTS of them, 0 at first. */
static inline int recent_add(uint32_t *prints, uint64_t hash) {
    uint32_t *line = &prints[(uint32_t)hash % (RECENT_PRINTS / RECENT_LINE) * RECENT_LINE];
    uint32_t print = (uint32_t)(hash >> 32) | 1, known = 0; /* never 0 */
    for (int i = 0; i < RECENT_LINE; i++) known |= line[i] == print;
    if (known) return 0;
    memmove(line + 1, line, (RECENT_LINE - 1) * sizeof *line);
    line[0] = print;
    return 1;
}

#endif
