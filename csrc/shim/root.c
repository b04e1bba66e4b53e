/* In the order of things: copies of mounts while the host is in sight, pivot_root, then everything else inside. */
#include "root.h"
#include "mounts.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define QUIET (MS_NOSUID | MS_NODEV | MS_NOEXEC)

int fail(struct failure *failure, int status, int error, const char *format, ...)
{
	failure->status = status;
	va_list arguments;
	va_start(arguments, format);
	int used = vsnprintf(failure->text, sizeof(failure->text), format, arguments);
	va_end(arguments);
	if (used >= 0 && (size_t)used < sizeof(failure->text))
		snprintf(failure->text + used, sizeof(failure->text) - (size_t)used, ": %s", strerror(error));
	return -error;
}

int make_directories(const char *path)
{
	char copy[4096];
	if (strlen(path) >= sizeof(copy))
		return -ENAMETOOLONG;
	strcpy(copy, path);
	for (char *slash = copy + 1; *slash != '\0'; slash++) {
		if (*slash != '/')
			continue;
		*slash = '\0';
		if (mkdir(copy, 0755) < 0 && errno != EEXIST)
			return -errno;
		*slash = '/';
	}
	return mkdir(copy, 0755) < 0 && errno != EEXIST ? -errno : 0;
}

static int mount_new(const char *type, const char *target, unsigned long flags, const char *options,
		     struct failure *failure)
{
	if (mkdir(target, 0755) < 0 && errno != EEXIST)
		return fail(failure, 125, errno, "cannot make %s in the container", target);
	if (mount(type, target, type, flags, options) < 0)
		return fail(failure, 125, errno, "cannot mount %s on %s", type, target);
	return 0;
}

/* In the working directory `<dir>`: relative paths, and a descriptor's, need no escaping in overlayfs' options. */
static int mount_overlay(const char *lower, const char *base, bool volatile_upper)
{
	char options[256], root[64];
	snprintf(options, sizeof(options), "lowerdir=%s,upperdir=%supper,workdir=%swork%s", lower, base, base,
		 volatile_upper ? ",volatile" : "");
	snprintf(root, sizeof(root), "%sroot", base);
	const char *const names[] = {"upper", "work", "root"};
	for (size_t i = 0; i < 3; i++) {
		char path[64];
		snprintf(path, sizeof(path), "%s%s", base, names[i]);
		if (mkdir(path, 0755) < 0 && errno != EEXIST)
			return -errno;
	}
	return mount("vxnet", root, "overlay", MS_NODEV, options) < 0 ? -errno : 0;
}

