/* Setting them up, and asking them. */
#include "uvxlan_ends.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/udp.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

double now_s(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

void rest_us(uint32_t us)
{
	struct timespec wanted = { .tv_nsec = us * 1000L };
	nanosleep(&wanted, NULL);
}

static void option(int fd, int level, int name, int value)
{
	REQUIRE(setsockopt(fd, level, name, &value, sizeof(value)) == 0, "option %d: %m", name);
}

int udp(const struct end *end, int port, int discovery)
{
	bool four = end->address.ss_family == AF_INET;
	int level = four ? IPPROTO_IP : IPPROTO_IPV6, fd = socket(end->address.ss_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	struct sockaddr_storage at = end->address;
	*(four ? &((struct sockaddr_in *)&at)->sin_port : &((struct sockaddr_in6 *)&at)->sin6_port) = htons((uint16_t)port);
	option(fd, SOL_SOCKET, SO_SNDBUFFORCE, BUFFER);
	option(fd, SOL_SOCKET, SO_RCVBUFFORCE, BUFFER);	/* where nothing is received, errors pile up */
	if (port != 0) {
		option(fd, SOL_SOCKET, SO_REUSEPORT, 1);
		option(fd, SOL_UDP, UDP_GRO, 1);
		REQUIRE(fcntl(fd, F_SETFL, O_NONBLOCK) == 0, "%m");
	} else {
		option(fd, level, four ? IP_MTU_DISCOVER : IPV6_MTU_DISCOVER, discovery);
		if (discovery == IP_PMTUDISC_DO)
			option(fd, level, four ? IP_RECVERR : IPV6_RECVERR, 1);
	}
	REQUIRE(bind(fd, (struct sockaddr *)&at, end->size) == 0, "%m");
	return fd;
}

int dial(const struct end *end)
{
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	struct timeval patience = { .tv_sec = 5 };
	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)) < 0 ||
	    connect(fd, (const struct sockaddr *)&end->name, end->name_size) < 0)
		perror("control socket");
	return fd;
}

/* As host/uvxlan does it; in a process of its own. */
static void start(struct pair *pair, struct end *end)
{
	struct vxlan_options options = { .family = end->address.ss_family, .port = PORT, .queues = pair->queues,
					 .spin_us = 50 };
	struct sockaddr *name = (struct sockaddr *)&end->name;
	end->name = (struct sockaddr_un){ .sun_family = AF_UNIX };
	end->name_size = sizeof(end->name);
	options.control = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	REQUIRE(bind(options.control, name, sizeof(sa_family_t)) == 0 && listen(options.control, 8) == 0 &&
		getsockname(options.control, name, &end->name_size) == 0, "%m");
	for (int queue = 0; queue < pair->queues; queue++) {
		options.receive[queue] = udp(end, PORT, 0);
		options.loose[queue] = udp(end, 0, IP_PMTUDISC_DONT);
		for (int lane = 0; lane < VXLAN_LANES; lane++)
			options.send[queue * VXLAN_LANES + lane] = udp(end, 0, IP_PMTUDISC_DO);
	}
	end->process = fork();
	REQUIRE(end->process >= 0, "%m");
	if (end->process == 0 && prctl(PR_SET_PDEATHSIG, SIGKILL) == 0)
		exit(vxlan_run(&options) == 0 ? 0 : 3);
	for (int queue = 0; queue < pair->queues; queue++) {
		close(options.receive[queue]);
		close(options.loose[queue]);
		for (int lane = 0; lane < VXLAN_LANES; lane++)
			close(options.send[queue * VXLAN_LANES + lane]);
	}
	close(options.control);
	end->control = dial(end);
}

int ask(struct pair *pair, int end, uint32_t operation, uint32_t vni, const void *body, size_t size, const int *taps,
	       void *answer, size_t room)
{
	static uint8_t message[COMMAND_MAX], reply[COMMAND_MAX];
	union {
		struct cmsghdr header;
		uint8_t room[CMSG_SPACE(sizeof(int) * QUEUES)];
	} control;
	uint32_t head[2] = { operation, vni };
	memcpy(message, head, sizeof(head));
	if (size > 0)
		memcpy(message + sizeof(head), body, size);
	struct iovec vector = { message, sizeof(head) + size };
	struct msghdr header = { .msg_iov = &vector, .msg_iovlen = 1 };
	if (taps != NULL) {
		size_t rights = sizeof(int) * (size_t)pair->queues;
		header.msg_control = &control;
		header.msg_controllen = CMSG_SPACE(rights);
		control.header = (struct cmsghdr){ .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS,
						   .cmsg_len = CMSG_LEN(rights) };
		memcpy(CMSG_DATA(&control.header), taps, rights);
	}
	struct pollfd watched = { .fd = pair->ends[end].control, .events = POLLIN };
	REQUIRE(sendmsg(watched.fd, &header, MSG_NOSIGNAL) >= 0, "end %d, request %u: %m", end, operation);
	REQUIRE(poll(&watched, 1, STUCK_S * 1000) == 1, "end %d does not answer request %u", end, operation);
	ssize_t got = recv(watched.fd, reply, sizeof(reply), 0);
	REQUIRE(got >= 8, "end %d, request %u: %zd octets", end, operation, got);
	if (answer != NULL)
		memcpy(answer, reply + 8, (size_t)got - 8 < room ? (size_t)got - 8 : room);
	pair->commands++;
	int32_t result;
	memcpy(&result, reply + 4, sizeof(result));
	return result;
}

