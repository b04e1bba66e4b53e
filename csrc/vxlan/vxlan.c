/* Set-up, and the control thread: one request after the other. */
#include "vxlan.h"

#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "command.h"
#include "table.h"
#include "worker.h"

#define CLIENTS_MAX 32	/* who comes when all are there waits in the listener's queue */
#define COUNTERS (sizeof(struct vxlan_counters) / sizeof(uint64_t))

struct reply {
	uint32_t operation;
	int32_t result;
	uint8_t body[COMMAND_MAX - 8];
};

struct client {
	int fd;			/* -1: free */
	uint32_t staged_vni;
	struct fdb staged;	/* goes with the client: nobody commits what another left half done */
};

struct forwarder {
	const struct vxlan_options *options;
	struct table table;
	struct sender *senders[VXLAN_QUEUES_MAX];
	struct receiver *receivers[VXLAN_QUEUES_MAX];
	int started;		/* workers whose thread runs, senders and receivers in turn */
	int stop;		/* eventfd, which all workers watch */
	struct client clients[CLIENTS_MAX];
	uint8_t request[COMMAND_MAX];
	struct reply reply;
};

static struct worker *worker_at(struct forwarder *forwarder, int number)
{
	return number % 2 == 0 ? &forwarder->senders[number / 2]->worker : &forwarder->receivers[number / 2]->worker;
}

static void lock_all(struct forwarder *forwarder)
{
	for (int at = 0; at < forwarder->started; at++)
		worker_lock(worker_at(forwarder, at));
}

static void unlock_all(struct forwarder *forwarder)
{
	for (int at = 0; at < forwarder->started; at++)
		worker_unlock(worker_at(forwarder, at));
}

/* Changes to the table. The caller holds all locks. */

/* Taken out of the epoll by name: the daemon may hold the same open file, and then closing ours is not enough. */
static void close_tap(struct forwarder *forwarder, struct segment *segment, int queue)
{
	if (segment->taps[queue] < 0)
		return;
	(void)epoll_ctl(forwarder->senders[queue]->worker.epoll, EPOLL_CTL_DEL, segment->taps[queue], NULL);
	close(segment->taps[queue]);
	segment->taps[queue] = -1;
}

static void remove_segment(struct forwarder *forwarder, struct segment *segment)
{
	for (int queue = 0; queue < forwarder->options->queues; queue++)
		close_tap(forwarder, segment, queue);
	table_remove(&forwarder->table, segment->vni);
}

/* All its TAPs, or it is not there, whatever it was before: of one with some of them the daemon would think that it is
 * well, and one that is not held it makes anew. */
static int set_segment(struct forwarder *forwarder, const struct command *command, int *taps, int count)
{
	int queues = forwarder->options->queues;
	if (count == 0 && table_find(&forwarder->table, command->vni) == NULL)
		return -ENOENT;
	if (count != 0 && count != queues)
		return -EINVAL;
	struct segment *segment = table_add(&forwarder->table, command->vni);
	if (segment == NULL)
		return -ENOMEM;
	segment->flags = command->flags;
	segment->rules = (struct join_rules){ .udp = command->flags & SEGMENT_UDP_JOINS,
					      .virtual = forwarder->options->virtual_underlay != 0,
					      .mtu = (uint16_t)command->mtu };
	for (int queue = 0; queue < count; queue++) {
		struct epoll_event event = { .events = EPOLLIN, .data.u64 = command->vni };
		close_tap(forwarder, segment, queue);
		segment->taps[queue] = taps[queue];
		taps[queue] = -1;
		if (epoll_ctl(forwarder->senders[queue]->worker.epoll, EPOLL_CTL_ADD, segment->taps[queue], &event) < 0) {
			int failed = -errno;
			remove_segment(forwarder, segment);
			return failed;
		}
	}
	return 0;
}

static int change_rows(struct fdb *fdb, const struct command *command)
{
	for (uint32_t at = 0; at < command->count; at++) {
		const struct row *row = &command->rows[at];
		if (command->operation == COMMAND_DROP) {
			fdb_remove(fdb, fdb_key(row->mac));
		} else {
			int failed = fdb_put(fdb, fdb_key(row->mac), &row->vtep);
			if (failed)
				return failed;
		}
	}
	return 0;
}

/* No segment's yet, so no worker need wait. */
static int stage(struct client *client, const struct command *command)
{
	if (client->staged_vni != command->vni)
		fdb_clear(&client->staged);
	client->staged_vni = command->vni;
	int failed = change_rows(&client->staged, command);
	if (failed)
		fdb_clear(&client->staged);
	return failed;
}

