/* Sending. */
#include "outbox.h"

#include <errno.h>
#include <time.h>
/* After time.h, which it needs. */
#include <linux/errqueue.h>
#include <netinet/udp.h>
#include <string.h>

#include "toobig.h"

enum { UDP_HEADER = 8, IPV4_HEADER = 20, IPV6_HEADER = 40, VXLAN_VNI_VALID = 0x08 };
/* Of a piece: while no earlier packet's error was found, and in any case. Errors read at once: more than fit the queue. */
enum { TRIES_SILENT = 3, TRIES = 64, ERRORS = 4096 };

static void set_endpoint(const struct outbox *outbox, const struct address *vtep, union endpoint *to)
{
	memset(to, 0, sizeof(*to));
	if (outbox->family == AF_INET) {
		to->ipv4.sin_family = AF_INET;
		to->ipv4.sin_port = outbox->port;
		memcpy(&to->ipv4.sin_addr, vtep->octets + 12, 4);
	} else {
		to->ipv6.sin6_family = AF_INET6;
		to->ipv6.sin6_port = outbox->port;
		memcpy(&to->ipv6.sin6_addr, vtep->octets, 16);
	}
}

static socklen_t endpoint_size(const struct outbox *outbox)
{
	return outbox->family == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6);
}

static uint32_t outer_headers(const struct outbox *outbox)
{
	return (outbox->family == AF_INET ? IPV4_HEADER : IPV6_HEADER) + UDP_HEADER + VXLAN_HEADER;
}

union control {
	struct cmsghdr header;
	uint8_t room[CMSG_SPACE(sizeof(int)) + CMSG_SPACE(sizeof(uint16_t))];
};

/* `header` has a `union control` with room for it. */
static void add_control(struct msghdr *header, int level, int type, const void *value, size_t size)
{
	uint8_t *at = (uint8_t *)header->msg_control + header->msg_controllen;
	struct cmsghdr control = { .cmsg_level = level, .cmsg_type = type, .cmsg_len = CMSG_LEN(size) };
	memcpy(at, &control, sizeof(control));
	memcpy(at + CMSG_LEN(0), value, size);
	header->msg_controllen += CMSG_SPACE(size);
}

/* For so many pieces of the message, from this one on. */
static struct msghdr describe(const struct outbox *outbox, struct message *message, struct iovec *piece, unsigned pieces,
			      union control *control)
{
	struct msghdr header = { .msg_name = &message->to, .msg_namelen = endpoint_size(outbox), .msg_iov = piece,
				 .msg_iovlen = pieces * 2u, .msg_control = control };
	int ecn = message->ecn;
	if (ecn != 0 && outbox->family == AF_INET)
		add_control(&header, SOL_IP, IP_TOS, &ecn, sizeof(ecn));
	else if (ecn != 0)
		add_control(&header, SOL_IPV6, IPV6_TCLASS, &ecn, sizeof(ecn));
	return header;
}

/* Empties the socket's error queue; whether there was anything. `mtu`: the path's, if a message of our own did not fit it,
 * else 0. Not what an ICMP says: that may be of another VTEP's path. The kernel takes note of it by destination, and the
 * next message that is too long for that one does not fit. */
static bool read_errors(struct outbox *outbox, int fd, uint32_t *mtu)
{
	bool found = false;
	*mtu = 0;
	for (int turn = 0; turn < ERRORS; turn++) {
		union {
			struct cmsghdr header;
			uint8_t room[512];
		} control;
		uint8_t quoted;
		struct iovec vector = { &quoted, 1 };
		struct msghdr message = { .msg_iov = &vector, .msg_iovlen = 1, .msg_control = &control,
					  .msg_controllen = sizeof(control) };
		if (recvmsg(fd, &message, MSG_ERRQUEUE | MSG_DONTWAIT) < 0)
			break;
		for (struct cmsghdr *at = CMSG_FIRSTHDR(&message); at != NULL; at = CMSG_NXTHDR(&message, at)) {
			struct sock_extended_err error;
			if (!(at->cmsg_level == SOL_IP && at->cmsg_type == IP_RECVERR) &&
			    !(at->cmsg_level == SOL_IPV6 && at->cmsg_type == IPV6_RECVERR))
				continue;
			memcpy(&error, CMSG_DATA(at), sizeof(error));
			found = true;
			if (error.ee_errno == EMSGSIZE && error.ee_origin == SO_EE_ORIGIN_LOCAL)
				*mtu = error.ee_info;
			else if (error.ee_errno != EMSGSIZE)
				outbox->counters->unreachable++;
		}
	}
	return found;
}

/* A piece that is longer than the path: its sender learns of it, or it goes in fragments. */
static void send_too_big(struct outbox *outbox, struct message *message, struct iovec *piece, uint32_t mtu)
{
	size_t headers = piece[0].iov_len - VXLAN_HEADER, size = headers + piece[1].iov_len;
	uint32_t outer = outer_headers(outbox);
	if (size > sizeof(outbox->whole))
		return;
	memcpy(outbox->whole, (const uint8_t *)piece[0].iov_base + VXLAN_HEADER, headers);
	memcpy(outbox->whole + headers, piece[1].iov_base, piece[1].iov_len);
	struct packet packet = packet_parse(outbox->whole, size);
	outbox->counters->too_big++;
	uint32_t fits = mtu > outer + packet.l3 ? mtu - outer - packet.l3 : 0;
	uint32_t told = fits > 0 ? too_big_for_fragments(outbox->whole, &packet, fits) : 0;
	if (told > 0) {
		const uint8_t *header = piece[0].iov_base;
		uint32_t vni = load32(header + 4) >> 8;
		outbox->too_big(outbox->context, vni, outbox->whole, size, told);
		return;
	}
	union control control;
	struct msghdr loose = describe(outbox, message, piece, 1, &control);
	if (sendmsg(outbox->loose, &loose, MSG_DONTWAIT) < 0)
		outbox->counters->not_sent++;
}

