/* Becoming the command: the last steps of a container's process, up to and including execve. */
#ifndef VXNET_SHIM_PROGRAM_H
#define VXNET_SHIM_PROGRAM_H

#include "root.h"

struct launch {
	const struct program *program;
	const struct program *base; /* the container's own for an EXEC: its environment and directory; else NULL */
	const char *hostname;
	uint64_t caps;
	int seccomp; /* file of the filter; -1: none */
	int gate;     /* of the first process, whose peer the shim holds: it ends with the shim; -1: another */
	int stdio[3]; /* -1: /dev/null. With a terminal all three are the slave. */
};

/* Gives every signal its default action and lifts the mask: a daemon's children inherit neither. */
void signals_reset(void);

/* Is asleep nowhere: it returns only when it failed, with `failure` set and status 125, 126 or 127 as Docker's. The
 * caller is the first thread of a new process inside all its namespaces. */
void program_run(const struct launch *launch, struct failure *failure);

#endif
