# distutils: include_dirs = ext
"""The table of ids seen: see seen.pyi.

Open addressing, in 1,024 parts that grow one by one, so that no growth is felt; linear probing, at most three quarters
full, and what stands behind a removed entry moves up.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcmp, memcpy

cdef extern from "foresee.h" nogil:
    void foresee_lines(const void* first, size_t lines)

cdef extern from "siphash.h" nogil:
    void siphash128(const uint8_t* key, const uint8_t* data, size_t length, uint8_t* out)

FREED = -1  # the offset of an entry that gives its key back
cdef enum:
    LONGEST = 2 + 3 * 128  # of a scope and an id


def siphash(bytes secret not None, bytes data not None):
    if len(secret) != 16:
        raise ValueError(f"secret has {len(secret)} bytes: 16 expected")
    cdef uint8_t out[16]
    siphash128(<const uint8_t*>PyBytes_AS_STRING(secret), <const uint8_t*>PyBytes_AS_STRING(data), len(data), out)
    return PyBytes_FromStringAndSize(<char*>out, 16)


cdef inline Part* part_of(SeenTable table, const uint8_t* key) noexcept nogil:
    cdef uint16_t number
    memcpy(&number, key, 2)
    return &table.parts[number % PARTS]


cdef inline size_t home(const Part* part, const uint8_t* key) noexcept nogil:
    cdef uint64_t word
    memcpy(&word, key + 8, 8)
    return word & part.mask


cdef inline void place_slot(Part* part, const Slot* slot) noexcept nogil:
    cdef size_t at = home(part, slot.key)
    while part.slots[at].used:
        at = (at + 1) & part.mask
    part.slots[at] = slot[0]


cdef int resize(Part* part, size_t size) except -1:
    cdef Part grown
    cdef size_t i
    grown.slots = <Slot*>calloc(size, sizeof(Slot))
    if grown.slots == NULL:
        raise MemoryError
    grown.mask, grown.used = size - 1, part.used
    if part.slots != NULL:
        for i in range(part.mask + 1):
            if part.slots[i].used:
                place_slot(&grown, &part.slots[i])
    free(part.slots)
    part[0] = grown
    return 0


cdef void remove_slot(Part* part, Slot* slot) noexcept nogil:
    cdef size_t at = <size_t>(slot - part.slots)
    cdef size_t after = at
    while True:
        after = (after + 1) & part.mask
        if not part.slots[after].used:
            break
        if ((after - home(part, part.slots[after].key)) & part.mask) >= ((after - at) & part.mask):
            part.slots[at] = part.slots[after]
            at = after
    part.slots[at].used = False
    part.used -= 1


@cython.final
cdef class SeenTable:
    def __cinit__(self, bytes secret not None):
        if len(secret) != 16:
            raise ValueError(f"secret has {len(secret)} bytes: 16 expected")
        memcpy(self.secret, PyBytes_AS_STRING(secret), 16)

    def __dealloc__(self):
        cdef int i
        for i in range(PARTS):
            free(self.parts[i].slots)
        free(self.fresh)

    def __len__(self):
        return self.size

    cdef void hash_id(self, bytes scope, const char* id, Py_ssize_t length, uint8_t* key) noexcept:
        cdef uint8_t text[LONGEST]
        cdef size_t first = PyBytes_GET_SIZE(scope)
        memcpy(text, PyBytes_AS_STRING(scope), first)
        memcpy(text + first, id, length)
        siphash128(self.secret, text, first + length, key)

    def key_of(self, bytes scope not None, bytes id not None):
        if len(scope) + len(id) > LONGEST:
            raise ValueError(f"scope and id have {len(scope) + len(id)} bytes: at most {LONGEST} expected")
        cdef uint8_t key[16]
        self.hash_id(scope, PyBytes_AS_STRING(id), len(id), key)
        return PyBytes_FromStringAndSize(<char*>key, 16)

    cdef Slot* find(self, const uint8_t* key) noexcept nogil:
        cdef Part* part = part_of(self, key)
        cdef size_t at
        if part.slots == NULL:
            return NULL
        at = home(part, key)
        while part.slots[at].used:
            if memcmp(part.slots[at].key, key, 16) == 0:
                return &part.slots[at]
            at = (at + 1) & part.mask
        return NULL

    cdef void look_ahead(self, const uint8_t* key) noexcept nogil:
        """``find`` comes soon: a large table's slots are in no cache."""
        cdef Part* part = part_of(self, key)
        cdef Slot* slot
        if part.slots != NULL:
            slot = &part.slots[home(part, key)]
            foresee_lines(slot, 3)  # few searches go further until it is nearly full

    cdef int put(self, const uint8_t* key, uint32_t place, uint32_t hop, int64_t offset, uint32_t segment) except -1:
        """Of a key that is not there."""
        cdef Part* part = part_of(self, key)
        cdef Slot slot
        if part.slots == NULL or 4 * (part.used + 1) > 3 * (part.mask + 1):
            resize(part, 16 if part.slots == NULL else 2 * (part.mask + 1))
        memcpy(slot.key, key, 16)
        slot.place, slot.hop, slot.offset, slot.segment, slot.used = place, hop, offset, segment, True
        place_slot(part, &slot)
        part.used += 1
        self.size += 1
        return 0

    cdef int drop(self, Slot* slot) except -1:
        cdef Part* part = part_of(self, slot.key)
        cdef size_t room
        remove_slot(part, slot)
        self.size -= 1
        room = part.mask + 1
        if room > 16 and 8 * part.used < room:
            resize(part, room // 2)
        return 0

    cdef int note(self, const uint8_t* key, uint32_t place, uint32_t hop, int64_t offset) except -1:
        cdef Entry* entry
        self.room_for_one()
        entry = &self.fresh[self.fresh_used]
        memcpy(entry.key, key, 16)
        entry.place, entry.hop, entry.offset = place, hop, offset
        self.fresh_used += 1
        return 0

    cdef int room_for_one(self) except -1:
        cdef size_t room = 2 * self.fresh_room if self.fresh_room else 1024
        if self.fresh_used < self.fresh_room:
            return 0
        cdef void* grown = realloc(self.fresh, room * sizeof(Entry))
        if grown == NULL:
            raise MemoryError
        self.fresh, self.fresh_room = <Entry*>grown, room
        return 0

    cdef Slot* claim_key(self, const uint8_t* key, uint32_t place, uint32_t hop, int64_t offset) except? NULL:
        """NULL: it is ours now, or was (a redelivery); else who has it, until the next change."""
        cdef Slot* slot = self.find(key)
        if slot == NULL:
            self.room_for_one()
            self.put(key, place, hop, offset, self.segment)
            self.note(key, place, hop, offset)
            return NULL
        if slot.place != place or slot.offset != offset or hop < slot.hop:
            return slot
        if hop > slot.hop:
            self.note(key, place, hop, offset)
            slot.hop, slot.segment = hop, self.segment
        return NULL

    def claim(self, bytes key not None, uint32_t place, uint32_t hop, int64_t offset):
        cdef Slot* slot = self.claim_key(key_bytes(key), place, hop, offset)
        return None if slot == NULL else (slot.place, slot.hop, slot.offset)

    def free(self, bytes key not None, uint32_t place, int64_t offset):
        cdef Slot* slot = self.find(key_bytes(key))
        if slot == NULL or slot.place != place or slot.offset != offset:
            return False
        self.note(key_bytes(key), place, 0, FREED)
        self.drop(slot)
        return True

    def take(self):
        cdef bytes entries = PyBytes_FromStringAndSize(<char*>self.fresh, self.fresh_used * sizeof(Entry))
        self.fresh_used = 0
        if entries:
            self.segment += 1
        return entries

    def replay(self, uint32_t segment, bytes entries not None):
        cdef const Entry* entry = <const Entry*>PyBytes_AS_STRING(entries)
        cdef size_t i
        cdef Slot* slot
        for i in range(<size_t>len(entries) // sizeof(Entry)):
            slot = self.find(entry[i].key)
            if slot != NULL:
                self.drop(slot)
            if entry[i].offset != FREED:
                self.put(entry[i].key, entry[i].place, entry[i].hop, entry[i].offset, segment)
        self.segment = segment + 1

    def forget(self, uint32_t segment, bytes entries not None):
        cdef const Entry* entry = <const Entry*>PyBytes_AS_STRING(entries)
        cdef size_t i
        cdef Slot* slot
        cdef size_t before = self.size
        for i in range(<size_t>len(entries) // sizeof(Entry)):
            slot = self.find(entry[i].key)
            if slot != NULL and slot.segment == segment:  # else: freed, or freed and claimed anew since
                self.drop(slot)
        return before - self.size


cdef const uint8_t* key_bytes(bytes key) except NULL:
    if len(key) != 16:
        raise ValueError(f"key has {len(key)} bytes: 16 expected")
    return <const uint8_t*>PyBytes_AS_STRING(key)
