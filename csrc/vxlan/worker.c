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

enum { EVENTS = 32, VAIN_MAX = 8, TAP_TURN = 64 };

static uint64_t now_ns(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
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

static int wait_events(struct worker *worker, struct epoll_event events[EVENTS])
{
	struct patience *patience = &worker->patience;
	int ready = epoll_wait(worker->epoll, events, EVENTS, 0);
	if (ready != 0 || patience->limit_ns == 0)
		return ready != 0 ? ready : epoll_wait(worker->epoll, events, EVENTS, -1);
	uint64_t began = now_ns();
	if (patience->vain < VAIN_MAX) {
		do {
			sched_yield();
			ready = epoll_wait(worker->epoll, events, EVENTS, 0);
		} while (ready == 0 && now_ns() - began < patience->limit_ns);
		if (ready != 0) {
			patience->vain = 0;
			return ready;
		}
		patience->vain++;
		began = now_ns();
	}
	ready = epoll_wait(worker->epoll, events, EVENTS, -1);
	if (now_ns() - began < patience->limit_ns && patience->vain > 0)
		patience->vain--;
	return ready;
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
		to = segment->flood.list;
		count = segment->flood.count;
	} else {
		to = fdb_find(&segment->fdb, fdb_key(frame));
		if (to == NULL) {
			counters->unknown_destination++;
			return;
		}
	}
	unsigned lane = packet_hash(frame, size, &cutter.packet) % VXLAN_LANES;
	uint8_t headers[HEADERS_MAX];
	struct piece piece;
	while (cutter_next(&cutter, headers, &piece)) {
		for (size_t at = 0; at < count; at++)
			outbox_add(&sender->outbox, lane, segment->vni, &to[at], headers, &piece);
	}
}

static void flush(struct sender *sender)
{
	outbox_flush(&sender->outbox);
	sender->used = 0;
}

static void drain_tap(struct sender *sender, struct segment *segment)
{
	int tap = segment->taps[sender->worker.queue];
	for (int turn = 0; turn < TAP_TURN; turn++) {
		if (sender->used == SEND_FRAMES)
			flush(sender);
		uint8_t *frame = sender->frames[sender->used];
		struct virtio_net_hdr asked;
		struct iovec vectors[2] = { { &asked, sizeof(asked) }, { frame, FRAME_ROOM } };
		ssize_t size = readv(tap, vectors, 2);
		if (size < (ssize_t)sizeof(asked))
			return;	/* empty, or gone: the control thread will say */
		sender->used++;
		send_frame(sender, segment, &asked, frame, (size_t)size - sizeof(asked));
	}
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

void *sender_run(void *argument)
{
	struct sender *sender = argument;
	struct worker *worker = &sender->worker;
	sender->outbox.too_big = tell_too_big;
	sender->outbox.context = sender;
	for (bool stop = false; !stop;) {
		struct epoll_event events[EVENTS];
		int ready = wait_events(worker, events);
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

static void receive_frame(struct receiver *receiver, uint8_t *datagram, size_t size)
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

/* Into how long datagrams the kernel joined what it hands over; `size`: it did not. */
static size_t gro_size(struct msghdr *header, size_t size)
{
	for (struct cmsghdr *at = CMSG_FIRSTHDR(header); at != NULL; at = CMSG_NXTHDR(header, at)) {
		int joined;
		if (at->cmsg_level != SOL_UDP || at->cmsg_type != UDP_GRO)
			continue;
		memcpy(&joined, CMSG_DATA(at), sizeof(joined));
		if (joined > 0)
			return (size_t)joined;
	}
	return size;
}

/* One call's worth. Whether there may be more. */
static bool receive_batch(struct receiver *receiver)
{
	struct mmsghdr headers[RECEIVE_MESSAGES];
	struct iovec vectors[RECEIVE_MESSAGES];
	union endpoint from[RECEIVE_MESSAGES];
	union {
		struct cmsghdr header;
		uint8_t room[CMSG_SPACE(sizeof(int))];
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
		size_t size = headers[at].msg_len, part = gro_size(&headers[at].msg_hdr, size);
		if (!addresses_contain(&receiver->worker.table->peers, &sender)) {
			receiver->worker.counters.unknown_source += part == 0 ? 1 : (size + part - 1) / part;
			continue;
		}
		if (part < size && receive_uncut(receiver, receiver->buffers[at], size, part))
			continue;
		for (size_t from_octet = 0; from_octet < size; from_octet += part) {
			size_t left = size - from_octet;
			receive_frame(receiver, receiver->buffers[at] + from_octet, left < part ? left : part);
		}
		receiver->worker.counters.truncated += size == 0;
	}
	joiner_flush(&receiver->joiner);
	receiver->worker.counters.joined_frames = receiver->joiner.joined;
	receiver->worker.counters.bad_checksum = receiver->joiner.bad_checksums;
	return count == RECEIVE_MESSAGES;
}

void *receiver_run(void *argument)
{
	struct receiver *receiver = argument;
	struct worker *worker = &receiver->worker;
	receiver->joiner.deliver = write_tap;
	receiver->joiner.context = receiver;
	for (bool stop = false; !stop;) {
		struct epoll_event events[EVENTS];
		int ready = wait_events(worker, events);
		worker_lock(worker);
		for (int at = 0; at < ready; at++) {
			if (events[at].data.u64 == EVENT_STOP)
				stop = true;
			else
				for (int turn = 0; turn < TAP_TURN && receive_batch(receiver); turn++)
					;
		}
		worker_unlock(worker);
	}
	return NULL;
}
