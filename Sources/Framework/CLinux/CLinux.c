/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "CLinux.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

const int clinux_o_direct = O_DIRECT;
const int clinux_o_path = O_PATH;

int clinux_memfd_create(const char *name, unsigned int flags) { return memfd_create(name, flags); }

int clinux_accept(int socket) { return accept4(socket, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK); }

int clinux_fallocate(int fd, int mode, int64_t offset, int64_t length)
{
    return fallocate(fd, mode, offset, length);
}

ssize_t clinux_preadv2(int fd, const struct iovec *iov, int count, int64_t offset, int flags)
{
    return preadv2(fd, iov, count, offset, flags);
}

ssize_t clinux_pwritev2(int fd, const struct iovec *iov, int count, int64_t offset, int flags)
{
    return pwritev2(fd, iov, count, offset, flags);
}

int clinux_epoll_wait(int epoll, struct epoll_event *events, int capacity, int64_t nanoseconds)
{
    if (nanoseconds < 0)
        return epoll_wait(epoll, events, capacity, -1);
    struct timespec timeout = {
        .tv_sec = nanoseconds / 1000000000, .tv_nsec = nanoseconds % 1000000000};
    int count = epoll_pwait2(epoll, events, capacity, &timeout, NULL);
    if (count >= 0 || errno != ENOSYS)
        return count;
    /* Kernels before 5.11 have no epoll_pwait2. Milliseconds are rounded up, so that the wait does not
     * end before the timeout; it may end after a minute of a longer one. */
    int64_t milliseconds = (nanoseconds + 999999) / 1000000;
    return epoll_wait(epoll, events, capacity, milliseconds > 60000 ? 60000 : (int)milliseconds);
}

void clinux_name_thread(const char *name) { pthread_setname_np(pthread_self(), name); }

int clinux_lock_exclusively(int fd) { return flock(fd, LOCK_EX | LOCK_NB); }

int clinux_lock_shared(int fd) { return flock(fd, LOCK_SH | LOCK_NB); }

bool clinux_is_in_memory(int fd)
{
    struct statfs system;
    if (fstatfs(fd, &system) != 0)
        return false;
    switch ((unsigned)system.f_type) {
    case TMPFS_MAGIC:
    case RAMFS_MAGIC:
    case HUGETLBFS_MAGIC:
        return true;
    default:
        return false;
    }
}

uint64_t clinux_page_size(int fd)
{
    struct statfs system;
    if (fstatfs(fd, &system) == 0 && (unsigned)system.f_type == HUGETLBFS_MAGIC)
        return (uint64_t)system.f_bsize;
    return (uint64_t)sysconf(_SC_PAGESIZE);
}

int clinux_block_device_size(int fd, uint64_t *bytes) { return ioctl(fd, BLKGETSIZE64, bytes); }

ssize_t clinux_send(int socket, const struct iovec *iov, size_t count,
                    const int *descriptors, size_t descriptor_count, int flags)
{
    union {
        char bytes[CMSG_SPACE(sizeof(int) * CLINUX_MAX_DESCRIPTORS)];
        struct cmsghdr alignment;
    } control;
    struct msghdr message = {.msg_iov = (struct iovec *)iov, .msg_iovlen = count};

    if (descriptor_count > CLINUX_MAX_DESCRIPTORS) {
        errno = EINVAL;
        return -1;
    }
    if (descriptor_count > 0) {
        memset(&control, 0, sizeof control);
        message.msg_control = control.bytes;
        message.msg_controllen = CMSG_SPACE(sizeof(int) * descriptor_count);
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(sizeof(int) * descriptor_count);
        memcpy(CMSG_DATA(header), descriptors, sizeof(int) * descriptor_count);
    }
    return sendmsg(socket, &message, flags | MSG_NOSIGNAL);
}

