/* SPDX-License-Identifier: Apache-2.0
 *
 * Linux functions and constants that Swift's Glibc module does not offer: headers that it leaves out,
 * GNU extensions, macros, and variadic functions. CLinux.c defines _GNU_SOURCE and this header must
 * not: it would then declare types differently from the Glibc module.
 *
 * Unless stated otherwise a function returns what the function of the same name returns, and -1 with
 * errno on failure. Sizes and offsets are in bytes.
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>

/* memfd_create(2). */
int clinux_memfd_create(const char *name, unsigned int flags);
/* accept4(2) with SOCK_CLOEXEC and SOCK_NONBLOCK. */
int clinux_accept(int socket);
/* fallocate(2). */
int clinux_fallocate(int fd, int mode, int64_t offset, int64_t length);
/* preadv2(2) and pwritev2(2). */
ssize_t clinux_preadv2(int fd, const struct iovec *iov, int count, int64_t offset, int flags);
ssize_t clinux_pwritev2(int fd, const struct iovec *iov, int count, int64_t offset, int flags);
/* epoll_pwait2(2) with the timeout as a number of nanoseconds; a negative one waits without limit. */
int clinux_epoll_wait(int epoll, struct epoll_event *events, int capacity, int64_t nanoseconds);
/* pthread_setname_np(3) for the calling thread. The name has at most 15 bytes. */
void clinux_name_thread(const char *name);
/* flock(2) with LOCK_NB, and LOCK_EX or LOCK_SH. */
int clinux_lock_exclusively(int fd);
int clinux_lock_shared(int fd);
/* Whether the file is in tmpfs, ramfs or hugetlbfs, where no access waits for a disk (fstatfs(2)). */
bool clinux_is_in_memory(int fd);
/* The page size of mappings of the file: that of the huge pages if it is in hugetlbfs. */
uint64_t clinux_page_size(int fd);
/* Stores the size of a block device (BLKGETSIZE64). */
int clinux_block_device_size(int fd, uint64_t *bytes);

/* Values of the kernel's headers. */
#define CLINUX_MFD_CLOEXEC 1u
#define CLINUX_FALLOC_KEEP_SIZE 1
#define CLINUX_FALLOC_PUNCH_HOLE 2
#define CLINUX_FALLOC_ZERO_RANGE 16
#define CLINUX_RWF_NOWAIT 8
#define CLINUX_RWF_DSYNC 2
/* These differ between architectures. */
extern const int clinux_o_direct;
extern const int clinux_o_path;

/* sendmsg(2) and recvmsg(2) with file descriptors (SCM_RIGHTS, unix(7)).
 *
 * clinux_send fails with EINVAL for more than CLINUX_MAX_DESCRIPTORS descriptors, and raises no
 * SIGPIPE. clinux_receive stores at most `capacity` descriptors, which are close-on-exec, and their
 * number in `*descriptor_count`. It sets `*truncated` if the peer has sent more; these are closed. */
#define CLINUX_MAX_DESCRIPTORS 64
ssize_t clinux_send(int socket, const struct iovec *iov, size_t count,
                    const int *descriptors, size_t descriptor_count, int flags);
ssize_t clinux_receive(int socket, void *buffer, size_t length,
                       int *descriptors, size_t capacity, size_t *descriptor_count,
                       bool *truncated, int flags);

/* Guarded mappings. An access to a page of a mapped file that was truncated raises SIGBUS. The signal
 * handler replaces the pages of a guarded range, from the fault on, by zeroed private memory, marks the
 * guard as hit, and lets the access continue. A SIGBUS at any other address has its previous effect.
 *
 * clinux_guard_add returns a slot, or -1 if CLINUX_GUARD_CAPACITY ranges are guarded. The slot must be
 * removed before the range is unmapped. Any thread may call these functions. */
#define CLINUX_GUARD_CAPACITY 1024
int clinux_guard_add(void *address, size_t length);
void clinux_guard_remove(int slot);
bool clinux_guard_was_hit(int slot);
