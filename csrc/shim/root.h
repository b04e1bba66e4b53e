/* The container's view of the file system. Run once by the container's first process, in its own mount namespace,
 * before it gives up its capabilities.
 *
 *   /                 overlayfs: lower = the host's / or `rootfs`, upper = <dir>/upper. Writes stay in upper.
 *   host's submounts  bound read-only where they are; kernel, tmpfs-on-/run and container-engine mounts are left out
 *   /proc /sys /dev   own; /proc/sys and /sys read-only; what Docker masks is masked
 *   device nodes      can be opened in /dev alone, and no others than Docker's
 *   /tmp /run         fresh tmpfs
 *   masks, mounts     as config.h says
 *
 * overlayfs shows what lies *under* the host's mount points: a second /var/lib/vxnet under a mounted one, or
 * /etc/shadow. This isolates the network, not the host's files; vxnet's own secrets are masked by path. */
#ifndef VXNET_SHIM_ROOT_H
#define VXNET_SHIM_ROOT_H

#include "config.h"

/* What went wrong, for people: "mount /proc: Operation not permitted". */
struct failure {
	int status; /* 125, 126 or 127 */
	bool asked; /* 125, and yet not the host's fault but of what was asked for */
	char text[256];
};

/* Sets `failure` from errno-style `error` (positive); returns -error. */
int fail(struct failure *failure, int status, int error, const char *format, ...)
	__attribute__((format(printf, 4, 5)));

/* 0, with *tmpfs telling that the writable layer is in memory because <dir>'s file system cannot be an overlay's upper
 * (it is an overlay itself, as in a Docker container); or -errno with `failure` set. Changes the root and the working
 * directory of the caller. */
int root_enter(const struct config *config, bool *tmpfs, struct failure *failure);

/* mkdir -p; 0 or -errno. */
int make_directories(const char *path);

#endif
