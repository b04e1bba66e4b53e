/* What clients ask, and what they are told. */
#include "sandbox.h"
#include "shim.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

/* Of others than the daemon's user, who has as many again: it must not be kept out of its containers. */
#define CONNECTIONS_MAX 256

static void connection_close(struct connection *connection)
{
	struct shim *shim = connection->shim;
	struct connection **link = &shim->connections;
	while (*link != connection)
		link = &(*link)->next;
	*link = connection->next;
	if (shim->starter == connection)
		shim->starter = NULL;
	for (struct execution *each = shim->executions; each != NULL; each = each->next)
		if (each->asker == connection)
			each->asker = NULL;
	source_forget(shim->epoll, &connection->source);
	close(connection->source.fd);
	free(connection);
}

void connection_send(struct connection *connection, const struct answer *answer, const int *fds, size_t fd_count)
{
	/* Not closed here, for the caller still walks over it: the loop sees the end of a socket that is shut down. */
	if (answer_send(connection->source.fd, answer, fds, fd_count) < 0)
		shutdown(connection->source.fd, SHUT_RDWR);
}

static void refuse(struct connection *connection, uint32_t tag, const char *kind, int status, const char *message)
{
	struct answer answer;
	answer_begin(&answer, MESSAGE_ERROR, tag);
	answer_add(&answer, "kind", "%s", kind);
	answer_add(&answer, "status", "%d", status);
	answer_add(&answer, "message", "%s", message);
	connection_send(connection, &answer, NULL, 0);
}

static void refuse_field(struct connection *connection, uint32_t tag, const char *field)
{
	char text[256];
	snprintf(text, sizeof(text), "the shim of this container (version %s) does not understand '%s' here",
		 VXNET_VERSION, field);
	refuse(connection, tag, "unsupported", 125, text);
}

void answer_status(const struct shim *shim, struct answer *answer, enum message_type type, uint32_t tag)
{
	static const char *const states[] = {"created", "starting", "running", "exited"};
	size_t executions = 0;
	for (const struct execution *each = shim->executions; each != NULL; each = each->next)
		executions++;
	answer_begin(answer, type, tag);
	answer_add(answer, "version", "%s", VXNET_VERSION);
	answer_add(answer, "state", "%s", states[shim->state]);
	answer_add(answer, "pid", "%d", shim->first.pid);
	answer_add(answer, "shim", "%d", getpid());
	answer_add(answer, "terminal", "%d", shim->config.program.terminal);
	answer_add(answer, "stdin", "%d", shim->config.program.terminal || shim->first.stdio[0] >= 0);
	answer_add(answer, "root", "%s", shim->first.tmpfs_root ? "tmpfs" : "overlay");
	answer_add(answer, "cgroup", "%s", shim->first.in_cgroup ? shim->config.cgroup : "");
	answer_add(answer, "dns_port", "%d", shim->first.dns_port);
	answer_add(answer, "execs", "%zu", executions);
	answer_add(answer, "log_lost", "%llu", (unsigned long long)shim->log.lost);
	if (shim->started_at.tv_sec != 0)
		answer_add(answer, "started_at", "%lld.%09ld", (long long)shim->started_at.tv_sec,
			   shim->started_at.tv_nsec);
}

/* Is at the other end who runs the shim too: the daemon, or root? */
static bool is_daemons(int fd)
{
	struct ucred peer;
	socklen_t size = sizeof(peer);
	return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 && peer.uid == geteuid();
}

static void hello(struct connection *connection, uint32_t tag)
{
	struct shim *shim = connection->shim;
	if (!is_daemons(connection->source.fd)) {
		refuse(connection, tag, "forbidden", 125, "only the daemon may take the container over");
		return;
	}
	connection->told = true;
	struct answer answer;
	answer_status(shim, &answer, MESSAGE_OK, tag);
	const int fds[3] = {shim->first.netns, shim->first.dns[0], shim->first.dns[1]};
	connection_send(connection, &answer, fds, shim->first.dns[0] >= 0 ? 3 : 1);
}

int container_signal(struct shim *shim, int number)
{
	pid_t pid = shim->first.pid;
	if (!signal_is_lost(pid, number))
		return kill(pid, number) < 0 ? -errno : 0;
	shim->killed_by = number;
	return kill(pid, SIGKILL) < 0 ? -errno : 0;
}

static void ask_signal(struct connection *connection, struct message *message)
{
	struct fields fields = message_fields(message);
	const char *key = "signal";
	char *value;
	long number;
	if (field_next(&fields, &key, &value) != 1 || strcmp(key, "signal") != 0 || fields.left != 0 ||
	    number_parse(value, 1, NSIG - 1, &number) < 0) {
		refuse_field(connection, message->tag, key);
		return;
	}
	int error = container_signal(connection->shim, (int)number);
	if (error < 0) {
		refuse(connection, message->tag, "host", 125, strerror(-error));
		return;
	}
	struct answer answer;
	answer_begin(&answer, MESSAGE_OK, message->tag);
	connection_send(connection, &answer, NULL, 0);
}

