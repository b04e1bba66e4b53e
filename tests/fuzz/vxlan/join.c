/* Any frames in any order into the joiner: whatever it makes of them, cutting gives back frame by frame what came, in the
 * order of each flow and to the same TAP. */
#include "frames.h"
#include "join.h"

enum {
	FOLLOW = 0x01,		/* no frame follows: the last one again, as cutting would have gone on */
	CHECKSUMS = 0x02,	/* made right */
	PARTIAL = 0x04,		/* … but TCP's or UDP's, which has the pseudo header's sum alone */
	TAP = 0x08,
	FLUSH = 0x10,		/* first */
	SHORTER = 0x20,		/* by one octet */
	LENGTHS = 0x40,		/* made right */
	UNCUT = 0x80,		/* an octet follows: into how long parts it is to be cut */
};

enum { FRAMES = 200, DF = 0x4000 };

struct came {
	uint8_t *frame;		/* the joiner's, which may change it */
	uint8_t *copy;
	size_t size;
	int tap;
	size_t given;		/* octets of payload that came out */
	bool done;
};

struct run {
	struct came came[FRAMES];
	int count;
	bool virtual;
	int taps[2];		/* only their addresses count */
};

/* Also behind extension headers of IPv6, where nothing is joined but checksums are filled in. */
static struct packet parse(const uint8_t *frame, size_t size)
{
	struct packet found = packet_parse(frame, size);
	packet_look_behind(frame, &found);
	return found;
}

static bool has_extensions(const struct packet *packet)
{
	return packet->version == 6 && packet->l4 > packet->l3 + 40;
}

static bool same_flow(const uint8_t *one, const struct packet *of_one, const uint8_t *other, const struct packet *of_other)
{
	if (of_one->protocol != of_other->protocol)
		return false;
	if (of_one->protocol == 0)
		return true;
	size_t at = of_one->version == 4 ? 12 : 8, size = of_one->version == 4 ? 8 : 32;
	return of_one->version == of_other->version && has_extensions(of_one) == has_extensions(of_other) &&
	       memcmp(one + of_one->l3 + at, other + of_other->l3 + at, size) == 0 &&
	       memcmp(one + of_one->l4, other + of_other->l4, 4) == 0;
}

/* Without what may differ: the identification of what is never fragmented (RFC 6864 section 4.1), and the two ways to write
 * a checksum of zero. */
static void normalize(uint8_t *frame, const struct packet *packet)
{
	if (packet->protocol == 0)
		return;
	uint8_t *ip = frame + packet->l3, *sum = l4_checksum(frame, packet);
	if (packet->version == 4 && load16(ip + 6) & DF && ip_checksum_is_right(frame, packet)) {
		memset(ip + 4, 0, 2);
		memset(ip + 10, 0, 2);
	}
	if (packet->protocol == IPPROTO_TCP && load16(sum) == 0xffff)
		memset(sum, 0, 2);
}

/* The frame that is next in the flow of this one. */
static struct came *next(struct run *run, int tap, const uint8_t *frame, const struct packet *packet)
{
	for (int at = 0; at < run->count; at++) {
		struct came *came = &run->came[at];
		struct packet of = parse(came->copy, came->size);
		if (!came->done && came->tap == tap && same_flow(came->copy, &of, frame, packet))
			return came;
	}
	return NULL;
}

/* Whether the rest of TCP's or UDP's checksum is yet to be filled in. */
static bool is_partial(uint8_t *frame, const struct packet *packet)
{
	uint16_t partial = (uint16_t)~checksum_fold(checksum_pseudo(frame, packet, packet->end - packet->l4));
	return memcmp(l4_checksum(frame, packet), &partial, 2) == 0;
}

static void compare(struct run *run, int tap, uint8_t *frame, size_t size)
{
	struct packet packet = parse(frame, size);
	struct came *came = next(run, tap, frame, &packet);
	assert(came != NULL);
	struct packet of = parse(came->copy, came->size);
	if (!run->virtual || packet.protocol == 0) {
		uint8_t *wanted = exact(came->copy, came->size);
		size_t length = came->size;
		if (of.protocol != 0 && is_partial(wanted, &of) && !l4_checksum_is_right(wanted, &of)) {
			make_l4_checksum(wanted, &of, false);
			length = of.end;	/* without padding */
		}
		normalize(wanted, &of);
		normalize(frame, &packet);
		assert(size == length && memcmp(frame, wanted, size) == 0);
		free(wanted);
		came->done = true;
		return;
	}
	/* One that came uncut may go on in pieces. */
	size_t part = packet.end - packet.payload, left = of.end - of.payload - came->given;
	assert(part <= left && memcmp(frame + packet.payload, came->copy + of.payload + came->given, part) == 0);
	came->given += part;
	came->done = part == left;
}

