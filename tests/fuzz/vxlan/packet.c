/* A frame: its headers are found within it, its flow depends on nothing else, and the answer to one that is too long is
 * itself in order and never answered again. */
#include "frames.h"
#include "toobig.h"

static void headers_are_within(const struct packet *packet, size_t size)
{
	assert(packet->version == 0 || packet->version == 4 || packet->version == 6);
	if (packet->version == 0) {
		assert(packet->protocol == 0);
		return;
	}
	size_t least = packet->version == 4 ? 20 : 40;
	assert(packet->l3 >= ETHERNET_HEADER && packet->l3 <= ETHERNET_HEADER + 8);
	assert(packet->l3 + least <= packet->l4 && packet->l4 <= packet->end && packet->end <= size);
	if (packet->protocol == 0)
		return;
	assert(packet->protocol == IPPROTO_TCP || packet->protocol == IPPROTO_UDP);
	assert(packet->l4 + (packet->protocol == IPPROTO_TCP ? 20u : 8u) <= packet->payload && packet->payload <= packet->end);
}

static void flow_is_told_by_headers(const uint8_t *data, size_t size, const struct packet *packet)
{
	if (packet->protocol == 0)
		return;
	uint8_t *other = exact(data, size);
	for (size_t at = packet->payload; at < size; at++)
		other[at] = (uint8_t)~other[at];
	if (packet->protocol == IPPROTO_TCP)
		store32(other + packet->l4 + 4, load32(other + packet->l4 + 4) + 1);
	memset(l4_checksum(other, packet), 0, 2);
	struct packet same = packet_parse(other, size);
	assert(packet_hash(other, size, &same) == packet_hash(data, size, packet));
	free(other);
}

static void answer_is_in_order(const uint8_t *data, size_t size, const struct packet *packet, uint32_t mtu)
{
	uint8_t *reply = malloc(TOO_BIG_MAX);
	assert(reply != NULL);
	size_t length = too_big_reply(data, size, mtu, reply);
	assert(length <= TOO_BIG_MAX);
	if (packet->version == 0)
		assert(length == 0);
	if (length > 0) {
		struct packet said = packet_parse(reply, length);
		const uint8_t *ip = reply + said.l3, *of = data + packet->l3;
		assert(said.version == packet->version && said.l3 == packet->l3 && said.end == length);
		assert(memcmp(reply, data + 6, 6) == 0 && memcmp(reply + 6, data, 6) == 0);
		assert(ip_checksum_is_right(reply, &said));
		if (said.version == 4) {
			assert(length - said.l3 <= 576 && ip[9] == IPPROTO_ICMP);
			assert(memcmp(ip + 12, of + 16, 4) == 0 && memcmp(ip + 16, of + 12, 4) == 0);
			assert(checksum_fold(checksum_add(reply + said.l4, length - said.l4, 0)) == 0);
			assert(load16(reply + said.l4 + 6) == (uint16_t)mtu);
		} else {
			assert(length - said.l3 <= 1280 && ip[6] == IPPROTO_ICMPV6);
			assert(memcmp(ip + 8, of + 24, 16) == 0 && memcmp(ip + 24, of + 8, 16) == 0);
			said.protocol = IPPROTO_ICMPV6;
			assert(l4_checksum_is_right(reply, &said));
			assert(load32(reply + said.l4 + 4) == mtu);
		}
		uint8_t again[TOO_BIG_MAX];
		assert(too_big_reply(reply, length, mtu, again) == 0);
	}
	free(reply);
}

/* Who is told rather than have its packet fragmented is told indeed. */
static void told_or_carried(const uint8_t *data, size_t size, const struct packet *packet, uint32_t mtu)
{
	uint8_t reply[TOO_BIG_MAX];
	uint32_t told = too_big_for_fragments(data, packet, mtu);
	if (told == 0)
		return;
	assert(packet->version == 4 ? told == mtu : told >= 1280 && told >= mtu && packet->end - packet->l3 > told);
	assert(too_big_reply(data, size, told, reply) > 0);
}

/* Whose datagram may be marked on the way can take the mark over. */
static void what_may_be_marked_takes_it(const uint8_t *data, size_t size, const struct packet *packet)
{
	uint8_t ecn = packet_outer_ecn(data, packet);
	assert(ecn <= 2 && (ecn == 0 || packet->version != 0));
	uint8_t *marked = exact(data, size);
	assert(packet_mark_congestion(marked, size) == (ecn != 0 || packet->version == 0));
	struct packet same = packet_parse(marked, size);
	assert(packet_outer_ecn(marked, &same) == (ecn != 0 ? 2 : 0));
	free(marked);
}

/* u16 mtu, then the frame. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (size < 2)
		return 0;
	uint32_t mtu = load16(data);
	uint8_t *frame = exact(data + 2, size - 2);
	size -= 2;
	struct packet packet = packet_parse(frame, size);
	headers_are_within(&packet, size);
	(void)packet_hash(frame, size, &packet);
	struct packet behind = packet;
	packet_look_behind(frame, &behind);
	headers_are_within(&behind, size);
	what_may_be_marked_takes_it(frame, size, &packet);
	told_or_carried(frame, size, &packet, mtu);
	flow_is_told_by_headers(frame, size, &packet);
	answer_is_in_order(frame, size, &packet, mtu);
	free(frame);
	return 0;
}