ssize_t clinux_receive(int socket, void *buffer, size_t length,
                       int *descriptors, size_t capacity, size_t *descriptor_count,
                       bool *truncated, int flags)
{
    union {
        char bytes[CMSG_SPACE(sizeof(int) * CLINUX_MAX_DESCRIPTORS)];
        struct cmsghdr alignment;
    } control;
    struct iovec iov = {.iov_base = buffer, .iov_len = length};
    struct msghdr message = {
        .msg_iov = &iov,
        .msg_iovlen = 1,
        .msg_control = control.bytes,
        .msg_controllen = sizeof control.bytes,
    };

    *descriptor_count = 0;
    *truncated = false;
    ssize_t received = recvmsg(socket, &message, flags | MSG_CMSG_CLOEXEC);
    if (received < 0)
        return received;
    *truncated = (message.msg_flags & MSG_CTRUNC) != 0;
    for (struct cmsghdr *header = CMSG_FIRSTHDR(&message); header != NULL;
         header = CMSG_NXTHDR(&message, header)) {
        if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS)
            continue;
        size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t index = 0; index < count; index++) {
            int descriptor;
            memcpy(&descriptor, CMSG_DATA(header) + index * sizeof(int), sizeof descriptor);
            if (*descriptor_count < capacity) {
                descriptors[(*descriptor_count)++] = descriptor;
            } else {
                close(descriptor);
                *truncated = true;
            }
        }
    }
    return received;
}

/* The guarded ranges. The handler may run on any thread at any time, so a slot's length is not 0 only
 * while its address is valid: it is stored after the address and cleared before it. */
static struct {
    _Atomic uintptr_t address;
    _Atomic size_t length;
    atomic_bool used;
    atomic_bool hit;
} guards[CLINUX_GUARD_CAPACITY];

static pthread_once_t guard_once = PTHREAD_ONCE_INIT;
static struct sigaction previous_action;
static uintptr_t page_size = 4096;

static void handle_sigbus(int signal, siginfo_t *info, void *context)
{
    (void)context;
    int saved = errno;
    uintptr_t fault = (uintptr_t)info->si_addr;
    for (size_t slot = 0; slot < CLINUX_GUARD_CAPACITY; slot++) {
        size_t length = atomic_load(&guards[slot].length);
        uintptr_t address = atomic_load(&guards[slot].address);
        if (length == 0 || fault < address || fault - address >= length)
            continue;
        /* A truncated file has lost all pages behind the one at fault, too. */
        uintptr_t page = fault & ~(page_size - 1);
        void *replaced = mmap((void *)page, length - (page - address), PROT_READ | PROT_WRITE,
                              MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (replaced == MAP_FAILED)
            break;
        atomic_store(&guards[slot].hit, true);
        errno = saved;
        return;
    }
    /* No guarded range: the access is repeated, and raises the signal again, with the previous action. */
    sigaction(signal, &previous_action, NULL);
    errno = saved;
}

static void install_handler(void)
{
    struct sigaction action = {.sa_sigaction = handle_sigbus, .sa_flags = SA_SIGINFO};
    page_size = (uintptr_t)sysconf(_SC_PAGESIZE);
    sigemptyset(&action.sa_mask);
    sigaction(SIGBUS, &action, &previous_action);
}

int clinux_guard_add(void *address, size_t length)
{
    pthread_once(&guard_once, install_handler);
    for (int slot = 0; slot < CLINUX_GUARD_CAPACITY; slot++) {
        bool expected = false;
        if (!atomic_compare_exchange_strong(&guards[slot].used, &expected, true))
            continue;
        atomic_store(&guards[slot].hit, false);
        atomic_store(&guards[slot].address, (uintptr_t)address);
        atomic_store(&guards[slot].length, length);
        return slot;
    }
    return -1;
}

void clinux_guard_remove(int slot)
{
    if (slot < 0 || slot >= CLINUX_GUARD_CAPACITY)
        return;
    atomic_store(&guards[slot].length, 0);
    atomic_store(&guards[slot].address, 0);
    atomic_store(&guards[slot].used, false);
}

bool clinux_guard_was_hit(int slot)
{
    return slot >= 0 && slot < CLINUX_GUARD_CAPACITY && atomic_load(&guards[slot].hit);
}