/* What it replaces is the client's, to be freed when no worker waits. */
static void commit(struct client *client, struct segment *segment)
{
	if (client->staged_vni != segment->vni)
		fdb_clear(&client->staged);
	client->staged_vni = segment->vni;
	struct fdb before = segment->fdb;
	segment->fdb = client->staged;
	client->staged = before;
}

static int change(struct forwarder *forwarder, struct client *client, const struct command *command, int *taps,
		  int count)
{
	if (command->operation == COMMAND_SEGMENT)
		return set_segment(forwarder, command, taps, count);
	if (command->operation == COMMAND_PEERS)
		return addresses_set(&forwarder->table.peers, command->addresses, command->count);
	struct segment *segment = table_find(&forwarder->table, command->vni);
	if (segment == NULL)
		return -ENOENT;
	switch (command->operation) {
	case COMMAND_REMOVE:
		remove_segment(forwarder, segment);
		return 0;
	case COMMAND_FLOOD:
		return addresses_set(&segment->flood, command->addresses, command->count);
	case COMMAND_COMMIT:
		commit(client, segment);
		return 0;
	default:
		return change_rows(&segment->fdb, command);
	}
}

static int obey(struct forwarder *forwarder, struct client *client, const struct command *command, int *taps, int count)
{
	if (command->operation == COMMAND_STAGE)
		return table_find(&forwarder->table, command->vni) == NULL ? -ENOENT : stage(client, command);
	lock_all(forwarder);
	int result = change(forwarder, client, command, taps, count);
	unlock_all(forwarder);
	if (command->operation == COMMAND_COMMIT)
		fdb_clear(&client->staged);
	return result;
}

/* Questions. Only the control thread changes the table, so it needs no lock to read it. Each: octets of the body. */

static size_t view_segments(const struct table *table, uint32_t from, uint8_t *body)
{
	size_t used = 0;
	for (size_t at = from; at < table->count; at++) {
		const struct segment *segment = table->segments[at];
		struct segment_view view = { .vni = segment->vni, .mtu = segment->rules.mtu, .flags = segment->flags,
					     .rows = (uint32_t)segment->fdb.used };
		if (used + sizeof(view) > sizeof(((struct reply *)0)->body))
			break;
		memcpy(body + used, &view, sizeof(view));
		used += sizeof(view);
	}
	return used;
}

static size_t view_rows(const struct fdb *fdb, uint32_t from, uint8_t *body)
{
	size_t used = sizeof(uint32_t), places = fdb->rows == NULL ? 0 : fdb->mask + 1;
	uint32_t at = from;
	for (; at < places; at++) {
		const struct fdb_row *found = &fdb->rows[at];
		struct row row = { .vtep = found->vtep };
		if (found->mac == 0)
			continue;
		if (used + sizeof(row) > sizeof(((struct reply *)0)->body))
			break;
		for (int octet = 0; octet < 6; octet++)
			row.mac[octet] = (uint8_t)(found->mac >> (40 - 8 * octet));
		memcpy(body + used, &row, sizeof(row));
		used += sizeof(row);
	}
	uint32_t next = at < places ? at : 0;
	memcpy(body, &next, sizeof(next));
	return used;
}

static size_t view_addresses(const struct addresses *addresses, uint8_t *body)
{
	size_t size = addresses->count * sizeof(struct address);
	if (size > 0)
		memcpy(body, addresses->list, size);	/* they came in one message, so they fit one */
	return size;
}

static size_t view_counters(struct forwarder *forwarder, uint8_t *body)
{
	uint64_t sums[COUNTERS] = { 0 };
	lock_all(forwarder);
	for (int at = 0; at < forwarder->started; at++) {
		uint64_t values[COUNTERS];
		memcpy(values, &worker_at(forwarder, at)->counters, sizeof(values));
		for (size_t which = 0; which < COUNTERS; which++)
			sums[which] += values[which];
	}
	unlock_all(forwarder);
	memcpy(body, sums, sizeof(sums));
	return sizeof(sums);
}

/* Octets of the body, or -errno. */
static ssize_t answer(struct forwarder *forwarder, const struct command *command, uint8_t *body)
{
	const struct segment *segment = table_find(&forwarder->table, command->vni);
	switch (command->operation) {
	case COMMAND_SEGMENTS:
		return (ssize_t)view_segments(&forwarder->table, command->from, body);
	case COMMAND_PEERED:
		return (ssize_t)view_addresses(&forwarder->table.peers, body);
	case COMMAND_COUNTERS:
		return (ssize_t)view_counters(forwarder, body);
	case COMMAND_STOP:
		return 0;
	case COMMAND_ROWS:
		return segment == NULL ? -ENOENT : (ssize_t)view_rows(&segment->fdb, command->from, body);
	default:
		return segment == NULL ? -ENOENT : (ssize_t)view_addresses(&segment->flood, body);
	}
}

