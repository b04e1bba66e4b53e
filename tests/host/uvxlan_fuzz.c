/* What the tunnel reads of strangers, with random and torn input, and one promise: frames that were cut and joined again
 * are the frames that there were. argv: seed, rounds. Prints how many frames went the whole way. */
#include <assert.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "command.h"
#include "cut.h"
#include "fdb.h"
#include "join.h"
#include "toobig.h"

#define FRAME_MAX 65535

static uint64_t state;

static uint32_t draw(uint32_t below)
{
	state = state * 6364136223846793005u + 1442695040888963407u;
	return (uint32_t)(state >> 33) % below;
}

/* A frame on the heap, so that one octet too far is seen. */
static uint8_t *copy(const uint8_t *data, size_t size)
{
	uint8_t *made = malloc(size > 0 ? size : 1);
	assert(made != NULL);
	memcpy(made, data, size);
	return made;
}

static size_t make_frame(uint8_t *frame, bool tcp, bool ipv6, bool vlan, uint32_t payload)
{
	size_t at = 12;
	for (size_t octet = 0; octet < 12; octet++)
		frame[octet] = (uint8_t)draw(256);
	if (vlan) {
		store16(frame + at, 0x8100);
		store16(frame + at + 2, (uint16_t)draw(4096));
		at += 4;
	}
	store16(frame + at, ipv6 ? 0x86dd : 0x0800);
	uint8_t *ip = frame + at + 2;
	uint32_t transport = (tcp ? 20 : 8) + (tcp ? 4 * draw(4) : 0);
	memset(ip, 0, 40);
	if (ipv6) {
		ip[0] = 0x60;
		store16(ip + 4, (uint16_t)(transport + payload));
		ip[6] = tcp ? IPPROTO_TCP : IPPROTO_UDP;
		ip[7] = 64;
	} else {
		ip[0] = 0x45;
		store16(ip + 2, (uint16_t)(20 + transport + payload));
		store16(ip + 4, (uint16_t)draw(65536));
		store16(ip + 6, draw(2) ? 0x4000 : 0);
		ip[8] = 64;
		ip[9] = tcp ? IPPROTO_TCP : IPPROTO_UDP;
	}
	for (size_t octet = ipv6 ? 8 : 12; octet < (ipv6 ? 40u : 20u); octet++)
		ip[octet] = (uint8_t)draw(256);
	uint8_t *l4 = ip + (ipv6 ? 40 : 20);
	for (size_t octet = 0; octet < transport + payload; octet++)
		l4[octet] = (uint8_t)draw(256);
	if (tcp) {
		l4[12] = (uint8_t)(transport / 4 << 4);
		l4[13] = 0x10 | (draw(2) ? 0x08 : 0);
		store16(l4 + 18, 0);
	} else {
		store16(l4 + 4, (uint16_t)(transport + payload));
	}
	return (size_t)(l4 - frame) + transport + payload;
}

struct seen {
	const uint8_t *wanted;
	size_t size;
	uint32_t frames;
	bool same;
};

/* The same but for the checksum, which is to be made, and IPv4's own, which covers only what was compared. */
static void look(void *context, void *tap, const struct iovec *vectors, int count)
{
	static uint8_t joined[FRAME_MAX + HEADERS_MAX];
	struct seen *seen = context;
	size_t size = 0;
	(void)tap;
	for (int at = 1; at < count; at++) {
		assert(size + vectors[at].iov_len <= sizeof(joined));
		memcpy(joined + size, vectors[at].iov_base, vectors[at].iov_len);
		size += vectors[at].iov_len;
	}
	struct virtio_net_hdr header;
	memcpy(&header, vectors[0].iov_base, sizeof(header));
	seen->frames++;
	if (header.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) {
		header.gso_type = VIRTIO_NET_HDR_GSO_NONE;
		struct cutter cutter;
		assert(cutter_begin(&cutter, &header, joined, size) == 0);
	}
	seen->same = size == seen->size && memcmp(joined, seen->wanted, size) == 0;
}

