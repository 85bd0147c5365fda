/* Rings: circular doubly linked lists through a head, intrusive; every operation is O(1) and none allocates.
   A link that is in no ring has next == NULL; a link stands at a known place of what it is part of. */
#ifndef SURGETANK_RING_H
#define SURGETANK_RING_H

#include <assert.h>
#include <stddef.h>

typedef struct Link {
    struct Link *prev, *next;
} Link;

static inline void ring_make(Link *head) {
    head->prev = head->next = head;
}

static inline int ring_holds(const Link *link) { return link->next != NULL; }

/* NULL: the ring is empty. */
static inline Link *ring_first(const Link *head) { return head->next == head ? NULL : head->next; }

static inline void ring_append(Link *head, Link *link) {
    assert(link->next == NULL);
    link->prev = head->prev;
    link->next = head;
    head->prev->next = link;
    head->prev = link;
}

static inline void ring_remove(Link *link) {
    assert(link->next != NULL && link->prev->next == link && link->next->prev == link);
    link->prev->next = link->next;
    link->next->prev = link->prev;
    link->prev = link->next = NULL;
}

/* All of another ring, in order; that one is empty after it. */
static inline void ring_append_all(Link *head, Link *from) {
    if (from->next == from) return;
    from->next->prev = head->prev;
    head->prev->next = from->next;
    from->prev->next = head;
    head->prev = from->prev;
    ring_make(from);
}

static inline void ring_to_tail(Link *head, Link *link) {
    ring_remove(link);
    ring_append(head, link);
}

#endif
