/* passwd(5) and group(5), line by line. */
#include "user.h"

#include <errno.h>
#include <grp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define ID_MAX 0xfffffffe

bool columns_split(char *line, char **columns, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		columns[i] = strsep(&line, ":");
		if (columns[i] == NULL)
			return false;
	}
	return true;
}

/* Is `name` one of the comma-separated `members`? */
static bool is_member(const char *members, const char *name)
{
	size_t length = strlen(name);
	for (; *members != '\0'; members += strcspn(members, ",") + (members[strcspn(members, ",")] == ','))
		if (strcspn(members, ",") == length && strncmp(members, name, length) == 0)
			return true;
	return false;
}

/* The line of /etc/passwd with this name, or else this number, into `user`; its name into `name`. */
static bool passwd_find(const char *wanted, bool numeric, long number, struct user *user, char name[256])
{
	FILE *file = fopen("/etc/passwd", "re");
	char *line = NULL, *columns[6];
	size_t room = 0;
	bool found = false;
	long uid, gid;
	while (file != NULL && !found && getline(&line, &room, file) > 0) {
		line[strcspn(line, "\n")] = '\0';
		if (!columns_split(line, columns, 6) || number_parse(columns[2], 0, ID_MAX, &uid) < 0 ||
		    number_parse(columns[3], 0, ID_MAX, &gid) < 0)
			continue;
		found = strcmp(columns[0], wanted) == 0 || (numeric && uid == number);
		if (!found)
			continue;
		user->uid = (uid_t)uid;
		user->gid = (gid_t)gid;
		snprintf(name, 256, "%s", columns[0]);
		snprintf(user->home, sizeof(user->home), "%s", *columns[5] != '\0' ? columns[5] : "/");
	}
	free(line);
	if (file != NULL)
		fclose(file);
	return found;
}

/* The group named `wanted` into user->gid (true when there is one), or, without a wish, all that `name` is in. */
static bool group_find(const char *wanted, const char *name, struct user *user)
{
	FILE *file = fopen("/etc/group", "re");
	char *line = NULL, *columns[4];
	size_t room = 0;
	bool found = false;
	long gid;
	while (file != NULL && !found && getline(&line, &room, file) > 0) {
		line[strcspn(line, "\n")] = '\0';
		if (!columns_split(line, columns, 4) || number_parse(columns[2], 0, ID_MAX, &gid) < 0)
			continue;
		if (wanted != NULL && strcmp(columns[0], wanted) == 0) {
			user->gid = (gid_t)gid;
			found = true;
		} else if (wanted == NULL && user->group_count < GROUPS_MAX && is_member(columns[3], name)) {
			user->groups[user->group_count++] = (gid_t)gid;
		}
	}
	free(line);
	if (file != NULL)
		fclose(file);
	return found;
}

static int absent(struct failure *failure, const char *kind, const char *name, const char *file)
{
	failure->status = 126;
	snprintf(failure->text, sizeof(failure->text), "no %s %.64s in the container's %s", kind, name, file);
	return -ENOENT;
}

int user_find(const char *wish, struct user *user, struct failure *failure)
{
	*user = (struct user){.home = "/root"};
	if (wish == NULL)
		return 0;
	char wanted[256], name[256] = "";
	if (strlen(wish) >= sizeof(wanted))
		return fail(failure, 126, ENAMETOOLONG, "cannot run as %.32s…", wish);
	strcpy(wanted, wish);
	char *group = strchr(wanted, ':');
	if (group != NULL)
		*group++ = '\0';
	long number = 0;
	bool numeric = number_parse(wanted, 0, ID_MAX, &number) == 0;
	if (!passwd_find(wanted, numeric, number, user, name)) {
		if (!numeric)
			return absent(failure, "user", wanted, "/etc/passwd");
		user->uid = (uid_t)number;
		strcpy(user->home, "/");
	}
	if (group == NULL) {
		if (*name != '\0')
			(void)group_find(NULL, name, user);
		return 0;
	}
	if (number_parse(group, 0, ID_MAX, &number) == 0)
		user->gid = (gid_t)number;
	else if (!group_find(group, name, user))
		return absent(failure, "group", group, "/etc/group");
	return 0;
}

int user_become(const struct user *user)
{
	if (setgroups(user->group_count, user->groups) < 0 || setresgid(user->gid, user->gid, user->gid) < 0 ||
	    setresuid(user->uid, user->uid, user->uid) < 0)
		return -errno;
	return 0;
}
