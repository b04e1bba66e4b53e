/* A TAP's frame with any header before it: what is cut from it has the same payload in the same order, and each piece is a
 * packet that is in order. */
#include "frames.h"

static void piece_is_in_order(const struct cutter *cutter, const uint8_t *headers, const struct piece *piece, uint32_t from,
			      uint32_t number)
{
	const struct packet *whole = &cutter->packet;
	size_t size = piece->headers + piece->size;
	uint8_t *frame = malloc(size);
	assert(frame != NULL);
	memcpy(frame, headers, piece->headers);
	if (piece->size > 0)
		memcpy(frame + piece->headers, piece->part, piece->size);
	struct packet packet = packet_parse(frame, size);
	assert(packet.version == whole->version && packet.l3 == whole->l3 && packet.end == size);
	assert(packet_hash(frame, size, &packet) == cutter->hash);
	if (packet.protocol == 0) {
		/* Extension headers, which the cutter alone looks behind: they stay. */
		assert(packet.version == 6 && packet.l4 + 8 <= whole->l4 && whole->payload <= HEADERS_MAX);
		assert(memcmp(frame + packet.l4, cutter->frame + packet.l4, (size_t)(whole->l4 - packet.l4)) == 0);
		packet = *whole;
		packet.end = (uint32_t)size;
	}
	assert(packet.protocol == whole->protocol && packet.l4 == whole->l4 && packet.payload == whole->payload);
	assert(ip_checksum_is_right(frame, &packet) && l4_checksum_is_right(frame, &packet));
	const uint8_t *l4 = frame + packet.l4, *of = cutter->frame + whole->l4;
	assert(packet.version == 4 || load16(frame + packet.l3 + 4) == size - packet.l3 - 40);
	if (packet.protocol == IPPROTO_UDP)
		assert(load16(l4 + 4) == size - packet.l4);
	else
		assert(load32(l4 + 4) == (uint32_t)(load32(of + 4) + from - whole->payload));
	if (packet.version == 4)
		assert(load16(frame + packet.l3 + 4) == (uint16_t)(load16(cutter->frame + whole->l3 + 4) + number));
	free(frame);
}

/* The virtio_net_hdr, then the frame. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct virtio_net_hdr asked;
	if (size < sizeof(asked))
		return 0;
	memcpy(&asked, data, sizeof(asked));
	data += sizeof(asked);
	size -= sizeof(asked);
	uint8_t *frame = exact(data, size);
	struct cutter cutter;
	if (cutter_begin(&cutter, &asked, frame, size) == 0) {
		/* What the frame is cut from, octet for octet: headers are made anew, parts stay where they are. */
		uint8_t *headers = malloc(HEADERS_MAX);
		assert(headers != NULL);
		struct piece piece;
		uint32_t at = cutter.headers, number = 0;
		bool ended = false;
		while (cutter_next(&cutter, headers, &piece)) {
			assert(!ended && piece.part == frame + at && piece.headers == cutter.headers);
			ended = piece.headers == 0 || piece.size < cutter.part;
			assert(piece.headers == 0 || piece.size <= cutter.part);
			if (piece.headers > 0)
				piece_is_in_order(&cutter, headers, &piece, at, number);
			at += piece.size;
			number++;
		}
		assert(number > 0 && at == cutter.size);
		assert(cutter.headers > 0 || at == size);
		free(headers);
	}
	free(frame);
	return 0;
}
