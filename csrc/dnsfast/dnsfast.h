/*
 * dnsfast: answers the names that are known, while the daemon is busy with other things.
 *
 *     container's udp socket ──recvmmsg──> table: hit ──sendmmsg──> container's udp socket
 *                                            └─ miss ──> its `misses` socket ──> vxnet.cluster.dns
 *
 * One thread runs dnsfast_run() without Python's lock; the other functions are called from any thread meanwhile. It
 * opens nothing: descriptors are the caller's, who closes them after dnsfast_remove() or after the run has ended.
 * A miss is one message of 6 octets (the client's address and port as in struct sockaddr_in) and the datagram as it
 * came; the reply to it goes out on the caller's own copy of the udp socket. Functions return 0 or -errno.
 */
#ifndef DNSFAST_H
#define DNSFAST_H

#include <stddef.h>
#include <stdint.h>

struct dnsfast;

struct dnsfast_counts {
	uint64_t answered;
	uint64_t missed; /* passed on */
	uint64_t lost;   /* misses that nobody took in time */
	uint64_t failed; /* receives and replies that the kernel refused */
};

/* `epoll`: a fresh epoll descriptor. `control`: readable, or at its end, when the run is to stop. `seed`: random. */
int dnsfast_new(struct dnsfast **made, int epoll, int control, uint64_t seed);

/* After the run has ended. */
void dnsfast_free(struct dnsfast *server);

/* Serves until `control` says so. */
int dnsfast_run(struct dnsfast *server);

/*
 * Serve on a bound `udp` socket somebody who sees these networks. `misses`: one end of a SOCK_SEQPACKET pair. Returns
 * its number, from 0.
 */
int dnsfast_add(struct dnsfast *server, int udp, int misses, const uint32_t *networks, size_t count);

/* Its networks are others now. -ENOENT: nobody has this number. */
int dnsfast_update(struct dnsfast *server, int number, const uint32_t *networks, size_t count);

/* When this returns neither of its descriptors is in use any more. Harmless if nobody has this number. */
void dnsfast_remove(struct dnsfast *server, int number);

/* A name's answers (table.h), and their end. */
int dnsfast_put(struct dnsfast *server, uint32_t network, const uint8_t *name, size_t name_size, const uint8_t *answers,
		size_t answers_size);
void dnsfast_drop(struct dnsfast *server, uint32_t network, const uint8_t *name, size_t name_size);

/* What number's owner would be answered, without a socket: octets of the reply, 0 for a miss. For tests. */
size_t dnsfast_answer(struct dnsfast *server, const uint32_t *networks, size_t count, const uint8_t *data, size_t size,
		      uint32_t turn, uint8_t *reply);

void dnsfast_count(struct dnsfast *server, struct dnsfast_counts *counts);

#endif
