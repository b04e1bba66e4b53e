/* The host's mounts that a container sees too, and the kernel's newer mount calls, which Debian 12's C library has only
 * since 2.36. */
#ifndef VXNET_SHIM_MOUNTS_H
#define VXNET_SHIM_MOUNTS_H

#include <stdbool.h>
#include <stddef.h>

/* A mount that hangs nowhere yet. */
struct loose_mount {
	char *target;
	int fd;
};

struct loose_mounts {
	struct loose_mount *at;
	size_t count;
};

/* A loose copy of what is mounted at (or lies under) `path`, on which no device node can be opened; a descriptor or
 * -errno. `deep`: with its submounts. */
int mount_copy(const char *path, bool deep, bool read_only);

/* One file, such as it is. */
int mount_copy_file(const char *path);

/* Hangs it at `target`, which must exist; 0 or -errno. */
int mount_attach(int fd, const char *target);

/* Makes the mount at `path` read-only, or keeps device nodes on it from being opened; 0 or -errno. */
int mount_read_only(const char *path);
int mount_without_devices(const char *path);

/* Is this line's mount (its point unescaped, its type) one that containers share? Pure. */
bool mount_shared(const char *point, const char *type);

/* Turns \040 and its like back, in place. Pure. */
void mount_unescape(char *text);

/* Read-only copies of all the host's mounts that containers share, outermost first; 0 or -errno. A mount that cannot
 * be copied (it vanished) is left out. */
int mounts_of_host(struct loose_mounts *mounts);
void mounts_free(struct loose_mounts *mounts);

#endif
