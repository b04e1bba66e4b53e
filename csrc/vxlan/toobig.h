/* What a router would say of a packet that is too long for the way: ICMP "fragmentation needed" (RFC 792, RFC 1191) or
 * ICMPv6 "packet too big" (RFC 4443 section 3.2), in the name of the packet's own destination, as a bridge has none. */
#ifndef VXNET_VXLAN_TOOBIG_H
#define VXNET_VXLAN_TOOBIG_H

#include "packet.h"

#define TOO_BIG_MAX (14 + 8 + 1280)	/* Ethernet, two VLAN tags, and the most that an ICMPv6 error may be */

/* Whether the sender of this frame has to be told, rather than have its packet fragmented: IPv6, or IPv4 with DF. */
bool too_big_for_fragments(const uint8_t *frame, const struct packet *packet);

/* The answer to `frame`: its length, or 0 where none is due (to an ICMP error, to a group, to what is not IP). `mtu`: the
 * longest packet that would have passed. */
size_t too_big_reply(const uint8_t *frame, size_t size, uint32_t mtu, uint8_t reply[TOO_BIG_MAX]);

#endif