void tell(struct pair *pair, int end, uint32_t operation, uint32_t vni, const void *body, size_t size)
{
	int result = ask(pair, end, operation, vni, body, size, NULL, NULL, 0);
	REQUIRE(result == 0, "end %d, request %u: %d", end, operation, result);
}

void send_rows(struct pair *pair, int end, uint32_t operation, uint32_t vni, uint32_t more, uint64_t *state)
{
	static struct row rows[1000];
	rows[0] = (struct row){ .mac = { 2, 0, 0, 0, 0, (uint8_t)(2 - end) }, .vtep = pair->ends[1 - end].vtep };
	for (uint32_t at = 1; at <= more; at++)
		rows[at] = (struct row){ .mac = { 6, 0, 0, 0, (uint8_t)draw(state, 8), (uint8_t)draw(state, 256) },
					 .vtep = pair->ends[1 - end].vtep };
	tell(pair, end, operation, vni, operation == COMMAND_DROP ? rows + 1 : rows,
	     (more + (operation != COMMAND_DROP)) * sizeof(rows[0]));
}

void send_addresses(struct pair *pair, int end, uint32_t operation, uint32_t vni, bool silent)
{
	struct address list[2] = { pair->ends[1 - end].vtep, pair->silent };
	tell(pair, end, operation, vni, list, sizeof(list[0]) * (silent ? 2 : 1));
}

void add_segment(struct pair *pair, int end, uint32_t vni, uint32_t mtu, const int *taps)
{
	uint32_t body[2] = { mtu, SEGMENT_UDP_JOINS };
	int result = ask(pair, end, COMMAND_SEGMENT, vni, body, sizeof(body), taps, NULL, 0);
	REQUIRE(result == 0, "end %d, segment %u: %d", end, vni, result);
}

void make_tap(int both[2])
{
	REQUIRE(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, both) == 0, "%m");
	for (int side = 0; side < 2; side++)
		option(both[side], SOL_SOCKET, SO_SNDBUFFORCE, BUFFER);
}

struct vxlan_counters counters(struct pair *pair, int end)
{
	struct vxlan_counters counters;
	REQUIRE(ask(pair, end, COMMAND_COUNTERS, 0, NULL, 0, NULL, &counters, sizeof(counters)) == 0, "no counters");
	return counters;
}

void show(const struct pair *pair)
{
	for (int end = 0; end < ENDS; end++) {
		char path[64], line[256];
		snprintf(path, sizeof(path), "/proc/%d/status", pair->ends[end].process);
		FILE *file = fopen(path, "re");
		while (file != NULL && fgets(line, sizeof(line), file) != NULL) {
			if (strncmp(line, "VmRSS", 5) == 0)
				fprintf(stderr, "end %d at %.0f s: %s", end, now_s(), line);
		}
		if (file != NULL)
			fclose(file);
	}
}

void set_address(struct end *end, struct address *packed, const char *text)
{
	struct sockaddr_in *four = (struct sockaddr_in *)&end->address;
	struct sockaddr_in6 *six = (struct sockaddr_in6 *)&end->address;
	*packed = (struct address){ .octets = { [10] = 0xff, 0xff } };
	if (inet_pton(AF_INET, text, &four->sin_addr) == 1) {
		four->sin_family = AF_INET;
		end->size = sizeof(*four);
		memcpy(packed->octets + 12, &four->sin_addr, 4);
		return;
	}
	REQUIRE(inet_pton(AF_INET6, text, &six->sin6_addr) == 1, "%s is no address", text);
	six->sin6_family = AF_INET6;
	end->size = sizeof(*six);
	memcpy(packed->octets, &six->sin6_addr, 16);
}

void set_up(struct pair *pair)
{
	for (int end = 0; end < ENDS; end++)
		start(pair, &pair->ends[end]);
	for (int end = 0; end < ENDS; end++) {
		send_addresses(pair, end, COMMAND_PEERS, 0, false);
		for (int segment = 0; segment < SEGMENTS; segment++) {
			for (int queue = 0; queue < pair->queues; queue++) {
				int both[2];
				make_tap(both);
				pair->ends[end].taps[segment][queue] = both[0];
				pair->ends[end].given[segment][queue] = both[1];
			}
			add_segment(pair, end, vnis[segment], MTU, pair->ends[end].given[segment]);
			send_rows(pair, end, COMMAND_PUT, vnis[segment], 0, NULL);
			send_addresses(pair, end, COMMAND_FLOOD, vnis[segment], false);
		}
	}
}
