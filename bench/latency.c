/* What a memory access costs on this machine, ns: one that waits for the one before it (dependent), and one of eight
   that do not wait for each other (overlapped). Random lines of 256 MiB, far beyond any cache. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define LINES (1u << 22)
#define STEPS (1u << 21)
#define CHAINS 8

typedef struct Line {
    uint32_t next;
    char rest[60];
} Line;

static uint64_t state = 88172645463325252ull;

static uint64_t draw(void) { /* xorshift64: Marsaglia, 2003 */
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
}

static double now_ns(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (double)at.tv_sec * 1e9 + (double)at.tv_nsec;
}

int main(void) {
    Line *lines = calloc(LINES, sizeof(Line));
    uint32_t *order = malloc(LINES * sizeof(uint32_t)), at[CHAINS], sum = 0;
    if (lines == NULL || order == NULL) return 1;
    for (uint32_t i = 0; i < LINES; i++) order[i] = i;
    for (uint32_t i = LINES - 1; i > 0; i--) {
        uint32_t other = (uint32_t)(draw() % (i + 1)), held = order[i];
        order[i] = order[other];
        order[other] = held;
    }
    for (uint32_t i = 0; i < LINES; i++) lines[order[i]].next = order[(i + 1) % LINES];
    for (int i = 0; i < CHAINS; i++) at[i] = order[(uint64_t)LINES * (unsigned)i / CHAINS];
    double started = now_ns();
    for (uint32_t i = 0; i < STEPS; i++) sum += at[0] = lines[at[0]].next;
    double dependent = (now_ns() - started) / STEPS;
    started = now_ns();
    for (uint32_t i = 0; i < STEPS / CHAINS; i++)
        for (int chain = 0; chain < CHAINS; chain++) sum += at[chain] = lines[at[chain]].next;
    double overlapped = (now_ns() - started) / STEPS;
    printf("%.1f %.1f %u\n", dependent, overlapped, sum);
    free(order);
    free(lines);
    return 0;
}
