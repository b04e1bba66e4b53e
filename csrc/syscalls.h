/*
 * syscalls: what the kernel offers and Python 3.11 does not wrap.
 *
 * Each function is one system call of the calling thread and nothing else: it keeps no state, prints nothing and
 * allocates nothing. It returns 0 (or the new descriptor, where one is made) or -errno.
 *
 *   thread ──> vxnet_unshare(CLONE_NEWNET)       a new namespace, of this thread alone
 *          ──> vxnet_mount("/proc/thread-self/ns/net", "/run/netns/vxnet", …, MS_BIND)      and it has a name
 *   thread ──> vxnet_setns(fd, CLONE_NEWNET)     sockets opened and processes started from here live in fd's namespace
 *
 * A thread that has changed its namespace should end soon: whatever else runs in it is in the wrong place.
 */
#ifndef VXNET_SYSCALLS_H
#define VXNET_SYSCALLS_H

/* setns(2). A mount namespace (CLONE_NEWNS) also demands vxnet_unshare(CLONE_FS) before, in a process with threads. */
int vxnet_setns(int fd, int kind);

/* unshare(2). */
int vxnet_unshare(int flags);

/* mount(2); type and data may be NULL. */
int vxnet_mount(const char *source, const char *target, const char *type, unsigned long flags, const char *data);

/* umount2(2). */
int vxnet_umount(const char *target, int flags);

/*
 * fsopen(2): a descriptor of a file system that is configured and never mounted. It answers whether the kernel knows
 * the type, and loads its module if there is one; ENODEV: it does not. The caller closes it.
 */
int vxnet_fsopen(const char *type);

#endif
