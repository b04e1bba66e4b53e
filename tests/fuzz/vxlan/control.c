/* A whole forwarder at the other end of its control socket: it answers every message, keeps no descriptor that it was not
 * to keep, and does without what it was told to remove. */
#include <errno.h>
#include <fcntl.h>
#include <netinet/udp.h>
#include <poll.h>
#include <pthread.h>
#include <stddef.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "command.h"
#include "frames.h"
#include "vxlan.h"

enum { QUEUES = 2, ANSWER_MS = 60000 };

static uint8_t reply[COMMAND_MAX];
static int client = -1, tap = -1;

static int udp(struct sockaddr_in *at)
{
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), on = 1;
	socklen_t size = sizeof(*at);
	assert(fd >= 0 && setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof(on)) == 0);
	assert(bind(fd, (struct sockaddr *)at, size) == 0 && getsockname(fd, (struct sockaddr *)at, &size) == 0);
	return fd;
}

static void *run(void *options)
{
	assert(vxlan_run(options) == 0);
	return NULL;
}

static void begin(void)
{
	static struct vxlan_options options = { .family = AF_INET, .queues = QUEUES };
	struct sockaddr_un name = { .sun_family = AF_UNIX };
	socklen_t size = sizeof(name);
	pthread_t thread;
	int pair[2];
	assert(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) == 0);
	tap = pair[0];	/* of which the other end stays open */
	options.control = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	/* The kernel finds an abstract name that is free. */
	assert(bind(options.control, (struct sockaddr *)&name, sizeof(sa_family_t)) == 0 && listen(options.control, 4) == 0);
	struct sockaddr_in here = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	for (int queue = 0; queue < QUEUES; queue++) {
		struct sockaddr_in any = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
		options.receive[queue] = udp(&here);
		assert(fcntl(options.receive[queue], F_SETFL, O_NONBLOCK) == 0);
		options.loose[queue] = udp(&any);
		for (int lane = 0; lane < VXLAN_LANES; lane++) {
			any.sin_port = 0;
			options.send[queue * VXLAN_LANES + lane] = udp(&any);
		}
	}
	options.port = ntohs(here.sin_port);
	assert(pthread_create(&thread, NULL, run, &options) == 0 && pthread_detach(thread) == 0);
	client = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	assert(getsockname(options.control, (struct sockaddr *)&name, &size) == 0);
	assert(connect(client, (struct sockaddr *)&name, size) == 0);
}

/* Octets of the reply's body, or -errno. */
static ssize_t ask(const uint8_t *message, size_t size, const int *taps, int count)
{
	union {
		struct cmsghdr header;
		uint8_t room[CMSG_SPACE(sizeof(int) * 16)];
	} control;
	struct iovec vector = { (void *)(uintptr_t)message, size };
	struct msghdr header = { .msg_iov = &vector, .msg_iovlen = 1 };
	if (count > 0) {
		size_t rights = sizeof(int) * (size_t)count;
		header.msg_control = &control;
		header.msg_controllen = CMSG_SPACE(rights);
		control.header = (struct cmsghdr){ .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS,
						   .cmsg_len = CMSG_LEN(rights) };
		memcpy(CMSG_DATA(&control.header), taps, rights);
	}
	assert(TEMP_FAILURE_RETRY(sendmsg(client, &header, MSG_NOSIGNAL)) == (ssize_t)size);
	struct pollfd watched = { .fd = client, .events = POLLIN };
	/* libFuzzer is told to end by a signal, which may come while the answer is waited for. */
	assert(TEMP_FAILURE_RETRY(poll(&watched, 1, ANSWER_MS)) == 1);
	ssize_t got = TEMP_FAILURE_RETRY(recv(client, reply, sizeof(reply), 0));
	int32_t result;
	assert(got >= 8);
	memcpy(&result, reply + 4, sizeof(result));
	assert(result <= 0 && (result == 0 || got == 8));
	return result < 0 ? result : got - 8;
}

static ssize_t say(uint32_t operation, uint32_t vni, uint32_t from, size_t size)
{
	uint32_t message[3] = { operation, vni, from };
	return ask((const uint8_t *)message, size, NULL, 0);
}

static void forget(void)
{
	for (;;) {
		ssize_t size = say(COMMAND_SEGMENTS, 0, 0, 12);
		struct segment_view view;
		assert(size >= 0 && (size_t)size % sizeof(view) == 0);
		if (size == 0)
			break;
		memcpy(&view, reply + 8, sizeof(view));
		uint32_t vni = view.vni;
		size_t rows = 0;
		for (uint32_t place = 0;;) {
			size = say(COMMAND_ROWS, vni, place, 12);
			assert(size >= 4 && ((size_t)size - 4) % sizeof(struct row) == 0);
			rows += ((size_t)size - 4) / sizeof(struct row);
			memcpy(&place, reply + 8, sizeof(place));
			if (place == 0)
				break;
		}
		assert(rows == view.rows);
		assert(say(COMMAND_FLOODS, vni, 0, 8) >= 0);
		assert(say(COMMAND_REMOVE, vni, 0, 8) == 0);
		assert(say(COMMAND_ROWS, vni, 0, 12) == -ENOENT);
	}
	assert(say(COMMAND_PEERS, 0, 0, 8) == 0 && say(COMMAND_PEERED, 0, 0, 8) == 0);
	assert(say(COMMAND_COUNTERS, 0, 0, 8) == sizeof(struct vxlan_counters));
}

static int lowest_free(void)
{
	int fd = dup(STDERR_FILENO);
	assert(fd >= 0);
	close(fd);
	return fd;
}

/* Each: u16 size, u8 how many descriptors go with it, message. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (client < 0) {
		begin();
		forget();	/* once it answers, it has opened all that it needs */
	}
	int before = lowest_free();
	while (size >= 3) {
		size_t length = load16(data);
		int count = data[2] % 10, file = 3 - data[2] / 10 % 4, taps[10];
		data += 3;
		size -= 3;
		if (length > size)
			length = size;
		uint32_t operation = 0;
		if (length >= sizeof(operation))
			memcpy(&operation, data, sizeof(operation));
		if (length > 0 && operation != COMMAND_STOP) {
			for (int at = 0; at < count; at++) {
				/* Every fourth is a file that no epoll takes; the input says which. */
				taps[at] = at % 4 != file ? dup(tap) : open("/dev/null", O_RDWR | O_CLOEXEC);
				assert(taps[at] >= 0);
			}
			(void)ask(data, length, taps, count);
			for (int at = 0; at < count; at++)
				close(taps[at]);
		}
		data += length;
		size -= length;
	}
	forget();
	assert(lowest_free() == before);
	return 0;
}
