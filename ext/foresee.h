/* A line of memory that will be needed soon. */
#ifndef SURGETANK_FORESEE_H
#define SURGETANK_FORESEE_H

#include <stddef.h>

#define FORESEE_LINE 64

/* gcc takes a function that does nothing but prefetch for one without effect, and leaves its calls out: hence the asm. */
static inline void foresee(const void *at) {
    __builtin_prefetch(at);
    __asm__ volatile("");
}

static inline void foresee_lines(const void *at, size_t lines) {
    for (size_t i = 0; i < lines; i++) foresee((const char *)at + FORESEE_LINE * i);
}

#endif
