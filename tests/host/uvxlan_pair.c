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
#include "uvxlan_ends.h"

#include <poll.h>
#include <pthread.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

static struct pair pair_of_this_program;

/* The counters, as vxlan.h has them. By connections of its own, as another thread may be asking. */
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

/* Whether all is counted that had to be dropped. */
static bool all_counted(const struct pair *pair, const struct vxlan_counters *one, const struct vxlan_counters *other)
{
	return one->bad_frame >= pair->expected_bad && one->unknown_destination >= pair->expected_unknown &&
	       other->unknown_source >= pair->strays[0] && other->truncated >= pair->strays[1] &&
	       other->bad_header >= pair->strays[2];
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
	REQUIRE(pthread_create(&commands, NULL, make_changes, pair) == 0, "no thread");
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
	/* The last of what is dropped may still be on its way: nothing of it comes out. */
	for (double last = now_s(); !all_counted(pair, &one, &other) && now_s() - last < STUCK_S;) {
		rest_us(1000);
		one = counters(pair, 0);
		other = counters(pair, 1);
	}
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
