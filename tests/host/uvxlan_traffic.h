/* Flows through two forwarders: what is sent can be made again from a flow's number and how far it got, so that whoever
 * sees it come out needs nothing else to tell whether it is right, whole and in order. */
#ifndef VXNET_UVXLAN_TRAFFIC_H
#define VXNET_UVXLAN_TRAFFIC_H

#undef NDEBUG
#include <assert.h>
#include <linux/virtio_net.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cut.h"
#include "packet.h"

enum { SEGMENTS = 3, ENDS = 2, FRAME_ROOM_HERE = 65664 };

/* A stream is cut and joined on its way, the others pass one by one. */
enum kind {
	TCP_IPV4, TCP_IPV6, UDP_IPV4, UDP_IPV6,	/* streams, in long frames that ask to be cut, and in short ones */
	ARP_BROADCAST, GROUP, ETHERTYPE, TAGGED_PING, PING_IPV6, FRAGMENT, TORN, BAD_CHECKSUM, PADDED, SYN, LONG,
	KINDS,
};
#define STREAMS (UDP_IPV6 + 1)
#define FLOWS (SEGMENTS * ENDS * KINDS)

struct flow {
	uint64_t sent;		/* octets of a stream; else frames */
	uint64_t received;
	uint64_t frames_sent;
	uint64_t frames_received;
	uint64_t began;		/* UDP: datagrams sent … */
	uint64_t ended;		/* … and received */
};

struct traffic {
	uint64_t state;		/* of the randomness */
	struct flow flows[FLOWS];
	uint64_t joined;	/* frames that came out as one of several */
};

uint32_t draw(uint64_t *state, uint32_t below);

static inline enum kind kind_of(int flow) { return (enum kind)(flow % KINDS); }
static inline int from_of(int flow) { return flow / KINDS % ENDS; }
static inline int segment_of(int flow) { return flow / KINDS / ENDS; }

/* Whether the flow may send: what is on its way is bounded, so that nothing has a reason to be dropped. */
bool may_send(const struct flow *flow, enum kind kind);
/* The next frame of a flow; its size. */
size_t make_frame(struct traffic *traffic, int flow, struct virtio_net_hdr *asked, uint8_t *frame);
/* What came out at one end of a segment; ends the program with words if it is not what was to come. */
void check_frame(struct traffic *traffic, int segment, int end, const struct virtio_net_hdr *header, uint8_t *frame,
		 size_t size);

/* Says what the forwarders say, before a failure ends the program. */
void explain(void);

#define REQUIRE(holds, ...)                                                                                             \
	do {                                                                                                            \
		if (!(holds)) {                                                                                         \
			fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #holds);                                     \
			fprintf(stderr, __VA_ARGS__);                                                                   \
			fputc('\n', stderr);                                                                            \
			explain();                                                                                      \
			exit(2);                                                                                        \
		}                                                                                                       \
	} while (0)

#endif