/* The card's queue, or the socket's buffer behind it. What does not fit is dropped, as the kernel's tunnel does: who waited
 * for one VTEP or a slow card would hold up the others, and what comes in. */
static bool is_full(int reason)
{
	return reason == EAGAIN || reason == ENOBUFS;
}

/* Piece by piece, so that what fits is sent and what does not is known. */
static void send_apart(struct outbox *outbox, struct lane *lane, struct message *message)
{
	for (unsigned at = message->first; at < (unsigned)message->first + message->pieces; at++) {
		struct iovec *piece = &lane->vectors[at * 2];
		union control control;
		struct msghdr header = describe(outbox, message, piece, 1, &control);
		size_t octets = piece[0].iov_len - VXLAN_HEADER + piece[1].iov_len + outer_headers(outbox);
		/* A try may only deliver the error of an earlier packet, and of those there may be many: one VTEP that
		 * nobody is at must not cost the others' frames. */
		for (int turn = 1; sendmsg(lane->fd, &header, MSG_DONTWAIT) < 0; turn++) {
			int reason = errno;
			uint32_t mtu;
			if (is_full(reason)) {
				outbox->counters->not_sent++;
				break;
			}
			bool earlier = read_errors(outbox, lane->fd, &mtu);
			if (reason == EMSGSIZE && (mtu == 0 ? !earlier : octets > mtu)) {
				send_too_big(outbox, message, piece, mtu);
				break;
			}
			if (turn == TRIES || (turn >= TRIES_SILENT && !earlier)) {
				outbox->counters->not_sent++;
				break;
			}
		}
	}
}

static void flush_lane(struct outbox *outbox, struct lane *lane)
{
	struct mmsghdr headers[LANE_MESSAGES];
	union control controls[LANE_MESSAGES];
	for (unsigned at = 0; at < lane->messages; at++) {
		struct message *message = &lane->message[at];
		struct msghdr *header = &headers[at].msg_hdr;
		*header = describe(outbox, message, &lane->vectors[message->first * 2], message->pieces, &controls[at]);
		uint16_t size = (uint16_t)message->piece;
		if (message->pieces > 1)
			add_control(header, SOL_UDP, UDP_SEGMENT, &size, sizeof(size));
	}
	for (unsigned at = 0; at < lane->messages;) {
		int sent = sendmmsg(lane->fd, headers + at, lane->messages - at, MSG_DONTWAIT);
		if (sent > 0) {
			at += (unsigned)sent;
		} else if (is_full(errno)) {
			outbox->counters->not_sent += lane->message[at++].pieces;
		} else if (errno != EINTR) {
			send_apart(outbox, lane, &lane->message[at]);
			at++;
		}
	}
	lane->messages = 0;
	lane->pieces = 0;
}

/* The message that this piece goes into. */
static struct message *message_for(struct outbox *outbox, struct lane *lane, const struct address *vtep, uint8_t ecn,
				   uint32_t octets)
{
	if (lane->messages > 0) {
		struct message *last = &lane->message[lane->messages - 1];
		if (!last->closed && octets <= last->piece && last->pieces < MESSAGE_PIECES &&
		    last->octets + octets <= MESSAGE_OCTETS && last->ecn == ecn &&
		    memcmp(&last->vtep, vtep, sizeof(*vtep)) == 0)
			return last;
	}
	struct message *message = &lane->message[lane->messages++];
	*message = (struct message){ .vtep = *vtep, .piece = octets, .first = lane->pieces, .ecn = ecn };
	set_endpoint(outbox, vtep, &message->to);
	return message;
}

void outbox_add(struct outbox *outbox, unsigned lane_number, uint32_t vni, const struct address *vtep,
		uint8_t ecn, const uint8_t *headers, const struct piece *piece)
{
	struct lane *lane = &outbox->lanes[lane_number];
	if (lane->messages == LANE_MESSAGES || lane->pieces == LANE_PIECES)
		flush_lane(outbox, lane);
	uint32_t octets = VXLAN_HEADER + piece->headers + piece->size;
	struct message *message = message_for(outbox, lane, vtep, ecn, octets);
	uint8_t *header = lane->headers[lane->pieces];
	struct iovec *vectors = &lane->vectors[lane->pieces * 2];
	store32(header, (uint32_t)VXLAN_VNI_VALID << 24);
	store32(header + 4, vni << 8);
	memcpy(header + VXLAN_HEADER, headers, piece->headers);
	vectors[0] = (struct iovec){ header, VXLAN_HEADER + piece->headers };
	vectors[1] = (struct iovec){ (void *)(uintptr_t)piece->part, piece->size };
	lane->pieces++;
	message->pieces++;
	message->octets += octets;
	message->closed = octets < message->piece;
	outbox->counters->sent_frames++;
	outbox->counters->sent_octets += octets - VXLAN_HEADER;
}

void outbox_flush(struct outbox *outbox)
{
	for (int at = 0; at < VXLAN_LANES; at++) {
		if (outbox->lanes[at].messages > 0)
			flush_lane(outbox, &outbox->lanes[at]);
	}
}
