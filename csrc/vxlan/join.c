/* Joining. */
#include "join.h"

#include <netinet/in.h>
#include <string.h>

enum { TCP_ACK = 0x10, TCP_PSH = 0x08, IP_DF = 0x4000, FRAME_MAX = 65535 };

enum checksum { CHECKSUM_BAD, CHECKSUM_GOOD, CHECKSUM_PARTIAL, CHECKSUM_NONE };

static uint8_t *checksum_field(uint8_t *frame, const struct packet *packet)
{
	return frame + packet->l4 + (packet->protocol == IPPROTO_TCP ? 16 : 6);
}

/* A frame with padding is summed even if it looks partial: it is short, and as a partial one it would lose the padding. */
static enum checksum verify(uint8_t *frame, size_t size, const struct packet *packet)
{
	uint32_t length = packet->end - packet->l4;
	uint64_t pseudo = checksum_pseudo(frame, packet, length);
	uint16_t field, partial = (uint16_t)~checksum_fold(pseudo);
	memcpy(&field, checksum_field(frame, packet), 2);
	if (field == partial && packet->end == size)
		return CHECKSUM_PARTIAL;
	if (packet->protocol == IPPROTO_UDP && field == 0)
		return CHECKSUM_NONE;
	if (checksum_fold(checksum_add(frame + packet->l4, length, pseudo)) == 0)
		return CHECKSUM_GOOD;
	return field == partial ? CHECKSUM_PARTIAL : CHECKSUM_BAD;
}

static uint8_t gso_type(const struct packet *packet)
{
	if (packet->protocol == IPPROTO_UDP)
		return VIRTIO_NET_HDR_GSO_UDP_L4;
	return packet->version == 4 ? VIRTIO_NET_HDR_GSO_TCPV4 : VIRTIO_NET_HDR_GSO_TCPV6;
}

/* The checksum is left to whoever takes the frame from the TAP; in `frame` the field has the pseudo header's sum. */
static void ask_checksum(struct virtio_net_hdr *header, uint8_t *frame, const struct packet *packet, uint32_t length)
{
	uint16_t partial = (uint16_t)~checksum_fold(checksum_pseudo(frame, packet, length));
	memcpy(checksum_field(frame, packet), &partial, 2);
	header->flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
	header->csum_start = packet->l4;
	header->csum_offset = packet->protocol == IPPROTO_TCP ? 16 : 6;
	header->hdr_len = packet->payload;
}

static void deliver_whole(struct joiner *joiner, void *tap, struct virtio_net_hdr *header, uint8_t *frame, size_t size)
{
	struct iovec vectors[2] = { { header, sizeof(*header) }, { frame, size } };
	joiner->deliver(joiner->context, tap, vectors, 2);
}

static void push_out(struct joiner *joiner, struct join_flow *flow)
{
	const struct packet *packet = &flow->packet;
	struct virtio_net_hdr header = { .flags = VIRTIO_NET_HDR_F_DATA_VALID };
	struct iovec vectors[2 + JOIN_PARTS] = { { &header, sizeof(header) }, { flow->headers, packet->payload } };
	uint32_t length = (uint32_t)(packet->payload - packet->l4) + flow->payload;
	if (flow->frames > 1) {
		uint8_t *ip = flow->headers + packet->l3;
		if (packet->version == 4) {
			store16(ip + 2, (uint16_t)(packet->l4 - packet->l3 + length));
			memset(ip + 10, 0, 2);
			uint16_t sum = checksum_fold(checksum_add(ip, (size_t)(packet->l4 - packet->l3), 0));
			memcpy(ip + 10, &sum, 2);
		} else {
			store16(ip + 4, (uint16_t)length);
		}
		if (packet->protocol == IPPROTO_UDP)
			store16(flow->headers + packet->l4 + 4, (uint16_t)length);
		header.gso_type = gso_type(packet);
		header.gso_size = (uint16_t)flow->part;
		joiner->joined += flow->frames - 1u;
	}
	if (flow->frames > 1 || flow->partial)
		ask_checksum(&header, flow->headers, packet, length);
	memcpy(vectors + 2, flow->parts, flow->frames * sizeof(flow->parts[0]));
	joiner->deliver(joiner->context, flow->tap, vectors, 2 + flow->frames);
	flow->frames = 0;
}

static bool same_flow(const struct join_flow *flow, void *tap, uint32_t hash, const uint8_t *frame,
		      const struct packet *packet)
{
	const struct packet *held = &flow->packet;
	if (flow->frames == 0 || flow->tap != tap || flow->hash != hash || held->version != packet->version ||
	    held->protocol != packet->protocol)
		return false;
	size_t at = held->version == 4 ? 12 : 8, size = held->version == 4 ? 8 : 32;
	return memcmp(flow->headers + held->l3 + at, frame + packet->l3 + at, size) == 0 &&
	       memcmp(flow->headers + held->l4, frame + packet->l4, 4) == 0;
}

