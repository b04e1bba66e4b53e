/* From the wire to a TAP: frames of one TCP or UDP flow that follow each other become one that is up to 64 KiB long,
 * which saves the receiving kernel the work per packet (what GRO does for a card).
 *
 *   wire    | headers | part |  | headers' | part |  | other flow |  | headers'' | rest |
 *   TAP     virtio_net_hdr | headers | part part rest |              virtio_net_hdr | other flow |
 *
 * Joined are only frames that cutting would give back: the same headers but for lengths, identification, sequence and
 * checksums, all of one size but a shorter last. Their checksums are verified first. (A field with the pseudo header's sum
 * alone means that the sender left the rest to a card, and there was none: virtual machines of one computer do that to each
 * other, see virtio's NEEDS_CSUM. It is left to the next card again. A damaged frame looks like that once in 65,536 times,
 * as often as a checksum misses damage anyhow.) A frame that does not fit pushes out
 * what is held of its flow, and so the order within a flow stays. Nothing is copied but headers: what came is borrowed
 * until joiner_flush. Pure, but for the call that delivers. */
#ifndef VXNET_VXLAN_JOIN_H
#define VXNET_VXLAN_JOIN_H

#include <linux/virtio_net.h>
#include <sys/uio.h>

#include "cut.h"
#include "packet.h"

#define JOIN_FLOWS 32
#define JOIN_PARTS 64

/* What a TAP takes, and what may be believed. */
struct join_rules {
	bool udp;	/* UDP may be joined (TUN_F_USO4 and _USO6 were accepted) */
	bool virtual;	/* The underlay is memory of this machine, in which frames that a card was to cut arrive uncut. */
	uint16_t mtu;	/* Of the segment: where to cut those. */
};

struct join_flow {
	void *tap;
	uint32_t hash;
	struct packet packet;
	uint32_t part;		/* payload of the first frame */
	uint32_t payload;	/* of all */
	uint32_t sequence;	/* TCP: of the next */
	uint16_t frames;
	bool closed;		/* nothing may follow */
	bool partial;		/* a checksum of it is yet to be filled in */
	uint8_t headers[HEADERS_MAX];
	struct iovec parts[JOIN_PARTS];
};

/* Takes `count` vectors: a virtio_net_hdr and then the frame. */
typedef void join_deliver(void *context, void *tap, const struct iovec *vectors, int count);

struct joiner {
	join_deliver *deliver;
	void *context;
	uint64_t joined;	/* frames that came out as part of another */
	uint64_t bad_checksums;	/* frames passed on as they came: the receiver's kernel drops them */
	int used;
	struct join_flow flows[JOIN_FLOWS];
};

/* One frame for `tap`; `frame` is borrowed until the next flush. */
void joiner_add(struct joiner *joiner, void *tap, const struct join_rules *rules, uint8_t *frame, size_t size);
/* Likewise a frame of UDP that its sender left uncut over a virtual underlay, to be cut into `part` octets of payload
 * each. False: it is none, and nothing was done. */
bool joiner_add_uncut(struct joiner *joiner, void *tap, const struct join_rules *rules, uint8_t *frame, size_t size,
		      size_t part);
void joiner_flush(struct joiner *joiner);

#endif
