/* The control protocol of vxnet-shim, version 1.
 *
 * A SOCK_SEQPACKET socket; one packet is one message: eight octets of header, then fields, each `key=value` and a
 * NUL. File descriptors travel beside a message (SCM_RIGHTS). The same words stand in vxnet/model/shim.py.
 *
 *   offset 0  u8   version    1
 *          1  u8   type       enum message_type
 *          2  u16  reserved   0
 *          4  u32  tag        little endian; an answer repeats its request's tag; 0 is the container itself
 *
 *   CREATE  first message on the inherited descriptor 0, see config.h;   OK as HELLO's
 *           fds: [seccomp filter]
 *   HELLO   (the daemon's; only its uid may) and EXIT is told from now on OK: STATUS' fields; fds: netns [udp tcp]
 *   START                                                                OK once the command runs, or ERROR
 *   SIGNAL  signal=N                                                     OK
 *   EXEC    arg= env= workdir= terminal=1; fds: stdin stdout stderr,     OK: pid; fds: [master]; then EXIT (same tag)
 *           none with a terminal
 *   ATTACH  stdin=keep|once; fds: pipes for stdout, stderr               OK: terminal=0|1 stdin=0|1; fds: [master]
 *           (stderr's is unused with a terminal)                             or [pipe to stdin]; then EXIT (tag 0)
 *   STATUS                                                               OK: state pid … see control.c
 *
 *   ERROR   kind= (vxnet/model/errors.py) message= status= (125 the shim's fault, 126 and 127 as in Docker)
 *   EXIT    status= error=
 *
 * A field that a request may not have is refused, never passed over: it could be a limit or a mask that a newer daemon
 * relies on. Clients pass over unknown fields in answers. */
#ifndef VXNET_SHIM_PROTOCOL_H
#define VXNET_SHIM_PROTOCOL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PROTOCOL_VERSION 1
#define HEADER_SIZE 8
#define MESSAGE_MAX (192u * 1024) /* the kernel's default socket buffer takes 208 KiB */
#define FDS_MAX 4

enum message_type {
	MESSAGE_CREATE = 1,
	MESSAGE_HELLO = 2,
	MESSAGE_START = 3,
	MESSAGE_SIGNAL = 4,
	MESSAGE_EXEC = 5,
	MESSAGE_ATTACH = 6,
	MESSAGE_STATUS = 7,
	MESSAGE_OK = 64,
	MESSAGE_ERROR = 65,
	MESSAGE_EXIT = 66,
};

/* A received message; owns its bytes and the descriptors that are not -1. */
struct message {
	uint8_t version;
	uint8_t type;
	uint32_t tag;
	char *data; /* of the whole packet */
	size_t size;
	int fds[FDS_MAX];
	size_t fd_count;
};

/* A place in a block of fields. */
struct fields {
	char *next;
	size_t left;
};

/* One answer under construction. `overflow` makes sending it fail rather than cut it off. */
struct answer {
	char data[4096];
	size_t size;
	bool overflow;
};

/* The header of `data` into `message`; 0, or -EPROTO when it is shorter than a header. Pure. */
int header_parse(struct message *message, const char *data, size_t size);

/* Steps to the next field: *key (NUL-terminated in place), *value. Returns 1, 0 at the end, -EPROTO when the block is
 * not NUL-terminated or a field has no key. Writes the NUL over `=`, so a block is walked once. Pure. */
int field_next(struct fields *fields, const char **key, char **value);

/* The whole of `text` as a decimal number in [low, high]; 0, -EINVAL. Pure. */
int number_parse(const char *text, long low, long high, long *value);

void answer_begin(struct answer *answer, enum message_type type, uint32_t tag);
void answer_add(struct answer *answer, const char *key, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

/* Sends without waiting; 0, or -errno. */
int answer_send(int fd, const struct answer *answer, const int *fds, size_t fd_count);

/* Receives one message; 1, 0 when the peer has closed, -errno (-EMSGSIZE: longer than MESSAGE_MAX; it is gone). */
int message_receive(int fd, struct message *message);
void message_free(struct message *message);
struct fields message_fields(const struct message *message);

/* Takes descriptor `index` out of the message; -1 when there is none. */
int message_take_fd(struct message *message, size_t index);

#endif
