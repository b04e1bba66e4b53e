/* Making the container's processes: the first one with its namespaces, and those of EXEC beside it. */
#ifndef VXNET_SHIM_PROCESS_H
#define VXNET_SHIM_PROCESS_H

#include "program.h"

#include <sys/types.h>

/* The container's first process, all set up, waiting for its word to go. */
struct first {
	pid_t pid;
	int pidfd;
	int gate;	/* one octet lets it run its command, closing it ends it; then `struct failure` or, at execve, EOF */
	int netns;
	int mntns;	/* held so that taking the mounts down, which syncs the disk, falls to the shim's own end */
	int devpts;
	int dns[2];	/* -1 without */
	int dns_port;
	int master, slave; /* -1 without a terminal */
	int stdio[3];	   /* the shim's ends: stdin's write end, stdout, stderr; -1 with a terminal or none */
	bool tmpfs_root;
	bool in_cgroup;
};

/* 0, or -errno with `failure` set and nothing left over. `cgroup` is the descriptor of a cgroup or -1. */
int first_start(const struct config *config, int cgroup, struct first *first, struct failure *failure);

struct second {
	pid_t pid;
	int report; /* `struct failure`, or EOF at execve */
	int master; /* -1 without a terminal */
};

/* `fds`: standard input, output, error; unused with a terminal. The caller keeps them. */
int second_start(const struct config *config, const struct first *first, int cgroup, const struct program *program,
		 const int fds[3], struct second *second, struct failure *failure);

/* Would `number` do nothing to this process, because a pid namespace's first process has no default actions? Such a
 * signal ends every other process, and a user who types `stop` means that. */
bool signal_is_lost(pid_t pid, int number);

#endif
