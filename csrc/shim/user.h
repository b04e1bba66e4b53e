/* Whom a command runs as: names and numbers as the container's own /etc/passwd and /etc/group have them. No libc
 * lookup: that would load the host's name services into a process of the container. */
#ifndef VXNET_SHIM_USER_H
#define VXNET_SHIM_USER_H

#include "root.h"

#include <sys/types.h>

#define GROUPS_MAX 64

struct user {
	uid_t uid;
	gid_t gid;
	gid_t groups[GROUPS_MAX]; /* supplementary */
	size_t group_count;
	char home[256];
};

/* `wish` is USER[:GROUP], each a name or a number; NULL: root. As Docker's: a number need not be in /etc/passwd, and
 * then has group 0; a user's supplementary groups come with him unless a group is named. 0, or -errno with `failure`
 * set (126). */
int user_find(const char *wish, struct user *user, struct failure *failure);

/* Becomes that user. The caller keeps no capabilities then unless it stays root. 0 or -errno. */
int user_become(const struct user *user);

/* One line of passwd or group without its newline, taken apart in place: `count` columns, or false. Pure. */
bool columns_split(char *line, char **columns, size_t count);

#endif
