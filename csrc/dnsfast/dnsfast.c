/* Sockets to the table and back. */
#include "dnsfast.h"

#include "table.h"

#include <errno.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>

enum {
	BATCH = 64,  /* datagrams of one container before another has its turn */
	EVENTS = 64, /* containers that one epoll_wait tells of */
	/* How long the next datagram is looked for before the thread sleeps. To wake it costs as much in a virtual machine,
	 * whose idle processor has to be woken by another one. */
	LOOK_NS = 60000,
	DOUBTS_MAX = 1023,
};

static const uint64_t CONTROL = UINT64_MAX;

struct client {
	int udp; /* -1: this number is free */
	int misses;
	uint32_t generation; /* tells an event of the number's last owner from one of this */
	size_t count;
	uint32_t *networks;
};

struct dnsfast {
	int epoll;
	int control;
	/* `next` is held by whoever wants `lock`: so that nobody waits for it in vain beside a busy server. */
	pthread_mutex_t next;
	pthread_mutex_t lock; /* guards all that follows but the batch */
	struct table table;
	struct client *clients;
	size_t client_count;
	struct dnsfast_counts counts;
	/* The batch is the running thread's own. */
	uint64_t random;
	unsigned doubts; /* so many times it would have paid to look, before it is tried again */
	unsigned last_doubts;
	struct mmsghdr in[BATCH], out[BATCH];
	struct iovec in_parts[BATCH], out_parts[BATCH];
	struct sockaddr_in from[BATCH];
	uint8_t query[BATCH][QUERY_MAX + 1]; /* one more shows what is too long */
	uint8_t reply[BATCH][REPLY_MAX];
};

static void acquire(struct dnsfast *server)
{
	pthread_mutex_lock(&server->next);
	pthread_mutex_lock(&server->lock);
	pthread_mutex_unlock(&server->next);
}

static void release(struct dnsfast *server)
{
	pthread_mutex_unlock(&server->lock);
}

/* xorshift64 (Marsaglia 2003): who comes first in an answer is no secret. */
static uint32_t draw(struct dnsfast *server)
{
	server->random ^= server->random << 13;
	server->random ^= server->random >> 7;
	server->random ^= server->random << 17;
	return (uint32_t)(server->random >> 32);
}

int dnsfast_new(struct dnsfast **made, int epoll, int control, uint64_t seed)
{
	struct dnsfast *server = calloc(1, sizeof(*server));
	if (server == NULL)
		return -ENOMEM;
	server->epoll = epoll;
	server->control = control;
	server->random = seed | 1;
	server->doubts = 1;
	pthread_mutex_init(&server->next, NULL);
	pthread_mutex_init(&server->lock, NULL);
	for (size_t one = 0; one < BATCH; one++) {
		server->in_parts[one] = (struct iovec){server->query[one], sizeof(server->query[one])};
		server->in[one].msg_hdr.msg_iov = &server->in_parts[one];
		server->in[one].msg_hdr.msg_iovlen = 1;
		server->in[one].msg_hdr.msg_name = &server->from[one];
		server->out[one].msg_hdr.msg_iov = &server->out_parts[one];
		server->out[one].msg_hdr.msg_iovlen = 1;
		server->out[one].msg_hdr.msg_namelen = sizeof(server->from[one]);
	}
	struct epoll_event event = {.events = EPOLLIN, .data.u64 = CONTROL};
	int error = table_init(&server->table, seed * 0x9e3779b97f4a7c15u);
	if (error == 0 && epoll_ctl(epoll, EPOLL_CTL_ADD, control, &event) != 0)
		error = -errno;
	if (error != 0) {
		dnsfast_free(server);
		return error;
	}
	*made = server;
	return 0;
}

void dnsfast_free(struct dnsfast *server)
{
	for (size_t one = 0; one < server->client_count; one++)
		free(server->clients[one].networks);
	free(server->clients);
	table_clear(&server->table);
	pthread_mutex_destroy(&server->lock);
	pthread_mutex_destroy(&server->next);
	free(server);
}

/* Serving */

