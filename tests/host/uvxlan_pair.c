/* Two whole forwarders, each a process under whatever sanitizer this was built with, and traffic of all kinds in both
 * directions, while segments come and go, FDBs are replaced, peers change and bad messages and datagrams come in.
 *
 *   driver ── socketpairs as TAPs ── forwarder 0 ── UDP ── forwarder 1 ── socketpairs as TAPs ── driver
 *      └──────────── control sockets ─────┴──────────────────────┘
 *
 * What went in must come out, whole and in the order of its flow; nothing may be dropped but what has to be; nothing may
 * stick; and both must end with 0, which a sanitizer that found something (a leak, too) prevents.
 *
 * argv: seconds, seed, address, address, address where nobody listens, queues. The addresses are this machine's. Prints
 * what was done, in JSON. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/udp.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <signal.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "command.h"
#include "uvxlan_traffic.h"
#include "vxlan.h"

enum { PORT = 4789, MTU = 1400, STUCK_S = 60, QUEUES = 2, BUFFER = 16 << 20, COMES_AND_GOES = 5000, STRAYS = 8 };

static const uint32_t vnis[SEGMENTS] = { 1, 70000, 0xffffff };

struct end {
	struct sockaddr_storage address;
	struct address vtep;
	socklen_t size;
	int control;
	struct sockaddr_un name;	/* of the control socket */
	socklen_t name_size;
	pid_t process;
	int taps[SEGMENTS][QUEUES];	/* the driver's side */
	int given[SEGMENTS][QUEUES];	/* the forwarder's, kept to be given again */
};

static struct pair {
	struct end ends[ENDS];
	struct address silent;
	int queues;
	uint64_t seed;
	atomic_bool stop;
	uint64_t commands;
	uint64_t expected_bad, expected_unknown;	/* frames, at end 0 */
	uint64_t strays[STRAYS];
	struct traffic traffic;
} pair_of_this_program;

static double now_s(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static void rest_us(uint32_t us)
{
	struct timespec wanted = { .tv_nsec = us * 1000L };
	nanosleep(&wanted, NULL);
}

static void option(int fd, int level, int name, int value)
{
	REQUIRE(setsockopt(fd, level, name, &value, sizeof(value)) == 0, "option %d: %m", name);
}

static int udp(const struct end *end, int port, int discovery)
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

static int dial(const struct end *end)
{
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	struct timeval patience = { .tv_sec = 5 };
	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)) < 0 ||
	    connect(fd, (const struct sockaddr *)&end->name, end->name_size) < 0)
		perror("control socket");
	return fd;
}

