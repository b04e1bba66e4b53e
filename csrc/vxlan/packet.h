/* Ethernet frames as far as a tunnel has to understand them: where the headers are, whose flow it is, and the Internet
 * checksum (RFC 1071). All of it is pure: over (pointer, size), no descriptor, no allocation. */
#ifndef VXNET_VXLAN_PACKET_H
#define VXNET_VXLAN_PACKET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ETHERNET_HEADER 14
#define HEADERS_MAX 160	/* Ethernet, two VLAN tags, IP and TCP with all their options: 14 + 8 + 60 + 60, rounded up */

/* What was found in a frame. Offsets are from its first octet.
 *
 *   0          l3            l4              payload          end        size
 *   | Ethernet | IPv4 / IPv6 | TCP or UDP    | ...            | padding  |
 */
struct packet {
	uint16_t ethertype;	/* behind the VLAN tags, if any */
	uint8_t version;	/* 4, 6; 0: not IP, or torn */
	uint8_t protocol;	/* IPPROTO_TCP or _UDP, whole and not a fragment; else 0, and l4 and payload mean nothing */
	uint16_t l3;
	uint16_t l4;
	uint16_t payload;
	uint32_t end;		/* where the IP packet ends, as its header says */
};

/* Never reads beyond size; whatever does not fit is "not IP" or "not TCP or UDP". */
struct packet packet_parse(const uint8_t *frame, size_t size);

/* Finds TCP or UDP behind extension headers of IPv6, where packet_parse found neither: for whoever has a checksum of theirs
 * to make. Only behind such headers as change nothing of the pseudo header, and within HEADERS_MAX; else nothing is done. */
void packet_look_behind(const uint8_t *frame, struct packet *packet);

/* The same for all frames of a flow, and different for most others: TCP and UDP by addresses and ports, other IP by
 * addresses, the rest by MACs. */
uint32_t packet_hash(const uint8_t *frame, size_t size, const struct packet *packet);

/* What the underlay is told of the sender of a frame, so that it marks what it would else have to drop: its ECN field. A
 * mark that it has already stays within (RFC 3168 section 9.1.1, as INET_ECN_encapsulate in include/net/inet_ecn.h). */
uint8_t packet_outer_ecn(const uint8_t *frame, const struct packet *packet);

/* Takes over the underlay's mark of congestion (RFC 6040 section 4.2). false: the sender knows no such marks, and the
 * frame is to be dropped, as without the tunnel it would have been. */
bool packet_mark_congestion(uint8_t *frame, size_t size);

/* Sum of 16-bit words as they lie in memory, not folded; only the last of several pieces may be odd. */
uint64_t checksum_add(const uint8_t *data, size_t size, uint64_t sum);
/* As it is written into a header: memcpy(field, &value, 2). */
uint16_t checksum_fold(uint64_t sum);
/* Of the pseudo header, with `length` octets from l4 on (RFC 9293 section 3.1, RFC 8200 section 8.1). */
uint64_t checksum_pseudo(const uint8_t *frame, const struct packet *packet, uint32_t length);

static inline uint16_t load16(const uint8_t *at)
{
	return (uint16_t)(at[0] << 8 | at[1]);
}

static inline uint32_t load32(const uint8_t *at)
{
	return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

static inline void store16(uint8_t *at, uint16_t value)
{
	at[0] = (uint8_t)(value >> 8);
	at[1] = (uint8_t)value;
}

static inline void store32(uint8_t *at, uint32_t value)
{
	store16(at, (uint16_t)(value >> 16));
	store16(at + 2, (uint16_t)value);
}

#endif
