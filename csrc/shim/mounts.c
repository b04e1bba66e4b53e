/* mountinfo, and loose copies of what it lists. */
#include "mounts.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/mount.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static int set_attributes(int fd, const char *path, unsigned int flags, uint64_t set)
{
	struct mount_attr attributes = {.attr_set = set};
	return syscall(SYS_mount_setattr, fd, path, flags, &attributes, sizeof(attributes)) < 0 ? -errno : 0;
}

int mount_copy(const char *path, bool deep, bool read_only)
{
	unsigned int depth = deep ? AT_RECURSIVE : 0;
	long fd = syscall(SYS_open_tree, AT_FDCWD, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | depth);
	if (fd < 0)
		return -errno;
	uint64_t set = MOUNT_ATTR_NODEV | (read_only ? MOUNT_ATTR_RDONLY : 0);
	int error = set_attributes((int)fd, "", AT_EMPTY_PATH | depth, set);
	if (error < 0) {
		close((int)fd);
		return error;
	}
	return (int)fd;
}

int mount_copy_file(const char *path)
{
	long fd = syscall(SYS_open_tree, AT_FDCWD, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
	return fd < 0 ? -errno : (int)fd;
}

int mount_attach(int fd, const char *target)
{
	return syscall(SYS_move_mount, fd, "", AT_FDCWD, target, MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_SYMLINKS) < 0
		       ? -errno
		       : 0;
}

int mount_read_only(const char *path)
{
	return set_attributes(AT_FDCWD, path, 0, MOUNT_ATTR_RDONLY);
}

int mount_without_devices(const char *path)
{
	return set_attributes(AT_FDCWD, path, 0, MOUNT_ATTR_NODEV);
}

static bool is_below(const char *path, const char *directory)
{
	size_t length = strlen(directory);
	return strncmp(path, directory, length) == 0 && (path[length] == '/' || path[length] == '\0');
}

bool mount_shared(const char *point, const char *type)
{
	/* Made anew for every container, or another engine's containers, which are many and none of our business. */
	static const char *const own[] = {
		"/proc", "/sys", "/dev", "/run", "/tmp", "/var/lib/docker", "/var/lib/containers", "/var/lib/containerd",
		"/var/lib/vxnet", "/var/lib/vxnet-lab",
	};
	static const char *const kernel[] = {
		"proc", "sysfs", "devtmpfs", "devpts", "cgroup", "cgroup2", "securityfs", "debugfs", "tracefs", "configfs",
		"bpf", "pstore", "efivarfs", "mqueue", "hugetlbfs", "fusectl", "binfmt_misc", "autofs", "nsfs",
		"rpc_pipefs", "selinuxfs", "overlay",
	};
	if (strcmp(point, "/") == 0)
		return false;
	for (size_t i = 0; i < sizeof(own) / sizeof(own[0]); i++)
		if (is_below(point, own[i]))
			return false;
	for (size_t i = 0; i < sizeof(kernel) / sizeof(kernel[0]); i++)
		if (strcmp(type, kernel[i]) == 0)
			return false;
	return true;
}

void mount_unescape(char *text)
{
	char *to = text;
	for (const char *from = text; *from != '\0';) {
		if (from[0] == '\\' && from[1] >= '0' && from[1] <= '3' && from[2] >= '0' && from[2] <= '7' &&
		    from[3] >= '0' && from[3] <= '7') {
			*to++ = (char)((from[1] - '0') << 6 | (from[2] - '0') << 3 | (from[3] - '0'));
			from += 4;
		} else {
			*to++ = *from++;
		}
	}
	*to = '\0';
}

static int mounts_add(struct loose_mounts *mounts, const char *target, int fd)
{
	struct loose_mount *more = realloc(mounts->at, (mounts->count + 1) * sizeof(*more));
	if (more == NULL)
		return -ENOMEM;
	mounts->at = more;
	char *copy = strdup(target);
	if (copy == NULL)
		return -ENOMEM;
	more[mounts->count++] = (struct loose_mount){.target = copy, .fd = fd};
	return 0;
}

/* proc(5): `36 35 98:0 /root /point options optional… - type source options`. */
static int add_line(struct loose_mounts *mounts, char *line)
{
	char *rest = line;
	char *point = NULL;
	for (int column = 0; column < 5; column++) {
		point = strsep(&rest, " ");
		if (rest == NULL)
			return 0;
	}
	char *separator = strstr(rest, " - ");
	if (separator == NULL)
		return 0;
	separator += 3;
	const char *type = strsep(&separator, " ");
	mount_unescape(point);
	if (!mount_shared(point, type))
		return 0;
	int fd = mount_copy(point, false, true);
	if (fd < 0)
		return 0;
	int error = mounts_add(mounts, point, fd);
	if (error < 0)
		close(fd);
	return error;
}

int mounts_of_host(struct loose_mounts *mounts)
{
	*mounts = (struct loose_mounts){0};
	FILE *table = fopen("/proc/self/mountinfo", "re");
	if (table == NULL)
		return -errno;
	char *line = NULL;
	size_t room = 0;
	int error = 0;
	while (error == 0 && getline(&line, &room, table) > 0) {
		line[strcspn(line, "\n")] = '\0';
		error = add_line(mounts, line);
	}
	free(line);
	fclose(table);
	if (error < 0)
		mounts_free(mounts);
	return error;
}

void mounts_free(struct loose_mounts *mounts)
{
	for (size_t i = 0; i < mounts->count; i++) {
		close(mounts->at[i].fd);
		free(mounts->at[i].target);
	}
	free(mounts->at);
	*mounts = (struct loose_mounts){0};
}