/* Cut as a card would, carried in order, joined: whole again in as many frames as the joiner's bounds ask for. */
static bool there_and_back(void)
{
	static uint8_t frame[FRAME_MAX + HEADERS_MAX], pieces[70][2048];
	static struct joiner joiner;
	bool tcp = draw(2), ipv6 = draw(2);
	uint32_t part = 500 + draw(900), payload = 1 + draw(60 * part);
	if (payload > 60000)
		payload = 60000;
	size_t size = make_frame(frame, tcp, ipv6, draw(2), payload);
	struct packet packet = packet_parse(frame, size);
	assert(packet.protocol == (tcp ? IPPROTO_TCP : IPPROTO_UDP) && packet.end == size);
	uint32_t length = packet.end - packet.l4;
	uint8_t *field = frame + packet.l4 + (tcp ? 16 : 6);
	memset(field, 0, 2);
	uint16_t sum = checksum_fold(checksum_add(frame + packet.l4, length, checksum_pseudo(frame, &packet, length)));
	if (!tcp && sum == 0)
		sum = 0xffff;
	memcpy(field, &sum, 2);
	if (!ipv6) {
		uint8_t *ip = frame + packet.l3;
		sum = checksum_fold(checksum_add(ip, 20, 0));
		memcpy(ip + 10, &sum, 2);
	}
	struct virtio_net_hdr asked = { .gso_size = (uint16_t)part };
	asked.gso_type = tcp ? (ipv6 ? VIRTIO_NET_HDR_GSO_TCPV6 : VIRTIO_NET_HDR_GSO_TCPV4) : VIRTIO_NET_HDR_GSO_UDP_L4;

	struct seen seen = { .wanted = frame, .size = size };
	joiner = (struct joiner){ .deliver = look, .context = &seen };
	struct join_rules rules = { .udp = true, .mtu = 1450 };
	struct cutter cutter;
	struct piece piece;
	assert(cutter_begin(&cutter, &asked, frame, size) == 0);
	for (int at = 0; cutter_next(&cutter, pieces[at], &piece); at++) {
		assert(at < 69 && piece.headers + piece.size <= sizeof(pieces[at]));
		memcpy(pieces[at] + piece.headers, piece.part, piece.size);
		joiner_add(&joiner, &seen, &rules, pieces[at], piece.headers + piece.size);
	}
	joiner_flush(&joiner);
	assert(joiner.bad_checksums == 0);
	if (seen.frames == 1)
		assert(seen.same);
	return seen.same;
}

static void count(void *context, void *tap, const struct iovec *vectors, int count)
{
	(void)tap;
	for (int at = 1; at < count; at++)
		*(uint64_t *)context += vectors[at].iov_len;
}

/* What a kernel's tunnel left uncut, or something like it: all of its payload arrives, in as many frames as it takes. */
static void uncut(const uint8_t *data, size_t size)
{
	uint8_t *frame = copy(data, size);
	struct packet packet = packet_parse(frame, size);
	bool udp = packet.protocol == IPPROTO_UDP;
	if (udp) {
		uint16_t partial = (uint16_t)~checksum_fold(checksum_pseudo(frame, &packet, packet.end - packet.l4));
		memcpy(frame + packet.l4 + 6, &partial, 2);
	}
	uint64_t out = 0;
	static struct joiner joiner;
	joiner = (struct joiner){ .deliver = count, .context = &out };
	struct join_rules rules = { .udp = draw(2), .virtual = true, .mtu = 1450 };
	size_t part = 1 + draw(300), payload = udp ? packet.end - packet.payload : 0;
	if (joiner_add_uncut(&joiner, &joiner, &rules, frame, size, part)) {
		size_t frames = rules.udp || payload == 0 ? 1 : (payload + part - 1) / part;
		assert(udp && out == frames * packet.payload + payload);
	} else {
		assert(out == 0);
	}
	free(frame);
}

