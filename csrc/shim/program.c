/* Directory, user, streams, environment, capabilities, filter, execve: in this order. */
#include "program.h"
#include "user.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

void signals_reset(void)
{
	for (int number = 1; number < NSIG; number++)
		if (number != SIGKILL && number != SIGSTOP)
			signal(number, SIG_DFL);
	sigset_t none;
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
}

/* A pipe or terminal that was made for this command is its user's, so that /dev/stdout can be opened. */
static void give_stdio(const struct user *user)
{
	for (int fd = 0; fd < 3; fd++) {
		struct stat found;
		if (user->uid != 0 && fstat(fd, &found) == 0 && (S_ISFIFO(found.st_mode) || isatty(fd)))
			(void)!fchown(fd, user->uid, (gid_t)-1);
	}
}

static int set_stdio(const struct launch *launch)
{
	bool terminal = launch->program->terminal;
	int source[3];
	for (int i = 0; i < 3; i++) {
		int fd = launch->stdio[i] >= 0 ? launch->stdio[i] : open("/dev/null", O_RDWR | O_CLOEXEC);
		/* Above 2, so that no dup2 below hits a source that is still needed. */
		source[i] = fd < 0 ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, 3);
		if (source[i] < 0)
			return -errno;
	}
	for (int i = 0; i < 3; i++)
		if (dup2(source[i], i) < 0)
			return -errno;
	if (terminal && ioctl(0, TIOCSCTTY, 0) < 0)
		return -errno;
	return 0;
}

/* Anew, for the kernel forgets it when a process changes its user. If the shim died before, the gate says so. */
static int die_with_shim(int gate)
{
	char word;
	if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0)
		return -errno;
	return recv(gate, &word, 1, MSG_PEEK | MSG_DONTWAIT) == 0 ? -EPIPE : 0;
}

static int drop_bounding(uint64_t keep)
{
	for (int number = 0; number < 64; number++)
		if ((keep >> number & 1) == 0 && prctl(PR_CAPBSET_DROP, number, 0, 0, 0) < 0) {
			if (errno == EINVAL)
				break; /* the kernel knows no more */
			return -errno;
		}
	return 0;
}

static int drop_capabilities(uint64_t keep)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct now[2];
	if (syscall(SYS_capget, &header, now) < 0)
		return -errno;
	for (int half = 0; half < 2; half++) {
		now[half].permitted &= (uint32_t)(keep >> (32 * half));
		now[half].effective = now[half].permitted;
		now[half].inheritable = 0;
	}
	if (syscall(SYS_capset, &header, now) < 0)
		return -errno;
	if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0 && errno != EINVAL)
		return -errno;
	return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ? -errno : 0;
}

/* From here on the process makes only what calls the filter allows. Needs no_new_privs. */
static int load_filter(int fd)
{
	if (fd < 0)
		return 0;
	struct sock_filter program[BPF_MAXINSNS];
	ssize_t size = pread(fd, program, sizeof(program), 0);
	if (size < 0)
		return -errno;
	if (size == 0 || size % (ssize_t)sizeof(*program) != 0)
		return -EINVAL;
	struct sock_fprog filter = {.len = (unsigned short)(size / (ssize_t)sizeof(*program)), .filter = program};
	return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) < 0 ? -errno : 0;
}

static int make_environment(const struct launch *launch, const struct user *user, struct strings *environment)
{
	static char path[] = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", term[] = "TERM=xterm";
	static char home[sizeof("HOME=") + sizeof(user->home)];
	snprintf(home, sizeof(home), "HOME=%s", user->home);
	static char hostname[sizeof("HOSTNAME=") + 256];
	snprintf(hostname, sizeof(hostname), "HOSTNAME=%s", launch->hostname);
	char *const defaults[] = {path, home, hostname, launch->program->terminal ? term : NULL};
	int error = 0;
	for (size_t i = 0; error == 0 && i < 4; i++)
		if (defaults[i] != NULL)
			error = strings_add(environment, defaults[i]);
	for (size_t i = 0; error == 0 && launch->base != NULL && i < launch->base->env.count; i++)
		error = env_set(environment, launch->base->env.at[i]);
	for (size_t i = 0; error == 0 && i < launch->program->env.count; i++)
		error = env_set(environment, launch->program->env.at[i]);
	return error;
}

