/* The two threads of a queue. A worker holds its lock while it works on a batch, and never while it waits. */
#ifndef VXNET_VXLAN_WORKER_H
#define VXNET_VXLAN_WORKER_H

#include <pthread.h>

#include "join.h"
#include "outbox.h"
#include "table.h"
#include "vxlan.h"

#define SEND_FRAMES 32	/* frames of a batch */
#define FRAME_ROOM 65664	/* 64 KiB and headers */
#define RECEIVE_MESSAGES 8

/* How long to look again and again before sleeping: a sleeping thread costs a wake-up of tens of microseconds, a busy one
 * a core. It pays only where the next packet comes soon, so it is given up after some vain tries and taken up again when
 * a sleep turns out to have been short. */
struct patience {
	uint64_t limit_ns;
	int vain;
};

struct worker {
	pthread_t thread;
	pthread_mutex_t door;	/* passed on the way to `lock`: a busy worker cannot shut the control thread out */
	pthread_mutex_t lock;
	const struct table *table;
	int queue;
	int epoll;
	bool virtual_underlay;
	struct patience patience;
	struct vxlan_counters counters;
};

/* TAPs to sockets. */
struct sender {
	struct worker worker;
	struct outbox outbox;
	uint8_t (*frames)[FRAME_ROOM];	/* SEND_FRAMES of them */
	int used;
};

/* Socket to TAPs. */
struct receiver {
	struct worker worker;
	int fd;
	int family;
	struct joiner joiner;
	uint8_t (*buffers)[FRAME_ROOM];	/* RECEIVE_MESSAGES of them */
};

/* What an event of a worker's epoll says: the VNI of a TAP, or one of these. */
#define EVENT_STOP UINT64_MAX
#define EVENT_SOCKET (UINT64_MAX - 1)

void worker_lock(struct worker *worker);
void worker_unlock(struct worker *worker);

void *sender_run(void *sender);
void *receiver_run(void *receiver);

#endif
