/* From a TAP's frame to the frames that fit the wire: what a network card does with a virtio_net_hdr, in software.
 *
 *   frame   | headers |               payload, 64 KiB at most                |     gso_size says where to cut
 *   pieces  | headers | part |   | headers' | part |   ...   | headers'' | rest |
 *
 * Headers are made anew for each piece (lengths, IPv4 identification, TCP sequence and flags, checksums); the parts stay
 * where they are. All pieces but the last are of one size, so that UDP_SEGMENT takes them together. Pure. */
#ifndef VXNET_VXLAN_CUT_H
#define VXNET_VXLAN_CUT_H

#include <linux/virtio_net.h>

#include "packet.h"

#ifndef VIRTIO_NET_HDR_GSO_UDP_L4	/* Linux 6.2 */
#define VIRTIO_NET_HDR_GSO_UDP_L4 5
#endif

/* A frame being cut. `frame` is borrowed until the last piece was used. */
struct cutter {
	uint8_t *frame;
	uint32_t size;
	struct packet packet;
	uint32_t hash;		/* packet_hash of the frame and of each of its pieces */
	uint32_t headers;	/* octets that each piece repeats; 0: the frame passes whole */
	uint32_t part;		/* payload of each piece but the last */
	uint32_t at;		/* offset of the next part */
	uint32_t number;	/* of the next piece */
};

struct piece {
	uint32_t headers;	/* octets in the caller's buffer; may be 0 */
	const uint8_t *part;	/* what follows them, in the frame */
	uint32_t size;
};

/* Begins. A frame that asks for a checksum and no cutting gets it in place. -EINVAL: what the header says of the frame
 * cannot be. */
int cutter_begin(struct cutter *cutter, const struct virtio_net_hdr *asked, uint8_t *frame, size_t size);

/* The next piece; false: there is no more. A frame has at least one. */
bool cutter_next(struct cutter *cutter, uint8_t headers[HEADERS_MAX], struct piece *piece);

#endif