static const char *environment_get(const struct strings *environment, const char *name)
{
	size_t length = strlen(name);
	for (size_t i = 0; i < environment->count; i++)
		if (strncmp(environment->at[i], name, length) == 0 && environment->at[i][length] == '=')
			return environment->at[i] + length + 1;
	return "";
}

/* As execvp, with the container's own PATH; returns the error that tells most. */
static int search_and_run(char *const *argv, const struct strings *environment)
{
	const char *name = argv[0];
	if (*name == '\0')
		return ENOENT;
	if (strchr(name, '/') != NULL) {
		execve(name, argv, environment->at);
		return errno;
	}
	int found = ENOENT;
	const char *rest = environment_get(environment, "PATH");
	while (*rest != '\0') {
		size_t length = strcspn(rest, ":");
		char file[4096];
		int used = snprintf(file, sizeof(file), "%.*s/%s", length > 0 ? (int)length : 1,
				    length > 0 ? rest : ".", name);
		rest += length + (rest[length] == ':');
		if (used >= (int)sizeof(file))
			continue;
		execve(file, argv, environment->at);
		if (errno != ENOENT && errno != ENOTDIR)
			found = errno;
	}
	return found;
}

static void enter_directory(const struct launch *launch, struct failure *failure)
{
	const char *directory = launch->program->workdir;
	bool own = launch->base == NULL;
	if (directory == NULL)
		directory = launch->base != NULL && launch->base->workdir != NULL ? launch->base->workdir : "/";
	/* Docker makes a container's directory, but not an exec's. */
	int error = own ? make_directories(directory) : 0;
	if (error == 0 && chdir(directory) < 0)
		error = -errno;
	if (error < 0)
		fail(failure, own ? 125 : 126, -error, "cannot enter the working directory %s", directory);
}

void program_run(const struct launch *launch, struct failure *failure)
{
	struct strings environment = {0};
	struct user user;
	const char *wish = launch->program->user;
	if (wish == NULL && launch->base != NULL)
		wish = launch->base->user;
	*failure = (struct failure){0};
	umask(022);
	enter_directory(launch, failure);
	if (failure->status != 0)
		return;
	if (user_find(wish, &user, failure) < 0) {
		/* As Docker's: a container is not made then, whereas an exec "cannot run". */
		failure->asked = true;
		failure->status = launch->base == NULL ? 125 : 126;
		return;
	}
	int error = set_stdio(launch);
	if (error == 0)
		error = make_environment(launch, &user, &environment);
	if (error == 0 && syscall(SYS_close_range, 3, ~0U, 4 /* CLOSE_RANGE_CLOEXEC */) < 0)
		error = -errno;
	give_stdio(&user);
	/* Changing the user takes capabilities that may be among the dropped. */
	if (error == 0)
		error = drop_bounding(launch->caps);
	if (error == 0)
		error = user_become(&user);
	if (error == 0 && launch->gate >= 0)
		error = die_with_shim(launch->gate);
	if (error == 0)
		error = drop_capabilities(launch->caps);
	if (error == 0)
		error = load_filter(launch->seccomp);
	if (error < 0) {
		fail(failure, 125, -error, "cannot prepare %s", launch->program->argv.at[0]);
		return;
	}
	error = search_and_run(launch->program->argv.at, &environment);
	fail(failure, error == ENOENT || error == ENOTDIR ? 127 : 126, error, "cannot run %s",
	     launch->program->argv.at[0]);
	free(environment.at);
}
