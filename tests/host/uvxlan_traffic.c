/* Making frames, and looking at what came of them. */
#include "uvxlan_traffic.h"

enum { PERIOD = 65521, WINDOW_OCTETS = 160000, WINDOW_FRAMES = 48, FIRST_PORT = 1000, MARK = 8, DATAGRAM_HEAD = 8 };

uint32_t draw(uint64_t *state, uint32_t below)
{
	*state = *state * 6364136223846793005u + 1442695040888963407u;
	return (uint32_t)(*state >> 33) % below;
}

bool may_send(const struct flow *flow, enum kind kind)
{
	if (flow->frames_sent - flow->frames_received >= WINDOW_FRAMES && kind >= STREAMS)
		return false;
	return kind >= STREAMS || flow->sent - flow->received < WINDOW_OCTETS;
}

/* The octets of a stream, from `at` on: a table whose period is no multiple of anything that frames are made of. */
static const uint8_t *content(int flow, uint64_t at)
{
	static uint8_t table[PERIOD + 65536];
	if (table[0] == 0) {
		uint64_t state = 1;
		for (size_t octet = 0; octet < PERIOD; octet++)
			table[octet] = (uint8_t)draw(&state, 256);
		table[0] = 1;
		for (size_t octet = PERIOD; octet < sizeof(table); octet++)
			table[octet] = table[octet - PERIOD];
	}
	return table + (at + (uint64_t)flow * 997) % PERIOD;
}

static size_t make_ethernet(uint8_t *frame, int from, bool group, uint16_t ethertype)
{
	static const uint8_t mac[6] = { 2, 0, 0, 0, 0, 0 };
	memcpy(frame, mac, 6);
	memcpy(frame + 6, mac, 6);
	frame[5] = (uint8_t)(2 - from);
	frame[11] = (uint8_t)(1 + from);
	if (group)
		memcpy(frame, ethertype == 0x0806 ? "\xff\xff\xff\xff\xff\xff" : "\x01\0\x5e\0\0\x05", 6);
	store16(frame + 12, ethertype);
	return ETHERNET_HEADER;
}

static size_t make_ipv4(uint8_t *ip, int flow, uint8_t protocol, size_t payload, uint16_t flags, uint16_t identity)
{
	memset(ip, 0, 20);
	ip[0] = 0x45;
	store16(ip + 2, (uint16_t)(20 + payload));
	store16(ip + 4, identity);
	store16(ip + 6, flags);
	ip[8] = 64;
	ip[9] = protocol;
	ip[12] = ip[16] = 10;
	ip[15] = (uint8_t)(1 + from_of(flow));
	ip[18] = (uint8_t)flow;
	ip[19] = (uint8_t)(2 - from_of(flow));
	uint16_t sum = checksum_fold(checksum_add(ip, 20, 0));
	memcpy(ip + 10, &sum, 2);
	return 20;
}

static size_t make_ipv6(uint8_t *ip, int flow, uint8_t next, size_t payload)
{
	memset(ip, 0, 40);
	ip[0] = 0x60;
	store16(ip + 4, (uint16_t)payload);
	ip[6] = next;
	ip[7] = 64;
	ip[8] = ip[24] = 0xfd;
	ip[23] = (uint8_t)(1 + from_of(flow));
	ip[38] = (uint8_t)flow;
	ip[39] = (uint8_t)(2 - from_of(flow));
	return 40;
}

static void make_l4_checksum(uint8_t *frame, size_t size, bool partial)
{
	struct packet packet = packet_parse(frame, size);
	uint8_t *field = frame + packet.l4 + (packet.protocol == IPPROTO_TCP ? 16 : 6);
	uint32_t length = packet.end - packet.l4;
	uint64_t pseudo = checksum_pseudo(frame, &packet, length);
	memset(field, 0, 2);
	uint16_t sum = partial ? (uint16_t)~checksum_fold(pseudo) :
				 checksum_fold(checksum_add(frame + packet.l4, length, pseudo));
	if (!partial && packet.protocol == IPPROTO_UDP && sum == 0)
		sum = 0xffff;
	memcpy(field, &sum, 2);
}

