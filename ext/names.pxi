# Included by intake.pyx: the names that say which flow a send is of.

cdef struct Names:  # channel, account, tenant and campaign, where they stand
    Bytes text[4]
    uint8_t length[4]  # NO_NAME: there is none


cdef bint names_of(const Span* spans, Names* names) noexcept nogil:
    """False: something about them is odd."""
    cdef Py_ssize_t length
    cdef int[4] order = [CHANNEL, ACCOUNT, TENANT, CAMPAIGN]
    cdef int i, which
    for i in range(4):
        which = order[i]
        length = ABSENT if spans[which].at == NULL else text_of(spans[which].at, &names.text[i])
        if length == ODD or length == 0 and which != CAMPAIGN or length == ABSENT and which == CHANNEL:
            return False
        names.length[i] = NO_NAME if length == ABSENT else <uint8_t>length
    return True


cdef bytes key_of(const Names* names):
    """Of SendTable.by_names: each name after its length."""
    cdef char[NAMES_ROOM] key
    cdef Py_ssize_t used = 0
    cdef int i
    for i in range(4):
        key[used] = <char>names.length[i]
        used += 1
        if names.length[i] != NO_NAME:
            memcpy(key + used, names.text[i], names.length[i])
            used += names.length[i]
    return PyBytes_FromStringAndSize(key, used)


cdef inline uint64_t print_of(const Names* names) noexcept nogil:
    """Of their lengths and their first and last bytes: where two have the same one, the later is looked up instead."""
    cdef uint64_t sum = 0, word, length
    cdef int i
    for i in range(4):
        length = names.length[i]
        word = 0
        if length == NO_NAME:
            length = 0
        elif length >= 8:
            memcpy(&word, names.text[i], 8)
            sum = (sum ^ word) * <uint64_t>0x9E3779B97F4A7C15
            memcpy(&word, names.text[i] + length - 8, 8)
        elif length >= 4:
            memcpy(&word, names.text[i], 4)
            memcpy(<char*>&word + 4, names.text[i] + length - 4, 4)
        elif length:
            word = names.text[i][0] | names.text[i][length >> 1] << 8 | names.text[i][length - 1] << 16
        sum = (sum ^ word ^ length << 56) * <uint64_t>0x9E3779B97F4A7C15
    return sum


cdef inline bint are(const Names* names, const char* key) noexcept nogil:
    cdef int i
    for i in range(4):
        if <uint8_t>key[0] != names.length[i]:
            return False
        key += 1
        if names.length[i] != NO_NAME:
            if memcmp(key, names.text[i], names.length[i]) != 0:
                return False
            key += names.length[i]
    return True
