/* Fields to records; every check of what a daemon or client sent is here and in protocol.c. */
#include "config.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

/* CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID SETPCAP NET_BIND_SERVICE NET_RAW SYS_CHROOT AUDIT_WRITE SETFCAP:
 * Docker's default without MKNOD, for a node that could be made could be opened. */
#define CAPS_DEFAULT UINT64_C(0xa00425fb)

int strings_add(struct strings *strings, char *value)
{
	/* Grows at powers of two, room for the NULL included. */
	if ((strings->count & (strings->count + 1)) == 0) {
		char **more = realloc(strings->at, (strings->count * 2 + 2) * sizeof(char *));
		if (more == NULL)
			return -ENOMEM;
		strings->at = more;
	}
	strings->at[strings->count++] = value;
	strings->at[strings->count] = NULL;
	return 0;
}

int env_set(struct strings *into, char *pair)
{
	size_t name = strcspn(pair, "=") + 1;
	for (size_t i = 0; i < into->count; i++)
		if (strncmp(into->at[i], pair, name) == 0) {
			into->at[i] = pair;
			return 0;
		}
	return strings_add(into, pair);
}

static int flag_parse(const char *value, bool *flag)
{
	if (strcmp(value, "0") != 0 && strcmp(value, "1") != 0)
		return -EINVAL;
	*flag = *value == '1';
	return 0;
}

static int path_parse(char *value, const char **path)
{
	if (*value != '/')
		return -EINVAL;
	*path = value;
	return 0;
}

static int text_parse(char *value, const char **text)
{
	*text = value;
	return 0;
}

/* 1: not a field of a program. */
static int program_field(struct program *program, const char *key, char *value)
{
	if (strcmp(key, "arg") == 0)
		return strings_add(&program->argv, value);
	if (strcmp(key, "env") == 0)
		return *value == '=' || strchr(value, '=') == NULL ? -EINVAL : env_set(&program->env, value);
	if (strcmp(key, "workdir") == 0)
		return path_parse(value, &program->workdir);
	if (strcmp(key, "user") == 0)
		return *value == '\0' ? -EINVAL : text_parse(value, &program->user);
	if (strcmp(key, "terminal") == 0)
		return flag_parse(value, &program->terminal);
	return 1;
}

/* Steps over `word` if the comma-separated `*rest` begins with it. */
static bool word_taken(char **rest, const char *word)
{
	size_t length = strlen(word);
	if (strncmp(*rest, word, length) != 0 || ((*rest)[length] != ',' && (*rest)[length] != '\0'))
		return false;
	*rest += length + ((*rest)[length] == ',');
	return true;
}

static int mount_begin(struct config *config, char *value)
{
	struct mount_wish *more = realloc(config->mounts, (config->mount_count + 1) * sizeof(*more));
	if (more == NULL)
		return -ENOMEM;
	config->mounts = more;
	struct mount_wish *wish = &more[config->mount_count++];
	*wish = (struct mount_wish){.options = ""};

	char *rest = value + strcspn(value, ",");
	if (*rest != '\0')
		*rest++ = '\0';
	if (strcmp(value, "tmpfs") == 0)
		wish->tmpfs = true;
	else if (strcmp(value, "bind") != 0)
		return -EINVAL;
	wish->read_only = word_taken(&rest, "ro");
	wish->executable = wish->tmpfs && word_taken(&rest, "exec");
	if (*rest != '\0' && !wish->tmpfs)
		return -EINVAL;
	wish->options = rest;
	return 0;
}

static int mount_path(struct config *config, bool source, char *value)
{
	if (config->mount_count == 0)
		return -EINVAL;
	struct mount_wish *wish = &config->mounts[config->mount_count - 1];
	return path_parse(value, source ? &wish->source : &wish->target);
}

static int caps_parse(const char *value, uint64_t *caps)
{
	if (*value == '\0' || strspn(value, "0123456789abcdef") != strlen(value) || strlen(value) > 16)
		return -EINVAL;
	*caps = strtoull(value, NULL, 16);
	return 0;
}

