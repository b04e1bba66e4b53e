/* What a router would say of a packet that is too long for the way: ICMP "fragmentation needed" (RFC 792, RFC 1191) or
 * ICMPv6 "packet too big" (RFC 4443 section 3.2), in the name of the packet's own destination, as a bridge has none. */
#ifndef VXNET_VXLAN_TOOBIG_H
#define VXNET_VXLAN_TOOBIG_H

#include "packet.h"

#define TOO_BIG_MAX (14 + 8 + 1280)	/* Ethernet, two VLAN tags, and the most that an ICMPv6 error may be */

/* What the sender of this frame has to be told, where `mtu` is the longest packet that passes; 0: nothing, the frame goes
 * in fragments. Told are IPv4 with DF, and IPv6 unless it is one of the 1280 octets that a sender need not go below: those
 * are the tunnel's to bring over (RFC 8200 section 5, RFC 2473 section 7.1). Nobody is told where no answer is due. */
uint32_t too_big_for_fragments(const uint8_t *frame, const struct packet *packet, uint32_t mtu);

/* The answer to `frame`: its length, or 0 where none is due (to an ICMP error, to a group, to what is not IP). `mtu`: the
 * longest packet that would have passed. */
size_t too_big_reply(const uint8_t *frame, size_t size, uint32_t mtu, uint8_t reply[TOO_BIG_MAX]);

#endif