/* One frame of a stream. Datagrams say how long they are and which they are. */
static size_t make_stream(struct traffic *traffic, int number, struct virtio_net_hdr *asked, uint8_t *frame)
{
	struct flow *flow = &traffic->flows[number];
	enum kind kind = kind_of(number);
	bool tcp = kind == TCP_IPV4 || kind == TCP_IPV6, ipv4 = kind == TCP_IPV4 || kind == UDP_IPV4;
	uint32_t part = 300 + draw(&traffic->state, 1000), most = draw(&traffic->state, 3) ? 60 * part : part;
	uint32_t payload = DATAGRAM_HEAD + draw(&traffic->state, most < 60000 ? most : 60000), l4 = tcp ? 32 : 8;
	if (!tcp && payload > part && payload % part != 0 && payload % part < DATAGRAM_HEAD)
		payload -= payload % part;	/* the last has its head too */
	size_t at = make_ethernet(frame, from_of(number), false, ipv4 ? 0x0800 : 0x86dd);
	uint8_t protocol = tcp ? IPPROTO_TCP : IPPROTO_UDP;
	at += ipv4 ? make_ipv4(frame + at, number, protocol, l4 + payload, 0x4000, (uint16_t)flow->frames_sent) :
		     make_ipv6(frame + at, number, protocol, l4 + payload);
	uint8_t *header = frame + at;
	memset(header, 0, l4);
	store16(header, 40000);
	store16(header + 2, (uint16_t)(FIRST_PORT + number));
	if (tcp) {
		store32(header + 4, (uint32_t)flow->sent);
		header[12] = 0x80;
		header[13] = (uint8_t)(0x10 | (draw(&traffic->state, 4) ? 0 : 0x08));
		store16(header + 14, 500);
		memcpy(header + 20, "\1\1\x08\x0a\0\0\0\1\0\0\0", 12);
	} else {
		store16(header + 4, (uint16_t)(8 + payload));
	}
	memcpy(header + l4, content(number, flow->sent), payload);
	for (uint32_t from = 0; !tcp && from < payload; from += part) {
		store32(header + l4 + from, payload - from < part ? payload - from : part);
		store32(header + l4 + from + 4, (uint32_t)flow->began++);
	}
	size_t size = at + l4 + payload;
	*asked = (struct virtio_net_hdr){ 0 };
	bool cut = payload > part;
	if (cut || draw(&traffic->state, 2)) {
		asked->flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
		asked->csum_start = (uint16_t)at;
		asked->csum_offset = tcp ? 16 : 6;
	}
	if (cut) {
		asked->gso_size = (uint16_t)part;
		asked->hdr_len = (uint16_t)(at + l4);
		asked->gso_type = !tcp ? VIRTIO_NET_HDR_GSO_UDP_L4 :
				  ipv4 ? VIRTIO_NET_HDR_GSO_TCPV4 : VIRTIO_NET_HDR_GSO_TCPV6;
	}
	make_l4_checksum(frame, size, asked->flags != 0);
	flow->sent += payload;
	return size;
}

/* One frame of any other kind. Its last octets say which. */
static size_t make_other(int flow, uint64_t number, uint8_t *frame)
{
	enum kind kind = kind_of(flow);
	int from = from_of(flow);
	size_t at, size, rest = 60 + number % 500;
	uint16_t ethertype = kind == ARP_BROADCAST ? 0x0806 : kind == ETHERTYPE ? 0x88b5 : kind == PING_IPV6 ? 0x86dd :
			     kind == TAGGED_PING ? 0x8100 : 0x0800;
	at = make_ethernet(frame, from, kind == ARP_BROADCAST || kind == GROUP, ethertype);
	if (kind == TAGGED_PING) {
		store16(frame + at, 7);
		store16(frame + at + 2, 0x0800);
		at += 4;
	}
	if (kind == LONG)
		rest += 1800;
	size = at + 20 + rest;
	if (kind == PING_IPV6)
		size = at + make_ipv6(frame + at, flow, IPPROTO_ICMPV6, rest) + rest;
	else if (ethertype == 0x0800 || kind == TAGGED_PING)
		make_ipv4(frame + at, flow, kind == GROUP || kind == LONG ? IPPROTO_UDP : kind == TAGGED_PING || kind == FRAGMENT ?
			  IPPROTO_ICMP : IPPROTO_TCP, kind == PADDED ? 20 : rest, kind == FRAGMENT ? 0x2000 : 0, 1);
	uint8_t *body = frame + size - rest;
	memcpy(body, content(flow, number), rest);
	if (kind == ARP_BROADCAST || kind == ETHERTYPE)
		memcpy(frame + at, content(flow, number), 20);
	store32(frame + size - 8, (uint32_t)flow);
	store32(frame + size - 4, (uint32_t)number);
	store16(body, 9);
	store16(body + 2, 9);
	body[12] = 0x50;
	body[13] = kind == SYN ? 0x02 : 0x10;
	if (kind == GROUP || kind == LONG) {
		store16(body + 4, (uint16_t)rest);
		store16(body + 6, 0);	/* no checksum */
	} else if (kind == SYN || kind == PADDED || kind == BAD_CHECKSUM) {
		make_l4_checksum(frame, size, false);
		body[16] ^= kind == BAD_CHECKSUM;
	} else if (kind == TORN) {
		frame[at + 2] = 0x7f;	/* longer than there is */
	}
	return size;
}

