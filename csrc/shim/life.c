/* What happens to processes: started, reported, ended. */
#include "sandbox.h"
#include "shim.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int exit_status(int wait_status)
{
	return WIFSIGNALED(wait_status) ? 128 + WTERMSIG(wait_status) : WEXITSTATUS(wait_status);
}

static void tell_failure(struct connection *asker, uint32_t tag, const struct failure *failure)
{
	struct answer answer;
	answer_begin(&answer, MESSAGE_ERROR, tag);
	answer_add(&answer, "kind", "%s", failure->status == 125 && !failure->asked ? "host" : "invalid");
	answer_add(&answer, "status", "%d", failure->status);
	answer_add(&answer, "message", "%s", failure->text);
	connection_send(asker, &answer, NULL, 0);
}

/* The word of a process that was to run a command: true when it failed. */
static bool read_report(int fd, struct failure *failure)
{
	ssize_t got;
	do
		got = read(fd, failure, sizeof(*failure));
	while (got < 0 && errno == EINTR);
	return got == sizeof(*failure);
}

/* START's second half: the command runs, or will never. */
static void started(struct shim *shim)
{
	bool failed = read_report(shim->gate.fd, &shim->failure);
	source_forget(shim->epoll, &shim->gate);
	close(shim->gate.fd);
	shim->gate.fd = -1;
	if (!failed)
		shim->failure = (struct failure){0};
	shim->state = STATE_RUNNING;
	if (shim->starter == NULL)
		return;
	struct answer answer;
	answer_status(shim, &answer, MESSAGE_OK, shim->starter_tag);
	if (failed)
		tell_failure(shim->starter, shim->starter_tag, &shim->failure);
	else
		connection_send(shim->starter, &answer, NULL, 0);
	shim->starter = NULL;
}

static void gate_ready(struct source *source, uint32_t events)
{
	(void)events;
	started((struct shim *)((char *)source - offsetof(struct shim, gate)));
}

void life_start(struct shim *shim, struct connection *asker, uint32_t tag)
{
	shim->starter = asker;
	shim->starter_tag = tag;
	shim->state = STATE_STARTING;
	clock_gettime(CLOCK_REALTIME, &shim->started_at);
	shim->gate = (struct source){.ready = gate_ready, .fd = shim->first.gate};
	/* If the process is dead meanwhile, reading the gate says so. */
	(void)!write(shim->gate.fd, "g", 1);
	if (source_watch(shim->epoll, &shim->gate, EPOLLIN) < 0)
		kill(shim->first.pid, SIGKILL);
}

static void execution_reported(struct execution *execution)
{
	struct failure failure;
	bool failed = read_report(execution->report.fd, &failure);
	source_forget(execution->shim->epoll, &execution->report);
	close(execution->report.fd);
	execution->report.fd = -1;
	if (execution->asker != NULL && failed) {
		tell_failure(execution->asker, execution->tag, &failure);
		execution->asker = NULL; /* that was the last word */
	} else if (execution->asker != NULL) {
		struct answer answer;
		answer_begin(&answer, MESSAGE_OK, execution->tag);
		answer_add(&answer, "pid", "%d", execution->pid);
		connection_send(execution->asker, &answer, &execution->master, execution->master >= 0 ? 1 : 0);
	}
	/* From here the client alone holds the terminal: when it goes, the command's terminal hangs up. */
	if (execution->master >= 0)
		close(execution->master);
	execution->master = -1;
}

static void report_ready(struct source *source, uint32_t events)
{
	(void)events;
	execution_reported((struct execution *)source);
}

void life_execute(struct connection *asker, struct message *message)
{
	struct shim *shim = asker->shim;
	struct program program = {0};
	struct failure failure = {0};
	struct second second;
	const char *culprit;
	struct execution *execution = calloc(1, sizeof(*execution));
	int error = execution == NULL ? -ENOMEM : program_parse(&program, message_fields(message), &culprit);
	if (error == -ENOMEM) {
		fail(&failure, 125, ENOMEM, "cannot run a command");
		goto out;
	}
	if (error == 0 && message->fd_count != (program.terminal ? 0u : 3u)) {
		culprit = "descriptors";
		error = -EINVAL;
	}
	if (error < 0) {
		fail(&failure, 125, -error, "the shim of this container (version %s) does not understand '%s' of exec",
		     VXNET_VERSION, culprit);
		goto out;
	}
	error = second_start(&shim->config, &shim->first, shim->cgroup, &program, message->fds, &second, &failure);
	if (error < 0)
		goto out;
	*execution = (struct execution){
		.report = {.ready = report_ready, .fd = second.report},
		.shim = shim, .next = shim->executions, .asker = asker, .tag = message->tag, .pid = second.pid,
		.master = second.master,
	};
	shim->executions = execution;
	execution = NULL;
	if (source_watch(shim->epoll, &shim->executions->report, EPOLLIN) < 0)
		kill(second.pid, SIGKILL); /* its end is then its report */
out:
	free(execution);
	program_free(&program);
	if (error < 0)
		tell_failure(asker, message->tag, &failure);
}

