/* Cutting, and checksums that the sender left to its card. */
#include "cut.h"

#include <errno.h>
#include <netinet/in.h>
#include <string.h>

enum { TCP_FIN = 0x01, TCP_PSH = 0x08, TCP_CWR = 0x80 };
/* More than 64 KiB at the least MSS that Linux sends with (TCP_MIN_SND_MSS, 48). A packet socket may ask for more. */
enum { PIECES_MAX = 2048 };

static void write_checksum(uint8_t *field, uint64_t sum, bool udp)
{
	uint16_t value = checksum_fold(sum);
	if (udp && value == 0)
		value = 0xffff;	/* zero says "none" (RFC 768) */
	memcpy(field, &value, 2);
}

/* The field holds the pseudo header's sum already. */
static int complete_checksum(uint8_t *frame, size_t size, size_t start, size_t offset)
{
	if (start + offset + 2 > size)
		return -EINVAL;
	write_checksum(frame + start + offset, checksum_add(frame + start, size - start, 0), offset == 6);
	return 0;
}

int cutter_begin(struct cutter *cutter, const struct virtio_net_hdr *asked, uint8_t *frame, size_t size)
{
	if (size < ETHERNET_HEADER || size > UINT32_MAX)
		return -EINVAL;
	*cutter = (struct cutter){ .frame = frame, .size = (uint32_t)size, .packet = packet_parse(frame, size) };
	struct packet *packet = &cutter->packet;
	cutter->hash = packet_hash(frame, size, packet);
	uint8_t wanted;
	switch (asked->gso_type & ~VIRTIO_NET_HDR_GSO_ECN) {
	case VIRTIO_NET_HDR_GSO_NONE:
		if (asked->flags & VIRTIO_NET_HDR_F_NEEDS_CSUM)
			return complete_checksum(frame, size, asked->csum_start, asked->csum_offset);
		return 0;
	case VIRTIO_NET_HDR_GSO_TCPV4:
	case VIRTIO_NET_HDR_GSO_TCPV6:
		wanted = IPPROTO_TCP;
		break;
	case VIRTIO_NET_HDR_GSO_UDP_L4:
		wanted = IPPROTO_UDP;
		break;
	default:
		return -EINVAL;
	}
	packet_look_behind(frame, packet);
	if (packet->protocol != wanted || asked->gso_size == 0 || packet->payload > HEADERS_MAX)
		return -EINVAL;
	if ((uint32_t)(packet->end - packet->payload) / asked->gso_size >= PIECES_MAX)
		return -EINVAL;
	cutter->size = packet->end;
	cutter->headers = packet->payload;
	cutter->at = packet->payload;
	cutter->part = asked->gso_size;
	return 0;
}

static void write_headers(const struct cutter *cutter, uint8_t *headers, uint32_t size, bool last)
{
	const struct packet *packet = &cutter->packet;
	uint8_t *ip = headers + packet->l3, *l4 = headers + packet->l4;
	uint32_t length = cutter->headers - packet->l4 + size;	/* of the IP payload */
	memcpy(headers, cutter->frame, cutter->headers);
	if (packet->version == 4) {
		store16(ip + 2, (uint16_t)(packet->l4 - packet->l3 + length));
		store16(ip + 4, (uint16_t)(load16(ip + 4) + cutter->number));
		store16(ip + 10, 0);
		write_checksum(ip + 10, checksum_add(ip, (size_t)(packet->l4 - packet->l3), 0), false);
	} else {
		store16(ip + 4, (uint16_t)(packet->l4 - packet->l3 - 40u + length));
	}
	uint8_t *checksum = l4 + 6;
	if (packet->protocol == IPPROTO_TCP) {
		store32(l4 + 4, load32(l4 + 4) + cutter->number * cutter->part);
		if (!last)
			l4[13] &= (uint8_t)~(TCP_FIN | TCP_PSH);
		if (cutter->number > 0)
			l4[13] &= (uint8_t)~TCP_CWR;
		checksum = l4 + 16;
	} else {
		store16(l4 + 4, (uint16_t)length);
	}
	memset(checksum, 0, 2);
	uint64_t sum = checksum_pseudo(headers, packet, length);
	sum = checksum_add(l4, cutter->headers - packet->l4, sum);
	sum = checksum_add(cutter->frame + cutter->at, size, sum);
	write_checksum(checksum, sum, packet->protocol == IPPROTO_UDP);
}

bool cutter_next(struct cutter *cutter, uint8_t headers[HEADERS_MAX], struct piece *piece)
{
	if (cutter->number > 0 && cutter->at >= cutter->size)
		return false;
	uint32_t left = cutter->size - cutter->at;
	*piece = (struct piece){ .part = cutter->frame + cutter->at, .size = left };
	if (cutter->headers > 0) {
		if (left > cutter->part)
			piece->size = cutter->part;
		piece->headers = cutter->headers;
		write_headers(cutter, headers, piece->size, piece->size == left);
	}
	cutter->at += piece->size;
	cutter->number++;
	return true;
}
