/*
 * Who answers. "serve PORT": tells each connection the address that it came to, and closes it. "watch ADDRESS PORT": a
 * new connection every 3 ms; a line for each, with the moment at which it was begun (CLOCK_MONOTONIC, seconds) and
 * who answered, or "failed" if nobody did before the kernel would have asked once more.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#include "bench.h"

#define EVERY 0.003
#define LONGEST 0.9
#define MOST 512 /* > LONGEST / EVERY */

static int serve(struct sockaddr_in at)
{
	int listening = socket(AF_INET, SOCK_STREAM, 0), on = 1;
	setsockopt(listening, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (bind(listening, (struct sockaddr *)&at, sizeof(at)) != 0 || listen(listening, 1024) != 0)
		return 1;
	for (;;) {
		int one = accept(listening, NULL, NULL);
		if (one < 0)
			continue;
		struct sockaddr_in here;
		socklen_t size = sizeof(here);
		getsockname(one, (struct sockaddr *)&here, &size);
		(void)!write(one, &here.sin_addr, sizeof(here.sin_addr));
		close(one);
	}
}

static void say(double begun, const struct in_addr *who)
{
	char text[INET_ADDRSTRLEN] = "failed";
	if (who != NULL)
		inet_ntop(AF_INET, who, text, sizeof(text));
	printf("%.6f %s\n", begun, text);
}

static void end(int connection)
{
	struct linger reset = {1, 0}; /* so that no port stays taken */
	setsockopt(connection, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
	close(connection);
}

static int watch(struct sockaddr_in to)
{
	struct pollfd open[MOST];
	double begun[MOST], due = now();
	nfds_t count = 0;
	setvbuf(stdout, NULL, _IOLBF, 0);
	for (;;) {
		if (now() >= due && count < MOST) {
			int made = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
			due += EVERY;
			if (made < 0)
				return 1;
			begun[count] = now();
			if (connect(made, (struct sockaddr *)&to, sizeof(to)) != 0 && errno != EINPROGRESS) {
				say(begun[count], NULL);
				end(made);
			} else {
				open[count++] = (struct pollfd){.fd = made, .events = POLLIN};
			}
		}
		poll(open, count, 1);
		for (nfds_t one = count; one-- > 0;) {
			struct in_addr who;
			if (open[one].revents != 0)
				say(begun[one], read(open[one].fd, &who, sizeof(who)) == sizeof(who) ? &who : NULL);
			else if (now() > begun[one] + LONGEST)
				say(begun[one], NULL);
			else
				continue;
			end(open[one].fd);
			count--;
			open[one] = open[count];
			begun[one] = begun[count];
		}
	}
}

int main(int argc, char **argv)
{
	struct sockaddr_in at = {.sin_family = AF_INET};
	if (argc == 3 && strcmp(argv[1], "serve") == 0) {
		at.sin_port = htons((uint16_t)atoi(argv[2]));
		return serve(at);
	}
	if (argc == 4 && strcmp(argv[1], "watch") == 0 && inet_pton(AF_INET, argv[2], &at.sin_addr) == 1) {
		at.sin_port = htons((uint16_t)atoi(argv[3]));
		return watch(at);
	}
	return 2;
}
