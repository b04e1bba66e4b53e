/* The two forwarders of uvxlan_pair.c, and what they are told. */
#ifndef VXNET_UVXLAN_ENDS_H
#define VXNET_UVXLAN_ENDS_H

#include <stdatomic.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "command.h"
#include "uvxlan_traffic.h"
#include "vxlan.h"

enum { PORT = 4789, MTU = 1400, STUCK_S = 60, QUEUES = 2, BUFFER = 16 << 20, STRAYS = 4 };

static const uint32_t vnis[SEGMENTS] = { 1, 70000, 0xffffff };

struct end {
	struct sockaddr_storage address;
	struct address vtep;
	socklen_t size;
	int control;
	struct sockaddr_un name;	/* of the control socket */
	socklen_t name_size;
	pid_t process;
	int taps[SEGMENTS][QUEUES];	/* the driver's side */
	int given[SEGMENTS][QUEUES];	/* the forwarder's, kept to be given again */
};

struct pair {
	struct end ends[ENDS];
	struct address silent;
	int queues;
	uint64_t seed;
	atomic_bool stop;
	uint64_t commands;
	uint64_t expected_bad, expected_unknown;	/* frames, at end 0 */
	uint64_t strays[STRAYS];
	struct traffic traffic;
};

/* Both forwarders, each a process, with segments and their TAPs. */
void set_up(struct pair *pair);
void set_address(struct end *end, struct address *packed, const char *text);
/* A UDP socket of that end. With a port, one that receives. */
int udp(const struct end *end, int port, int discovery);
/* A connection to the control socket. */
int dial(const struct end *end);
/* Two ends of what takes a TAP's place. */
void make_tap(int both[2]);

/* Requests. Only one thread asks at a time. */

/* The result that came, 0 or -errno; up to `room` octets of the answer's body. `taps`: one a queue, or NULL. */
int ask(struct pair *pair, int end, uint32_t operation, uint32_t vni, const void *body, size_t size, const int *taps,
	void *answer, size_t room);
/* What may not be refused. */
void tell(struct pair *pair, int end, uint32_t operation, uint32_t vni, const void *body, size_t size);
/* The row that matters, and `more` that do not. */
void send_rows(struct pair *pair, int end, uint32_t operation, uint32_t vni, uint32_t more, uint64_t *state);
/* The other end, and also the address where nobody listens. */
void send_addresses(struct pair *pair, int end, uint32_t operation, uint32_t vni, bool silent);
void add_segment(struct pair *pair, int end, uint32_t vni, uint32_t mtu, const int *taps);
struct vxlan_counters counters(struct pair *pair, int end);
/* Their memory, on stderr. */
void show(const struct pair *pair);

/* Until pair->stop, what a daemon and strangers do while traffic flows: a thread's function. */
void *make_changes(void *pair);

double now_s(void);
void rest_us(uint32_t us);

#endif