/* Whether the two headers differ only in what cutting would have made of one. */
static bool same_headers(const struct join_flow *flow, const uint8_t *frame, const struct packet *packet)
{
	const struct packet *held = &flow->packet;
	const uint8_t *one = flow->headers + held->l3, *other = frame + packet->l3;
	if (held->l3 != packet->l3 || held->l4 != packet->l4 || held->payload != packet->payload ||
	    memcmp(flow->headers, frame, held->l3) != 0)
		return false;
	if (packet->version == 4) {
		/* Version to TOS; flags and offset, TTL, protocol; options. */
		if (memcmp(one, other, 2) != 0 || memcmp(one + 6, other + 6, 4) != 0 ||
		    memcmp(one + 20, other + 20, (size_t)(held->l4 - held->l3 - 20)) != 0)
			return false;
		if (!(load16(other + 6) & IP_DF) && load16(other + 4) != (uint16_t)(load16(one + 4) + flow->frames))
			return false;
	} else if (memcmp(one, other, 4) != 0 || memcmp(one + 6, other + 6, 2) != 0) {
		return false;
	}
	if (packet->protocol == IPPROTO_UDP)
		return true;
	one = flow->headers + held->l4;
	other = frame + packet->l4;
	/* Acknowledgement and header length; window; options. Of the flags only PSH may differ, and it ends the flow. */
	return memcmp(one + 8, other + 8, 5) == 0 && (one[13] | TCP_PSH) == (other[13] | TCP_PSH) &&
	       memcmp(one + 14, other + 14, 2) == 0 &&
	       memcmp(one + 18, other + 18, (size_t)(held->payload - held->l4 - 18)) == 0 &&
	       load32(other + 4) == flow->sequence;
}

static bool may_follow(const struct join_flow *flow, const uint8_t *frame, const struct packet *packet)
{
	uint32_t size = packet->end - packet->payload;
	return !flow->closed && flow->frames < JOIN_PARTS && size <= flow->part &&
	       packet->payload + flow->payload + size <= FRAME_MAX && same_headers(flow, frame, packet);
}

static void append(struct join_flow *flow, uint8_t *frame, const struct packet *packet)
{
	uint32_t size = packet->end - packet->payload;
	flow->parts[flow->frames++] = (struct iovec){ frame + packet->payload, size };
	flow->payload += size;
	flow->sequence += size;
	if (size < flow->part)
		flow->closed = true;
	if (packet->protocol == IPPROTO_TCP && frame[packet->l4 + 13] & TCP_PSH) {
		flow->headers[packet->l4 + 13] |= TCP_PSH;
		flow->closed = true;
	}
}

static void begin(struct join_flow *flow, void *tap, uint32_t hash, uint8_t *frame, const struct packet *packet)
{
	flow->tap = tap;
	flow->hash = hash;
	flow->packet = *packet;
	flow->part = packet->end - packet->payload;
	flow->payload = 0;
	flow->sequence = packet->protocol == IPPROTO_TCP ? load32(frame + packet->l4 + 4) : 0;
	flow->frames = 0;
	flow->closed = false;
	flow->partial = false;
	memcpy(flow->headers, frame, packet->payload);
	append(flow, frame, packet);
}

/* Data and nothing special: no padding, no flag but ACK and PSH, no urgent pointer; and IPv4's own checksum holds, which
 * is made anew for what was joined. */
static bool joinable(const uint8_t *frame, size_t size, const struct packet *packet, const struct join_rules *rules)
{
	if (packet->end != size || packet->payload >= packet->end || packet->payload > HEADERS_MAX)
		return false;
	if (packet->version == 4 &&
	    checksum_fold(checksum_add(frame + packet->l3, (size_t)(packet->l4 - packet->l3), 0)) != 0)
		return false;
	const uint8_t *l4 = frame + packet->l4;
	if (packet->protocol == IPPROTO_UDP)
		return rules->udp && load16(l4 + 4) == packet->end - packet->l4;
	return (l4[13] | TCP_PSH) == (TCP_ACK | TCP_PSH) && load16(l4 + 18) == 0;
}

/* A frame whose checksum was left to a card that there is none of. One that is longer than the segment's MTU was left
 * uncut too, and where to cut it is known for TCP alone. */
