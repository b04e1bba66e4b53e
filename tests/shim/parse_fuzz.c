/* Feeds the shim's parsers with mutated messages; the sanitizers judge. Arguments: seed, rounds. */
#include "config.h"
#include "mounts.h"
#include "user.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t state;

static uint64_t next(void)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state;
}

static const char *const pieces[] = {
	"id=", "dir=/d", "socket=/s", "hostname=h", "arg=", "env=", "env=A=1", "env=A=2", "workdir=/", "user=1:2", "user=", "terminal=1", "stdin=0",
	"volatile=", "cgroup=/c", "join=/j", "log_max=1", "log_files=101", "dns=127.0.0.11", "caps=a00425fb", "caps=ffffffffffffffffff", "mount=bind,ro", "mount=bind",
	"mount=tmpfs,ro,exec,size=1m", "mount=tmpfs,exec", "rootfs=/r", "read_only=1", "mount=tmpfs", "mount=,", "source=/a", "target=/b", "target=", "mask=/m", "sysctl=net.a=1",
	"socket_gid=0", "seccomp=1", "seccomp=2", "socket_gid=99999999999999999999", "=", "", "unknown=1", "signal=9",
};

static size_t message(char *data, size_t room)
{
	static const char whole[] = "id=1\0dir=/d\0socket=/s\0hostname=h\0arg=true";
	size_t size = next() % 2 == 0 ? sizeof(whole) : 0;
	memcpy(data, whole, size);
	for (uint64_t count = next() % 24; count > 0; count--) {
		const char *piece = pieces[next() % (sizeof(pieces) / sizeof(pieces[0]))];
		size_t length = strlen(piece) + 1;
		if (size + length > room)
			break;
		memcpy(data + size, piece, length);
		size += length;
	}
	for (uint64_t count = next() % 4; count > 0 && size > 0; count--)
		data[next() % size] = (char)next();
	return next() % 8 == 0 && size > 0 ? size - next() % size : size;
}

int main(int argc, char **argv)
{
	if (argc != 3)
		return 2;
	state = strtoull(argv[1], NULL, 10) | 1;
	unsigned long parsed = 0;
	for (unsigned long round = strtoul(argv[2], NULL, 10); round > 0; round--) {
		char room[1024];
		size_t size = message(room, sizeof(room));
		/* Exactly as large as the message, so that one octet too far is seen. */
		char *data = malloc(size > 0 ? size : 1), *again = malloc(size > 0 ? size : 1), *text = malloc(size + 1);
		if (data == NULL || again == NULL || text == NULL)
			return 2;
		memcpy(data, room, size);
		memcpy(again, room, size);
		memcpy(text, room, size);
		text[size] = '\0';
		const char *culprit;
		struct config config;
		struct program program;
		struct message header;
		if (config_parse(&config, (struct fields){.next = data, .left = size}, &culprit) == 0) {
			parsed++;
			config_free(&config);
		}
		if (program_parse(&program, (struct fields){.next = again, .left = size}, &culprit) == 0)
			program_free(&program);
		(void)header_parse(&header, room, size);
		mount_unescape(text);
		char *columns[6];
		(void)columns_split(text, columns, 1 + next() % 6);
		long number;
		(void)number_parse(text, 0, 100, &number);
		free(data);
		free(again);
		free(text);
	}
	printf("%lu\n", parsed);
	return 0;
}
