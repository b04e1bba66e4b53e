/* vxnet-shim [--stay] ID: keeps one container. Descriptor 0 is a SOCK_SEQPACKET socket, over which CREATE comes and
 * which is the first client's connection from then on. See protocol.h, config.h, shim.h.
 *
 *   vxnetd --spawn--> vxnet-shim (ends at once) --fork--> vxnet-shim (own session; outlives vxnetd)
 *                                                            |  clone3: net mnt pid uts ipc, then cgroup
 *                                                            +--> the command (dies with the shim)
 *
 * With --stay it does not leave whoever started it: systemd, which gave it a session and a cgroup of its own.
 */
#include "shim.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "mounts.h"
#include "sandbox.h"

#define SEALED "--sealed"
#define STAY "--stay"

/* Runs this program again from a read-only mount of its own file. Otherwise a container that gets it executed inside
 * (its /bin/sh a link to /proc/self/exe) could open /proc/PID/exe and write to the host's file: CVE-2019-5736. */
static int run_sealed(char *id)
{
	int fd = mount_copy("/proc/self/exe", false, true);
	if (fd < 0)
		return fd;
	char name[] = "vxnet-shim", mark[] = SEALED;
	char *const argv[] = {name, id, mark, NULL};
	char *const environment[] = {NULL};
	syscall(SYS_execveat, fd, "", argv, environment, AT_EMPTY_PATH);
	return -errno;
}

/* In a new session, away from the daemon's terminal and directories. Returns the control connection or -errno. */
static int settle(void)
{
	int control = fcntl(0, F_DUPFD_CLOEXEC, 3);
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	if (control < 0 || null < 0)
		return -errno;
	for (int fd = 0; fd < 3; fd++)
		dup2(null, fd);
	close(null);
	syscall(SYS_close_range, (unsigned)control + 1, ~0U, 0);
	signals_reset();
	signal(SIGPIPE, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	signal(SIGINT, SIG_IGN);
	prctl(PR_SET_NAME, "vxnet-shim"); /* executed by descriptor, it would be called after its number */
	/* Its children are on their way into the container with all capabilities: none of their /proc files for it. */
	prctl(PR_SET_DUMPABLE, 0);
	umask(077);
	return chdir("/") < 0 ? -errno : control;
}

/* Room for the exit file while there is some. */
static void reserve_exit(const struct config *config)
{
	char path[4096];
	if (snprintf(path, sizeof(path), "%s/exit.tmp", config->dir) >= (int)sizeof(path))
		return;
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0)
		return;
	(void)!fallocate(fd, 0, 0, 1024);
	close(fd);
}

static int open_streams(struct shim *shim, struct failure *failure)
{
	if (asprintf(&shim->log_path, "%s/log", shim->config.dir) < 0)
		return fail(failure, 125, ENOMEM, "cannot open the log");
	const struct config *config = &shim->config;
	int error = log_open(&shim->log, shim->log_path, config->log_max, (int)config->log_files);
	if (error < 0)
		return fail(failure, 125, -error, "cannot open %s", shim->log_path);
	bool terminal = shim->config.program.terminal;
	error = stream_open(&shim->output, shim->epoll, terminal ? shim->first.master : shim->first.stdio[1], "stdout",
			    &shim->log);
	if (error == 0 && !terminal)
		error = stream_open(&shim->errors, shim->epoll, shim->first.stdio[2], "stderr", &shim->log);
	return error < 0 ? fail(failure, 125, -error, "cannot watch the container's output") : 0;
}

/* From the first message to an answered CREATE; 0 or -errno with `failure` set. */
static int create(struct shim *shim, int control, struct failure *failure)
{
	const char *culprit = "message";
	int error = message_receive(control, &shim->created);
	if (error != 1)
		return fail(failure, 125, error == 0 ? ECONNRESET : -error, "cannot read what to create");
	if (shim->created.version != PROTOCOL_VERSION || shim->created.type != MESSAGE_CREATE)
		return fail(failure, 125, EPROTO, "expected CREATE of protocol version %d", PROTOCOL_VERSION);
	error = config_parse(&shim->config, message_fields(&shim->created), &culprit);
	if (error < 0)
		return fail(failure, 125, -error, "vxnet-shim %s cannot create: '%s' is missing, unknown or wrong",
			    VXNET_VERSION, culprit);
	if (shim->created.fd_count != shim->config.filtered)
		return fail(failure, 125, EPROTO, "cannot create: 'seccomp' and the filter belong together");
	shim->config.seccomp = message_take_fd(&shim->created, 0);
	shim->epoll = epoll_create1(EPOLL_CLOEXEC);
	if (shim->epoll < 0 || life_watch(shim) < 0)
		return fail(failure, 125, errno, "cannot watch for signals");
	/* Before anything is touched: an address in use means that this container has a living shim. */
	error = listener_open(shim, failure);
	if (error < 0)
		return error;
	reserve_exit(&shim->config);
	shim->cgroup = shim->config.cgroup != NULL ? cgroup_make(shim->config.cgroup) : -1;
	if (shim->cgroup < 0)
		shim->config.cgroup = NULL;
	error = first_start(&shim->config, shim->cgroup, &shim->first, failure);
	if (error == 0)
		error = open_streams(shim, failure);
	if (error == 0)
		return 0;
	if (shim->first.pid > 0)
		kill(shim->first.pid, SIGKILL);
	cgroups_remove(&shim->config);
	unlink(shim->config.socket);
	return error;
}

static int run(int control)
{
	struct shim *shim = calloc(1, sizeof(*shim));
	struct failure failure = {0};
	struct answer answer;
	if (shim == NULL)
		return 125;
	shim->first.pid = -1;
	shim->output.source.fd = shim->errors.source.fd = shim->listener.fd = shim->gate.fd = -1;
	if (create(shim, control, &failure) < 0) {
		answer_begin(&answer, MESSAGE_ERROR, shim->created.tag);
		answer_add(&answer, "kind", "host");
		answer_add(&answer, "status", "%d", failure.status);
		answer_add(&answer, "message", "%s", failure.text);
		(void)answer_send(control, &answer, NULL, 0);
		return failure.status;
	}
	answer_status(shim, &answer, MESSAGE_OK, shim->created.tag);
	const int fds[3] = {shim->first.netns, shim->first.dns[0], shim->first.dns[1]};
	(void)answer_send(control, &answer, fds, shim->first.dns[0] >= 0 ? 3 : 1);
	if (connection_open(shim, control) == 0)
		shim->connections->told = true;
	while (!life_is_over(shim)) {
		struct epoll_event event;
		/* One at a time: its handler may free what the next one would be about. */
		if (epoll_wait(shim->epoll, &event, 1, -1) == 1) {
			struct source *source = event.data.ptr;
			source->ready(source, event.events);
		}
	}
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 2 && strcmp(argv[1], "--version") == 0)
		return printf("vxnet-shim %s, protocol %d\n", VXNET_VERSION, PROTOCOL_VERSION) < 0;
	if (argc == 3 && strcmp(argv[2], SEALED) == 0) {
		int control = settle();
		return control < 0 ? 125 : run(control);
	}
	if (argc == 3 && strcmp(argv[1], STAY) == 0)
		return -run_sealed(argv[2]);
	if (argc != 2) {
		fprintf(stderr, "vxnet-shim is started by vxnetd: vxnet-shim [" STAY "] ID, with its socket as descriptor 0\n");
		return 125;
	}
	pid_t pid = fork();
	if (pid != 0)
		return pid < 0 ? 125 : 0;
	setsid();
	return -run_sealed(argv[1]);
}
