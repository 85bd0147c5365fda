/* The records of one batch of Kafka's format v2, one after another:

       length attributes timestamp offset | key | value | headers: count, each name, value

   Every number but the attributes (a byte, none in use) is a varint of a zigzag: 7 bits a byte, the lowest first; offset
   and timestamp are relative to the batch. Keys, values and names come after their length; -1: null.

   Nothing is read outside the bytes given, and nothing copied. */
#ifndef SURGETANK_RECORDS_H
#define SURGETANK_RECORDS_H

#include <stddef.h>
#include <stdint.h>

#define LEAST_RECORD_BYTES 7

typedef struct {
    int64_t offset, stamp_ms;            /* relative to the batch, as written */
    const uint8_t *key, *value; /* NULL: null */
    const uint8_t *headers, *end; /* of the headers */
    int32_t key_bytes, value_bytes, header_count;
} Row;

/* Returns what stands after it; NULL: cut off, or more than 64 bits. */
static inline const uint8_t *zigzag_get(const uint8_t *at, const uint8_t *end, int64_t *value) {
    uint64_t bits = 0;
    for (int shift = 0; at < end && shift < 64; shift += 7) {
        bits |= (uint64_t)(*at & 0x7F) << shift;
        if (!(*at++ & 0x80)) {
            *value = (int64_t)(bits >> 1 ^ (0 - (bits & 1)));
            return at;
        }
    }
    return NULL;
}

/* Bytes after their length; *text NULL: null. */
static inline const uint8_t *text_get(
    const uint8_t *at, const uint8_t *end, const uint8_t **text, int32_t *length
) {
    int64_t bytes;
    *text = NULL;
    *length = 0;
    at = zigzag_get(at, end, &bytes);
    if (at == NULL || bytes < 0) return at;
    if (bytes > end - at || bytes > INT32_MAX) return NULL;
    *text = at;
    *length = (int32_t)bytes;
    return at + bytes;
}

/* One header, of those that `record_get` has passed. */
static inline const uint8_t *header_get(
    const uint8_t *at, const uint8_t *end, const uint8_t **name, int32_t *name_bytes, const uint8_t **value,
    int32_t *value_bytes
) {
    at = text_get(at, end, name, name_bytes);
    if (at == NULL || *name == NULL) return NULL;
    return text_get(at, end, value, value_bytes);
}

/* Returns what stands after the record; NULL: it is damaged. */
static inline const uint8_t *record_get(const uint8_t *at, const uint8_t *end, Row *row) {
    int64_t length, headers;
    const uint8_t *name, *value;
    int32_t name_bytes, value_bytes;
    at = zigzag_get(at, end, &length);
    if (at == NULL || length < LEAST_RECORD_BYTES - 1 || length > end - at) return NULL;
    end = at + length;
    at = zigzag_get(at + 1, end, &row->stamp_ms);
    if (at) at = zigzag_get(at, end, &row->offset);
    if (at) at = text_get(at, end, &row->key, &row->key_bytes);
    if (at) at = text_get(at, end, &row->value, &row->value_bytes);
    if (at) at = zigzag_get(at, end, &headers);
    if (at == NULL || headers < 0 || headers > end - at) return NULL;
    row->headers = at;
    row->end = end;
    row->header_count = (int32_t)headers;
    for (int64_t i = 0; at && i < headers; i++) at = header_get(at, end, &name, &name_bytes, &value, &value_bytes);
    return at == end ? at : NULL;
}

#endif
