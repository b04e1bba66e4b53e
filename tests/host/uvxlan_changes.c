/* What a daemon and strangers do while traffic flows. */
#include "uvxlan_ends.h"

#include <errno.h>
#include <unistd.h>

enum { COMES_AND_GOES = 5000 };

/* A segment that is there for a moment: what comes out of it was sent into it. */
static void come_and_go(struct pair *pair, uint32_t vni, uint64_t *state)
{
	int taps[ENDS][QUEUES][2];
	for (int end = 0; end < ENDS; end++) {
		int given[QUEUES];
		for (int queue = 0; queue < pair->queues; queue++) {
			make_tap(taps[end][queue]);
			given[queue] = taps[end][queue][1];
		}
		add_segment(pair, end, vni, MTU, given);
		send_rows(pair, end, COMMAND_PUT, vni, draw(state, 200), state);
		for (int queue = 0; queue < pair->queues; queue++)
			close(given[queue]);
	}
	struct {
		struct virtio_net_hdr header;
		uint8_t frame[60];
	} __attribute__((packed)) sent = { .frame = { 2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x88, 0xb5 } }, got;
	for (uint32_t left = draw(state, 40); left > 0; left--) {
		store32(sent.frame + 20, vni);
		(void)!write(taps[0][0][0], &sent, sizeof(sent));
	}
	rest_us(draw(state, 2000));
	for (int end = 0; end < ENDS; end++) {
		tell(pair, end, COMMAND_REMOVE, vni, NULL, 0);
		for (int queue = 0; queue < pair->queues; queue++) {
			while (read(taps[end][queue][0], &got, sizeof(got)) > 0)
				REQUIRE(end == 1 && load32(got.frame + 20) == vni, "segment %u got %u's", vni,
					load32(got.frame + 20));
			close(taps[end][queue][0]);
		}
	}
}

/* Datagrams of strangers and of a peer that has gone mad. */
static void stray(struct pair *pair, uint64_t *state)
{
	uint8_t datagram[400] = { 0x08 };
	struct sockaddr_storage to = pair->ends[1].address;
	bool four = to.ss_family == AF_INET;
	*(four ? &((struct sockaddr_in *)&to)->sin_port : &((struct sockaddr_in6 *)&to)->sin6_port) = htons(PORT);
	struct end stranger = pair->ends[0];
	uint32_t what = draw(state, 4);
	if (what == 0) {
		if (four)
			memcpy(&((struct sockaddr_in *)&stranger.address)->sin_addr, pair->silent.octets + 12, 4);
		else
			memcpy(&((struct sockaddr_in6 *)&stranger.address)->sin6_addr, pair->silent.octets, 16);
	}
	int fd = udp(&stranger, 0, IP_PMTUDISC_DONT);
	for (size_t at = 8; at < sizeof(datagram); at++)
		datagram[at] = (uint8_t)draw(state, 256);
	store32(datagram + 4, (what == 3 ? 999999 : vnis[1]) << 8);
	if (what == 2)
		datagram[0] = 0;
	size_t size = what == 1 ? draw(state, 22) : 22 + draw(state, 300);
	if (sendto(fd, datagram, size, 0, (struct sockaddr *)&to, stranger.size) >= 0)
		pair->strays[what]++;
	close(fd);
}

void *make_changes(void *argument)
{
	struct pair *pair = argument;
	uint64_t state = pair->seed ^ 0x5555;
	while (!pair->stop) {
		int end = (int)draw(&state, ENDS);
		uint32_t segment = draw(&state, SEGMENTS), vni = vnis[segment], garbage[4];
		switch (draw(&state, 12)) {
		case 0:
			come_and_go(pair, COMES_AND_GOES + draw(&state, 3), &state);
			break;
		case 1:	/* the FDB as a whole */
			for (uint32_t parts = draw(&state, 4); parts > 0; parts--)
				send_rows(pair, end, COMMAND_STAGE, vni, draw(&state, 900), &state);
			send_rows(pair, end, COMMAND_STAGE, vni, 0, &state);
			tell(pair, end, COMMAND_COMMIT, vni, NULL, 0);
			break;
		case 2:
			send_rows(pair, end, COMMAND_PUT, vni, draw(&state, 300), &state);
			break;
		case 3:
			send_rows(pair, end, COMMAND_DROP, vni, draw(&state, 300), &state);
			break;
		case 4:
			send_addresses(pair, end, COMMAND_FLOOD, vni, draw(&state, 2));
			break;
		case 5:	/* the stranger never is one where strays are sent */
			send_addresses(pair, end, COMMAND_PEERS, 0, end == 0 && draw(&state, 2));
			break;
		case 6:	/* the same TAP again, and what waits in it stays */
			add_segment(pair, end, vni, MTU, pair->ends[end].given[segment]);
			break;
		case 7:
			add_segment(pair, end, vni, MTU + draw(&state, 100), NULL);
			break;
		case 8:
			for (int at = 0; at < 4; at++)
				garbage[at] = draw(&state, 0x7fffffff);
			REQUIRE(ask(pair, end, 15 + draw(&state, 99), garbage[0], garbage, sizeof(garbage), NULL, NULL, 0) == -EBADMSG,
				"garbage was understood");
			break;
		case 9:
			REQUIRE(ask(pair, end, COMMAND_ROWS, vni, (uint32_t[]){ 0 }, 4, NULL, NULL, 0) == 0 &&
				ask(pair, end, COMMAND_FLOODS, vni, NULL, 0, NULL, NULL, 0) == 0 &&
				ask(pair, end, COMMAND_COUNTERS, 0, NULL, 0, NULL, NULL, 0) == 0, "a question was refused");
			break;
		default:
			stray(pair, &state);
		}
		rest_us(draw(&state, 4000));
	}
	return NULL;
}