static int config_field(struct config *config, const char *key, char *value)
{
	const struct {
		const char *key;
		const char **path;
	} paths[] = {{"dir", &config->dir}, {"socket", &config->socket}, {"cgroup", &config->cgroup},
		     {"rootfs", &config->rootfs}},
	  texts[] = {{"id", &config->id}, {"hostname", &config->hostname}, {"dns", &config->dns}};
	for (size_t i = 0; i < sizeof(paths) / sizeof(paths[0]); i++)
		if (strcmp(key, paths[i].key) == 0)
			return path_parse(value, paths[i].path);
	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++)
		if (strcmp(key, texts[i].key) == 0)
			return text_parse(value, texts[i].path);
	if (strcmp(key, "socket_gid") == 0) {
		long gid;
		int error = number_parse(value, 0, 0xfffffffe, &gid);
		config->socket_gid = error == 0 ? (gid_t)gid : (gid_t)-1;
		return error;
	}
	if (strcmp(key, "netns") == 0) {
		config->host_network = true;
		return strcmp(value, "host") == 0 ? 0 : -EINVAL;
	}
	if (strcmp(key, "stdin") == 0)
		return flag_parse(value, &config->stdin_open);
	if (strcmp(key, "volatile") == 0)
		return flag_parse(value, &config->volatile_upper);
	if (strcmp(key, "read_only") == 0)
		return flag_parse(value, &config->read_only);
	if (strcmp(key, "seccomp") == 0)
		return flag_parse(value, &config->filtered);
	if (strcmp(key, "caps") == 0)
		return caps_parse(value, &config->caps);
	if (strcmp(key, "mount") == 0)
		return mount_begin(config, value);
	if (strcmp(key, "source") == 0 || strcmp(key, "target") == 0)
		return mount_path(config, *key == 's', value);
	if (strcmp(key, "log_max") == 0)
		return number_parse(value, 1, LONG_MAX, &config->log_max);
	if (strcmp(key, "log_files") == 0)
		return number_parse(value, 1, 100, &config->log_files);
	if (strcmp(key, "join") == 0)
		return *value == '/' ? strings_add(&config->joins, value) : -EINVAL;
	if (strcmp(key, "mask") == 0)
		return *value == '/' ? strings_add(&config->masks, value) : -EINVAL;
	if (strcmp(key, "sysctl") == 0)
		return strncmp(value, "net.", 4) == 0 && strchr(value, '=') != NULL && strchr(value, '/') == NULL
			       ? strings_add(&config->sysctls, value)
			       : -EINVAL;
	return -EINVAL;
}

/* What a container cannot be without; NULL when nothing is missing. */
static const char *config_missing(const struct config *config)
{
	if (config->program.argv.count == 0)
		return "arg";
	if (config->id == NULL)
		return "id";
	if (config->dir == NULL)
		return "dir";
	if (config->socket == NULL)
		return "socket";
	if (config->hostname == NULL)
		return "hostname";
	for (size_t i = 0; i < config->mount_count; i++)
		if (config->mounts[i].target == NULL || (config->mounts[i].source == NULL) != config->mounts[i].tmpfs)
			return "target";
	return NULL;
}

int config_parse(struct config *config, struct fields fields, const char **culprit)
{
	*config = (struct config){.program.workdir = "/", .socket_gid = (gid_t)-1, .caps = CAPS_DEFAULT, .seccomp = -1, .log_files = 1};
	*culprit = "message";
	char *value;
	int error;
	while ((error = field_next(&fields, culprit, &value)) == 1) {
		int known = program_field(&config->program, *culprit, value);
		error = known == 1 ? config_field(config, *culprit, value) : known;
		if (error < 0)
			goto out;
	}
	if (error == 0) {
		const char *missing = config_missing(config);
		if (missing != NULL) {
			*culprit = missing;
			error = -EINVAL;
		}
	}
out:
	if (error < 0)
		config_free(config);
	return error;
}

int program_parse(struct program *program, struct fields fields, const char **culprit)
{
	*program = (struct program){0};
	*culprit = "message";
	char *value;
	int error;
	while ((error = field_next(&fields, culprit, &value)) == 1) {
		error = program_field(program, *culprit, value);
		if (error != 0) {
			error = error < 0 ? error : -EINVAL;
			break;
		}
	}
	if (error == 0 && program->argv.count == 0) {
		*culprit = "arg";
		error = -EINVAL;
	}
	if (error < 0)
		program_free(program);
	return error;
}

void program_free(struct program *program)
{
	free(program->argv.at);
	free(program->env.at);
	*program = (struct program){0};
}

void config_free(struct config *config)
{
	program_free(&config->program);
	free(config->mounts);
	free(config->masks.at);
	free(config->joins.at);
	free(config->sysctls.at);
	*config = (struct config){0};
}
