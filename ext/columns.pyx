"""The core's columns on the side of the stages around it: see columns.pyi.

In: runs of recipients. Out: what ``Core.push_many`` takes; and what ``Core.pop_batches`` returns, batch by batch.
Invariant: what is in a Batch is its own; nothing points into the core's output once it is made.
Never: makes a Python object for a recipient unless asked.
"""

cimport cython
from cpython.buffer cimport PyBUF_READ
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.memoryview cimport PyMemoryView_FromMemory
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint16_t, uint32_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy

from ext.ledger cimport Ledger
from ext.schedule cimport Batches
from ext.sends cimport AHEAD, Flow, OpenSend, SendTable, foresee_send

from hashlib import blake2b

cdef enum:  # what JSON escapes in a string, besides what stands before the space
    QUOTE = 0x22
    BACKSLASH = 0x5C

cdef enum:
    NAMED_BYTES = 31  # of a recipient, in a batch's name: key, offset, partition, position, declines

cdef enum:  # the vectors, in push_many's order
    SEND, TIER, ACCOUNT, TENANT, CAMPAIGN, CONTENT, ATTEMPT, NOT_BEFORE, DUE, DEADLINE, LINGER, PUSHED, COUNT
    POSITION, ID_LENGTH, IDS

cdef object NAMES = blake2b(digest_size=16)
cdef tuple CODES = ("I", "B", "I", "I", "I", "I", "B", "q", "q", "q", "q", "q", "I", "H", "B")
cdef size_t[IDS] SIZES = [4, 1, 4, 4, 4, 4, 1, 8, 8, 8, 8, 8, 4, 2, 1]  # of an item, in bytes


@cython.final
cdef class Columns:
    def __dealloc__(self):
        cdef int i
        for i in range(VECTORS):
            free(self.at[i])

    cdef int grow(self, int first, int end, Py_ssize_t need, Py_ssize_t* room) except -1:
        """Vectors first..end, which are as long as each other."""
        cdef Py_ssize_t more = max(2 * room[0], max(need, <Py_ssize_t>128))
        cdef void* grown
        cdef int i
        for i in range(first, end):
            grown = realloc(self.at[i], more * (1 if i == IDS else SIZES[i]))
            if grown == NULL:
                raise MemoryError
            self.at[i] = <char*>grown
        room[0] = more
        return 0

    cdef int recipient(self, uint16_t position, const char* id, uint8_t length) except -1:
        """One of the run that comes next."""
        cdef Py_ssize_t n = self.recipients
        if n == self.recipients_room:
            self.grow(POSITION, IDS, n + 1, &self.recipients_room)
        if self.id_bytes + length > self.ids_room:
            self.grow(IDS, VECTORS, self.id_bytes + length, &self.ids_room)
        (<uint16_t*>self.at[POSITION])[n] = position
        (<uint8_t*>self.at[ID_LENGTH])[n] = length
        memcpy(self.at[IDS] + self.id_bytes, id, length)
        self.id_bytes += length
        self.recipients = n + 1
        return 0

    cdef void drop_recipients(self, Py_ssize_t recipients) noexcept:
        """Forget all but the first so many."""
        cdef Py_ssize_t i
        for i in range(recipients, self.recipients):
            self.id_bytes -= (<uint8_t*>self.at[ID_LENGTH])[i]
        self.recipients = recipients

    cdef int run(
        self, uint32_t handle, OpenSend send, uint8_t attempt, int64_t not_before, uint32_t count, int64_t apart
    ) except -1:
        """Of the last ``count`` recipients. ``apart``: the content they go under, and they never expire."""
        cdef Flow flow = send.flow
        cdef Py_ssize_t n = self.runs
        if n == self.runs_room:
            self.grow(SEND, POSITION, n + 1, &self.runs_room)
        (<uint32_t*>self.at[SEND])[n] = handle
        (<uint8_t*>self.at[TIER])[n] = <uint8_t>flow.tier_number
        (<uint32_t*>self.at[ACCOUNT])[n] = flow.account_handle
        (<uint32_t*>self.at[TENANT])[n] = flow.tenant_handle
        (<uint32_t*>self.at[CAMPAIGN])[n] = flow.campaign_handle
        (<uint32_t*>self.at[CONTENT])[n] = send.content.handle if apart < 0 else <uint32_t>apart
        (<uint8_t*>self.at[ATTEMPT])[n] = attempt
        (<int64_t*>self.at[NOT_BEFORE])[n] = not_before
        (<int64_t*>self.at[DUE])[n] = send.due_ns
        (<int64_t*>self.at[DEADLINE])[n] = send.deadline_ns if apart < 0 else INT64_MAX
        (<int64_t*>self.at[LINGER])[n] = send.linger_ns
        (<int64_t*>self.at[PUSHED])[n] = send.pushed_ns
        (<uint32_t*>self.at[COUNT])[n] = count
        self.runs = n + 1
        return 0

    def add(
        self, uint32_t handle, OpenSend send not None, uint8_t attempt, int64_t not_before, positions, ids,
        int64_t apart=-1,
    ):
        cdef bytes id
        cdef Py_ssize_t before = self.recipients
        for position, id in zip(positions, ids, strict=True):
            self.recipient(position, id, <uint8_t>len(id))
        self.run(handle, send, attempt, not_before, <uint32_t>(self.recipients - before), apart)

    def add_rows(self, Batch batch not None, rows, uint8_t attempt, int64_t not_before, int64_t apart=-1):
        cdef Py_ssize_t row, first = rows[0]
        cdef const char* text = PyBytes_AS_STRING(batch.text)
        for row in rows:
            self.recipient(
                batch.position[row], text + batch.id_end[row], <uint8_t>(batch.id_end[row + 1] - batch.id_end[row])
            )
        cdef OpenSend send = batch.table.at(batch.send[first])
        self.run(batch.send[first], send, attempt, not_before, <uint32_t>len(rows), apart)

    def push(self, core, int64_t now_ns):
        cdef int i
        if not self.runs:
            return
        views = [
            PyMemoryView_FromMemory(
                self.at[i], (self.runs if i < POSITION else self.recipients) * SIZES[i], PyBUF_READ
            ).cast(CODES[i])
            for i in range(IDS)
        ]
        core.push_many(now_ns, *views, PyBytes_FromStringAndSize(self.at[IDS], self.id_bytes))
        self.runs = self.recipients = self.id_bytes = 0


