/* How processes come into a container.
 *
 *   first:  shim --clone3 (net mnt pid uts ipc)--> sets up net and root --ready, descriptors--> waits at the gate
 *   second: shim --setns pid, clone3, setns back--> setns net mnt uts ipc cgroup --> the command
 */
#include "process.h"
#include "sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* glibc's sched.h clashes with linux/sched.h, which has clone_args. */
int setns(int fd, int nstype);
int unshare(int flags);

/* From the first process when all is set up; its descriptors follow: devpts, then [udp tcp], then [master slave]. */
struct ready {
	struct failure failure; /* status 0: none */
	int dns_port;
	bool tmpfs_root;
};

static pid_t clone_process(uint64_t flags, int cgroup, int *pidfd)
{
	struct clone_args arguments = {
		.flags = flags | CLONE_PIDFD,
		.pidfd = (uint64_t)(uintptr_t)pidfd,
		.exit_signal = SIGCHLD,
	};
	if (cgroup >= 0) {
		arguments.flags |= CLONE_INTO_CGROUP;
		arguments.cgroup = (unsigned)cgroup;
	}
	return (pid_t)syscall(SYS_clone3, &arguments, sizeof(arguments));
}

static void close_all(int *fds, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		if (fds[i] >= 0)
			close(fds[i]);
		fds[i] = -1;
	}
}

static void send_ready(int gate, const struct ready *ready, const int *fds, size_t count)
{
	struct iovec data = {.iov_base = (void *)(uintptr_t)ready, .iov_len = sizeof(*ready)};
	union {
		char room[CMSG_SPACE(5 * sizeof(int))];
		struct cmsghdr align;
	} control = {0};
	struct msghdr header = {.msg_iov = &data, .msg_iovlen = 1};
	if (count > 0) {
		header.msg_control = control.room;
		header.msg_controllen = CMSG_SPACE(count * sizeof(int));
		struct cmsghdr *rights = CMSG_FIRSTHDR(&header);
		rights->cmsg_level = SOL_SOCKET;
		rights->cmsg_type = SCM_RIGHTS;
		rights->cmsg_len = CMSG_LEN(count * sizeof(int));
		memcpy(CMSG_DATA(rights), fds, count * sizeof(int));
	}
	(void)!sendmsg(gate, &header, MSG_NOSIGNAL);
}

/* 0 or -errno; -EPIPE when the process ended without a word. */
static int receive_ready(int gate, struct ready *ready, int fds[5])
{
	struct iovec data = {.iov_base = ready, .iov_len = sizeof(*ready)};
	union {
		char room[CMSG_SPACE(5 * sizeof(int))];
		struct cmsghdr align;
	} control;
	struct msghdr header = {
		.msg_iov = &data, .msg_iovlen = 1, .msg_control = control.room, .msg_controllen = sizeof(control.room),
	};
	ssize_t got;
	do
		got = recvmsg(gate, &header, MSG_CMSG_CLOEXEC);
	while (got < 0 && errno == EINTR);
	if (got != sizeof(*ready))
		return got < 0 ? -errno : -EPIPE;
	struct cmsghdr *rights = CMSG_FIRSTHDR(&header);
	if (rights != NULL)
		memcpy(fds, CMSG_DATA(rights), rights->cmsg_len - CMSG_LEN(0));
	return 0;
}

static int set_names(const struct config *config, struct failure *failure)
{
	if (sethostname(config->hostname, strlen(config->hostname)) < 0)
		return fail(failure, 125, errno, "cannot set the hostname %s", config->hostname);
	/* Made only now, with this process inside its cgroup already, so that the cgroup is the namespace's root. */
	if (config->cgroup != NULL)
		(void)unshare(CLONE_NEWCGROUP);
	return 0;
}