static void deliver_partial(struct joiner *joiner, void *tap, const struct join_rules *rules, uint8_t *frame,
			    const struct packet *packet)
{
	struct virtio_net_hdr header = { 0 };
	ask_checksum(&header, frame, packet, packet->end - packet->l4);
	uint32_t headers = (uint32_t)(packet->payload - packet->l3);
	if (rules->virtual && packet->end - packet->l3 > rules->mtu && packet->protocol == IPPROTO_TCP && headers < rules->mtu) {
		header.gso_type = gso_type(packet);
		header.gso_size = (uint16_t)(rules->mtu - headers);
	}
	/* Without padding: whoever fills in the checksum sums up to the end of the frame. */
	deliver_whole(joiner, tap, &header, frame, packet->end);
}

void joiner_add(struct joiner *joiner, void *tap, const struct join_rules *rules, uint8_t *frame, size_t size)
{
	struct packet packet = packet_parse(frame, size);
	struct virtio_net_hdr plain = { 0 };
	if (packet.protocol == 0) {
		packet_look_behind(frame, &packet);
		if (packet.protocol != 0 && verify(frame, size, &packet) == CHECKSUM_PARTIAL)
			deliver_partial(joiner, tap, rules, frame, &packet);
		else
			deliver_whole(joiner, tap, &plain, frame, size);
		return;
	}
	uint32_t hash = packet_hash(frame, size, &packet);
	enum checksum checksum = verify(frame, size, &packet);
	struct join_flow *flow = NULL, *unused = NULL;
	for (int at = 0; at < joiner->used && flow == NULL; at++) {
		if (joiner->flows[at].frames == 0)
			unused = &joiner->flows[at];
		else if (same_flow(&joiner->flows[at], tap, hash, frame, &packet))
			flow = &joiner->flows[at];
	}
	bool partial = checksum == CHECKSUM_PARTIAL;
	bool fits = (checksum == CHECKSUM_GOOD || (partial && packet.end - packet.l3 <= rules->mtu)) &&
		    joinable(frame, size, &packet, rules);
	if (flow != NULL && fits && may_follow(flow, frame, &packet)) {
		append(flow, frame, &packet);
		flow->partial |= partial;
		return;
	}
	if (flow != NULL)
		push_out(joiner, flow);
	if (fits) {
		if (flow == NULL)
			flow = unused;
		if (flow == NULL && joiner->used < JOIN_FLOWS)
			flow = &joiner->flows[joiner->used++];
		if (flow == NULL) {
			flow = &joiner->flows[hash % JOIN_FLOWS];
			push_out(joiner, flow);
		}
		begin(flow, tap, hash, frame, &packet);
		flow->partial = partial;
		return;
	}
	if (partial) {
		deliver_partial(joiner, tap, rules, frame, &packet);
		return;
	}
	if (checksum == CHECKSUM_GOOD)
		plain.flags = VIRTIO_NET_HDR_F_DATA_VALID;
	else if (checksum == CHECKSUM_BAD)
		joiner->bad_checksums++;
	deliver_whole(joiner, tap, &plain, frame, size);
}

/* For a TAP that takes no joined UDP. */
static void deliver_cut(struct joiner *joiner, void *tap, const struct virtio_net_hdr *asked, uint8_t *frame, size_t size)
{
	struct virtio_net_hdr plain = { .flags = VIRTIO_NET_HDR_F_DATA_VALID };
	uint8_t headers[HEADERS_MAX];
	struct cutter cutter;
	struct piece piece;
	if (cutter_begin(&cutter, asked, frame, size) < 0)
		return;
	while (cutter_next(&cutter, headers, &piece)) {
		struct iovec vectors[3] = { { &plain, sizeof(plain) }, { headers, piece.headers },
					    { (void *)(uintptr_t)piece.part, piece.size } };
		joiner->deliver(joiner->context, tap, vectors, 3);
	}
}

bool joiner_add_uncut(struct joiner *joiner, void *tap, const struct join_rules *rules, uint8_t *frame, size_t size,
		      size_t part)
{
	if (!rules->virtual || part > UINT16_MAX)
		return false;
	struct packet packet = packet_parse(frame, size);
	if (packet.protocol != IPPROTO_UDP || packet.end != size || load16(frame + packet.l4 + 4) != size - packet.l4 ||
	    verify(frame, size, &packet) != CHECKSUM_PARTIAL)
		return false;
	struct virtio_net_hdr header = { .gso_type = gso_type(&packet), .gso_size = (uint16_t)part };
	joiner_flush(joiner);	/* what came before goes before */
	if (rules->udp) {
		ask_checksum(&header, frame, &packet, packet.end - packet.l4);
		deliver_whole(joiner, tap, &header, frame, size);
	} else {
		deliver_cut(joiner, tap, &header, frame, size);
	}
	return true;
}

void joiner_flush(struct joiner *joiner)
{
	for (int at = 0; at < joiner->used; at++) {
		if (joiner->flows[at].frames > 0)
			push_out(joiner, &joiner->flows[at]);
	}
	joiner->used = 0;
}
