/* Headers, hash, checksum. */
#include "packet.h"

#include <netinet/in.h>
#include <netinet/ip.h>
#include <string.h>

enum { ETHERTYPE_IPV4 = 0x0800, ETHERTYPE_IPV6 = 0x86dd, ETHERTYPE_VLAN = 0x8100, ETHERTYPE_QINQ = 0x88a8 };

static void parse_transport(const uint8_t *frame, size_t size, uint8_t protocol, struct packet *found)
{
	size_t room = size - found->l4;
	if (protocol == IPPROTO_UDP && room >= 8) {
		found->payload = (uint16_t)(found->l4 + 8);
	} else if (protocol == IPPROTO_TCP && room >= 20) {
		size_t header = (size_t)(frame[found->l4 + 12] >> 4) * 4;
		if (header < 20 || header > room)
			return;
		found->payload = (uint16_t)(found->l4 + header);
	} else {
		return;
	}
	found->protocol = protocol;
}

static void parse_ipv4(const uint8_t *frame, size_t size, struct packet *found)
{
	const uint8_t *ip = frame + found->l3;
	size_t room = size - found->l3;
	if (room < 20 || ip[0] >> 4 != 4)
		return;
	size_t header = (size_t)(ip[0] & 15) * 4, total = load16(ip + 2);
	if (header < 20 || header > total || total > room)
		return;
	found->version = 4;
	found->end = (uint32_t)(found->l3 + total);
	found->l4 = (uint16_t)(found->l3 + header);
	if ((load16(ip + 6) & 0x3fff) == 0)	/* neither more fragments nor an offset */
		parse_transport(frame, found->end, ip[9], found);
}

/* Extension headers are left alone: such a packet is in no flow but its addresses', and joined to nothing. */
static void parse_ipv6(const uint8_t *frame, size_t size, struct packet *found)
{
	const uint8_t *ip = frame + found->l3;
	size_t room = size - found->l3;
	if (room < 40 || ip[0] >> 4 != 6)
		return;
	size_t total = 40u + load16(ip + 4);
	if (total > room)
		return;
	found->version = 6;
	found->end = (uint32_t)(found->l3 + total);
	found->l4 = (uint16_t)(found->l3 + 40);
	parse_transport(frame, found->end, ip[6], found);
}

struct packet packet_parse(const uint8_t *frame, size_t size)
{
	struct packet found = { 0 };
	if (size < ETHERNET_HEADER)
		return found;
	size_t at = 12;
	found.ethertype = load16(frame + at);
	for (int tags = 0; tags < 2 && (found.ethertype == ETHERTYPE_VLAN || found.ethertype == ETHERTYPE_QINQ); tags++) {
		if (size < at + 6)
			return found;
		at += 4;
		found.ethertype = load16(frame + at);
	}
	found.l3 = (uint16_t)(at + 2);
	if (found.ethertype == ETHERTYPE_IPV4)
		parse_ipv4(frame, size, &found);
	else if (found.ethertype == ETHERTYPE_IPV6)
		parse_ipv6(frame, size, &found);
	return found;
}

void packet_look_behind(const uint8_t *frame, struct packet *packet)
{
	if (packet->version != 6 || packet->protocol != 0)
		return;
	uint32_t at = packet->l4;
	uint8_t next = frame[packet->l3 + 6];
	while ((next == IPPROTO_HOPOPTS || next == IPPROTO_DSTOPTS) && at + 8 <= packet->end) {
		next = frame[at];
		at += 8 + 8u * frame[at + 1];
	}
	if (at > packet->end || at > HEADERS_MAX)
		return;
	struct packet found = *packet;
	found.l4 = (uint16_t)at;
	parse_transport(frame, found.end, next, &found);
	if (found.protocol != 0 && found.payload <= HEADERS_MAX)
		*packet = found;
}

static uint32_t mix(uint32_t hash, const uint8_t *data, size_t size)
{
	for (size_t at = 0; at < size; at += 2) {
		hash ^= load16(data + at);
		hash *= 0x9e3779b1u;
		hash ^= hash >> 15;
	}
	return hash;
}

