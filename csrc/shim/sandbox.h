/* What surrounds the container's processes beside the file system: network namespace, cgroup, terminal. */
#ifndef VXNET_SHIM_SANDBOX_H
#define VXNET_SHIM_SANDBOX_H

#include "root.h"

/* In the container's network namespace: brings `lo` up and opens the name server's sockets, UDP and TCP on one free
 * port of `address` (fds[0], fds[1]; *port). The daemon redirects port 53 to it, so that a container may serve there
 * itself. 0, or -errno with `failure` set. */
int sandbox_network(const char *address, int fds[2], int *port, struct failure *failure);

/* Makes the cgroup and opens it; -errno where that cannot be done, which containers live without. The directory above
 * it goes with the last of its cgroups. */
int cgroup_make(const char *path);
/* The calling process enters the container's v1 cgroups, by the host's paths; 0, or -errno with `failure` set. */
int cgroups_join(const struct config *config, struct failure *failure);
/* Kills what is left in it and removes it. */
void cgroup_remove(const char *path);
void cgroups_remove(const struct config *config);

/* A new pty of the devpts at `devpts`: 0 or -errno. The slave never becomes the caller's own terminal. */
int terminal_open(int devpts, int *master, int *slave);

#endif
