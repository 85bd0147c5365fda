/* records.h: records written here are read back the same; damaged ones are refused, or read within their bytes. */
#include "fuzz.h"
#include "records.h"

#define MOST 8
#define ROOM 4096

typedef struct {
    int64_t offset, stamp_ms;
    int32_t key, value, headers; /* bytes, -1: null; how many */
} Wanted;

static uint8_t *bytes;
static Wanted wanted[MOST];

static uint8_t *put_number(uint8_t *to, int64_t value) {
    uint64_t bits = (uint64_t)value << 1 ^ (value < 0 ? UINT64_MAX : 0);
    for (; bits >= 0x80; bits >>= 7) *to++ = (uint8_t)bits | 0x80;
    *to++ = (uint8_t)bits;
    return to;
}

static uint8_t *put_text(uint8_t *to, int32_t length) {
    to = put_number(to, length);
    if (length > 0) memset(to, length & 0xFF, (size_t)length);
    return length > 0 ? to + length : to;
}

static int32_t any_text(void) { return once_in(4) ? -1 : (int32_t)pick(60); }

static uint8_t *put_record(uint8_t *to, Wanted *one) {
    uint8_t body[1024];
    uint8_t *at = body;
    *one = (Wanted){(int64_t)any_size(40), (int64_t)draw(), any_text(), any_text(), (int32_t)(once_in(2) ? 0 : pick(4))};
    *at++ = (uint8_t)draw();
    at = put_number(at, one->stamp_ms);
    at = put_number(at, one->offset);
    at = put_text(at, one->key);
    at = put_text(at, one->value);
    at = put_number(at, one->headers);
    for (int32_t i = 0; i < one->headers; i++) at = put_text(put_text(at, i + 1), i == 2 ? -1 : i);
    to = put_number(to, at - body);
    memcpy(to, body, (size_t)(at - body));
    return to + (at - body);
}

static void check_text(const uint8_t *text, int32_t length, int32_t wished) {
    CHECK((text == NULL) == (wished < 0));
    CHECK(length == (wished < 0 ? 0 : wished));
    for (int32_t i = 0; i < length; i++) CHECK(text[i] == (uint8_t)length);
}

static void check_row(const Row *row, const Wanted *one) {
    const uint8_t *name, *value, *at = row->headers;
    int32_t name_bytes, value_bytes;
    CHECK(row->offset == one->offset && row->stamp_ms == one->stamp_ms && row->header_count == one->headers);
    check_text(row->key, row->key_bytes, one->key);
    check_text(row->value, row->value_bytes, one->value);
    for (int32_t i = 0; i < one->headers; i++) {
        at = header_get(at, row->end, &name, &name_bytes, &value, &value_bytes);
        check_text(name, name_bytes, i + 1);
        check_text(value, value_bytes, i == 2 ? -1 : i);
    }
    CHECK(at == row->end);
}

/* Whatever it says is there can be touched. */
static void touch(const Row *row) {
    const uint8_t *name, *value, *at = row->headers;
    int32_t name_bytes, value_bytes;
    uint64_t sum = 0;
    for (int32_t i = 0; row->key && i < row->key_bytes; i++) sum += row->key[i];
    for (int32_t i = 0; row->value && i < row->value_bytes; i++) sum += row->value[i];
    for (int32_t i = 0; i < row->header_count; i++) {
        at = header_get(at, row->end, &name, &name_bytes, &value, &value_bytes);
        CHECK(at != NULL && name != NULL);
        for (int32_t k = 0; k < name_bytes; k++) sum += name[k];
        for (int32_t k = 0; value && k < value_bytes; k++) sum += value[k];
    }
    CHECK(at == row->end && sum < UINT64_MAX);
}

static void start(void) { bytes = fuzz_alloc(ROOM, 1); }

static void step(void) {
    int count = (int)pick(MOST + 1);
    uint8_t *end = bytes;
    Row row;
    for (int i = 0; i < count; i++) end = put_record(end, &wanted[i]);
    size_t size = (size_t)(end - bytes);
    if (once_in(2)) {
        const uint8_t *at = bytes;
        for (int i = 0; i < count; i++) {
            at = record_get(at, end, &row);
            CHECK(at != NULL);
            check_row(&row, &wanted[i]);
        }
        CHECK(at == end);
        return;
    }
    for (uint64_t i = pick(4); i && size; i--) bytes[pick(size)] = once_in(3) ? 0xFF : (uint8_t)draw();
    if (once_in(2)) size = pick(size + 1);
    uint8_t *exact = fuzz_alloc(size + !size, 1); /* so that a byte too far is seen */
    memcpy(exact, bytes, size);
    const uint8_t *at = exact;
    while (at && at < exact + size && (at = record_get(at, exact + size, &row))) touch(&row);
    free(exact);
}

static void finish(void) { free(bytes); }

int main(int argc, char **argv) { return fuzz_main(argc, argv, start, step, finish); }