static void attach(struct connection *connection, struct message *message)
{
	struct shim *shim = connection->shim;
	struct fields fields = message_fields(message);
	const char *key = "message";
	char *value;
	bool input = false, once = false;
	int step;
	while ((step = field_next(&fields, &key, &value)) == 1) {
		once = strcmp(value, "once") == 0;
		input = true;
		if (strcmp(key, "stdin") != 0 || (!once && strcmp(value, "keep") != 0))
			step = -EINVAL;
		if (step < 0)
			break;
	}
	if (step < 0 || message->fd_count != 2) {
		refuse_field(connection, message->tag, message->fd_count != 2 ? "descriptors" : key);
		return;
	}
	bool terminal = shim->config.program.terminal;
	int error = stream_attach(&shim->output, message_take_fd(message, 0));
	if (error == 0 && !terminal)
		error = stream_attach(&shim->errors, message_take_fd(message, 1));
	if (error < 0) {
		refuse(connection, message->tag, "host", 125, strerror(-error));
		return;
	}
	connection->told = true;
	/* The client writes into the terminal or pipe itself, and sets the terminal's size. */
	int given = terminal ? shim->first.master : input ? shim->first.stdio[0] : -1;
	struct answer answer;
	answer_begin(&answer, MESSAGE_OK, message->tag);
	answer_add(&answer, "terminal", "%d", terminal);
	answer_add(&answer, "stdin", "%d", input && shim->config.stdin_open && given >= 0);
	connection_send(connection, &answer, &given, given >= 0 ? 1 : 0);
	if (once && !terminal && given >= 0) {
		close(given);
		shim->first.stdio[0] = -1;
	}
}

static void serve(struct connection *connection, struct message *message)
{
	struct answer answer;
	if (message->version != PROTOCOL_VERSION) {
		refuse_field(connection, message->tag, "protocol version");
		return;
	}
	bool bare = message->type == MESSAGE_HELLO || message->type == MESSAGE_START || message->type == MESSAGE_STATUS;
	if (bare && message_fields(message).left != 0) {
		refuse_field(connection, message->tag, message_fields(message).next);
		return;
	}
	if (connection->shim->state == STATE_EXITED && message->type != MESSAGE_STATUS) {
		refuse(connection, message->tag, "conflict", 125, "the container has exited");
		return;
	}
	switch (message->type) {
	case MESSAGE_HELLO:
		hello(connection, message->tag);
		break;
	case MESSAGE_START:
		if (connection->shim->state == STATE_CREATED)
			life_start(connection->shim, connection, message->tag);
		else
			refuse(connection, message->tag, "conflict", 125, "the container is running already");
		break;
	case MESSAGE_SIGNAL:
		ask_signal(connection, message);
		break;
	case MESSAGE_EXEC:
		if (connection->shim->state == STATE_RUNNING)
			life_execute(connection, message);
		else
			refuse(connection, message->tag, "conflict", 125, "the container is not running");
		break;
	case MESSAGE_ATTACH:
		attach(connection, message);
		break;
	case MESSAGE_STATUS:
		answer_status(connection->shim, &answer, MESSAGE_OK, message->tag);
		connection_send(connection, &answer, NULL, 0);
		break;
	default:
		refuse_field(connection, message->tag, "message type");
	}
}

static void connection_ready(struct source *source, uint32_t events)
{
	(void)events;
	struct connection *connection = (struct connection *)source;
	struct message message;
	int result = message_receive(source->fd, &message);
	if (result == 1)
		serve(connection, &message);
	else if (result == -EMSGSIZE)
		refuse(connection, 0, "invalid", 125, "command and environment are longer than 192 KiB");
	else if (result != -EAGAIN && result != -EINTR)
		connection_close(connection);
	if (result == 1)
		message_free(&message);
}

int connection_open(struct shim *shim, int fd)
{
	struct connection *connection = calloc(1, sizeof(*connection));
	int flags = fcntl(fd, F_GETFL);
	int error = connection == NULL ? -ENOMEM : flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 ? -errno : 0;
	if (error == 0) {
		*connection = (struct connection){
			.source = {.ready = connection_ready, .fd = fd}, .shim = shim, .next = shim->connections,
		};
		error = source_watch(shim->epoll, &connection->source, EPOLLIN);
	}
	if (error < 0) {
		free(connection);
		close(fd);
		return error;
	}
	shim->connections = connection;
	return 0;
}

static void listener_ready(struct source *source, uint32_t events)
{
	(void)events;
	struct shim *shim = (struct shim *)((char *)source - offsetof(struct shim, listener));
	int fd = accept4(source->fd, NULL, NULL, SOCK_CLOEXEC);
	size_t count = 0;
	for (const struct connection *each = shim->connections; each != NULL; each = each->next)
		count++;
	if (fd >= 0 && count >= CONNECTIONS_MAX && (count >= 2 * CONNECTIONS_MAX || !is_daemons(fd)))
		close(fd);
	else if (fd >= 0)
		(void)connection_open(shim, fd);
}

int listener_open(struct shim *shim, struct failure *failure)
{
	const char *path = shim->config.socket;
	struct sockaddr_un name = {.sun_family = AF_UNIX};
	if (strlen(path) >= sizeof(name.sun_path))
		return fail(failure, 125, ENAMETOOLONG, "cannot listen on %s", path);
	strcpy(name.sun_path, path);
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return fail(failure, 125, errno, "cannot listen on %s", path);
	/* One that answers belongs to a living shim of the same container; one that does not is a dead one's. */
	bool alive = connect(fd, (struct sockaddr *)&name, sizeof(name)) == 0 || errno == EAGAIN;
	int error = alive ? EADDRINUSE : 0;
	if (error == 0 && unlink(path) < 0 && errno != ENOENT)
		error = errno;
	bool group = shim->config.socket_gid != (gid_t)-1;
	if (error == 0 && (bind(fd, (struct sockaddr *)&name, sizeof(name)) < 0 ||
			   (group && chown(path, (uid_t)-1, shim->config.socket_gid) < 0) ||
			   chmod(path, group ? 0660 : 0600) < 0 || listen(fd, 16) < 0))
		error = errno;
	shim->listener = (struct source){.ready = listener_ready, .fd = fd};
	if (error == 0)
		error = -source_watch(shim->epoll, &shim->listener, EPOLLIN);
	if (error == 0)
		return 0;
	close(fd);
	shim->listener.fd = -1;
	return fail(failure, 125, error, "cannot listen on %s", path);
}
