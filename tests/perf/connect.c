/*
 * Connections one after the other. "serve PORT": accept and close, for ever. "ask ADDRESS PORT COUNT": connect, wait
 * for the other end to close, reset (so that no port stays taken); prints connections/s and the median of connect(2)
 * in µs.
 */
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
	struct timespec at;
	clock_gettime(CLOCK_MONOTONIC, &at);
	return (double)at.tv_sec + (double)at.tv_nsec / 1e9;
}

static int compare(const void *a, const void *b)
{
	double one = *(const double *)a, other = *(const double *)b;
	return (one > other) - (one < other);
}

int main(int argc, char **argv)
{
	if (argc == 3 && strcmp(argv[1], "serve") == 0) {
		struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[2]))};
		int listening = socket(AF_INET, SOCK_STREAM, 0), on = 1;
		setsockopt(listening, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
		if (bind(listening, (struct sockaddr *)&at, sizeof(at)) != 0 || listen(listening, 1024) != 0)
			return 1;
		puts("ready");
		fflush(stdout);
		for (;;) {
			int one = accept(listening, NULL, NULL);
			if (one >= 0)
				close(one);
		}
	}
	if (argc != 5)
		return 2;
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[3]))};
	int count = atoi(argv[4]);
	double *waits = calloc((size_t)count, sizeof(*waits));
	if (waits == NULL || inet_pton(AF_INET, argv[2], &to.sin_addr) != 1)
		return 2;
	double begun = now();
	for (int one = 0; one < count; one++) {
		int made = socket(AF_INET, SOCK_STREAM, 0);
		struct linger reset = {1, 0};
		char octet;
		double before = now();
		if (connect(made, (struct sockaddr *)&to, sizeof(to)) != 0) {
			perror("connect");
			return 1;
		}
		waits[one] = now() - before;
		(void)!read(made, &octet, 1);
		setsockopt(made, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
		close(made);
	}
	double took = now() - begun;
	qsort(waits, (size_t)count, sizeof(*waits), compare);
	printf("%.0f %.2f\n", count / took, waits[count / 2] * 1e6);
	return 0;
}
