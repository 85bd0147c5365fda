/* Preloaded: counts what the modules it is told of ask the system's allocator for, and says where. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { MODULES = 8 };

static uintptr_t starts[MODULES], ends[MODULES];
static int modules, counting;

extern void *__libc_malloc(size_t bytes);
extern void *__libc_calloc(size_t n, size_t bytes);
extern void *__libc_realloc(void *at, size_t bytes);

void watch_module(uintptr_t start, uintptr_t end) {
    starts[modules] = start;
    ends[modules++] = end;
}

void count_allocations(int yes) { counting = yes; }

static void note(const char *what, const char *caller) {
    Dl_info of;
    if (!counting) return;
    for (int i = 0; i < modules; i++)
        if ((uintptr_t)caller >= starts[i] && (uintptr_t)caller < ends[i] && dladdr(caller, &of))
            fprintf(stderr, "%s by %s+0x%lx\n", what, of.dli_fname, (unsigned long)(caller - (char *)of.dli_fbase));
}

void *malloc(size_t bytes) {
    note("malloc", __builtin_return_address(0));
    return __libc_malloc(bytes);
}

void *calloc(size_t n, size_t bytes) {
    note("calloc", __builtin_return_address(0));
    return __libc_calloc(n, bytes);
}

void *realloc(void *at, size_t bytes) {
    note("realloc", __builtin_return_address(0));
    return __libc_realloc(at, bytes);
}

void *mmap(void *at, size_t bytes, int may, int how, int file, off_t offset) {
    note("mmap", __builtin_return_address(0));
    return (void *)syscall(SYS_mmap, at, bytes, may, how, file, offset);
}

void *mmap64(void *at, size_t bytes, int may, int how, int file, off_t offset) { /* the name with 64 bits of offset */
    note("mmap", __builtin_return_address(0));
    return (void *)syscall(SYS_mmap, at, bytes, may, how, file, offset);
}

int madvise(void *at, size_t bytes, int advice) {
    note("madvise", __builtin_return_address(0));
    return (int)syscall(SYS_madvise, at, bytes, advice);
}
