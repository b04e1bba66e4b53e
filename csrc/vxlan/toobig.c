/* The two answers. */
#include "toobig.h"

#include <netinet/icmp6.h>
#include <netinet/in.h>
#include <netinet/ip_icmp.h>
#include <string.h>

enum { QUOTED_IPV4 = 576 - 20 - 8, LEAST_IPV6 = 1280, QUOTED_IPV6 = LEAST_IPV6 - 40 - 8, HOPS = 64 };

/* Whether an answer is due: not to an ICMP error, a group, or a later fragment. */

static bool answers_ipv4(const uint8_t *ip, size_t size)
{
	size_t header = (size_t)(ip[0] & 15) * 4;
	if (ip[9] == IPPROTO_ICMP && size > header && ip[header] != ICMP_ECHO && ip[header] != ICMP_ECHOREPLY)
		return false;
	return ip[16] < 224 && (load16(ip + 6) & 0x1fff) == 0;
}

static bool answers_ipv6(const uint8_t *ip, size_t size)
{
	if (ip[6] == IPPROTO_ICMPV6 && size > 40 && ip[40] < ICMP6_ECHO_REQUEST)	/* below 128: errors */
		return false;
	return ip[24] != 0xff;
}

static bool answers(const uint8_t *frame, const struct packet *packet)
{
	const uint8_t *ip = frame + packet->l3;
	size_t size = packet->end - packet->l3;
	if (packet->version == 0 || frame[0] & 1)
		return false;
	return packet->version == 4 ? answers_ipv4(ip, size) : answers_ipv6(ip, size);
}

uint32_t too_big_for_fragments(const uint8_t *frame, const struct packet *packet, uint32_t mtu)
{
	if (!answers(frame, packet))
		return 0;
	if (packet->version == 4)
		return load16(frame + packet->l3 + 6) & IP_DF ? mtu : 0;
	uint32_t told = mtu < LEAST_IPV6 ? LEAST_IPV6 : mtu;
	return packet->end - packet->l3 > told ? told : 0;
}

static size_t reply_ipv4(const uint8_t *ip, size_t size, uint32_t mtu, uint8_t *out)
{
	size_t quoted = size < QUOTED_IPV4 ? size : QUOTED_IPV4, total = 20 + 8 + quoted;
	uint8_t *icmp = out + 20;
	memset(out, 0, 28);
	out[0] = 0x45;
	store16(out + 2, (uint16_t)total);
	out[8] = HOPS;
	out[9] = IPPROTO_ICMP;
	memcpy(out + 12, ip + 16, 4);
	memcpy(out + 16, ip + 12, 4);
	uint16_t sum = checksum_fold(checksum_add(out, 20, 0));
	memcpy(out + 10, &sum, 2);
	icmp[0] = ICMP_DEST_UNREACH;
	icmp[1] = ICMP_FRAG_NEEDED;
	store16(icmp + 6, (uint16_t)mtu);
	memcpy(icmp + 8, ip, quoted);
	sum = checksum_fold(checksum_add(icmp, 8 + quoted, 0));
	memcpy(icmp + 2, &sum, 2);
	return total;
}

static size_t reply_ipv6(const uint8_t *ip, size_t size, uint32_t mtu, uint8_t *out)
{
	size_t quoted = size < QUOTED_IPV6 ? size : QUOTED_IPV6;
	uint8_t *icmp = out + 40;
	memset(out, 0, 48);
	out[0] = 0x60;
	store16(out + 4, (uint16_t)(8 + quoted));
	out[6] = IPPROTO_ICMPV6;
	out[7] = HOPS;
	memcpy(out + 8, ip + 24, 16);
	memcpy(out + 24, ip + 8, 16);
	icmp[0] = ICMP6_PACKET_TOO_BIG;
	store32(icmp + 4, mtu);
	memcpy(icmp + 8, ip, quoted);
	struct packet pseudo = { .version = 6, .protocol = IPPROTO_ICMPV6 };
	uint64_t sum = checksum_pseudo(out, &pseudo, (uint32_t)(8 + quoted));
	uint16_t folded = checksum_fold(checksum_add(icmp, 8 + quoted, sum));
	memcpy(icmp + 2, &folded, 2);
	return 48 + quoted;
}

size_t too_big_reply(const uint8_t *frame, size_t size, uint32_t mtu, uint8_t reply[TOO_BIG_MAX])
{
	struct packet packet = packet_parse(frame, size);
	if (!answers(frame, &packet))
		return 0;
	const uint8_t *ip = frame + packet.l3;
	uint8_t *out = reply + packet.l3;
	size_t length = packet.end - packet.l3;
	length = packet.version == 4 ? reply_ipv4(ip, length, mtu, out) : reply_ipv6(ip, length, mtu, out);
	memcpy(reply, frame + 6, 6);
	memcpy(reply + 6, frame, 6);
	memcpy(reply + 12, frame + 12, (size_t)(packet.l3 - 12));
	return packet.l3 + length;
}
