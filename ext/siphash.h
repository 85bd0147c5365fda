/* SipHash-2-4 with 128 bits of output (Aumasson and Bernstein, 2012): a keyed hash that nobody who does not know the key
   can make collide. About 60 ns for 60 bytes. */
#ifndef SURGETANK_SIPHASH_H
#define SURGETANK_SIPHASH_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef struct SipState {
    uint64_t a, b, c, d;
} SipState;

static inline uint64_t sip_rotate(uint64_t x, int by) { return (x << by) | (x >> (64 - by)); }

static inline void sip_rounds(SipState *s, int rounds) {
    while (rounds--) {
        s->a += s->b;
        s->c += s->d;
        s->b = sip_rotate(s->b, 13) ^ s->a;
        s->d = sip_rotate(s->d, 16) ^ s->c;
        s->a = sip_rotate(s->a, 32);
        s->c += s->b;
        s->a += s->d;
        s->b = sip_rotate(s->b, 17) ^ s->c;
        s->d = sip_rotate(s->d, 21) ^ s->a;
        s->c = sip_rotate(s->c, 32);
    }
}

static inline void sip_word(SipState *s, uint64_t word) {
    s->d ^= word;
    sip_rounds(s, 2);
    s->a ^= word;
}

/* Words are little-endian, as on every machine this runs on. */
static inline void siphash128(const uint8_t key[16], const uint8_t *data, size_t length, uint8_t out[16]) {
    uint64_t k0, k1, word, last = (uint64_t)length << 56, low, high;
    memcpy(&k0, key, 8);
    memcpy(&k1, key + 8, 8);
    SipState s = {
        k0 ^ 0x736f6d6570736575ull, k1 ^ 0x646f72616e646f6dull ^ 0xee, k0 ^ 0x6c7967656e657261ull, k1 ^ 0x7465646279746573ull};
    for (; length >= 8; data += 8, length -= 8) {
        memcpy(&word, data, 8);
        sip_word(&s, word);
    }
    for (size_t i = 0; i < length; i++) last |= (uint64_t)data[i] << (8 * i);
    sip_word(&s, last);
    s.c ^= 0xee;
    sip_rounds(&s, 4);
    low = s.a ^ s.b ^ s.c ^ s.d;
    s.b ^= 0xdd;
    sip_rounds(&s, 4);
    high = s.a ^ s.b ^ s.c ^ s.d;
    memcpy(out, &low, 8);
    memcpy(out + 8, &high, 8);
}

#endif
