#define _GNU_SOURCE
#include "syscalls.h"

#include <errno.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <unistd.h>

int vxnet_setns(int fd, int kind) {
    return setns(fd, kind) == 0 ? 0 : -errno;
}

int vxnet_unshare(int flags) {
    return unshare(flags) == 0 ? 0 : -errno;
}

int vxnet_mount(const char *source, const char *target, const char *type, unsigned long flags, const char *data) {
    return mount(source, target, type, flags, data) == 0 ? 0 : -errno;
}

int vxnet_umount(const char *target, int flags) {
    return umount2(target, flags) == 0 ? 0 : -errno;
}

int vxnet_fsopen(const char *type) {
    /* By number: the wrapper came with glibc 2.36. */
    long fd = syscall(SYS_fsopen, type, 1UL /* FSOPEN_CLOEXEC */);
    return fd >= 0 ? (int)fd : -errno;
}
