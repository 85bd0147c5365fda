# distutils: include_dirs = ext
from libc.stdint cimport INT64_MAX, int64_t, uint32_t
from libc.stdlib cimport calloc, free

ASAP, EVEN, PACED = PACE_ASAP, PACE_EVEN, PACE_PACED
BELOW, FULL, OVER = PACE_BELOW, PACE_FULL, PACE_OVER
CALL_A_SECOND = PACE_CALL_A_SECOND
FASTEST = PACE_FASTEST

cdef int64_t LATEST = <int64_t>1 << 62


cdef int64_t within(str name, int64_t value, int64_t least, int64_t most) except? -1:
    if not least <= value <= most:
        raise ValueError(f"{name} is {value}: {least}..{most} expected")
    return value


cdef class Waiter:
    def __cinit__(self):
        self.link.owner = <void*>self


cdef class Pacer:
    def __cinit__(self, int mode=PACE_PACED, int64_t tau_ns=0, int64_t floor=PACE_CALL_A_SECOND):
        self.pace = <Pace*>calloc(1, sizeof(Pace))
        if self.pace == NULL:
            raise MemoryError
        self.waiters = set()
        pace_make(
            self.pace,
            <int>within("mode", mode, PACE_ASAP, PACE_PACED),
            within("tau_ns", tau_ns, 0, LATEST),
            <uint64_t>within("floor", floor, 1, PACE_FASTEST),
        )

    def __dealloc__(self):
        free(self.pace)

    def add(self, int64_t now_ns, int64_t due_ns, int64_t calls=1):
        within("now_ns", now_ns, 0, LATEST)
        within("calls", calls, 1, INT64_MAX >> 32)
        cdef uint32_t slot = pace_slot(self.pace, now_ns, due_ns)
        pace_add(self.pace, now_ns, slot, <uint32_t>calls)
        return slot

    def remove(self, uint32_t slot, int64_t calls=1):
        pace_remove(self.pace, slot, <uint32_t>within("calls", calls, 0, <int64_t>self.pace.work))

    def wait(self, int64_t now_ns, Waiter waiter not None, uint32_t slot):
        within("now_ns", now_ns, 0, LATEST)
        if pace_waits(&waiter.link):
            raise ValueError("it waits already")
        waiter.slot = slot
        self.waiters.add(waiter)
        pace_wait(self.pace, now_ns, &waiter.link, slot)

    def wait_no_more(self, Waiter waiter not None):
        if waiter not in self.waiters:
            raise ValueError("it does not wait here")
        pace_wait_no_more(self.pace, &waiter.link, waiter.slot)
        self.waiters.remove(waiter)

    def first(self):
        cdef void* owner = pace_first(self.pace)
        return None if owner == NULL else <object>owner

    def when(self, int64_t now_ns):
        return pace_when(self.pace, within("now_ns", now_ns, 0, LATEST))

    def expects(self, uint32_t slot):
        return pace_expects(self.pace, slot)

    def leave(self, int64_t now_ns):
        pace_leave(self.pace, within("now_ns", now_ns, 0, LATEST))

    @property
    def ceiling(self):
        return self.pace.ceiling

    @ceiling.setter
    def ceiling(self, int64_t rate):
        self.pace.ceiling = <uint64_t>within("ceiling", rate, 1, PACE_FASTEST)

    @property
    def work(self):
        return self.pace.work

    @property
    def state(self):
        return self.pace.state

    @property
    def need(self):
        return self.pace.need

    @property
    def rate(self):
        return self.pace.rate


cdef class Learner:
    def __cinit__(self, int64_t slots):
        self.slots = <uint32_t>within("slots", slots, 1, 1 << 20)

    def start(self, int64_t now_ns):
        if self.in_flight == self.slots:
            raise ValueError("all slots are in use")
        self.in_flight += 1
        capacity_start(&self.capacity, within("now_ns", now_ns, 0, LATEST), self.slots)

    def end(self, int64_t now_ns):
        if self.in_flight == 0:
            raise ValueError("no call is in flight")
        self.in_flight -= 1
        capacity_end(&self.capacity, within("now_ns", now_ns, 0, LATEST), self.slots)

    @property
    def rate(self):
        return capacity_rate(&self.capacity, self.slots)