static int open_devpts(const struct config *config, int fds[3], struct failure *failure)
{
	fds[0] = open("/dev/pts", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (fds[0] < 0)
		return fail(failure, 125, errno, "cannot open /dev/pts in the container");
	if (!config->program.terminal)
		return 0;
	int error = terminal_open(fds[0], &fds[1], &fds[2]);
	if (error < 0)
		return fail(failure, 125, -error, "cannot open a terminal in the container");
	/* As in Docker; a program that looks for it is rare. The first pty of a fresh devpts is number 0. */
	int console = open("/dev/console", O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
	if (console >= 0)
		close(console);
	(void)mount("/dev/pts/0", "/dev/console", NULL, MS_BIND, NULL);
	return 0;
}

/* The first process, up to its command. Never returns. */
static void first_main(const struct config *config, int gate, const int stdio[3])
{
	struct ready ready = {0};
	int fds[5] = {-1, -1, -1, -1, -1};
	/* The shim's death is the container's. If it died before this call, the gate below is closed. */
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	signals_reset();
	setsid();
	umask(0); /* modes here are meant as they stand */
	int *terminal = fds + (config->dns != NULL ? 3 : 1), pty[3] = {-1, -1, -1};
	int error = cgroups_join(config, &ready.failure);
	if (error == 0 && !config->host_network)
		error = sandbox_network(config->dns, fds + 1, &ready.dns_port, &ready.failure);
	if (error == 0)
		error = set_names(config, &ready.failure);
	if (error == 0)
		error = root_enter(config, &ready.tmpfs_root, &ready.failure);
	if (error == 0)
		error = open_devpts(config, pty, &ready.failure);
	fds[0] = pty[0];
	terminal[0] = pty[1];
	terminal[1] = pty[2];
	size_t count = 1 + (config->dns != NULL ? 2u : 0u) + (config->program.terminal ? 2u : 0u);
	send_ready(gate, &ready, fds, error == 0 ? count : 0);
	if (error < 0)
		_exit(125);

	char word;
	ssize_t got;
	do
		got = read(gate, &word, 1);
	while (got < 0 && errno == EINTR);
	if (got != 1)
		_exit(125);
	struct launch launch = {
		.program = &config->program, .hostname = config->hostname, .caps = config->caps,
		.seccomp = config->seccomp, .gate = gate, .stdio = {stdio[0], stdio[1], stdio[2]},
	};
	if (config->program.terminal)
		for (int i = 0; i < 3; i++)
			launch.stdio[i] = pty[2];
	program_run(&launch, &ready.failure);
	(void)!write(gate, &ready.failure, sizeof(ready.failure));
	_exit(ready.failure.status);
}

/* Pipes for a command without a terminal: ours[i] and theirs[i], -1 where it gets /dev/null. */
static int make_pipes(const struct config *config, int ours[3], int theirs[3])
{
	for (int i = config->stdin_open ? 0 : 1; i < 3 && !config->program.terminal; i++) {
		int ends[2];
		if (pipe2(ends, O_CLOEXEC) < 0)
			return -errno;
		ours[i] = ends[i == 0];
		theirs[i] = ends[i != 0];
	}
	return 0;
}

static int open_namespace(pid_t pid, const char *kind)
{
	char path[64];
	snprintf(path, sizeof(path), "/proc/%d/ns/%s", pid, kind);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

static int first_ready(const struct config *config, struct first *first, struct failure *failure)
{
	struct ready ready;
	int fds[5] = {-1, -1, -1, -1, -1};
	int error = receive_ready(first->gate, &ready, fds);
	if (error < 0)
		return fail(failure, 125, -error, "the container's first process ended while it was set up");
	if (ready.failure.status != 0) {
		*failure = ready.failure;
		return -EIO;
	}
	int *terminal = fds + (config->dns != NULL ? 3 : 1);
	first->devpts = fds[0];
	if (config->dns != NULL)
		memcpy(first->dns, fds + 1, sizeof(first->dns));
	if (config->program.terminal) {
		first->master = terminal[0];
		first->slave = terminal[1];
	}
	first->dns_port = ready.dns_port;
	first->tmpfs_root = ready.tmpfs_root;
	first->netns = open_namespace(first->pid, "net");
	first->mntns = open_namespace(first->pid, "mnt");
	if (first->netns < 0 || first->mntns < 0)
		return fail(failure, 125, first->netns < 0 ? -first->netns : -first->mntns,
			    "cannot open the container's namespaces");
	return 0;
}

int first_start(const struct config *config, int cgroup, struct first *first, struct failure *failure)
{
	*first = (struct first){
		.pid = -1, .pidfd = -1, .gate = -1, .netns = -1, .mntns = -1, .devpts = -1, .dns = {-1, -1}, .master = -1,
		.slave = -1, .stdio = {-1, -1, -1}, .in_cgroup = cgroup >= 0,
	};
	int theirs[3] = {-1, -1, -1}, gate[2] = {-1, -1};
	int error = make_pipes(config, first->stdio, theirs);
	if (error == 0 && socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, gate) < 0)
		error = -errno;
	if (error < 0) {
		fail(failure, 125, -error, "cannot make the container's pipes");
		goto out;
	}
	first->gate = gate[0];
	uint64_t flags = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWUTS | CLONE_NEWIPC;
	if (!config->host_network)
		flags |= CLONE_NEWNET;
	first->pid = clone_process(flags, cgroup, &first->pidfd);
	if (first->pid < 0 && cgroup >= 0) { /* threaded or without room */
		first->in_cgroup = false;
		first->pid = clone_process(flags, -1, &first->pidfd);
	}
	if (first->pid < 0) {
		error = fail(failure, 125, errno, "cannot make the container's namespaces");
		goto out;
	}
	if (first->pid == 0) {
		close(gate[0]);
		close_all(first->stdio, 3);
		first_main(config, gate[1], theirs);
	}
	close(gate[1]);
	gate[1] = -1;
	error = first_ready(config, first, failure);
out:
	close_all(theirs, 3);
	if (error < 0) {
		if (first->pid > 0) {
			kill(first->pid, SIGKILL);
			waitpid(first->pid, NULL, 0);
			first->pid = -1;
		}
		close_all(gate + 1, 1);
		int *const held[] = {
			&first->pidfd, &first->gate,   &first->netns,  &first->mntns,	 &first->devpts,   &first->dns[0],
			&first->dns[1], &first->master, &first->slave, &first->stdio[0], &first->stdio[1], &first->stdio[2],
		};
		for (size_t i = 0; i < sizeof(held) / sizeof(held[0]); i++)
			close_all(held[i], 1);
	}
	return error;
}

/* An EXEC's process, in the container's pid namespace already. Never returns. */
static void second_main(const struct config *config, int pidfd, const struct program *program, const int stdio[3],
			int report)
{
	struct failure failure = {0};
	signals_reset();
	setsid();
	int kinds = CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWCGROUP;
	if (cgroups_join(config, &failure) < 0) {
		/* said */
	} else if (setns(pidfd, kinds) < 0) {
		fail(&failure, 125, errno, "cannot enter the container's namespaces");
	} else {
		struct launch launch = {
			.program = program, .base = &config->program, .hostname = config->hostname,
			.caps = config->caps, .seccomp = config->seccomp, .gate = -1,
			.stdio = {stdio[0], stdio[1], stdio[2]},
		};
		program_run(&launch, &failure);
	}
	(void)!write(report, &failure, sizeof(failure));
	_exit(failure.status);
}

/* A process born into the container's pid namespace while its parent stays out of it. */
static pid_t clone_into(int pidfd, int cgroup)
{
	int own = open("/proc/self/ns/pid", O_RDONLY | O_CLOEXEC);
	if (own < 0)
		return -1;
	pid_t pid = -1;
	int ignored;
	if (setns(pidfd, CLONE_NEWPID) == 0) {
		pid = clone_process(0, cgroup, &ignored);
		int error = errno;
		if (pid > 0)
			close(ignored);
		if (pid != 0 && setns(own, CLONE_NEWPID) < 0)
			abort(); /* every later child would land in the wrong namespace */
		errno = error;
	}
	close(own);
	return pid;
}

int second_start(const struct config *config, const struct first *first, int cgroup, const struct program *program,
		 const int fds[3], struct second *second, struct failure *failure)
{
	*second = (struct second){.pid = -1, .report = -1, .master = -1};
	int report[2] = {-1, -1}, slave = -1;
	int error = pipe2(report, O_CLOEXEC) < 0 ? -errno : 0;
	if (error == 0 && program->terminal)
		error = terminal_open(first->devpts, &second->master, &slave);
	if (error < 0) {
		fail(failure, 125, -error, "cannot make the command's pipes");
		goto out;
	}
	const int terminal[3] = {slave, slave, slave};
	second->pid = clone_into(first->pidfd, first->in_cgroup ? cgroup : -1);
	if (second->pid < 0) {
		error = fail(failure, 125, errno, "cannot make a process in the container");
		goto out;
	}
	if (second->pid == 0)
		second_main(config, first->pidfd, program, program->terminal ? terminal : fds, report[1]);
	second->report = report[0];
	report[0] = -1;
out:
	close_all(report, 2);
	close_all(&slave, 1);
	if (error < 0)
		close_all(&second->master, 1);
	return error;
}

bool signal_is_lost(pid_t pid, int number)
{
	static const int harmless[] = {SIGCHLD, SIGCONT, SIGURG, SIGWINCH, SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU, SIGKILL};
	for (size_t i = 0; i < sizeof(harmless) / sizeof(harmless[0]); i++)
		if (number == harmless[i])
			return false;
	char path[64], line[256];
	snprintf(path, sizeof(path), "/proc/%d/status", pid);
	FILE *status = fopen(path, "re");
	if (status == NULL)
		return false;
	unsigned long long mask, handled = 0;
	while (fgets(line, sizeof(line), status) != NULL)
		if (sscanf(line, "SigBlk: %llx", &mask) == 1 || sscanf(line, "SigIgn: %llx", &mask) == 1 ||
		    sscanf(line, "SigCgt: %llx", &mask) == 1)
			handled |= mask;
	fclose(status);
	return (handled >> (number - 1) & 1) == 0;
}
