/* What a container is to be: the fields of CREATE, and of EXEC the part that is a program.
 *
 *   arg=A …           the command, one field each; at least one
 *   env=K=V …         over the defaults PATH HOME HOSTNAME (TERM); the last of a name wins
 *   workdir=/D        made when it is not there; default /
 *   user=U[:G]        whom it runs as, names (as the container has them) or numbers; default: root, and for EXEC the
 *                     container's own
 *   terminal=1        a pty instead of pipes
 * only CREATE:
 *   id=HEX            as people see it in error messages
 *   dir=/D            the container's directory: upper work root log exit
 *   socket=/P         where the control socket is bound; socket_gid=N its group (mode 0660, else 0600)
 *   hostname=H
 *   stdin=1           standard input is kept open (`-i`)
 *   volatile=1        the writable layer need not survive a crash of the host (`--rm`)
 *   cgroup=/P         the container's cgroup v2 directory, made here and removed at the end; absent: none
 *   log_max=N log_files=N   octets of a log file before it is turned over, and how many are kept; default: no bound
 *   join=/P …         a further cgroup (v1), made already: entered before anything else, removed at the end
 *   netns=host        no network namespace of its own; without dns and sysctl then
 *   dns=A             IPv4 address on `lo` for the name server's sockets; absent: none
 *   caps=HEX          capability mask; default: Docker's without MKNOD
 *   seccomp=1         a descriptor comes with the message: a file of `struct sock_filter`s that the container's
 *                     processes run under
 *   rootfs=/P         the directory that the root is an overlay of, without its submounts; default: the host's /
 *   read_only=1       the root takes no writes; /dev, /run, /tmp and the mounts below still may
 *   mount=bind|tmpfs[,ro][,exec][,option=…]   begins a mount; the fields source=/P (of a bind, a host path) and
 *                     target=/P behind it belong to it. Options of a tmpfs (size=64m, mode=1777) go to the kernel as
 *                     they are; it takes no programs without `exec`.
 *   mask=/P …         directory or file hidden from the container, if it is there; after the mounts
 *   sysctl=net.a.b=V … set in the container's namespaces
 */
#ifndef VXNET_SHIM_CONFIG_H
#define VXNET_SHIM_CONFIG_H

#include "protocol.h"

#include <sys/types.h>

/* A growing list of borrowed strings; `at` is NULL-terminated (NULL itself while empty). */
struct strings {
	char **at;
	size_t count;
};

struct program {
	struct strings argv;
	struct strings env;
	const char *workdir;
	const char *user; /* NULL: not said */
	bool terminal;
};

struct mount_wish {
	bool tmpfs;
	bool read_only;
	bool executable;
	const char *options; /* of a tmpfs; "" */
	const char *source;
	const char *target;
};

struct config {
	struct program program;
	const char *id;
	const char *dir;
	const char *socket;
	gid_t socket_gid; /* (gid_t)-1: none */
	const char *hostname;
	bool stdin_open;
	bool volatile_upper;
	const char *rootfs; /* NULL: the host's / */
	bool read_only;
	const char *cgroup;
	struct strings joins;
	long log_max, log_files;
	bool host_network;
	const char *dns;
	uint64_t caps;
	bool filtered;
	int seccomp; /* the filter's file, if `filtered`; who sets it owns it */
	struct mount_wish *mounts;
	size_t mount_count;
	struct strings masks;
	struct strings sysctls;
};

/* Both point into `fields`, which must outlive them. 0; -ENOMEM; else -EPROTO or -EINVAL with *culprit the key (or
 * what is missing). Pure but for memory. */
int config_parse(struct config *config, struct fields fields, const char **culprit);
int program_parse(struct program *program, struct fields fields, const char **culprit);
void config_free(struct config *config);
void program_free(struct program *program);

int strings_add(struct strings *strings, char *value);

/* K=V of `env` replaces K's in `into`, or is added. */
int env_set(struct strings *into, char *pair);

#endif