size_t make_frame(struct traffic *traffic, int number, struct virtio_net_hdr *asked, uint8_t *frame)
{
	struct flow *flow = &traffic->flows[number];
	size_t size;
	*asked = (struct virtio_net_hdr){ 0 };
	if (kind_of(number) < STREAMS)
		size = make_stream(traffic, number, asked, frame);
	else
		size = make_other(number, flow->sent++, frame);
	flow->frames_sent++;
	return size;
}

static void check_datagrams(struct flow *flow, int number, const uint8_t *payload, size_t size, size_t part)
{
	for (size_t at = 0; at < size; at += part) {
		size_t wanted = size - at < part ? size - at : part;
		REQUIRE(wanted >= DATAGRAM_HEAD && load32(payload + at) == wanted, "flow %d: a datagram of %u octets became %zu",
			number, load32(payload + at), wanted);
		REQUIRE(load32(payload + at + 4) == (uint32_t)flow->ended, "flow %d: datagram %u came, not %u", number,
			load32(payload + at + 4), (uint32_t)flow->ended);
		flow->ended++;
		uint64_t stream = flow->received + at;
		/* The content began anew with each frame that was sent, but the table has it at the same place. */
		REQUIRE(memcmp(payload + at + DATAGRAM_HEAD, content(number, stream + DATAGRAM_HEAD), wanted - DATAGRAM_HEAD) == 0,
			"flow %d: another content of datagram %u", number, (uint32_t)flow->ended - 1);
	}
}

static void check_stream(struct traffic *traffic, int number, const struct virtio_net_hdr *header, uint8_t *frame,
			 const struct packet *packet)
{
	struct flow *flow = &traffic->flows[number];
	enum kind kind = kind_of(number);
	bool tcp = kind == TCP_IPV4 || kind == TCP_IPV6;
	const uint8_t *payload = frame + packet->payload, *l4 = frame + packet->l4;
	size_t size = packet->end - packet->payload;
	uint32_t length = packet->end - packet->l4;
	uint64_t pseudo = checksum_pseudo(frame, packet, length);
	REQUIRE(packet->protocol == (tcp ? IPPROTO_TCP : IPPROTO_UDP) &&
		packet->version == (kind == TCP_IPV4 || kind == UDP_IPV4 ? 4 : 6), "flow %d", number);
	if (header->flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) {
		uint16_t field, partial = (uint16_t)~checksum_fold(pseudo);
		memcpy(&field, l4 + (tcp ? 16 : 6), 2);
		REQUIRE(field == partial && header->csum_start == packet->l4, "flow %d: partial checksum", number);
	} else {
		REQUIRE(checksum_fold(checksum_add(l4, length, pseudo)) == 0, "flow %d: checksum", number);
	}
	size_t part = header->gso_type == VIRTIO_NET_HDR_GSO_NONE ? size : header->gso_size;
	REQUIRE(part > 0 && part <= 1300 + DATAGRAM_HEAD, "flow %d: in parts of %zu", number, part);
	traffic->joined += size > part;
	if (tcp) {
		REQUIRE(load32(l4 + 4) == (uint32_t)flow->received, "flow %d: octet %u came, not %u", number, load32(l4 + 4),
			(uint32_t)flow->received);
		REQUIRE(memcmp(payload, content(number, flow->received), size) == 0, "flow %d: another content at %u", number,
			(uint32_t)flow->received);
	} else {
		check_datagrams(flow, number, payload, size, part);
	}
	flow->received += size;
}

void check_frame(struct traffic *traffic, int segment, int end, const struct virtio_net_hdr *header, uint8_t *frame,
		 size_t size)
{
	struct packet packet = packet_parse(frame, size);
	uint32_t number = FLOWS;
	if (packet.protocol != 0 && load16(frame + packet.l4 + 2) >= FIRST_PORT)
		number = load16(frame + packet.l4 + 2) - FIRST_PORT;
	else if (size >= ETHERNET_HEADER + MARK)
		number = load32(frame + size - MARK);
	REQUIRE(number < FLOWS && segment_of((int)number) == segment && from_of((int)number) != end,
		"segment %d, end %d: a frame of %zu octets that nobody sent here (%u)", segment, end, size, number);
	struct flow *flow = &traffic->flows[number];
	if (kind_of((int)number) < STREAMS) {
		check_stream(traffic, (int)number, header, frame, &packet);
	} else {
		static uint8_t wanted[FRAME_ROOM_HERE];
		size_t length = make_other((int)number, flow->received, wanted);
		REQUIRE(flow->received < flow->sent && size == length && memcmp(frame, wanted, size) == 0,
			"flow %u (kind %d): %zu octets, number %u came, where %zu, number %u was to come", number,
			kind_of((int)number), size, load32(frame + size - 4), length, (uint32_t)flow->received);
		flow->received++;
	}
	flow->frames_received++;
}