static void pass_on(struct dnsfast *server, const struct client *client, size_t one, size_t size)
{
	uint8_t head[6];
	memcpy(head, &server->from[one].sin_addr, 4);
	memcpy(head + 4, &server->from[one].sin_port, 2);
	struct iovec parts[] = {{head, sizeof(head)}, {server->query[one], size}};
	struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
	if (sendmsg(client->misses, &message, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0)
		server->counts.missed++;
	else
		server->counts.lost++;
}

static void send_all(struct dnsfast *server, const struct client *client, unsigned count)
{
	for (unsigned sent = 0; sent < count;) {
		int now = sendmmsg(client->udp, server->out + sent, count - sent, MSG_DONTWAIT | MSG_NOSIGNAL);
		if (now > 0) {
			server->counts.answered += (unsigned)now;
			sent += (unsigned)now;
		} else {
			/* Its buffer is full, or the container's own firewall says no: that client asks again. */
			server->counts.failed++;
			sent++;
		}
	}
}

static void serve(struct dnsfast *server, const struct client *client)
{
	for (size_t one = 0; one < BATCH; one++)
		server->in[one].msg_hdr.msg_namelen = sizeof(server->from[one]);
	int received = recvmmsg(client->udp, server->in, BATCH, MSG_DONTWAIT, NULL);
	if (received < 0) {
		server->counts.failed += errno != EAGAIN && errno != EINTR;
		return;
	}
	unsigned replies = 0;
	for (size_t one = 0; one < (size_t)received; one++) {
		size_t size = server->in[one].msg_len;
		size_t replied = table_answer(&server->table, client->networks, client->count, server->query[one], size,
					      draw(server), server->reply[replies]);
		if (replied == 0) {
			pass_on(server, client, one, size);
			continue;
		}
		server->out_parts[replies] = (struct iovec){server->reply[replies], replied};
		server->out[replies].msg_hdr.msg_name = &server->from[one];
		replies++;
	}
	send_all(server, client, replies);
}

static uint64_t now_ns(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/*
 * As epoll_wait. Who asks one name after the other asks again at once: looking for it is faster than to sleep and be
 * woken. It is done only while it pays: one look in vain ends it, until waits have been short several times; after each
 * further look in vain twice as often.
 */
static int wait_for(struct dnsfast *server, struct epoll_event *events)
{
	uint64_t begun = now_ns();
	if (server->doubts == 0) {
		do {
			int count = epoll_wait(server->epoll, events, EVENTS, 0);
			if (count != 0) {
				server->last_doubts /= 2;
				return count;
			}
		} while (now_ns() - begun < LOOK_NS);
		server->last_doubts = server->last_doubts < DOUBTS_MAX ? server->last_doubts * 2 + 1 : DOUBTS_MAX;
		server->doubts = server->last_doubts;
	}
	int count = epoll_wait(server->epoll, events, EVENTS, -1);
	server->doubts -= server->doubts > 0 && now_ns() - begun < LOOK_NS;
	return count;
}

int dnsfast_run(struct dnsfast *server)
{
	struct epoll_event events[EVENTS];
	for (;;) {
		int count = wait_for(server, events);
		if (count < 0 && errno != EINTR)
			return -errno;
		for (int one = 0; one < count; one++) {
			uint64_t who = events[one].data.u64;
			if (who == CONTROL)
				return 0;
			acquire(server);
			const struct client *client = &server->clients[(uint32_t)who];
			if (client->udp >= 0 && client->generation == who >> 32)
				serve(server, client);
			release(server);
		}
	}
}

/* Clients */

static uint32_t *copy_of(const uint32_t *networks, size_t count)
{
	uint32_t *copy = malloc(count > 0 ? count * sizeof(*copy) : 1);
	if (copy != NULL && count > 0)
		memcpy(copy, networks, count * sizeof(*copy));
	return copy;
}

/* A free number; -ENOMEM. */
static int free_number(struct dnsfast *server)
{
	for (size_t one = 0; one < server->client_count; one++)
		if (server->clients[one].udp < 0)
			return (int)one;
	size_t count = server->client_count > 0 ? server->client_count * 2 : 16;
	struct client *clients = realloc(server->clients, count * sizeof(*clients));
	if (clients == NULL)
		return -ENOMEM;
	int number = (int)server->client_count;
	for (size_t one = server->client_count; one < count; one++)
		clients[one] = (struct client){.udp = -1};
	server->clients = clients;
	server->client_count = count;
	return number;
}

int dnsfast_add(struct dnsfast *server, int udp, int misses, const uint32_t *networks, size_t count)
{
	uint32_t *copy = copy_of(networks, count);
	if (copy == NULL)
		return -ENOMEM;
	acquire(server);
	int number = free_number(server);
	if (number >= 0) {
		struct client *client = &server->clients[number];
		uint32_t generation = client->generation + 1;
		struct epoll_event event = {.events = EPOLLIN, .data.u64 = (uint64_t)generation << 32 | (uint32_t)number};
		if (epoll_ctl(server->epoll, EPOLL_CTL_ADD, udp, &event) == 0)
			*client = (struct client){udp, misses, generation, count, copy};
		else
			number = -errno;
	}
	release(server);
	if (number < 0)
		free(copy);
	return number;
}

static struct client *client_of(struct dnsfast *server, int number)
{
	if (number < 0 || (size_t)number >= server->client_count || server->clients[number].udp < 0)
		return NULL;
	return &server->clients[number];
}

int dnsfast_update(struct dnsfast *server, int number, const uint32_t *networks, size_t count)
{
	uint32_t *copy = copy_of(networks, count), *old = copy;
	if (copy == NULL)
		return -ENOMEM;
	acquire(server);
	struct client *client = client_of(server, number);
	if (client != NULL) {
		old = client->networks;
		client->networks = copy;
		client->count = count;
	}
	release(server);
	free(old);
	return client != NULL ? 0 : -ENOENT;
}

void dnsfast_remove(struct dnsfast *server, int number)
{
	uint32_t *networks = NULL;
	acquire(server);
	struct client *client = client_of(server, number);
	if (client != NULL) {
		epoll_ctl(server->epoll, EPOLL_CTL_DEL, client->udp, NULL);
		networks = client->networks;
		*client = (struct client){.udp = -1, .generation = client->generation};
	}
	release(server);
	free(networks);
}

/* Names */

int dnsfast_put(struct dnsfast *server, uint32_t network, const uint8_t *name, size_t name_size, const uint8_t *answers,
		size_t answers_size)
{
	acquire(server);
	int error = table_put(&server->table, network, name, name_size, answers, answers_size);
	release(server);
	return error;
}

void dnsfast_drop(struct dnsfast *server, uint32_t network, const uint8_t *name, size_t name_size)
{
	acquire(server);
	table_drop(&server->table, network, name, name_size);
	release(server);
}

size_t dnsfast_answer(struct dnsfast *server, const uint32_t *networks, size_t count, const uint8_t *data, size_t size,
		      uint32_t turn, uint8_t *reply)
{
	acquire(server);
	size_t replied = table_answer(&server->table, networks, count, data, size, turn, reply);
	release(server);
	return replied;
}

void dnsfast_count(struct dnsfast *server, struct dnsfast_counts *counts)
{
	acquire(server);
	*counts = server->counts;
	release(server);
}