static void execution_ended(struct shim *shim, pid_t pid, int wait_status)
{
	struct execution **link = &shim->executions;
	while (*link != NULL && (*link)->pid != pid)
		link = &(*link)->next;
	struct execution *execution = *link;
	if (execution == NULL)
		return;
	if (execution->report.fd >= 0)
		execution_reported(execution);
	*link = execution->next;
	if (execution->asker != NULL) {
		struct answer answer;
		answer_begin(&answer, MESSAGE_EXIT, execution->tag);
		answer_add(&answer, "status", "%d", exit_status(wait_status));
		connection_send(execution->asker, &answer, NULL, 0);
	}
	free(execution);
}

/* For a daemon that is not there to hear EXIT. main.c reserved the room, so that a full disk does not stop it. */
static void write_exit(const struct shim *shim, int status)
{
	char text[1024], from[4096], to[4096];
	struct timespec now;
	clock_gettime(CLOCK_REALTIME, &now);
	/* The error last: a command that it quotes may have lines that look like these. */
	int used = snprintf(text, sizeof(text), "status=%d\nstarted_at=%lld.%09ld\nfinished_at=%lld.%09ld\nerror=%s\n",
			    status, (long long)shim->started_at.tv_sec, shim->started_at.tv_nsec, (long long)now.tv_sec,
			    now.tv_nsec, shim->failure.text);
	if (snprintf(from, sizeof(from), "%s/exit.tmp", shim->config.dir) >= (int)sizeof(from) ||
	    snprintf(to, sizeof(to), "%s/exit", shim->config.dir) >= (int)sizeof(to))
		return;
	int fd = open(from, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0)
		return;
	bool whole = write(fd, text, (size_t)used) == used && ftruncate(fd, used) == 0;
	close(fd);
	if (whole)
		(void)!rename(from, to);
}

static void container_ended(struct shim *shim, int wait_status)
{
	if (shim->state == STATE_STARTING)
		started(shim);
	int status = shim->killed_by != 0 && WIFSIGNALED(wait_status) ? 128 + shim->killed_by : exit_status(wait_status);
	shim->state = STATE_EXITED;
	/* The terminal was held open so that a command may close and reopen it. */
	if (shim->first.slave >= 0)
		close(shim->first.slave);
	shim->first.slave = -1;
	(void)stream_drain(&shim->output);
	(void)stream_drain(&shim->errors);
	source_forget(shim->epoll, &shim->listener);
	close(shim->listener.fd);
	unlink(shim->config.socket);
	cgroups_remove(&shim->config);
	write_exit(shim, status);
	struct answer answer;
	answer_begin(&answer, MESSAGE_EXIT, 0);
	answer_add(&answer, "status", "%d", status);
	answer_add(&answer, "error", "%s", shim->failure.text);
	for (struct connection *each = shim->connections; each != NULL; each = each->next)
		if (each->told)
			connection_send(each, &answer, NULL, 0);
}

static void signals_ready(struct source *source, uint32_t events)
{
	(void)events;
	struct shim *shim = (struct shim *)((char *)source - offsetof(struct shim, signals));
	struct signalfd_siginfo news;
	while (read(source->fd, &news, sizeof(news)) == sizeof(news))
		if (news.ssi_signo == SIGTERM && shim->state != STATE_EXITED)
			(void)container_signal(shim, SIGTERM);
	int wait_status;
	pid_t pid;
	while ((pid = waitpid(-1, &wait_status, WNOHANG)) > 0) {
		if (pid == shim->first.pid)
			container_ended(shim, wait_status);
		else
			execution_ended(shim, pid, wait_status);
	}
}

int life_watch(struct shim *shim)
{
	sigset_t wanted;
	sigemptyset(&wanted);
	sigaddset(&wanted, SIGCHLD);
	sigaddset(&wanted, SIGTERM); /* a host that shuts down: the container gets the chance that it would have had */
	if (sigprocmask(SIG_BLOCK, &wanted, NULL) < 0)
		return -errno;
	shim->signals = (struct source){
		.ready = signals_ready, .fd = signalfd(-1, &wanted, SFD_CLOEXEC | SFD_NONBLOCK),
	};
	return shim->signals.fd < 0 ? -errno : source_watch(shim->epoll, &shim->signals, EPOLLIN);
}

bool life_is_over(const struct shim *shim)
{
	return shim->state == STATE_EXITED && shim->output.source.fd < 0 && shim->errors.source.fd < 0;
}