def batches_of(Batches popped not None, SendTable table not None, int64_t now_ns):
    cdef Py_ssize_t i
    return [Batch(popped, i, table, now_ns) for i in range(popped.count)]


@cython.final
cdef class Ids:
    def __len__(self):
        return self.size

    def __getitem__(self, at):
        cdef const uint32_t* end = <const uint32_t*>PyBytes_AS_STRING(self.ends)
        cdef Py_ssize_t index = at
        if index < 0:
            index += self.size
        if not 0 <= index < self.size:
            raise IndexError(f"{at} of {self.size} ids")
        return PyUnicode_DecodeUTF8(PyBytes_AS_STRING(self.text) + end[index], end[index + 1] - end[index], NULL)

    def joined(self, bytes between not None):
        cdef const uint32_t* end = <const uint32_t*>PyBytes_AS_STRING(self.ends)
        cdef const uint8_t* text = <const uint8_t*>PyBytes_AS_STRING(self.text)
        cdef Py_ssize_t more = PyBytes_GET_SIZE(between), i
        cdef bytes made
        cdef char* to
        for i in range(end[self.size]):
            if text[i] < 0x20 or text[i] == QUOTE or text[i] == BACKSLASH:
                return None
        made = PyBytes_FromStringAndSize(NULL, end[self.size] + max(self.size - 1, 0) * more)
        to = PyBytes_AS_STRING(made)
        for i in range(self.size):
            if i:
                memcpy(to, PyBytes_AS_STRING(between), more)
                to += more
            memcpy(to, text + end[i], end[i + 1] - end[i])
            to += end[i + 1] - end[i]
        return made


