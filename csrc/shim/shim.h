/* One container and everybody who talks about it. The shim is one thread around one epoll; nothing in it waits but
 * the set-up before the control socket is open.
 *
 *   created --START--> starting --execve--> running --+
 *      |                  |                           +--> exited (exit file, EXIT told, output drained, the end)
 *      +--- killed -------+--- execve failed ---------+
 */
#ifndef VXNET_SHIM_SHIM_H
#define VXNET_SHIM_SHIM_H

#include "process.h"
#include "stream.h"

#ifndef VXNET_VERSION
#define VXNET_VERSION "unknown"
#endif

enum state { STATE_CREATED, STATE_STARTING, STATE_RUNNING, STATE_EXITED };

/* A client. */
struct connection {
	struct source source;
	struct shim *shim;
	struct connection *next;
	bool told; /* of the container's exit */
};

/* A process of an EXEC. */
struct execution {
	struct source report;
	struct shim *shim;
	struct execution *next;
	struct connection *asker; /* NULL: gone */
	uint32_t tag;
	pid_t pid;
	int master;
};

struct shim {
	int epoll;
	struct source listener;
	struct source signals;
	struct source gate; /* the first process's report after START */
	enum state state;
	struct config config;
	struct message created; /* what config points into */
	int cgroup;
	struct first first;
	struct failure failure; /* of the first process's execve */
	struct connection *starter;
	uint32_t starter_tag;
	int killed_by; /* a signal for which SIGKILL was sent; 0 */
	struct timespec started_at;
	struct log log;
	char *log_path;
	struct stream output, errors;
	struct connection *connections;
	struct execution *executions;
};

/* control.c: what clients ask. Takes over `fd`. */
int connection_open(struct shim *shim, int fd);
int listener_open(struct shim *shim, struct failure *failure);
void answer_status(const struct shim *shim, struct answer *answer, enum message_type type, uint32_t tag);
/* Sends, or drops a client that does not read. */
void connection_send(struct connection *connection, const struct answer *answer, const int *fds, size_t fd_count);
/* To the whole container; 0 or -errno. */
int container_signal(struct shim *shim, int number);

/* life.c: what happens to processes. */
int life_watch(struct shim *shim);
void life_start(struct shim *shim, struct connection *asker, uint32_t tag);
void life_execute(struct connection *asker, struct message *message);
bool life_is_over(const struct shim *shim);

#endif
