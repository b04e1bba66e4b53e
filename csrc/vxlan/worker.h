/* The two threads of a queue. A worker holds its lock while it works on a batch, and never while it waits.
 *
 *   little to do    receiver: socket and TAPs             sender: sleeps
 *   a core is full  receiver: socket                      sender: TAPs
 *
 * One thread for both directions takes fewer cores from others, and keeps more of what it needs in its cache. Where it
 * fills a core there is a second one to gain. */
#ifndef VXNET_VXLAN_WORKER_H
#define VXNET_VXLAN_WORKER_H

#include <pthread.h>
#include <stdbool.h>

#include "join.h"
#include "outbox.h"
#include "table.h"
#include "vxlan.h"

#define FRAME_ROOM 65664	/* 64 KiB and headers */
#define SEND_ROOM (8 * FRAME_ROOM)	/* for the frames of a batch, one behind the other: little enough to stay in a cache */
#define RECEIVE_MESSAGES 8

/* How long to look again and again before sleeping: a sleeping thread costs a wake-up of tens of microseconds, a busy one
 * a core. It pays only where the next packet comes soon, so it is given up after some vain tries and taken up again when a sleep turns out to have been short. */
struct patience {
	uint64_t limit_ns;
	int vain;	/* tries in a row */
};

/* How much of its time a thread works. */
struct meter {
	uint64_t began_ns;	/* of the period that is measured; 0: none yet */
	uint64_t began_cpu_ns;	/* what the thread had run then */
	uint64_t waited_ns;	/* in the period so far */
};

struct worker {
	pthread_t thread;
	pthread_mutex_t door;	/* passed on the way to `lock`: a busy worker cannot shut the control thread out */
	pthread_mutex_t lock;
	const struct table *table;
	int queue;
	int epoll;
	struct patience patience;
	struct meter meter;
	struct vxlan_counters counters;
};

/* Who empties the TAPs of a queue. */
struct duty {
	pthread_mutex_t lock;
	pthread_cond_t taken;
	bool own;	/* the sender's thread, not the receiver's */
	bool stop;
	int both;	/* the receiver's epoll, in which the sender's is watched */
};

/* TAPs to sockets. */
struct sender {
	struct worker worker;
	struct outbox outbox;
	uint8_t *room;		/* SEND_ROOM octets */
	size_t used;		/* of them, by frames that outbox still borrows */
	int frames;		/* so many */
	int usual;		/* so many came together the last time */
	struct duty duty;
};

/* Socket to TAPs. */
struct receiver {
	struct worker worker;
	int fd;
	int family;
	struct joiner joiner;
	uint8_t (*buffers)[FRAME_ROOM];	/* RECEIVE_MESSAGES of them */
	struct sender *sender;	/* whose TAPs it empties while there is little to do */
};

/* What an event of a worker's epoll says: the VNI of a TAP, or one of these. */
#define EVENT_STOP UINT64_MAX
#define EVENT_SOCKET (UINT64_MAX - 1)
#define EVENT_TAPS (UINT64_MAX - 2)	/* the sender's epoll has some */

void worker_lock(struct worker *worker);
void worker_unlock(struct worker *worker);

/* Makes the two those of one queue, before their threads start: 0 or -errno. The receiver empties the TAPs at first. */
int workers_pair(struct sender *sender, struct receiver *receiver);
/* The sender's thread ends. */
void duty_end(struct sender *sender);

void *sender_run(void *sender);
void *receiver_run(void *receiver);

#endif
