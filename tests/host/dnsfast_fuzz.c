/*
 * Feeds csrc/dnsfast with mutated queries and packed answers; the sanitizers judge. Arguments: seed, rounds. Prints how
 * many queries were answered. Then a server is run in a thread while its names and clients come and go.
 */
#include "dnsfast.h"
#include "table.h"

#include <arpa/inet.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

static uint64_t state;

static uint64_t next(void)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state;
}

static size_t make_name(uint8_t *name)
{
	static const char *const labels[] = {"\3web", "\3WEB", "\1a", "\4many"};
	size_t size = 0;
	for (uint64_t count = 1 + next() % 2; count > 0; count--) {
		const char *label = labels[next() % 4];
		memcpy(name + size, label, strlen(label));
		size += strlen(label);
	}
	name[size] = 0;
	return size + 1;
}

static size_t make_query(uint8_t *data, size_t room)
{
	size_t size = 12;
	memset(data, 0, room);
	data[5] = 1;
	size += make_name(data + size);
	static const uint8_t types[] = {1, 28, 12, 33, 255};
	data[size + 1] = types[next() % 5];
	data[size + 3] = 1;
	size += 4;
	if (next() % 2 == 0) {
		static const uint8_t opt[] = {0, 0, 41, 2, 88, 0, 0, 128, 0, 0, 0};
		data[11] = 1;
		memcpy(data + size, opt, sizeof(opt));
		data[size + 3] = (uint8_t)next();
		size += sizeof(opt);
	}
	for (uint64_t count = next() % 4; count > 0 && next() % 2 == 0; count--)
		data[next() % size] = (uint8_t)next();
	return next() % 8 == 0 ? next() % (size + 8) : size;
}

static size_t make_answers(uint8_t *data)
{
	size_t size = 0;
	for (uint64_t count = next() % 4; count > 0; count--) {
		uint16_t type = (uint16_t)(next() % 2 == 0 ? 1 : 28), number = (uint16_t)(next() % 120);
		uint16_t stride = next() % 8 == 0 ? 0 : 16;
		uint32_t octets = (uint32_t)number * 16;
		memcpy(data + size, &type, 2);
		memcpy(data + size + 2, &number, 2);
		memcpy(data + size + 4, &stride, 2);
		memcpy(data + size + 8, &octets, 4);
		memset(data + size + 12, 0xab, octets);
		size += 12 + octets;
	}
	for (uint64_t count = next() % 2; count > 0 && size > 0 && next() % 4 == 0; count--)
		data[next() % size] = (uint8_t)next();
	return next() % 16 == 0 && size > 0 ? next() % size : size;
}

static void *exactly(const uint8_t *data, size_t size)
{
	void *copy = malloc(size > 0 ? size : 1);
	if (copy == NULL)
		exit(2);
	memcpy(copy, data, size);
	return copy;
}

static unsigned long parse(unsigned long rounds)
{
	static uint8_t room[8192];
	unsigned long answered = 0;
	struct table table;
	if (table_init(&table, next()) != 0)
		exit(2);
	for (; rounds > 0; rounds--) {
		uint8_t name[32], reply[REPLY_MAX];
		uint32_t networks[] = {0, (uint32_t)(next() % 3)};
		size_t name_size = make_name(name);
		if (next() % 8 == 0)
			table_drop(&table, (uint32_t)(next() % 3), name, name_size);
		size_t size = make_answers(room);
		uint8_t *answers = exactly(room, size);
		table_put(&table, (uint32_t)(next() % 3), name, name_size, answers, size);
		free(answers);
		for (int one = 0; one < 4; one++) {
			size = make_query(room, 300);
			uint8_t *query = exactly(room, size);
			size_t replied = table_answer(&table, networks, 2, query, size, (uint32_t)next(), reply);
			answered += replied > 0;
			if (replied > REPLY_MAX)
				abort();
			free(query);
		}
	}
	table_clear(&table);
	return answered;
}

static void *run(void *server)
{
	if (dnsfast_run(server) != 0)
		abort();
	return NULL;
}

static int bound(struct sockaddr_in *at)
{
	int udp = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	socklen_t size = sizeof(*at);
	*at = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	if (udp < 0 || bind(udp, (struct sockaddr *)at, size) != 0 || getsockname(udp, (struct sockaddr *)at, &size) != 0)
		exit(2);
	return udp;
}

static void serve(unsigned long rounds)
{
	int control[2], misses[2], epoll = epoll_create1(EPOLL_CLOEXEC);
	struct dnsfast *server;
	struct sockaddr_in at, from;
	pthread_t thread;
	int udp = bound(&at), client = bound(&from);
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, control) != 0 || socketpair(AF_UNIX, SOCK_SEQPACKET, 0, misses) != 0 ||
	    dnsfast_new(&server, epoll, control[0], 1) != 0 || pthread_create(&thread, NULL, run, server) != 0)
		exit(2);
	uint32_t network = 0;
	int number = dnsfast_add(server, udp, misses[0], &network, 1);
	static uint8_t room[8192];
	for (; rounds > 0; rounds--) {
		uint8_t name[32];
		size_t name_size = make_name(name);
		size_t size = make_answers(room);
		dnsfast_put(server, 0, name, name_size, room, size);
		if (next() % 4 == 0)
			dnsfast_drop(server, 0, name, name_size);
		size = make_query(room, 300);
		if (sendto(client, room, size, 0, (struct sockaddr *)&at, sizeof(at)) < 0)
			exit(2);
		while (recv(client, room, sizeof(room), MSG_DONTWAIT) >= 0)
			;
		while (recv(misses[1], room, sizeof(room), MSG_DONTWAIT) > 0)
			;
		if (next() % 16 == 0) {
			dnsfast_remove(server, number);
			dnsfast_remove(server, number);
			number = dnsfast_add(server, udp, misses[0], NULL, 0);
			if (number < 0 || dnsfast_update(server, number, &network, 1) != 0)
				abort();
		}
	}
	struct dnsfast_counts counts;
	dnsfast_count(server, &counts);
	if (counts.answered == 0 || counts.missed == 0)
		abort();
	close(control[1]);
	pthread_join(thread, NULL);
	dnsfast_free(server);
	close(control[0]);
	close(misses[0]);
	close(misses[1]);
	close(udp);
	close(client);
	close(epoll);
}

int main(int argc, char **argv)
{
	if (argc != 3)
		return 2;
	state = strtoull(argv[1], NULL, 10) | 1;
	unsigned long rounds = strtoul(argv[2], NULL, 10);
	printf("%lu\n", parse(rounds));
	serve(rounds / 10);
	return 0;
}