/* No octet is lost or made up, whatever it is. */
static void torn(void)
{
	static uint8_t frame[FRAME_MAX + HEADERS_MAX];
	static struct joiner joiner;
	uint64_t in = 0, out = 0;
	uint8_t *kept[40];
	joiner = (struct joiner){ .deliver = count, .context = &out };
	struct join_rules rules = { .udp = draw(2), .virtual = draw(2), .mtu = 1450 };
	for (int at = 0; at < 40; at++) {
		size_t size = make_frame(frame, draw(2), draw(2), draw(2), draw(300));
		for (uint32_t flips = draw(4); flips > 0; flips--)
			frame[draw((uint32_t)size)] ^= (uint8_t)(1 << draw(8));
		if (draw(3) == 0)
			size = draw((uint32_t)size + 1);
		kept[at] = copy(frame, size);
		uncut(frame, size);
		struct packet packet = packet_parse(kept[at], size);
		packet_hash(kept[at], size, &packet);
		uint8_t reply[TOO_BIG_MAX];
		assert(too_big_reply(kept[at], size, 576 + draw(1000), reply) <= TOO_BIG_MAX);
		joiner_add(&joiner, &joiner, &rules, kept[at], size);
		in += size;

		uint8_t *other = copy(frame, size);
		struct virtio_net_hdr asked = { .flags = (uint8_t)draw(4), .gso_type = (uint8_t)draw(8),
						.gso_size = (uint16_t)draw(1500), .csum_start = (uint16_t)draw(200),
						.csum_offset = (uint16_t)draw(40) };
		struct cutter cutter;
		if (cutter_begin(&cutter, &asked, other, size) == 0) {
			uint8_t headers[HEADERS_MAX];
			struct piece piece;
			while (cutter_next(&cutter, headers, &piece))
				assert(piece.headers <= HEADERS_MAX);
		}
		free(other);
	}
	joiner_flush(&joiner);
	assert(out <= in);
	for (int at = 0; at < 40; at++)
		free(kept[at]);
}

static void requests(void)
{
	uint8_t message[256];
	size_t size = draw(sizeof(message));
	for (size_t at = 0; at < size; at++)
		message[at] = (uint8_t)draw(256);
	if (size >= 8) {
		uint32_t head[2] = { draw(16), draw(0x1ffffff) };
		memcpy(message, head, 8);
	}
	uint8_t *exact = copy(message, size);
	struct command command;
	if (command_parse(exact, size, &command) == 0) {
		for (uint32_t at = 0; at < command.count; at++)
			(void)fdb_key(command.rows != NULL ? command.rows[at].mac : command.addresses[at].octets);
	}
	free(exact);
}

/* Against an array. */
static void rows(void)
{
	struct fdb fdb = { 0 };
	bool there[256] = { false };
	for (int turn = 0; turn < 2000; turn++) {
		uint8_t mac[6] = { 2, 0, 0, 0, 0, (uint8_t)draw(256) };
		struct address vtep = { .octets = { mac[5] } };
		there[mac[5]] = draw(2);
		if (there[mac[5]])
			assert(fdb_put(&fdb, fdb_key(mac), &vtep) == 0);
		else
			fdb_remove(&fdb, fdb_key(mac));
	}
	size_t used = 0;
	for (int last = 0; last < 256; last++) {
		uint8_t mac[6] = { 2, 0, 0, 0, 0, (uint8_t)last };
		const struct address *found = fdb_find(&fdb, fdb_key(mac));
		assert((found != NULL) == there[last] && (found == NULL || found->octets[0] == last));
		used += there[last];
	}
	assert(fdb.used == used);
	fdb_clear(&fdb);
}

int main(int argc, char **argv)
{
	assert(argc == 3);
	uint64_t whole = 0;
	state = strtoull(argv[1], NULL, 10);
	for (long round = strtol(argv[2], NULL, 10); round > 0; round--) {
		whole += there_and_back();
		torn();
		requests();
		if (round % 64 == 0)
			rows();
	}
	printf("%" PRIu64 "\n", whole);
	return 0;
}