/* By connections of its own, as another thread may be asking. */
void explain(void)
{
	for (int end = 0; end < ENDS; end++) {
		int fd = dial(&pair_of_this_program.ends[end]);
		uint32_t request[2] = { COMMAND_COUNTERS, 0 };
		uint64_t reply[1 + sizeof(struct vxlan_counters) / sizeof(uint64_t)] = { 0 };
		if (send(fd, request, sizeof(request), MSG_NOSIGNAL) < 0 || recv(fd, reply, sizeof(reply), 0) < 0)
			perror("counters");
		fprintf(stderr, "end %d:", end);
		for (size_t at = 1; at < sizeof(reply) / sizeof(reply[0]); at++)
			fprintf(stderr, " %llu", (unsigned long long)reply[at]);
		fputc('\n', stderr);
		close(fd);
	}
	(void)!system("cat /proc/net/udp /proc/net/udp6 /proc/net/snmp >&2");
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

/* Requests. Only one thread asks at a time. */

static int ask(struct pair *pair, int end, uint32_t operation, uint32_t vni, const void *body, size_t size, const int *taps,
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

static void tell(struct pair *pair, int end, uint32_t operation, uint32_t vni, const void *body, size_t size)
{
	int result = ask(pair, end, operation, vni, body, size, NULL, NULL, 0);
	REQUIRE(result == 0, "end %d, request %u: %d", end, operation, result);
}

/* The row that matters, and `more` that do not. */
static void send_rows(struct pair *pair, int end, uint32_t operation, uint32_t vni, uint32_t more, uint64_t *state)
{
	static struct row rows[1000];
	rows[0] = (struct row){ .mac = { 2, 0, 0, 0, 0, (uint8_t)(2 - end) }, .vtep = pair->ends[1 - end].vtep };
	for (uint32_t at = 1; at <= more; at++)
		rows[at] = (struct row){ .mac = { 6, 0, 0, 0, (uint8_t)draw(state, 8), (uint8_t)draw(state, 256) },
					 .vtep = pair->ends[1 - end].vtep };
	tell(pair, end, operation, vni, operation == COMMAND_DROP ? rows + 1 : rows,
	     (more + (operation != COMMAND_DROP)) * sizeof(rows[0]));
}

static void send_addresses(struct pair *pair, int end, uint32_t operation, uint32_t vni, bool silent)
{
	struct address list[2] = { pair->ends[1 - end].vtep, pair->silent };
	tell(pair, end, operation, vni, list, sizeof(list[0]) * (silent ? 2 : 1));
}

static void add_segment(struct pair *pair, int end, uint32_t vni, uint32_t mtu, const int *taps)
{
	uint32_t body[2] = { mtu, SEGMENT_UDP_JOINS };
	int result = ask(pair, end, COMMAND_SEGMENT, vni, body, sizeof(body), taps, NULL, 0);
	REQUIRE(result == 0, "end %d, segment %u: %d", end, vni, result);
}

static void make_tap(int both[2])
{
	REQUIRE(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, both) == 0, "%m");
	for (int side = 0; side < 2; side++)
		option(both[side], SOL_SOCKET, SO_SNDBUFFORCE, BUFFER);
}

/* A segment that is there for a moment: what comes out of it was sent into it. */
static void come_and_go(struct pair *pair, uint32_t vni, uint64_t *state)
{
	int taps[ENDS][QUEUES][2];
	for (int end = 0; end < ENDS; end++) {
		int given[QUEUES];
		for (int queue = 0; queue < pair->queues; queue++) {
			make_tap(taps[end][queue]);
			given[queue] = taps[end][queue][1];
		}
		add_segment(pair, end, vni, MTU, given);
		send_rows(pair, end, COMMAND_PUT, vni, draw(state, 200), state);
		for (int queue = 0; queue < pair->queues; queue++)
			close(given[queue]);
	}
	struct {
		struct virtio_net_hdr header;
		uint8_t frame[60];
	} __attribute__((packed)) sent = { .frame = { 2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x88, 0xb5 } }, got;
	for (uint32_t left = draw(state, 40); left > 0; left--) {
		store32(sent.frame + 20, vni);
		(void)!write(taps[0][0][0], &sent, sizeof(sent));
	}
	rest_us(draw(state, 2000));
	for (int end = 0; end < ENDS; end++) {
		tell(pair, end, COMMAND_REMOVE, vni, NULL, 0);
		for (int queue = 0; queue < pair->queues; queue++) {
			while (read(taps[end][queue][0], &got, sizeof(got)) > 0)
				REQUIRE(end == 1 && load32(got.frame + 20) == vni, "segment %u got %u's", vni,
					load32(got.frame + 20));
			close(taps[end][queue][0]);
		}
	}
}

/* Datagrams of strangers and of a peer that has gone mad. */
static void stray(struct pair *pair, uint64_t *state)
{
	uint8_t datagram[400] = { 0x08 };
	struct sockaddr_storage to = pair->ends[1].address;
	bool four = to.ss_family == AF_INET;
	*(four ? &((struct sockaddr_in *)&to)->sin_port : &((struct sockaddr_in6 *)&to)->sin6_port) = htons(PORT);
	struct end stranger = pair->ends[0];
	uint32_t what = draw(state, 4);
	if (what == 0) {
		if (four)
			memcpy(&((struct sockaddr_in *)&stranger.address)->sin_addr, pair->silent.octets + 12, 4);
		else
			memcpy(&((struct sockaddr_in6 *)&stranger.address)->sin6_addr, pair->silent.octets, 16);
	}
	int fd = udp(&stranger, 0, IP_PMTUDISC_DONT);
	for (size_t at = 8; at < sizeof(datagram); at++)
		datagram[at] = (uint8_t)draw(state, 256);
	store32(datagram + 4, (what == 3 ? 999999 : vnis[1]) << 8);
	if (what == 2)
		datagram[0] = 0;
	size_t size = what == 1 ? draw(state, 22) : 22 + draw(state, 300);
	if (sendto(fd, datagram, size, 0, (struct sockaddr *)&to, stranger.size) >= 0)
		pair->strays[what]++;
	close(fd);
}

static void *command(void *argument)
{
	struct pair *pair = argument;
	uint64_t state = pair->seed ^ 0x5555;
	while (!pair->stop) {
		int end = (int)draw(&state, ENDS);
		uint32_t segment = draw(&state, SEGMENTS), vni = vnis[segment], garbage[4];
		switch (draw(&state, 12)) {
		case 0:
			come_and_go(pair, COMES_AND_GOES + draw(&state, 3), &state);
			break;
		case 1:	/* the FDB as a whole */
			for (uint32_t parts = draw(&state, 4); parts > 0; parts--)
				send_rows(pair, end, COMMAND_STAGE, vni, draw(&state, 900), &state);
			send_rows(pair, end, COMMAND_STAGE, vni, 0, &state);
			tell(pair, end, COMMAND_COMMIT, vni, NULL, 0);
			break;
		case 2:
			send_rows(pair, end, COMMAND_PUT, vni, draw(&state, 300), &state);
			break;
		case 3:
			send_rows(pair, end, COMMAND_DROP, vni, draw(&state, 300), &state);
			break;
		case 4:
			send_addresses(pair, end, COMMAND_FLOOD, vni, draw(&state, 2));
			break;
		case 5:	/* the stranger never is one where strays are sent */
			send_addresses(pair, end, COMMAND_PEERS, 0, end == 0 && draw(&state, 2));
			break;
		case 6:	/* the same TAP again, and what waits in it stays */
			add_segment(pair, end, vni, MTU, pair->ends[end].given[segment]);
			break;
		case 7:
			add_segment(pair, end, vni, MTU + draw(&state, 100), NULL);
			break;
		case 8:
			for (int at = 0; at < 4; at++)
				garbage[at] = draw(&state, 0x7fffffff);
			REQUIRE(ask(pair, end, 15 + draw(&state, 99), garbage[0], garbage, sizeof(garbage), NULL, NULL, 0) == -EBADMSG,
				"garbage was understood");
			break;
		case 9:
			REQUIRE(ask(pair, end, COMMAND_ROWS, vni, (uint32_t[]){ 0 }, 4, NULL, NULL, 0) == 0 &&
				ask(pair, end, COMMAND_FLOODS, vni, NULL, 0, NULL, NULL, 0) == 0 &&
				ask(pair, end, COMMAND_COUNTERS, 0, NULL, 0, NULL, NULL, 0) == 0, "a question was refused");
			break;
		default:
			stray(pair, &state);
		}
		rest_us(draw(&state, 4000));
	}
	return NULL;
}

/* Traffic */

static int queue_of(const struct pair *pair, int flow)
{
	return flow % pair->queues;
}

static bool put(struct pair *pair, int flow)
{
	static uint8_t frame[FRAME_ROOM_HERE];
	if (!may_send(&pair->traffic.flows[flow], kind_of(flow)))
		return false;
	struct virtio_net_hdr asked;
	size_t size = make_frame(&pair->traffic, flow, &asked, frame);
	struct iovec vectors[2] = { { &asked, sizeof(asked) }, { frame, size } };
	int tap = pair->ends[from_of(flow)].taps[segment_of(flow)][queue_of(pair, flow)];
	REQUIRE(writev(tap, vectors, 2) == (ssize_t)(sizeof(asked) + size), "flow %d, %zu octets: %m", flow, size);
	return true;
}

/* Frames that have to be dropped, and counted. */
static void put_bad(struct pair *pair, bool unknown)
{
	uint8_t frame[60] = { 6, 1, 1, 1, 1, 1, 2, 0, 0, 0, 0, 1, 0x08, 0x00 };
	struct virtio_net_hdr asked = { .gso_type = unknown ? VIRTIO_NET_HDR_GSO_NONE : VIRTIO_NET_HDR_GSO_TCPV4, .gso_size = 9 };
	struct iovec vectors[2] = { { &asked, sizeof(asked) }, { frame, sizeof(frame) } };
	if (writev(pair->ends[0].taps[0][0], vectors, 2) > 0)
		*(unknown ? &pair->expected_unknown : &pair->expected_bad) += 1;
}

/* Reads what there is within so many milliseconds; the frames. */
static int get(struct pair *pair, int wait_ms)
{
	static uint8_t frame[FRAME_ROOM_HERE];
	struct pollfd watched[ENDS * SEGMENTS * QUEUES];
	int count = 0, frames = 0;
	for (int end = 0; end < ENDS; end++)
		for (int segment = 0; segment < SEGMENTS; segment++)
			for (int queue = 0; queue < pair->queues; queue++)
				watched[count++] = (struct pollfd){ .fd = pair->ends[end].taps[segment][queue], .events = POLLIN };
	if (poll(watched, (nfds_t)count, wait_ms) <= 0)
		return 0;
	for (int at = 0; at < count; at++) {
		int end = at / pair->queues / SEGMENTS, segment = at / pair->queues % SEGMENTS;
		for (int turn = 0; turn < 64 && watched[at].revents; turn++) {
			struct virtio_net_hdr header;
			struct iovec vectors[2] = { { &header, sizeof(header) }, { frame, sizeof(frame) } };
			ssize_t size = readv(watched[at].fd, vectors, 2);
			if (size < 0)
				break;
			REQUIRE(size > (ssize_t)sizeof(header), "end %d has closed its TAP", end);
			check_frame(&pair->traffic, segment, end, &header, frame, (size_t)size - sizeof(header));
			frames++;
		}
	}
	return frames;
}

static int outstanding(const struct pair *pair)
{
	for (int flow = 0; flow < FLOWS; flow++) {
		if (pair->traffic.flows[flow].sent != pair->traffic.flows[flow].received)
			return flow;
	}
	return -1;
}

static void show(struct pair *pair);

/* Until all that was sent has come out, or nothing has for too long. */
static void drain(struct pair *pair)
{
	for (double last = now_s(); outstanding(pair) >= 0;) {
		if (get(pair, 10) > 0)
			last = now_s();
		if (now_s() - last > STUCK_S) {
			int flow = outstanding(pair);
			show(pair);
			REQUIRE(false, "flow %d (kind %d) is stuck: %llu sent, %llu received", flow, kind_of(flow),
				(unsigned long long)pair->traffic.flows[flow].sent,
				(unsigned long long)pair->traffic.flows[flow].received);
		}
	}
}

/* A while of one manner: all flows as fast as they go, one alone, now and then a frame, or nothing. */
static void play(struct pair *pair)
{
	uint64_t *state = &pair->traffic.state;
	double end = now_s() + 0.02 + draw(state, 200) / 1000.0;
	uint32_t manner = draw(state, 5), alone = draw(state, FLOWS);
	double last = now_s();
	while (now_s() < end) {
		bool sent = false;
		for (uint32_t tries = manner < 2 ? FLOWS : 1; tries > 0; tries--) {
			int flow = (int)(manner == 2 ? alone : draw(state, FLOWS));
			sent = put(pair, flow) || sent;
		}
		if (draw(state, 50) == 0)
			put_bad(pair, draw(state, 2));
		int got = get(pair, sent ? 0 : 1);
		if (got > 0 || outstanding(pair) < 0)
			last = now_s();
		if (now_s() - last > 5)
			break;	/* drain() says what is stuck */
		if (manner == 3) {
			drain(pair);
			rest_us(draw(state, 3000));
		} else if (manner == 4) {
			rest_us(1000);
		}
	}
	drain(pair);
	if (manner == 4)
		rest_us(50000 + draw(state, 100000));
}

/* The end */

static struct vxlan_counters counters(struct pair *pair, int end)
{
	struct vxlan_counters counters;
	REQUIRE(ask(pair, end, COMMAND_COUNTERS, 0, NULL, 0, NULL, &counters, sizeof(counters)) == 0, "no counters");
	return counters;
}

static void show(struct pair *pair)
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

static void set_address(struct end *end, struct address *packed, const char *text)
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

static void set_up(struct pair *pair)
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

int main(int argc, char **argv)
{
	struct pair *pair = &pair_of_this_program;
	struct end silent = { 0 };
	REQUIRE(argc == 7, "seconds, seed, address, address, address where nobody listens, queues");
	double seconds = strtod(argv[1], NULL), began = now_s(), shown = began;
	pair->seed = pair->traffic.state = strtoull(argv[2], NULL, 10);
	for (int end = 0; end < ENDS; end++)
		set_address(&pair->ends[end], &pair->ends[end].vtep, argv[3 + end]);
	set_address(&silent, &pair->silent, argv[5]);
	pair->queues = (int)strtol(argv[6], NULL, 10);
	REQUIRE(pair->queues >= 1 && pair->queues <= QUEUES, "%d queues", pair->queues);
	set_up(pair);
	pthread_t commands;
	REQUIRE(pthread_create(&commands, NULL, command, pair) == 0, "no thread");
	while (now_s() - began < seconds) {
		play(pair);
		if (now_s() - shown > 60) {
			show(pair);
			shown = now_s();
		}
	}
	pair->stop = true;
	pthread_join(commands, NULL);
	drain(pair);
	struct vxlan_counters one = counters(pair, 0), other = counters(pair, 1);
	show(pair);
	REQUIRE(one.not_written + other.not_written + one.not_sent + other.not_sent == 0, "%llu + %llu not written, %llu + %llu not sent",
		(unsigned long long)one.not_written, (unsigned long long)other.not_written, (unsigned long long)one.not_sent,
		(unsigned long long)other.not_sent);
	REQUIRE(one.bad_frame == pair->expected_bad && one.unknown_destination >= pair->expected_unknown, "%llu bad, %llu unknown",
		(unsigned long long)one.bad_frame, (unsigned long long)one.unknown_destination);
	REQUIRE(other.unknown_source >= pair->strays[0] && other.truncated >= pair->strays[1] && other.bad_header >= pair->strays[2],
		"strays were not counted");
	for (int end = 0; end < ENDS; end++) {
		int status = 0;
		tell(pair, end, COMMAND_STOP, 0, NULL, 0);
		REQUIRE(waitpid(pair->ends[end].process, &status, 0) == pair->ends[end].process, "%m");
		REQUIRE(status == 0, "forwarder %d ended with %#x", end, status);
	}
	uint64_t frames = 0, octets = 0, least = UINT64_MAX;
	for (int flow = 0; flow < FLOWS; flow++) {
		const struct flow *one_flow = &pair->traffic.flows[flow];
		frames += one_flow->frames_received;
		octets += kind_of(flow) < STREAMS ? one_flow->received : 0;
		least = one_flow->frames_received < least ? one_flow->frames_received : least;
	}
	printf("{\"frames\": %llu, \"octets\": %llu, \"least\": %llu, \"joined\": %llu, \"commands\": %llu, \"datagrams\": %llu, "
	       "\"too_big\": %llu, \"unreachable\": %llu}\n",
	       (unsigned long long)frames, (unsigned long long)octets, (unsigned long long)least,
	       (unsigned long long)pair->traffic.joined, (unsigned long long)pair->commands,
	       (unsigned long long)(one.sent_frames + other.sent_frames), (unsigned long long)(one.too_big + other.too_big),
	       (unsigned long long)(one.unreachable + other.unreachable));
	return 0;
}
