/* Datagrams on their way out, gathered so that the kernel is called once for many.
 *
 *   lane (a socket, and so a source port)
 *     message   one VTEP and ECN field, pieces of one size but a shorter last: UDP_SEGMENT cuts them apart again
 *       piece   | VXLAN header, inner headers |  part of the frame |
 *
 * Inner headers are copied, parts are borrowed until outbox_flush. */
#ifndef VXNET_VXLAN_OUTBOX_H
#define VXNET_VXLAN_OUTBOX_H

#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "cut.h"
#include "fdb.h"
#include "vxlan.h"

#define VXLAN_HEADER 8
#define LANE_MESSAGES 64
#define LANE_PIECES 512
#define MESSAGE_PIECES 64	/* UDP_MAX_SEGMENTS before Linux 6.9 */
#define MESSAGE_OCTETS 65000	/* of UDP payload; IPv4 takes 65507 */

union endpoint {
	struct sockaddr any;
	struct sockaddr_in ipv4;
	struct sockaddr_in6 ipv6;
};

struct message {
	struct address vtep;
	union endpoint to;
	uint32_t piece;		/* octets of each but the last */
	uint32_t octets;
	uint16_t pieces;
	uint16_t first;		/* index of its first piece in the lane */
	uint8_t ecn;
	bool closed;
};

struct lane {
	int fd;
	uint16_t messages;
	uint16_t pieces;
	struct message message[LANE_MESSAGES];
	struct iovec vectors[LANE_PIECES * 2];
	uint8_t headers[LANE_PIECES][VXLAN_HEADER + HEADERS_MAX];
};

/* A frame that did not fit the path: `mtu` is of the longest inner packet that would have. */
typedef void outbox_too_big(void *context, uint32_t vni, const uint8_t *frame, size_t size, uint32_t mtu);

struct outbox {
	int family;
	in_port_t port;		/* network order */
	int loose;		/* socket for packets that may be fragmented */
	struct vxlan_counters *counters;
	outbox_too_big *too_big;
	void *context;
	struct lane lanes[VXLAN_LANES];
	uint8_t whole[65536 + HEADERS_MAX];	/* one frame in a piece, for too_big */
};

/* Adds one piece for `vtep`; sends what there is first if there is no room. `ecn`: of the datagram. */
void outbox_add(struct outbox *outbox, unsigned lane, uint32_t vni, const struct address *vtep, uint8_t ecn,
		const uint8_t *headers, const struct piece *piece);
/* Sends all. What the kernel refuses is counted. */
void outbox_flush(struct outbox *outbox);

#endif
