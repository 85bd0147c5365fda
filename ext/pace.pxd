from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t


cdef extern from "pace.h" nogil:
    enum:
        PACE_NEAR_BITS
    int PACE_ASAP, PACE_EVEN, PACE_PACED
    int PACE_BELOW, PACE_FULL, PACE_OVER
    uint64_t PACE_FASTEST, PACE_CALL_A_SECOND, PACE_NS
    int64_t PACE_PATIENCE_NS
    ctypedef struct PaceLink:
        PaceLink* next
        void* owner
    ctypedef struct PaceRing:
        PaceLink* last
        uint64_t count
    ctypedef struct Pace:
        uint8_t mode
        uint8_t state
        uint8_t stale
        uint8_t overdue
        uint32_t base
        int64_t read_at
        uint64_t work
        uint64_t late
        uint64_t waiting
        uint64_t aside
        uint64_t at_once
        PaceRing passed
        uint64_t ceiling
        uint64_t need
        uint64_t rate

    uint64_t pace_rate(uint64_t calls, uint64_t ns)
    void pace_make(Pace* pace, int mode, int64_t tau_ns, uint64_t floor)
    void pace_roll(Pace* pace, int64_t now_ns)
    bint pace_has_passed(const Pace* pace, uint32_t slot)
    uint32_t pace_slot(Pace* pace, int64_t now_ns, int64_t due_ns)
    void pace_add(Pace* pace, int64_t now_ns, uint32_t slot, uint32_t calls)
    void pace_remove(Pace* pace, uint32_t slot, uint32_t calls)
    void pace_wait(Pace* pace, int64_t now_ns, PaceLink* link, uint32_t slot)
    bint pace_waits(const PaceLink* link)
    void pace_wait_no_more(Pace* pace, PaceLink* link, uint32_t slot)
    void* pace_first(const Pace* pace)
    void pace_control(Pace* pace, int64_t now_ns)
    int64_t pace_interval(const Pace* pace)
    int64_t pace_when(Pace* pace, int64_t now_ns)
    void pace_leave(Pace* pace, int64_t now_ns)
    int64_t pace_expects(const Pace* pace, uint32_t slot)
    bint pace_is_sound(const Pace* pace)


cdef extern from "capacity.h" nogil:
    ctypedef struct Capacity:
        pass

    void capacity_pass(Capacity* capacity, int64_t now_ns, uint32_t slots)
    void capacity_start(Capacity* capacity, int64_t now_ns, uint32_t slots)
    void capacity_end(Capacity* capacity, int64_t now_ns, uint32_t slots)
    uint64_t capacity_rate(const Capacity* capacity, uint32_t slots)

    ctypedef struct Beside:
        pass

    void beside_count(Beside* beside, int64_t now_ns)
    uint64_t beside_rate(Beside* beside, int64_t now_ns)


cdef class Waiter:
    cdef PaceLink link
    cdef uint32_t slot


cdef class Pacer:
    cdef Pace* pace  # owned
    cdef set waiters  # those whose links stand in it


cdef class Learner:
    cdef Capacity capacity
    cdef uint32_t slots
    cdef uint32_t in_flight