uint32_t packet_hash(const uint8_t *frame, size_t size, const struct packet *packet)
{
	if (packet->version == 0)
		return size < 12 ? 0 : mix(1, frame, 12);
	uint32_t hash = packet->version == 4 ? mix(2, frame + packet->l3 + 12, 8) : mix(3, frame + packet->l3 + 8, 32);
	return packet->protocol == 0 ? hash : mix(hash ^ packet->protocol, frame + packet->l4, 4);
}

uint8_t packet_outer_ecn(const uint8_t *frame, const struct packet *packet)
{
	uint8_t ecn = 0;
	if (packet->version == 4)
		ecn = frame[packet->l3 + 1] & IPTOS_ECN_MASK;
	else if (packet->version == 6)
		ecn = frame[packet->l3 + 1] >> 4 & IPTOS_ECN_MASK;
	return ecn == IPTOS_ECN_CE ? IPTOS_ECN_ECT0 : ecn;
}

bool packet_mark_congestion(uint8_t *frame, size_t size)
{
	struct packet packet = packet_parse(frame, size);
	uint8_t *ip = frame + packet.l3;
	if (packet.version == 4) {
		uint32_t before = ip[1] & 3u;
		if (before == 0)
			return false;
		uint32_t sum = (uint16_t)~load16(ip + 10) + (3 - before);	/* RFC 1624 */
		store16(ip + 10, (uint16_t)~((sum & 0xffff) + (sum >> 16)));
		ip[1] |= 3;
	} else if (packet.version == 6) {
		if ((ip[1] & 0x30) == 0)
			return false;
		ip[1] |= 0x30;
	}
	return true;
}

/* Vectors as wide as the processor at hand has them; elsewhere the compiler takes them apart. Which clone it is, is chosen
 * before a sanitizer is ready for that; clang 14 gives the choice a name that other files do not find. */
#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) && !defined(__clang__)
#define WIDE __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define WIDE
#endif

typedef uint64_t words __attribute__((vector_size(64)));

/* Of whole pairs of vectors. The halves of 64-bit words are summed apart, so that carries gather in the upper half of each
 * sum: 2^32 rounds are safe. */
WIDE static uint64_t add_wide(const uint8_t *data, size_t size)
{
	words low = { 0 }, high = { 0 };
	for (const uint8_t *end = data + size; data < end; data += 2 * sizeof(words)) {
		words one, other;
		memcpy(&one, data, sizeof(one));
		memcpy(&other, data + sizeof(one), sizeof(other));
		low += (one & 0xffffffff) + (other & 0xffffffff);
		high += (one >> 32) + (other >> 32);
	}
	low += high;
	uint64_t sum = 0;
	for (int at = 0; at < 8; at++)
		sum += (low[at] & 0xffffffff) + (low[at] >> 32);
	return sum;
}

uint64_t checksum_add(const uint8_t *data, size_t size, uint64_t sum)
{
	size_t wide = size - size % (2 * sizeof(words));
	if (wide > 0)
		sum += add_wide(data, wide);
	uint64_t word;
	for (data += wide, size -= wide; size >= sizeof(word); size -= sizeof(word), data += sizeof(word)) {
		memcpy(&word, data, sizeof(word));
		sum += (word & 0xffffffff) + (word >> 32);
	}
	word = 0;
	memcpy(&word, data, size);
	return sum + (word & 0xffffffff) + (word >> 32);
}

uint16_t checksum_fold(uint64_t sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (uint16_t)~sum;
}

uint64_t checksum_pseudo(const uint8_t *frame, const struct packet *packet, uint32_t length)
{
	const uint8_t *ip = frame + packet->l3;
	uint8_t tail[8] = { 0 };
	store32(tail, length);
	tail[7] = packet->protocol;
	uint64_t sum = checksum_add(tail, sizeof(tail), 0);
	return packet->version == 4 ? checksum_add(ip + 12, 8, sum) : checksum_add(ip + 8, 32, sum);
}
