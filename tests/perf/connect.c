/*
 * Connections one after the other. "serve PORT": accept and close, for ever. "ask ADDRESS PORT COUNT": connect, wait
 * for the other end to close, reset (so that no port stays taken); prints connections/s and the median of connect(2)
 * in µs.
 */
#include <string.h>
#include <unistd.h>

#include "bench.h"

int main(int argc, char **argv)
{
	if (argc == 3 && strcmp(argv[1], "serve") == 0) {
		int listening = listen_on(argv[2]);
		if (listening < 0)
			return 1;
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