static void deliver(void *context, void *tap, const struct iovec *vectors, int count)
{
	struct run *run = context;
	struct virtio_net_hdr header;
	size_t size = 0;
	assert(count >= 2 && vectors[0].iov_len == sizeof(header));
	memcpy(&header, vectors[0].iov_base, sizeof(header));
	for (int at = 1; at < count; at++)
		size += vectors[at].iov_len;
	uint8_t *whole = malloc(size + 1);
	assert(whole != NULL);
	size = 0;
	for (int at = 1; at < count; at++) {
		memcpy(whole + size, vectors[at].iov_base, vectors[at].iov_len);
		size += vectors[at].iov_len;
	}
	int number = (int *)tap == &run->taps[1];
	struct cutter cutter;
	if (size < ETHERNET_HEADER) {	/* less than a frame passes as it is; the forwarder drops it before */
		compare(run, number, whole, size);
		free(whole);
		return;
	}
	assert(cutter_begin(&cutter, &header, whole, size) == 0);
	struct piece piece;
	uint8_t headers[HEADERS_MAX];
	while (cutter_next(&cutter, headers, &piece)) {
		size_t length = piece.headers + piece.size;
		uint8_t *frame = malloc(length);
		assert(frame != NULL);
		memcpy(frame, headers, piece.headers);
		if (piece.size > 0)
			memcpy(frame + piece.headers, piece.part, piece.size);
		compare(run, number, frame, length);
		free(frame);
	}
	free(whole);
}

/* The next frame of the input: on the heap, or NULL where there is no more. */
static uint8_t *take(struct run *run, const uint8_t **data, size_t *left, uint8_t control, size_t *size)
{
	uint8_t *frame;
	const struct came *last = run->count > 0 ? &run->came[run->count - 1] : NULL;
	if (control & FOLLOW && last != NULL) {
		*size = last->size;
		frame = exact(last->copy, *size);
		struct packet packet = parse(frame, *size);
		if (packet.protocol == IPPROTO_TCP)
			store32(frame + packet.l4 + 4, load32(frame + packet.l4 + 4) + packet.end - packet.payload);
		if (packet.version == 4)
			store16(frame + packet.l3 + 4, (uint16_t)(load16(frame + packet.l3 + 4) + 1));
	} else {
		if (*left < 2)
			return NULL;
		*size = load16(*data);
		*data += 2;
		*left -= 2;
		if (*size > *left)
			*size = *left;
		frame = exact(*data, *size);
		*data += *size;
		*left -= *size;
	}
	struct packet packet = parse(frame, *size);
	if (control & SHORTER && packet.protocol != 0 && packet.payload < packet.end && packet.end == *size) {
		(*size)--;
		make_lengths(frame, *size, &packet);
		packet = parse(frame, *size);
	}
	if (control & LENGTHS && packet.protocol != 0) {
		make_lengths(frame, *size, &packet);
		packet = parse(frame, *size);
	}
	if (control & CHECKSUMS && packet.protocol != 0) {
		make_ip_checksum(frame, &packet);
		make_l4_checksum(frame, &packet, control & PARTIAL);
	}
	uint8_t *made = exact(frame, *size);
	free(frame);
	return made;
}

/* u8 rules, then u8 control with u16 size and a frame each, and what control asks for. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct joiner joiner;
	static struct run run;
	if (size < 1)
		return 0;
	run = (struct run){ .virtual = data[0] & 2 };
	joiner = (struct joiner){ .deliver = deliver, .context = &run };
	struct join_rules rules = { .udp = data[0] & 1, .virtual = run.virtual, .mtu = data[0] & 4 ? 200 : 1450 };
	data++;
	size--;
	while (size > 0 && run.count < FRAMES) {
		uint8_t control = *data++;
		struct came *came = &run.came[run.count];
		size--;
		if (control & FLUSH)
			joiner_flush(&joiner);
		came->frame = take(&run, &data, &size, control, &came->size);
		if (came->frame == NULL)
			break;
		came->copy = exact(came->frame, came->size);
		came->tap = (control & TAP) != 0;
		run.count++;
		int *tap = &run.taps[came->tap];
		if (control & UNCUT && size > 0) {
			size_t part = 1 + *data++;
			size--;
			if (joiner_add_uncut(&joiner, tap, &rules, came->frame, came->size, part)) {
				assert(run.virtual && came->done);
				continue;
			}
		}
		joiner_add(&joiner, tap, &rules, came->frame, came->size);
	}
	joiner_flush(&joiner);
	for (int at = 0; at < run.count; at++) {
		assert(run.came[at].done);
		free(run.came[at].frame);
		free(run.came[at].copy);
	}
	return 0;
}