static int enter_overlay(const struct config *config, bool *tmpfs, struct failure *failure)
{
	char lower[64] = "/";
	const char *named = config->rootfs != NULL ? config->rootfs : "/";
	int rootfs = open(named, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (rootfs < 0)
		return fail(failure, 125, errno, "cannot enter %s", named);
	if (config->rootfs != NULL)
		snprintf(lower, sizeof(lower), "/proc/self/fd/%d", rootfs);
	int error = chdir(config->dir) < 0 ? -errno : 0;
	if (error < 0) {
		fail(failure, 125, -error, "cannot enter %s", config->dir);
		goto out;
	}
	*tmpfs = false;
	error = mount_overlay(lower, "", config->volatile_upper);
	if (error == -EINVAL || error == -EOPNOTSUPP) {
		*tmpfs = true;
		if (mount("tmpfs", "root", "tmpfs", 0, "mode=755") < 0) {
			error = fail(failure, 125, errno, "cannot mount a tmpfs on %s/root", config->dir);
			goto out;
		}
		error = mount_overlay(lower, "root/", false);
	}
	if (error < 0)
		fail(failure, 125, -error, "cannot mount an overlay of %s on %s/root", named, config->dir);
out:
	close(rootfs);
	return error;
}

static int enter_root(const struct config *config, bool tmpfs, struct failure *failure)
{
	if (chdir(tmpfs ? "root/root" : "root") < 0)
		return fail(failure, 125, errno, "cannot enter %s/root", config->dir);
	/* The old root lands on top of the new one, and is then taken off it: no directory for it is needed. */
	if (syscall(SYS_pivot_root, ".", ".") < 0)
		return fail(failure, 125, errno, "cannot pivot_root to %s/root", config->dir);
	if (umount2(".", MNT_DETACH) < 0 || chdir("/") < 0)
		return fail(failure, 125, errno, "cannot leave the host's root");
	return 0;
}

/* `path` stays a device although its directory's mount will have none. */
static int keep_device(const char *path, struct failure *failure)
{
	int fd = mount_copy_file(path);
	int error = fd < 0 ? fd : mount_attach(fd, path);
	if (fd >= 0)
		close(fd);
	return error < 0 ? fail(failure, 125, -error, "cannot keep %s in the container", path) : 0;
}

/* `more`: the container can make nodes, which must not open. */
static int make_devices(bool more, struct failure *failure)
{
	static const struct {
		const char *path;
		unsigned int major, minor;
	} nodes[] = {
		{"/dev/null", 1, 3},	{"/dev/zero", 1, 5},	{"/dev/full", 1, 7},
		{"/dev/random", 1, 8},	{"/dev/urandom", 1, 9}, {"/dev/tty", 5, 0},
	};
	static const char *const links[][2] = {
		{"pts/ptmx", "/dev/ptmx"},	       {"/proc/self/fd", "/dev/fd"},
		{"/proc/self/fd/0", "/dev/stdin"},     {"/proc/self/fd/1", "/dev/stdout"},
		{"/proc/self/fd/2", "/dev/stderr"},
	};
	int error = mount_new("tmpfs", "/dev", MS_NOSUID | MS_NOEXEC, "mode=755,size=64k", failure);
	if (error == 0)
		error = mount_new("devpts", "/dev/pts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5",
				  failure);
	if (error == 0)
		error = mount_new("tmpfs", "/dev/shm", QUIET, "mode=1777,size=64m", failure);
	for (size_t i = 0; error == 0 && i < sizeof(nodes) / sizeof(nodes[0]); i++)
		if (mknod(nodes[i].path, S_IFCHR | 0666, makedev(nodes[i].major, nodes[i].minor)) < 0)
			error = fail(failure, 125, errno, "cannot make %s in the container", nodes[i].path);
	for (size_t i = 0; more && error == 0 && i < sizeof(nodes) / sizeof(nodes[0]); i++)
		error = keep_device(nodes[i].path, failure);
	if (more && error == 0) {
		int closing = mount_without_devices("/dev");
		error = closing < 0 ? fail(failure, 125, -closing, "cannot close /dev in the container") : 0;
	}
	for (size_t i = 0; error == 0 && i < sizeof(links) / sizeof(links[0]); i++)
		if (symlink(links[i][0], links[i][1]) < 0)
			error = fail(failure, 125, errno, "cannot make %s in the container", links[i][1]);
	return error;
}

/* A directory or file that is there is covered; one that is not needs no cover. */
static int mask(const char *path, struct failure *failure)
{
	struct stat found;
	if (stat(path, &found) < 0)
		return errno == ENOENT || errno == ENOTDIR ? 0 : fail(failure, 125, errno, "cannot mask %s", path);
	int error = S_ISDIR(found.st_mode) ? mount("tmpfs", path, "tmpfs", QUIET | MS_RDONLY, "mode=000,nr_inodes=1")
					   : mount("/dev/null", path, NULL, MS_BIND, NULL);
	return error < 0 ? fail(failure, 125, errno, "cannot mask %s", path) : 0;
}

/* Docker's maskedPaths and readonlyPaths. */
static int cover_kernel(struct failure *failure)
{
	static const char *const masked[] = {
		"/proc/asound",	     "/proc/acpi",	  "/proc/kcore", "/proc/keys",	  "/proc/latency_stats",
		"/proc/timer_list",  "/proc/timer_stats", "/proc/scsi",	 "/sys/firmware", "/proc/sched_debug",
		"/sys/devices/virtual/powercap",
	};
	static const char *const fixed[] = {"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"};
	int error = 0;
	for (size_t i = 0; error == 0 && i < sizeof(masked) / sizeof(masked[0]); i++)
		error = mask(masked[i], failure);
	for (size_t i = 0; error == 0 && i < sizeof(fixed) / sizeof(fixed[0]); i++) {
		if (mount(fixed[i], fixed[i], NULL, MS_BIND, NULL) < 0) {
			error = errno == ENOENT ? 0 : fail(failure, 125, errno, "cannot protect %s", fixed[i]);
			continue;
		}
		int fixing = mount_read_only(fixed[i]);
		error = fixing < 0 ? fail(failure, 125, -fixing, "cannot protect %s", fixed[i]) : 0;
	}
	return error;
}

/* 0 or -errno. `setting` is name=value, the name with dots. */
static int set_sysctl(const char *setting)
{
	char path[256];
	const char *value = strchr(setting, '=') + 1;
	if (snprintf(path, sizeof(path), "/proc/sys/%.*s", (int)(value - 1 - setting), setting) >= (int)sizeof(path))
		return -ENAMETOOLONG;
	for (char *dot = path + strlen("/proc/sys/"); *dot != '\0'; dot++)
		*dot = *dot == '.' ? '/' : *dot;
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	int error = write(fd, value, strlen(value)) < 0 ? -errno : 0;
	close(fd);
	return error;
}

static int set_sysctls(const struct config *config, struct failure *failure)
{
	/* Docker's: ping without a capability, ports below 1024 for everybody. Not every kernel has them. */
	(void)set_sysctl("net.ipv4.ping_group_range=0 2147483647");
	(void)set_sysctl("net.ipv4.ip_unprivileged_port_start=0");
	for (size_t i = 0; i < config->sysctls.count; i++) {
		int error = set_sysctl(config->sysctls.at[i]);
		if (error < 0)
			return fail(failure, 125, -error, "cannot set sysctl %s", config->sysctls.at[i]);
	}
	return 0;
}

/* Something to mount on, as large as nothing: the overlay keeps it from the host. A link that leads nowhere (Debian's
 * /etc/resolv.conf into /run) gives way. */
static int make_target(const char *target, bool directory)
{
	struct stat found;
	if (stat(target, &found) == 0)
		return 0;
	if (lstat(target, &found) == 0 && S_ISLNK(found.st_mode) && unlink(target) < 0)
		return -errno;
	if (directory)
		return make_directories(target);
	char parent[4096];
	size_t length = (size_t)(strrchr(target, '/') - target);
	if (length >= sizeof(parent))
		return -ENAMETOOLONG;
	if (length > 0) {
		memcpy(parent, target, length);
		parent[length] = '\0';
		int error = make_directories(parent);
		if (error < 0)
			return error;
	}
	int fd = open(target, O_CREAT | O_WRONLY | O_CLOEXEC | O_NOFOLLOW, 0644);
	if (fd < 0)
		return -errno;
	close(fd);
	return 0;
}

static int attach_wish(const struct mount_wish *wish, int fd, struct failure *failure)
{
	struct stat source = {.st_mode = S_IFDIR};
	int error = fd >= 0 && fstat(fd, &source) < 0 ? -errno : make_target(wish->target, S_ISDIR(source.st_mode));
	if (error == 0 && fd >= 0)
		error = mount_attach(fd, wish->target);
	else if (error == 0 && mount("tmpfs", wish->target, "tmpfs",
				     MS_NOSUID | MS_NODEV | (wish->read_only ? MS_RDONLY : 0) |
					     (wish->executable ? 0 : MS_NOEXEC),
				     wish->options) < 0)
		error = -errno;
	return error < 0 ? fail(failure, 125, -error, "cannot mount %s in the container", wish->target) : 0;
}

/* Own tree of /proc, /sys, /dev, /run and /tmp over the bare root. */
static int mount_kernel(const struct config *config, struct failure *failure)
{
	int error = mount_new("proc", "/proc", QUIET, NULL, failure);
	if (error == 0)
		error = mount_new("sysfs", "/sys", QUIET | MS_RDONLY, NULL, failure);
	if (error == 0)
		error = make_devices((config->caps >> CAP_MKNOD & 1) != 0, failure);
	if (error == 0)
		error = mount_new("tmpfs", "/run", MS_NOSUID | MS_NODEV, "mode=755", failure);
	if (error == 0 && (mkdir("/run/lock", 01777) < 0 || chmod("/run/lock", 01777) < 0))
		error = fail(failure, 125, errno, "cannot make /run/lock in the container");
	if (error == 0)
		error = mount_new("tmpfs", "/tmp", MS_NOSUID | MS_NODEV, "mode=1777", failure);
	/* Runtimes read their limits there; without it they do with the host's figures. */
	if (error == 0 && config->cgroup != NULL)
		(void)mount("cgroup2", "/sys/fs/cgroup", "cgroup2", QUIET | MS_RDONLY, NULL);
	if (error == 0)
		error = set_sysctls(config, failure);
	return error == 0 ? cover_kernel(failure) : error;
}

/* What is written to the root before it closes: the working directory, where that is still to be made. */
static int close_root(const struct config *config, struct failure *failure)
{
	if (!config->read_only)
		return 0;
	int error = make_directories(config->program.workdir);
	if (error < 0)
		return fail(failure, 125, -error, "cannot make the working directory %s", config->program.workdir);
	error = mount_read_only("/");
	return error < 0 ? fail(failure, 125, -error, "cannot make the root read-only") : 0;
}

int root_enter(const struct config *config, bool *tmpfs, struct failure *failure)
{
	struct loose_mounts shared = {0};
	int error = 0;
	int *binds = calloc(config->mount_count + 1, sizeof(int));
	if (binds == NULL)
		return fail(failure, 125, ENOMEM, "cannot read the mounts");
	for (size_t i = 0; i < config->mount_count; i++)
		binds[i] = -1;

	/* Private: what the host mounts or unmounts later neither shows nor is held here. */
	if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
		error = fail(failure, 125, errno, "cannot make the mounts private");
	if (error == 0 && config->rootfs == NULL && (error = mounts_of_host(&shared)) < 0)
		error = fail(failure, 125, -error, "cannot read the host's mounts");
	for (size_t i = 0; error == 0 && i < config->mount_count; i++) {
		const struct mount_wish *wish = &config->mounts[i];
		if (wish->tmpfs)
			continue;
		binds[i] = mount_copy(wish->source, true, wish->read_only);
		if (binds[i] < 0)
			error = fail(failure, 125, -binds[i], "cannot bind %s", wish->source);
	}
	if (error == 0)
		error = enter_overlay(config, tmpfs, failure);
	if (error == 0)
		error = enter_root(config, *tmpfs, failure);
	/* One whose directory the root does not have was mounted below a mount that is left out. */
	for (size_t i = 0; error == 0 && i < shared.count; i++)
		(void)mount_attach(shared.at[i].fd, shared.at[i].target);
	if (error == 0)
		error = mount_kernel(config, failure);
	for (size_t i = 0; error == 0 && i < config->mount_count; i++)
		error = attach_wish(&config->mounts[i], binds[i], failure);
	for (size_t i = 0; error == 0 && i < config->masks.count; i++)
		error = mask(config->masks.at[i], failure);
	if (error == 0)
		error = close_root(config, failure);

	for (size_t i = 0; i < config->mount_count; i++)
		if (binds[i] >= 0)
			close(binds[i]);
	free(binds);
	mounts_free(&shared);
	return error;
}
