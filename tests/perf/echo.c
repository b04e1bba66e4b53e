/*
 * One octet there and back on one connection. "serve PORT": echo, one connection after the other. "ask ADDRESS PORT
 * COUNT": prints the median in µs.
 */
#include <netinet/tcp.h>
#include <string.h>
#include <unistd.h>

#include "bench.h"

int main(int argc, char **argv)
{
	int on = 1;
	char octet = 0;
	if (argc == 3 && strcmp(argv[1], "serve") == 0) {
		int listening = listen_on(argv[2]);
		if (listening < 0)
			return 1;
		for (;;) {
			int one = accept(listening, NULL, NULL);
			setsockopt(one, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
			while (read(one, &octet, 1) == 1 && write(one, &octet, 1) == 1)
				;
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
	int made = socket(AF_INET, SOCK_STREAM, 0);
	setsockopt(made, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	if (connect(made, (struct sockaddr *)&to, sizeof(to)) != 0) {
		perror("connect");
		return 1;
	}
	for (int one = 0; one < count; one++) {
		double before = now();
		if (write(made, &octet, 1) != 1 || read(made, &octet, 1) != 1)
			return 1;
		waits[one] = (now() - before) * 1e6;
	}
	qsort(waits, (size_t)count, sizeof(*waits), compare);
	printf("%.2f\n", waits[count / 2]);
	return 0;
}
