/* lo and the name server's sockets, cgroup, pty. */
#include "sandbox.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define PORT_TRIES 16

static int loopback_up(void)
{
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	struct ifreq request = {.ifr_name = "lo"};
	int error = ioctl(fd, SIOCGIFFLAGS, &request) < 0 ? -errno : 0;
	if (error == 0) {
		request.ifr_flags = (short)(request.ifr_flags | IFF_UP);
		error = ioctl(fd, SIOCSIFFLAGS, &request) < 0 ? -errno : 0;
	}
	close(fd);
	return error;
}

/* A socket bound to `address`, whose port 0 is replaced by the one it got. */
static int bound(int type, struct sockaddr_in *address)
{
	int fd = socket(AF_INET, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -errno;
	socklen_t size = sizeof(*address);
	if (bind(fd, (struct sockaddr *)address, size) < 0 || (type == SOCK_STREAM && listen(fd, 128) < 0) ||
	    getsockname(fd, (struct sockaddr *)address, &size) < 0) {
		int error = -errno;
		close(fd);
		return error;
	}
	return fd;
}

int sandbox_network(const char *address, int fds[2], int *port, struct failure *failure)
{
	fds[0] = fds[1] = -1;
	int error = loopback_up();
	if (error < 0)
		return fail(failure, 125, -error, "cannot bring lo up in the container");
	if (address == NULL)
		return 0;
	struct in_addr host;
	if (inet_pton(AF_INET, address, &host) != 1)
		return fail(failure, 125, EINVAL, "cannot bind the name server to %s", address);
	for (int i = 0; i < PORT_TRIES; i++) {
		struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr = host};
		fds[0] = bound(SOCK_DGRAM, &name);
		if (fds[0] < 0)
			return fail(failure, 125, -fds[0], "cannot bind the name server to %s", address);
		fds[1] = bound(SOCK_STREAM, &name);
		if (fds[1] >= 0) {
			*port = ntohs(name.sin_port);
			return 0;
		}
		close(fds[0]);
		error = fds[1];
	}
	return fail(failure, 125, -error, "cannot bind the name server to %s", address);
}

int cgroup_make(const char *path)
{
	/* Another shim's last words may remove the directory above in between. */
	int error = make_directories(path);
	for (int i = 0; i < 10 && error == -ENOENT; i++)
		error = make_directories(path);
	if (error < 0)
		return error;
	int fd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

void cgroup_remove(const char *path)
{
	char kill_path[4096];
	if (snprintf(kill_path, sizeof(kill_path), "%s/cgroup.kill", path) >= (int)sizeof(kill_path))
		return;
	int fd = open(kill_path, O_WRONLY | O_CLOEXEC);
	if (fd >= 0) {
		(void)!write(fd, "1", 1);
		close(fd);
	}
	/* Dead processes leave a cgroup a moment after they were reaped. */
	for (int i = 0; i < 50 && rmdir(path) < 0 && errno == EBUSY; i++)
		poll(NULL, 0, 2);
	char *slash = strrchr(kill_path, '/');
	*slash = '\0';
	slash = strrchr(kill_path, '/');
	*slash = '\0';
	rmdir(kill_path);
}

int cgroups_join(const struct config *config, struct failure *failure)
{
	for (size_t i = 0; i < config->joins.count; i++) {
		char path[4096];
		if (snprintf(path, sizeof(path), "%s/cgroup.procs", config->joins.at[i]) >= (int)sizeof(path))
			return fail(failure, 125, ENAMETOOLONG, "cannot enter the cgroup %.64s", config->joins.at[i]);
		int fd = open(path, O_WRONLY | O_CLOEXEC);
		if (fd < 0 || write(fd, "0", 1) < 0) {
			int error = errno;
			if (fd >= 0)
				close(fd);
			return fail(failure, 125, error, "cannot enter the cgroup %s", config->joins.at[i]);
		}
		close(fd);
	}
	return 0;
}

void cgroups_remove(const struct config *config)
{
	if (config->cgroup != NULL)
		cgroup_remove(config->cgroup);
	for (size_t i = 0; i < config->joins.count; i++)
		cgroup_remove(config->joins.at[i]);
}

int terminal_open(int devpts, int *master, int *slave)
{
	*slave = -1;
	*master = openat(devpts, "ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (*master < 0)
		return -errno;
	int unlocked = 0;
	if (ioctl(*master, TIOCSPTLCK, &unlocked) < 0 ||
	    (*slave = ioctl(*master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC)) < 0) {
		int error = -errno;
		close(*master);
		return error;
	}
	return 0;
}
