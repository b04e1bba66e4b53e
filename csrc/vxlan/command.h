/* What the daemon tells the forwarder, and asks it: one message a request, one a reply, in the order of the requests.
 *
 *   request   u32 operation, u32 vni, then the body           reply   u32 operation, i32 result, then the body
 *
 * Numbers are of this machine's order, addresses of the network's (IPv4 as ::ffff:a.b.c.d). `result` is 0 or -errno. */
#ifndef VXNET_VXLAN_COMMAND_H
#define VXNET_VXLAN_COMMAND_H

#include <stddef.h>
#include <stdint.h>

#include "fdb.h"

#define COMMAND_MAX 65536	/* octets of a message */

enum operation {
	COMMAND_SEGMENT = 1,	/* u32 mtu, u32 flags; the TAP's queues as descriptors: a segment is there. Of one that was
				 * there already the rows stay, and without descriptors its TAP too. If one of the
				 * descriptors is refused, it is not there any more */
	COMMAND_REMOVE,		/* the segment and its TAP go */
	COMMAND_PUT,		/* rows: into the FDB */
	COMMAND_DROP,		/* rows, their addresses not looked at: out of it */
	COMMAND_STAGE,		/* rows: into an FDB of this connection's, which COMMIT makes the segment's. It is gone when
				 * this fails, when the connection ends, and when another segment's is begun */
	COMMAND_COMMIT,		/* the staged FDB, empty if nothing was staged, takes the place of the other */
	COMMAND_FLOOD,		/* addresses: all that get broadcast and multicast */
	COMMAND_PEERS,		/* addresses: all that may send; vni 0 */
	COMMAND_SEGMENTS,	/* u32 index of the first; reply: struct segment_view each, by VNI */
	COMMAND_ROWS,		/* u32 place to go on from; reply: u32 next place (0: that was all), rows */
	COMMAND_FLOODS,		/* reply: addresses */
	COMMAND_PEERED,		/* reply: addresses; vni 0 */
	COMMAND_COUNTERS,	/* reply: struct vxlan_counters; vni 0 */
	COMMAND_STOP,		/* the forwarder ends after the reply; vni 0 */
};

enum { SEGMENT_UDP_JOINS = 1 };	/* flag of COMMAND_SEGMENT: the TAP takes joined UDP */

struct row {
	uint8_t mac[6];
	uint8_t zero[2];
	struct address vtep;
};

struct segment_view {
	uint32_t vni;
	uint32_t mtu;
	uint32_t flags;
	uint32_t rows;
};

struct command {
	uint32_t operation;
	uint32_t vni;
	uint32_t mtu;		/* SEGMENT */
	uint32_t flags;		/* SEGMENT */
	uint32_t from;		/* SEGMENTS, ROWS */
	uint32_t count;		/* of what follows */
	const struct row *rows;
	const struct address *addresses;
};

/* Takes a request apart; `message` is borrowed. 0; -EBADMSG: it is not one. */
int command_parse(const uint8_t *message, size_t size, struct command *command);

#endif
