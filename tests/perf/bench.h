/* What the benches' programs share. */
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>

static inline double now(void)
{
	struct timespec at;
	clock_gettime(CLOCK_MONOTONIC, &at);
	return (double)at.tv_sec + (double)at.tv_nsec / 1e9;
}

/* Of doubles, for qsort(3). */
static inline int compare(const void *a, const void *b)
{
	double one = *(const double *)a, other = *(const double *)b;
	return (one > other) - (one < other);
}

/* A socket that listens on that port of all IPv4 addresses; < 0: it does not. */
static inline int listen_on(const char *port)
{
	struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port))};
	int made = socket(AF_INET, SOCK_STREAM, 0), on = 1;
	setsockopt(made, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (bind(made, (struct sockaddr *)&at, sizeof(at)) != 0 || listen(made, 1024) != 0)
		return -1;
	puts("ready");
	fflush(stdout);
	return made;
}
