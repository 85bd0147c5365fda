/* Bits as bytes, two ways: runs (lengths of runs as varints, alternately of 0s and of 1s, 0s first; what follows the
   last 1 is left out) and a bitset (bit i is bit i % 8 of byte i / 8, up to the last 1).

   Varints are LEB128: seven bits a byte, the lowest first, the top bit set on all but the last. */
#ifndef SURGETANK_BITS_H
#define SURGETANK_BITS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define VARINT_BYTES 10

static inline size_t varint_size(uint64_t value) {
    return value < 0x80 ? 1 : (size_t)(64 - __builtin_clzll(value) + 6) / 7;
}

static inline uint8_t *varint_put(uint8_t *to, uint64_t value) {
    for (; value >= 0x80; value >>= 7) *to++ = (uint8_t)value | 0x80;
    *to++ = (uint8_t)value;
    return to;
}

/* Returns what stands after it; NULL: cut off, or more than 63 bits. */
static inline const uint8_t *varint_get(const uint8_t *at, const uint8_t *end, uint64_t *value) {
    *value = 0;
    for (int shift = 0; at < end && shift < 63; shift += 7) {
        *value |= (uint64_t)(*at & 0x7F) << shift;
        if (!(*at++ & 0x80)) return at;
    }
    return NULL;
}

/* How many of the first bits are needed to hold the last 1. */
static inline size_t bits_used(const uint64_t *words, size_t count) {
    while (count && words[count - 1] == 0) count--;
    return count ? count * 64 - (size_t)__builtin_clzll(words[count - 1]) : 0;
}

/* The first bit from `from` on that is `value`, or `used`. */
static inline size_t bits_next(const uint64_t *words, size_t used, size_t from, int value) {
    while (from < used) {
        uint64_t word = (value ? words[from / 64] : ~words[from / 64]) >> (from % 64);
        if (word) {
            from += (size_t)__builtin_ctzll(word);
            return from < used ? from : used;
        }
        from = (from / 64 + 1) * 64;
    }
    return used;
}

static inline size_t bits_runs_size(const uint64_t *words, size_t used) {
    size_t size = 0, at = 0;
    for (int value = 0; at < used; value = !value) {
        size_t next = bits_next(words, used, at, !value);
        size += varint_size(next - at);
        at = next;
    }
    return size;
}

static inline uint8_t *bits_put_runs(const uint64_t *words, size_t used, uint8_t *to) {
    size_t at = 0;
    for (int value = 0; at < used; value = !value) {
        size_t next = bits_next(words, used, at, !value);
        to = varint_put(to, next - at);
        at = next;
    }
    return to;
}

static inline size_t bits_set_size(size_t used) { return (used + 7) / 8; }

/* Words are little-endian, as every machine is that this is built for. What else stands in the last byte goes with it. */
static inline uint8_t *bits_put_set(const uint64_t *words, size_t used, uint8_t *to) {
    size_t size = bits_set_size(used);
    memcpy(to, words, size);
    return to + size;
}

#endif
