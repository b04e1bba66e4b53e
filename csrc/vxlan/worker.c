/* Waiting, and the two loops. */
#include "worker.h"

#include <errno.h>
#include <netinet/udp.h>
#include <sched.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#include "toobig.h"

/* Events are few, and so are the datagrams of a TAP's turn: for so long others wait. The kernel gives the TAPs turns. */
enum { EVENTS = 8, TAP_TURN = 64, TURN_DATAGRAMS = 4096, RECEIVE_TURN = 8, FRAME_ALIGN = 64, LONG_OCTETS = 16384 };
enum { VAIN_MAX = 8 };
enum { FULL_PERCENT = 85, LITTLE_PERCENT = 25, IN_LINE_PERCENT = 55 };
#define FULL_PERIOD_NS 10000000u	/* a core that is full so long: the other thread helps */
#define LITTLE_PERIOD_NS 100000000u	/* of little to do: it goes to sleep again */

static uint64_t clock_ns(clockid_t clock)
{
	struct timespec now;
	clock_gettime(clock, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static uint64_t now_ns(void)
{
	return clock_ns(CLOCK_MONOTONIC);
}

void worker_lock(struct worker *worker)
{
	pthread_mutex_lock(&worker->door);
	pthread_mutex_lock(&worker->lock);
	pthread_mutex_unlock(&worker->door);
}

void worker_unlock(struct worker *worker)
{
	pthread_mutex_unlock(&worker->lock);
}

/* Waiting */

static int spin(struct worker *worker, struct epoll_event events[EVENTS], uint64_t began)
{
	struct patience *patience = &worker->patience;
	do {
		sched_yield();
		int ready = epoll_wait(worker->epoll, events, EVENTS, 0);
		if (ready != 0) {
			patience->vain = 0;
			return ready;
		}
	} while (now_ns() - began < patience->limit_ns);
	patience->vain++;
	return 0;
}

static int sleep_long(struct worker *worker, struct epoll_event events[EVENTS])
{
	struct patience *patience = &worker->patience;
	uint64_t began = now_ns();
	int ready = epoll_wait(worker->epoll, events, EVENTS, -1);
	if (now_ns() - began < patience->limit_ns && patience->vain > 0)
		patience->vain--;
	return ready;
}

static int wait_events(struct worker *worker, struct epoll_event events[EVENTS])
{
	struct patience *patience = &worker->patience;
	uint64_t began = now_ns();
	int ready = 0;
	if (patience->limit_ns > 0) {
		ready = epoll_wait(worker->epoll, events, EVENTS, 0);
		if (ready != 0)
			return ready;
		if (patience->vain < VAIN_MAX)
			ready = spin(worker, events, began);
	}
	if (ready == 0)
		ready = sleep_long(worker, events);
	worker->meter.waited_ns += now_ns() - began;
	return ready;
}

/* The share of the period that ends now in which the calling thread worked, in percent; -1: the period lasts on. Waiting
 * is no work, be it busy. Nor is standing in line for a core: a thread that had about half of one worked for so long
 * as it ran. It may seem to run less than it works, where the kernel does not count the time of interrupts as its own. */
static int worked_percent(struct meter *meter, uint64_t period_ns)
{
	uint64_t now = now_ns(), whole = now - meter->began_ns;
	if (whole < period_ns)
		return -1;
	uint64_t cpu = clock_ns(CLOCK_THREAD_CPUTIME_ID), ran = cpu - meter->began_cpu_ns;
	uint64_t worked = whole > meter->waited_ns ? whole - meter->waited_ns : 0;
	bool first = meter->began_ns == 0;
	*meter = (struct meter){ .began_ns = now, .began_cpu_ns = cpu };
	if (first)
		return -1;
	if (ran * 100 / whole < IN_LINE_PERCENT && ran < worked)
		worked = ran;
	return (int)(worked * 100 / whole);
}

/* Who empties the TAPs */

static int watch_taps(const struct sender *sender, int operation, uint32_t events)
{
	struct epoll_event event = { .events = events, .data.u64 = EVENT_TAPS };
	return epoll_ctl(sender->duty.both, operation, sender->worker.epoll, &event) < 0 ? -errno : 0;
}

/* Who had them may still be at it: both do it under the sender's lock. */
static void duty_give(struct sender *sender, bool own)
{
	struct duty *duty = &sender->duty;
	pthread_mutex_lock(&duty->lock);
	if (duty->own != own && watch_taps(sender, EPOLL_CTL_MOD, own ? 0 : EPOLLIN) == 0) {
		duty->own = own;
		pthread_cond_signal(&duty->taken);
	}
	pthread_mutex_unlock(&duty->lock);
}

/* Until the sender's thread has the TAPs; false: it ends. */
static bool duty_wait(struct duty *duty)
{
	pthread_mutex_lock(&duty->lock);
	while (!duty->own && !duty->stop)
		pthread_cond_wait(&duty->taken, &duty->lock);
	bool goes_on = !duty->stop;
	pthread_mutex_unlock(&duty->lock);
	return goes_on;
}

void duty_end(struct sender *sender)
{
	struct duty *duty = &sender->duty;
	pthread_mutex_lock(&duty->lock);
	duty->stop = true;
	pthread_cond_signal(&duty->taken);
	pthread_mutex_unlock(&duty->lock);
}

/* Sending */

static void send_frame(struct sender *sender, struct segment *segment, const struct virtio_net_hdr *asked, uint8_t *frame,
		       size_t size)
{
	struct vxlan_counters *counters = &sender->worker.counters;
	struct cutter cutter;
	if (cutter_begin(&cutter, asked, frame, size) < 0) {
		counters->bad_frame++;
		return;
	}
	const struct address *to;
	size_t count = 1;
	if (frame[0] & 1) {
		/* Nobody speaks TCP to a group, and each VTEP would get each piece. */
		if (cutter.headers > 0 && cutter.packet.protocol == IPPROTO_TCP) {
			counters->bad_frame++;
			return;
		}
		to = segment->flood.list;
		count = segment->flood.count;
	} else {
		to = fdb_find(&segment->fdb, fdb_key(frame));
		if (to == NULL) {
			counters->unknown_destination++;
			return;
		}
	}
	unsigned lane = cutter.hash % VXLAN_LANES;
	uint8_t ecn = packet_outer_ecn(frame, &cutter.packet);
	uint8_t headers[HEADERS_MAX];
	struct piece piece;
	while (cutter_next(&cutter, headers, &piece)) {
		for (size_t at = 0; at < count; at++)
			outbox_add(&sender->outbox, lane, segment->vni, &to[at], ecn, headers, &piece);
	}
}

static void flush(struct sender *sender)
{
	outbox_flush(&sender->outbox);
	sender->used = 0;
	sender->frames = 0;
}

static void drain_tap(struct sender *sender, struct segment *segment)
{
	int tap = segment->taps[sender->worker.queue], turn = 0;
	const uint64_t *sent = &sender->worker.counters.sent_frames, before = *sent;
	for (; turn < TAP_TURN && *sent - before < TURN_DATAGRAMS; turn++) {
		/* Not first the look that finds nothing: it would cost the one frame of a round trip a microsecond. But
		 * long frames wait for each other: what one leaves of its last message, the next fills. */
		if ((sender->frames >= sender->usual && sender->used < LONG_OCTETS) ||
		    SEND_ROOM - sender->used < FRAME_ROOM)
			flush(sender);
		uint8_t *frame = sender->room + sender->used;
		struct virtio_net_hdr asked;
		struct iovec vectors[2] = { { &asked, sizeof(asked) }, { frame, FRAME_ROOM } };
		ssize_t size = readv(tap, vectors, 2);
		if (size < (ssize_t)sizeof(asked)) {
			/* Empty; or its device was deleted, and then it would be ready for ever. */
			if (size >= 0 || (errno != EAGAIN && errno != EINTR))
				(void)epoll_ctl(sender->worker.epoll, EPOLL_CTL_DEL, tap, NULL);
			break;
		}
		size_t octets = (size_t)size - sizeof(asked);
		send_frame(sender, segment, &asked, frame, octets);
		sender->used += (octets + FRAME_ALIGN - 1) / FRAME_ALIGN * FRAME_ALIGN;
		sender->frames++;
	}
	sender->usual = turn > 0 ? turn : 1;
}

static void tell_too_big(void *context, uint32_t vni, const uint8_t *frame, size_t size, uint32_t mtu)
{
	struct sender *sender = context;
	struct segment *segment = table_find(sender->worker.table, vni);
	uint8_t reply[TOO_BIG_MAX];
	struct virtio_net_hdr header = { 0 };
	size_t length = too_big_reply(frame, size, mtu, reply);
	if (segment == NULL || length == 0)
		return;
	struct iovec vectors[2] = { { &header, sizeof(header) }, { reply, length } };
	if (writev(segment->taps[sender->worker.queue], vectors, 2) < 0)
		sender->worker.counters.not_written++;
}

/* Whether there is a word to stop among the events of the sender's epoll. */
static bool send_ready(struct sender *sender, const struct epoll_event events[EVENTS], int ready)
{
	struct worker *worker = &sender->worker;
	bool stop = false;
	worker_lock(worker);
	for (int at = 0; at < ready; at++) {
		if (events[at].data.u64 == EVENT_STOP) {
			stop = true;
			continue;
		}
		/* Looked up again: it may have gone since. */
		struct segment *segment = table_find(worker->table, (uint32_t)events[at].data.u64);
		if (segment != NULL)
			drain_tap(sender, segment);
	}
	flush(sender);
	worker_unlock(worker);
	return stop;
}

void *sender_run(void *argument)
{
	struct sender *sender = argument;
	struct worker *worker = &sender->worker;
	for (bool stop = false; !stop && duty_wait(&sender->duty);) {
		struct epoll_event events[EVENTS];
		int ready = wait_events(worker, events);
		stop = send_ready(sender, events, ready);
		int worked = worked_percent(&worker->meter, LITTLE_PERIOD_NS);
		if (worked >= 0 && worked < LITTLE_PERCENT) {
			duty_give(sender, false);
			worker->meter = (struct meter){ 0 };
		}
	}
	return NULL;
}

/* Receiving */

static void write_tap(void *context, void *tap, const struct iovec *vectors, int count)
{
	struct receiver *receiver = context;
	const struct segment *segment = tap;
	if (writev(segment->taps[receiver->worker.queue], vectors, count) < 0)
		receiver->worker.counters.not_written++;
}

/* What the kernel says beside the octets of a message. */
struct note {
	size_t part;	/* it was joined of datagrams of this size; its own size: it was not */
	bool congested;	/* the underlay has marked it */
};

static struct note read_note(struct msghdr *header, size_t size)
{
	struct note note = { .part = size };
	for (struct cmsghdr *at = CMSG_FIRSTHDR(header); at != NULL; at = CMSG_NXTHDR(header, at)) {
		int value = 0;
		if (at->cmsg_level == SOL_UDP && at->cmsg_type == UDP_GRO) {
			memcpy(&value, CMSG_DATA(at), sizeof(value));
			if (value > 0)
				note.part = (size_t)value;
		} else if (at->cmsg_level == IPPROTO_IP && at->cmsg_type == IP_TOS) {
			note.congested = (*CMSG_DATA(at) & 3) == 3;
		} else if (at->cmsg_level == IPPROTO_IPV6 && at->cmsg_type == IPV6_TCLASS) {
			memcpy(&value, CMSG_DATA(at), sizeof(value));
			note.congested = (value & 3) == 3;
		}
	}
	return note;
}

static void receive_frame(struct receiver *receiver, uint8_t *datagram, size_t size, bool congested)
{
	struct vxlan_counters *counters = &receiver->worker.counters;
	if (size < VXLAN_HEADER + ETHERNET_HEADER) {
		counters->truncated++;
		return;
	}
	if (!(datagram[0] & 0x08)) {
		counters->bad_header++;
		return;
	}
	struct segment *segment = table_find(receiver->worker.table, load32(datagram + 4) >> 8);
	if (segment == NULL) {
		counters->unknown_vni++;
		return;
	}
	if (congested && !packet_mark_congestion(datagram + VXLAN_HEADER, size - VXLAN_HEADER)) {
		counters->congested++;
		return;
	}
	counters->received_frames++;
	counters->received_octets += size - VXLAN_HEADER;
	joiner_add(&receiver->joiner, segment, &segment->rules, datagram + VXLAN_HEADER, size - VXLAN_HEADER);
}

/* A kernel's tunnel over a virtual underlay: one frame that is to be cut, and the kernel says `part` of it as if it were
 * several that it had joined. Whether it is such a one. */
static bool receive_uncut(struct receiver *receiver, uint8_t *datagram, size_t size, size_t part)
{
	if (size < VXLAN_HEADER + ETHERNET_HEADER || !(datagram[0] & 0x08))
		return false;
	struct segment *segment = table_find(receiver->worker.table, load32(datagram + 4) >> 8);
	if (segment == NULL || !joiner_add_uncut(&receiver->joiner, segment, &segment->rules, datagram + VXLAN_HEADER,
						 size - VXLAN_HEADER, part))
		return false;
	receiver->worker.counters.received_frames++;
	receiver->worker.counters.received_octets += size - VXLAN_HEADER;
	return true;
}

static struct address source(const struct receiver *receiver, const union endpoint *from)
{
	struct address address = { { 0 } };
	if (receiver->family == AF_INET) {
		address.octets[10] = address.octets[11] = 0xff;
		memcpy(address.octets + 12, &from->ipv4.sin_addr, 4);
	} else {
		memcpy(address.octets, &from->ipv6.sin6_addr, 16);
	}
	return address;
}

/* One call's worth. Whether there may be more. */
static bool receive_batch(struct receiver *receiver)
{
	struct mmsghdr headers[RECEIVE_MESSAGES];
	struct iovec vectors[RECEIVE_MESSAGES];
	union endpoint from[RECEIVE_MESSAGES];
	union {
		struct cmsghdr header;
		uint8_t room[2 * CMSG_SPACE(sizeof(int))];
	} controls[RECEIVE_MESSAGES];
	for (int at = 0; at < RECEIVE_MESSAGES; at++) {
		vectors[at] = (struct iovec){ receiver->buffers[at], FRAME_ROOM };
		headers[at].msg_hdr = (struct msghdr){ .msg_name = &from[at], .msg_namelen = sizeof(from[at]),
						       .msg_iov = &vectors[at], .msg_iovlen = 1,
						       .msg_control = &controls[at],
						       .msg_controllen = sizeof(controls[at]) };
	}
	int count = recvmmsg(receiver->fd, headers, RECEIVE_MESSAGES, MSG_DONTWAIT, NULL);
	for (int at = 0; at < count; at++) {
		struct address sender = source(receiver, &from[at]);
		size_t size = headers[at].msg_len;
		struct note note = read_note(&headers[at].msg_hdr, size);
		size_t part = note.part;
		if (!addresses_contain(&receiver->worker.table->peers, &sender)) {
			receiver->worker.counters.unknown_source += part == 0 ? 1 : (size + part - 1) / part;
			continue;
		}
		if (part < size && receive_uncut(receiver, receiver->buffers[at], size, part))
			continue;
		for (size_t from_octet = 0; from_octet < size; from_octet += part) {
			size_t left = size - from_octet;
			receive_frame(receiver, receiver->buffers[at] + from_octet, left < part ? left : part, note.congested);
		}
		receiver->worker.counters.truncated += size == 0;
	}
	joiner_flush(&receiver->joiner);
	receiver->worker.counters.joined_frames = receiver->joiner.joined;
	receiver->worker.counters.bad_checksum = receiver->joiner.bad_checksums;
	return count == RECEIVE_MESSAGES;
}

static void empty_taps(struct sender *sender)
{
	struct epoll_event events[EVENTS];
	int ready = epoll_wait(sender->worker.epoll, events, EVENTS, 0);
	if (ready > 0)
		send_ready(sender, events, ready);
}

/* Whether there is a word to stop. */
static bool receive_ready(struct receiver *receiver, const struct epoll_event events[EVENTS], int ready)
{
	bool stop = false;
	for (int at = 0; at < ready; at++) {
		if (events[at].data.u64 == EVENT_STOP) {
			stop = true;
		} else if (events[at].data.u64 == EVENT_TAPS) {
			empty_taps(receiver->sender);
		} else {
			worker_lock(&receiver->worker);
			for (int turn = 0; turn < RECEIVE_TURN && receive_batch(receiver); turn++)
				;
			worker_unlock(&receiver->worker);
		}
	}
	return stop;
}

int workers_pair(struct sender *sender, struct receiver *receiver)
{
	sender->outbox.too_big = tell_too_big;
	sender->outbox.context = sender;
	receiver->joiner.deliver = write_tap;
	receiver->joiner.context = receiver;
	receiver->sender = sender;
	pthread_mutex_init(&sender->duty.lock, NULL);
	pthread_cond_init(&sender->duty.taken, NULL);
	sender->duty.both = receiver->worker.epoll;
	return watch_taps(sender, EPOLL_CTL_ADD, EPOLLIN);
}

void *receiver_run(void *argument)
{
	struct receiver *receiver = argument;
	struct worker *worker = &receiver->worker;
	for (bool stop = false; !stop;) {
		struct epoll_event events[EVENTS];
		int ready = wait_events(worker, events);
		stop = receive_ready(receiver, events, ready);
		if (worked_percent(&worker->meter, FULL_PERIOD_NS) >= FULL_PERCENT)
			duty_give(receiver->sender, true);
	}
	return NULL;
}