@cython.final
cdef class Batch:
    def __init__(self, Batches popped not None, Py_ssize_t number, SendTable table not None, int64_t now_ns):
        if not 0 <= number < popped.count:
            raise IndexError(f"number is {number}: 0..{popped.count - 1} expected")
        cdef Py_ssize_t start = popped.start_of[number], size = popped.start_of[number + 1] - start, i
        cdef uint32_t first = popped.id_end_of[start]
        self.allocate(size)
        memcpy(self.send, popped.send_of + start, size * sizeof(uint32_t))
        memcpy(self.position, popped.position_of + start, size * sizeof(uint16_t))
        memcpy(self.attempt, popped.attempt_of + start, size)
        for i in range(size + 1):
            self.id_end[i] = popped.id_end_of[start + i] - first
        self.text = popped.ids[first:popped.id_end_of[start + size]]
        self.table, self.channel, self.popped_ns = table, popped.channel_of[number], now_ns
        self.flow, self.content = table.at(self.send[0]).flow, table.at(self.send[0]).content

    cdef int allocate(self, Py_ssize_t size) except -1:
        cdef char* block = <char*>malloc((2 * size + 1) * sizeof(uint32_t) + size * 3)
        if block == NULL:
            raise MemoryError
        free(self.send)
        self.send = <uint32_t*>block
        self.id_end = self.send + size
        self.position = <uint16_t*>(self.id_end + size + 1)
        self.attempt = <uint8_t*>(self.position + size)
        self.size = size
        return 0

    def __dealloc__(self):
        free(self.send)

    def __len__(self):
        return self.size

    @property
    def tier(self):
        return self.flow.tier

    def handle_of(self, Py_ssize_t row):
        return self.send[self.row(row)]

    def position_of(self, Py_ssize_t row):
        return self.position[self.row(row)]

    cdef Py_ssize_t row(self, Py_ssize_t row) except -1:
        if not 0 <= row < self.size:
            raise IndexError(f"row {row} of {self.size}")
        return row

    @property
    def handles(self):
        return [self.send[i] for i in range(self.size)]

    @property
    def positions(self):
        return [self.position[i] for i in range(self.size)]

    @property
    def attempts(self):
        return self.attempt[:self.size]

    @property
    def sends(self):
        return [self.table.at(self.send[i]) for i in range(self.size)]

    @property
    def ids(self):
        cdef Ids made = Ids.__new__(Ids)
        made.text, made.size = self.text, self.size
        made.ends = PyBytes_FromStringAndSize(<char*>self.id_end, (self.size + 1) * sizeof(uint32_t))
        return made

    @property
    def data(self):
        cdef Py_ssize_t i
        cdef OpenSend send
        for i in range(self.size):
            if self.table.at(self.send[i]).data:
                return [send.data.get(place) for send, place in zip(self.sends, self.positions, strict=True)]
        return ()

    def stale(self):
        cdef Py_ssize_t i
        cdef Ledger known = None
        cdef OpenSend send
        found = []
        for i in range(self.size):
            send = self.table.at(self.send[i])
            if send.ledger is known:
                continue
            if send.ledger.leaving or send.ledger.stale:
                found.append(i)
            else:
                known = send.ledger
        return found

    def deadline_ns(self):
        cdef int64_t first = INT64_MAX
        cdef Py_ssize_t i
        cdef OpenSend send
        for i in range(self.size):
            if i == 0 or self.send[i] != self.send[i - 1]:
                send = self.table.at(self.send[i])
                first = min(first, send.deadline_ns)
        return first

    def name(self):
        cdef bytes keys = PyBytes_FromStringAndSize(NULL, self.size * NAMED_BYTES)
        cdef char* to = PyBytes_AS_STRING(keys)
        cdef Py_ssize_t i
        cdef OpenSend send
        cdef str topic = None
        cdef list parts = [self.content.key[1]]
        for i in range(self.size):
            if i + AHEAD < self.size:
                foresee_send(self.table, self.send[i + AHEAD])
            send = self.table.at(self.send[i])
            memcpy(to, send.dedupe, 16)
            memcpy(to + 16, &send.origin_offset, 8)  # an id may be used again: another send's body is another body
            memcpy(to + 24, &send.partition, 4)
            memcpy(to + 28, &self.position[i], 2)
            to[30] = <char>send.declines_of(self.position[i])  # a platform that knows names would decline it again
            to += NAMED_BYTES
            if send.topic != topic:
                topic = send.topic
                parts.append(topic.encode())
        parts.append(keys)
        name = NAMES.copy()  # half the cost of making one
        name.update(b"".join(parts))
        return name.hexdigest()

    def without(self, rows):
        cdef Py_ssize_t i
        gone = set(rows)
        keep = [i for i in range(self.size) if i not in gone]
        cdef Batch old = Batch.__new__(Batch)
        old.send, old.id_end, old.position, old.attempt = self.send, self.id_end, self.position, self.attempt
        self.send = NULL  # old's to free now
        self.allocate(len(keep))
        text, self.id_end[0] = [], 0
        for i, row in enumerate(keep):
            self.send[i], self.position[i], self.attempt[i] = old.send[row], old.position[row], old.attempt[row]
            text.append(self.text[old.id_end[row]:old.id_end[row + 1]])
            self.id_end[i + 1] = self.id_end[i] + <uint32_t>len(text[i])
        self.text = b"".join(text)
