/* SPDX-License-Identifier: Apache-2.0
 *
 * What `import Glibc` does not reach. Each declaration is either a header that SwiftGlibc leaves
 * out or a short function around a macro or a GNU extension. _GNU_SOURCE is deliberately defined in
 * CLinux.c only: defining it here makes this module disagree with SwiftGlibc.
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/types.h>
#include <sys/uio.h>

/* _GNU_SOURCE functions, under names of our own. */
int clinux_memfd_create(const char *name, unsigned int flags);
int clinux_accept(int socket);
int clinux_fallocate(int fd, int mode, int64_t offset, int64_t length);
ssize_t clinux_preadv2(int fd, const struct iovec *iov, int count, int64_t offset, int flags);
ssize_t clinux_pwritev2(int fd, const struct iovec *iov, int count, int64_t offset, int flags);
/* epoll_wait with a timeout in nanoseconds; negative waits for ever. */
int clinux_epoll_wait(int epoll, struct epoll_event *events, int capacity, int64_t nanoseconds);
int clinux_set_parent_death_signal(int signal);
void clinux_name_thread(const char *name);
int clinux_lock_exclusively(int fd);
int clinux_lock_shared(int fd);
/* Whether the file lies in a file system that is memory, so that no access waits for a disk. */
bool clinux_is_in_memory(int fd);

#define CLINUX_MFD_CLOEXEC 1u
#define CLINUX_MFD_ALLOW_SEALING 2u
#define CLINUX_FALLOC_KEEP_SIZE 1
#define CLINUX_FALLOC_PUNCH_HOLE 2
#define CLINUX_FALLOC_ZERO_RANGE 16
#define CLINUX_RWF_NOWAIT 8
#define CLINUX_RWF_DSYNC 2
/* Its value depends on the processor. */
extern const int clinux_o_direct;
extern const int clinux_o_path;

/* Block devices. Both return -1 and set errno on failure. */
int clinux_block_device_size(int fd, uint64_t *bytes);
int clinux_block_device_discard(int fd, uint64_t offset, uint64_t length);

/* sendmsg and recvmsg with descriptors (SCM_RIGHTS). The received descriptors are close-on-exec;
 * `*truncated` tells that the peer sent more than `capacity`, in which case the kernel closed the
 * rest. Never raises SIGPIPE. */
#define CLINUX_MAX_DESCRIPTORS 64
ssize_t clinux_send(int socket, const struct iovec *iov, size_t count,
                    const int *descriptors, size_t descriptor_count, int flags);
ssize_t clinux_receive(int socket, void *buffer, size_t length,
                       int *descriptors, size_t capacity, size_t *descriptor_count,
                       bool *truncated, int flags);

/* SIGBUS on guarded memory. A file that backs shared memory may shrink under us, and the next load
 * raises SIGBUS. The handler replaces the pages of a guarded range by zeroes, notes the fact and
 * lets the access go on; a SIGBUS elsewhere ends the process as usual. */
#define CLINUX_GUARD_CAPACITY 1024
int clinux_guard_add(void *address, size_t length); /* slot, or -1 when full */
void clinux_guard_remove(int slot);
bool clinux_guard_was_hit(int slot);
