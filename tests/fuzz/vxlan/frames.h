/* What the targets share. They are built without -DNDEBUG: what must hold is asserted. */
#ifndef VXNET_FUZZ_FRAMES_H
#define VXNET_FUZZ_FRAMES_H

#undef NDEBUG
#include <assert.h>
#include <linux/virtio_net.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>

#include "cut.h"
#include "packet.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* On the heap and of that size, so that one octet too far is seen. */
static inline uint8_t *exact(const uint8_t *data, size_t size)
{
	uint8_t *made = malloc(size > 0 ? size : 1);
	assert(made != NULL);
	if (size > 0)
		memcpy(made, data, size);
	return made;
}

static inline uint8_t *l4_checksum(uint8_t *frame, const struct packet *packet)
{
	return frame + packet->l4 + (packet->protocol == IPPROTO_TCP ? 16 : 6);
}

static inline size_t ip_header(const struct packet *packet)
{
	return (size_t)(packet->l4 - packet->l3);
}

static inline bool ip_checksum_is_right(const uint8_t *frame, const struct packet *packet)
{
	return packet->version != 4 || checksum_fold(checksum_add(frame + packet->l3, ip_header(packet), 0)) == 0;
}

static inline bool l4_checksum_is_right(const uint8_t *frame, const struct packet *packet)
{
	uint32_t length = packet->end - packet->l4;
	uint64_t pseudo = checksum_pseudo(frame, packet, length);
	return checksum_fold(checksum_add(frame + packet->l4, length, pseudo)) == 0;
}

static inline void make_ip_checksum(uint8_t *frame, const struct packet *packet)
{
	if (packet->version != 4)
		return;
	uint8_t *ip = frame + packet->l3;
	memset(ip + 10, 0, 2);
	uint16_t sum = checksum_fold(checksum_add(ip, ip_header(packet), 0));
	memcpy(ip + 10, &sum, 2);
}

/* `partial`: of the pseudo header alone, as a sender leaves it to its card. */
static inline void make_l4_checksum(uint8_t *frame, const struct packet *packet, bool partial)
{
	uint32_t length = packet->end - packet->l4;
	uint64_t pseudo = checksum_pseudo(frame, packet, length);
	uint8_t *field = l4_checksum(frame, packet);
	uint16_t sum = (uint16_t)~checksum_fold(pseudo);
	memset(field, 0, 2);
	if (!partial) {
		sum = checksum_fold(checksum_add(frame + packet->l4, length, pseudo));
		if (packet->protocol == IPPROTO_UDP && sum == 0)
			sum = 0xffff;
	}
	memcpy(field, &sum, 2);
}

/* The lengths that the headers say, of a frame that ends where its IP packet does. */
static inline void make_lengths(uint8_t *frame, size_t size, const struct packet *packet)
{
	if (packet->version == 4)
		store16(frame + packet->l3 + 2, (uint16_t)(size - packet->l3));
	else
		store16(frame + packet->l3 + 4, (uint16_t)(size - packet->l3 - 40));
	if (packet->protocol == IPPROTO_UDP)
		store16(frame + packet->l4 + 4, (uint16_t)(size - packet->l4));
}

#endif