/* The conversation */

/* The descriptors of a message; those beyond `room` are closed. */
static int take_descriptors(struct msghdr *header, int *taken, int room)
{
	int count = 0;
	for (struct cmsghdr *at = CMSG_FIRSTHDR(header); at != NULL; at = CMSG_NXTHDR(header, at)) {
		if (at->cmsg_level != SOL_SOCKET || at->cmsg_type != SCM_RIGHTS)
			continue;
		size_t here = (at->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (size_t which = 0; which < here; which++) {
			int fd;
			memcpy(&fd, CMSG_DATA(at) + which * sizeof(fd), sizeof(fd));
			if (count < room)
				taken[count++] = fd;
			else
				close(fd);
		}
	}
	return count;
}

/* One request of a client. 0, 1: it asked to stop, -1: it is gone. */
static int converse(struct forwarder *forwarder, struct client *client)
{
	union {
		struct cmsghdr header;
		uint8_t room[CMSG_SPACE(sizeof(int) * VXLAN_QUEUES_MAX)];
	} control;
	struct iovec vector = { forwarder->request, sizeof(forwarder->request) };
	struct msghdr header = { .msg_iov = &vector, .msg_iovlen = 1, .msg_control = &control,
				 .msg_controllen = sizeof(control) };
	ssize_t size = recvmsg(client->fd, &header, MSG_CMSG_CLOEXEC);
	if (size <= 0)
		return -1;
	int taps[VXLAN_QUEUES_MAX], count = take_descriptors(&header, taps, VXLAN_QUEUES_MAX);
	struct command command;
	struct reply *reply = &forwarder->reply;
	ssize_t body = 0;
	int failed = header.msg_flags & (MSG_TRUNC | MSG_CTRUNC) ?
			     -EBADMSG : command_parse(forwarder->request, (size_t)size, &command);
	if (failed) {
		body = failed;
		command.operation = 0;
	} else if (command.operation < COMMAND_SEGMENTS) {
		body = obey(forwarder, client, &command, taps, count);
	} else {
		body = answer(forwarder, &command, reply->body);
	}
	for (int at = 0; at < count; at++) {
		if (taps[at] >= 0)
			close(taps[at]);
	}
	reply->operation = command.operation;
	reply->result = body < 0 ? (int32_t)body : 0;
	size_t length = 8 + (body < 0 ? 0 : (size_t)body);
	bool gone = send(client->fd, reply, length, MSG_NOSIGNAL) < 0;
	if (command.operation == COMMAND_STOP)
		return 1;	/* also of one who did not wait: it has asked */
	return gone ? -1 : 0;
}

/* CLIENTS_MAX: there is none. */
static int free_place(const struct forwarder *forwarder)
{
	int at = 0;
	while (at < CLIENTS_MAX && forwarder->clients[at].fd >= 0)
		at++;
	return at;
}

static int serve(struct forwarder *forwarder)
{
	for (;;) {
		struct pollfd watched[1 + CLIENTS_MAX];
		int place = free_place(forwarder), listener = forwarder->options->control;
		watched[0] = (struct pollfd){ .fd = place < CLIENTS_MAX ? listener : -1, .events = POLLIN };
		for (int at = 0; at < CLIENTS_MAX; at++)
			watched[1 + at] = (struct pollfd){ .fd = forwarder->clients[at].fd, .events = POLLIN };
		if (poll(watched, 1 + CLIENTS_MAX, -1) < 0) {
			if (errno == EINTR)
				continue;
			return -errno;
		}
		for (int at = 0; at < CLIENTS_MAX; at++) {
			int outcome = watched[1 + at].revents ? converse(forwarder, &forwarder->clients[at]) : 0;
			if (outcome > 0)
				return 0;
			if (outcome < 0) {
				close(forwarder->clients[at].fd);
				fdb_clear(&forwarder->clients[at].staged);
				forwarder->clients[at].fd = -1;
			}
		}
		if (watched[0].revents)
			forwarder->clients[place].fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	}
}

/* Set-up */

/* Anonymous memory, of which only what is touched is there. */
static void *map(size_t size)
{
	void *mapped = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	return mapped == MAP_FAILED ? NULL : mapped;
}

static int prepare(struct forwarder *forwarder, struct worker *worker, int queue)
{
	worker->table = &forwarder->table;
	worker->queue = queue;
	worker->patience.limit_ns = (uint64_t)forwarder->options->spin_us * 1000;
	pthread_mutex_init(&worker->door, NULL);
	pthread_mutex_init(&worker->lock, NULL);
	worker->epoll = epoll_create1(EPOLL_CLOEXEC);
	struct epoll_event event = { .events = EPOLLIN, .data.u64 = EVENT_STOP };
	if (worker->epoll < 0 || epoll_ctl(worker->epoll, EPOLL_CTL_ADD, forwarder->stop, &event) < 0)
		return -errno;
	return 0;
}

static int start(struct forwarder *forwarder, struct worker *worker, void *(*run)(void *), void *argument)
{
	int failed = pthread_create(&worker->thread, NULL, run, argument);
	if (failed)
		return -failed;
	forwarder->started++;
	return 0;
}

static int start_queue(struct forwarder *forwarder, int queue)
{
	const struct vxlan_options *options = forwarder->options;
	struct sender *sender = forwarder->senders[queue] = map(sizeof(*sender));
	struct receiver *receiver = forwarder->receivers[queue] = map(sizeof(*receiver));
	if (sender == NULL || receiver == NULL)
		return -ENOMEM;
	sender->room = map(SEND_ROOM);
	receiver->buffers = map(RECEIVE_MESSAGES * FRAME_ROOM);
	if (sender->room == NULL || receiver->buffers == NULL)
		return -ENOMEM;
	struct outbox *outbox = &sender->outbox;
	outbox->family = options->family;
	outbox->port = htons((uint16_t)options->port);
	outbox->loose = options->loose[queue];
	outbox->counters = &sender->worker.counters;
	for (int lane = 0; lane < VXLAN_LANES; lane++)
		outbox->lanes[lane].fd = options->send[queue * VXLAN_LANES + lane];
	receiver->fd = options->receive[queue];
	receiver->family = options->family;

	struct epoll_event event = { .events = EPOLLIN, .data.u64 = EVENT_SOCKET };
	int failed = prepare(forwarder, &sender->worker, queue);
	if (!failed)
		failed = prepare(forwarder, &receiver->worker, queue);
	if (!failed && epoll_ctl(receiver->worker.epoll, EPOLL_CTL_ADD, receiver->fd, &event) < 0)
		failed = -errno;
	if (!failed)
		failed = workers_pair(sender, receiver);
	if (!failed)
		failed = start(forwarder, &sender->worker, sender_run, sender);
	if (!failed)
		failed = start(forwarder, &receiver->worker, receiver_run, receiver);
	return failed;
}

static void release(struct forwarder *forwarder)
{
	for (size_t at = 0; at < forwarder->table.count; at++) {
		for (int queue = 0; queue < forwarder->options->queues; queue++)
			close_tap(forwarder, forwarder->table.segments[at], queue);
	}
	table_clear(&forwarder->table);
	for (int at = 0; at < CLIENTS_MAX; at++)
		fdb_clear(&forwarder->clients[at].staged);
	for (int queue = 0; queue < forwarder->options->queues; queue++) {
		struct sender *sender = forwarder->senders[queue];
		struct receiver *receiver = forwarder->receivers[queue];
		if (sender != NULL) {
			if (sender->room != NULL)
				munmap(sender->room, SEND_ROOM);
			if (sender->worker.epoll > 0)
				close(sender->worker.epoll);
			munmap(sender, sizeof(*sender));
		}
		if (receiver != NULL) {
			if (receiver->buffers != NULL)
				munmap(receiver->buffers, RECEIVE_MESSAGES * FRAME_ROOM);
			if (receiver->worker.epoll > 0)
				close(receiver->worker.epoll);
			munmap(receiver, sizeof(*receiver));
		}
	}
	/* Connections end with the process: who told it to stop sees by that when the UDP sockets are free. */
	if (forwarder->stop >= 0)
		close(forwarder->stop);
	free(forwarder);
}

int vxlan_run(const struct vxlan_options *options)
{
	if (options->queues < 1 || options->queues > VXLAN_QUEUES_MAX)
		return -EINVAL;
	struct forwarder *forwarder = calloc(1, sizeof(*forwarder));
	if (forwarder == NULL)
		return -ENOMEM;
	forwarder->options = options;
	for (int at = 0; at < CLIENTS_MAX; at++)
		forwarder->clients[at].fd = -1;
	forwarder->stop = eventfd(0, EFD_CLOEXEC);
	int failed = forwarder->stop < 0 ? -errno : 0;
	for (int queue = 0; queue < options->queues && !failed; queue++)
		failed = start_queue(forwarder, queue);
	if (!failed)
		failed = serve(forwarder);
	uint64_t one = 1;
	if (forwarder->stop >= 0)
		(void)!write(forwarder->stop, &one, sizeof(one));	/* nobody reads it, so it wakes all that wait for events */
	for (int at = 0; at < forwarder->started; at += 2)
		duty_end(forwarder->senders[at / 2]);
	for (int at = 0; at < forwarder->started; at++)
		pthread_join(worker_at(forwarder, at)->thread, NULL);
	release(forwarder);
	return failed;
}
