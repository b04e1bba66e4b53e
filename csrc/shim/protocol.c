/* Packets to messages and back. */
#include "protocol.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int header_parse(struct message *message, const char *data, size_t size)
{
	if (size < HEADER_SIZE)
		return -EPROTO;
	const unsigned char *octets = (const unsigned char *)data;
	message->version = octets[0];
	message->type = octets[1];
	message->tag = (uint32_t)octets[4] | (uint32_t)octets[5] << 8 | (uint32_t)octets[6] << 16 |
		       (uint32_t)octets[7] << 24;
	return 0;
}

int field_next(struct fields *fields, const char **key, char **value)
{
	if (fields->left == 0)
		return 0;
	char *end = memchr(fields->next, '\0', fields->left);
	if (end == NULL)
		return -EPROTO;
	char *equals = memchr(fields->next, '=', (size_t)(end - fields->next));
	if (equals == NULL || equals == fields->next)
		return -EPROTO;
	*equals = '\0';
	*key = fields->next;
	*value = equals + 1;
	fields->left -= (size_t)(end + 1 - fields->next);
	fields->next = end + 1;
	return 1;
}

int number_parse(const char *text, long low, long high, long *value)
{
	if (*text == '\0' || strspn(text, "0123456789") != strlen(text))
		return -EINVAL;
	errno = 0;
	*value = strtol(text, NULL, 10);
	return errno != 0 || *value < low || *value > high ? -EINVAL : 0;
}

void answer_begin(struct answer *answer, enum message_type type, uint32_t tag)
{
	unsigned char header[HEADER_SIZE] = {PROTOCOL_VERSION, (unsigned char)type};
	for (int i = 0; i < 4; i++)
		header[4 + i] = (unsigned char)(tag >> (8 * i) & 0xff);
	memcpy(answer->data, header, sizeof(header));
	answer->size = sizeof(header);
	answer->overflow = false;
}

void answer_add(struct answer *answer, const char *key, const char *format, ...)
{
	size_t room = sizeof(answer->data) - answer->size;
	char *at = answer->data + answer->size;
	int used = snprintf(at, room, "%s=", key);
	if (used < 0 || (size_t)used >= room) {
		answer->overflow = true;
		return;
	}
	va_list arguments;
	va_start(arguments, format);
	int more = vsnprintf(at + used, room - (size_t)used, format, arguments);
	va_end(arguments);
	if (more < 0 || (size_t)more >= room - (size_t)used) {
		answer->overflow = true;
		return;
	}
	answer->size += (size_t)used + (size_t)more + 1;
}

int answer_send(int fd, const struct answer *answer, const int *fds, size_t fd_count)
{
	if (answer->overflow || fd_count > FDS_MAX)
		return -EMSGSIZE;
	struct iovec data = {.iov_base = (void *)(uintptr_t)answer->data, .iov_len = answer->size};
	union {
		char room[CMSG_SPACE(FDS_MAX * sizeof(int))];
		struct cmsghdr align;
	} control = {0};
	struct msghdr header = {.msg_iov = &data, .msg_iovlen = 1};
	if (fd_count > 0) {
		header.msg_control = control.room;
		header.msg_controllen = CMSG_SPACE(fd_count * sizeof(int));
		struct cmsghdr *rights = CMSG_FIRSTHDR(&header);
		rights->cmsg_level = SOL_SOCKET;
		rights->cmsg_type = SCM_RIGHTS;
		rights->cmsg_len = CMSG_LEN(fd_count * sizeof(int));
		memcpy(CMSG_DATA(rights), fds, fd_count * sizeof(int));
	}
	return sendmsg(fd, &header, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 ? -errno : 0;
}

static void take_rights(struct msghdr *header, struct message *message)
{
	for (struct cmsghdr *part = CMSG_FIRSTHDR(header); part != NULL; part = CMSG_NXTHDR(header, part)) {
		if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS)
			continue;
		size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (size_t i = 0; i < count; i++) {
			int fd;
			memcpy(&fd, CMSG_DATA(part) + i * sizeof(int), sizeof(int));
			if (message->fd_count < FDS_MAX)
				message->fds[message->fd_count++] = fd;
			else
				close(fd);
		}
	}
}

int message_receive(int fd, struct message *message)
{
	*message = (struct message){.fds = {-1, -1, -1, -1}};
	char probe;
	/* MSG_TRUNC tells the true length, so memory is as large as this message and free again after it. */
	ssize_t length = recv(fd, &probe, 1, MSG_PEEK | MSG_TRUNC);
	if (length < 0)
		return -errno;
	if (length == 0)
		return 0;
	size_t size = (size_t)length > MESSAGE_MAX ? 1 : (size_t)length;
	message->data = malloc(size);
	if (message->data == NULL)
		return -ENOMEM;
	struct iovec data = {.iov_base = message->data, .iov_len = size};
	union {
		char room[CMSG_SPACE(FDS_MAX * sizeof(int))];
		struct cmsghdr align;
	} control;
	struct msghdr header = {
		.msg_iov = &data, .msg_iovlen = 1, .msg_control = control.room, .msg_controllen = sizeof(control.room),
	};
	length = recvmsg(fd, &header, MSG_CMSG_CLOEXEC);
	int result = length < 0 ? -errno : 1;
	if (length >= 0)
		take_rights(&header, message);
	if (length >= 0 && (header.msg_flags & MSG_TRUNC) != 0)
		result = -EMSGSIZE;
	if (result == 1) {
		message->size = (size_t)length;
		result = header_parse(message, message->data, message->size) < 0 ? -EPROTO : 1;
	}
	if (result != 1)
		message_free(message);
	return result;
}

void message_free(struct message *message)
{
	for (size_t i = 0; i < message->fd_count; i++)
		if (message->fds[i] >= 0)
			close(message->fds[i]);
	free(message->data);
	*message = (struct message){.fds = {-1, -1, -1, -1}};
}

struct fields message_fields(const struct message *message)
{
	return (struct fields){.next = message->data + HEADER_SIZE, .left = message->size - HEADER_SIZE};
}

int message_take_fd(struct message *message, size_t index)
{
	if (index >= message->fd_count)
		return -1;
	int fd = message->fds[index];
	message->fds[index] = -1;
	return fd;
}
