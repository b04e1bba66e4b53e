/*
 * As many datagrams of 64 octets as go. "serve PORT": counts them, and tells on being asked. "send ADDRESS PORT SECONDS":
 * prints how many thousands arrived in a second.
 */
#define _GNU_SOURCE
#include <string.h>
#include <sys/time.h>
#include <unistd.h>

#include "bench.h"

enum { BATCH = 32, SIZE = 64, ASKS = 10, BUFFER = 4 << 20 };

struct batch {
	struct mmsghdr messages[BATCH];
	struct iovec vectors[BATCH];
	char octets[BATCH][SIZE];
};

static void prepare(struct batch *batch)
{
	memset(batch, 0, sizeof(*batch));
	for (int at = 0; at < BATCH; at++) {
		batch->vectors[at] = (struct iovec){batch->octets[at], SIZE};
		batch->messages[at].msg_hdr.msg_iov = &batch->vectors[at];
		batch->messages[at].msg_hdr.msg_iovlen = 1;
	}
}

/* A datagram of one octet is the question; the answer is the count since the last one that was followed by others. */
static int serve(int fd)
{
	static struct batch batch;
	uint64_t count = 0, told = 0;
	int buffer = BUFFER;
	prepare(&batch);
	/* What is measured is the way there, not how soon this process gets a core. */
	setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &buffer, sizeof(buffer));
	for (;;) {
		struct sockaddr_in from[BATCH];
		for (int at = 0; at < BATCH; at++) {
			batch.messages[at].msg_hdr.msg_name = &from[at];
			batch.messages[at].msg_hdr.msg_namelen = sizeof(from[at]);
		}
		int found = recvmmsg(fd, batch.messages, BATCH, MSG_WAITFORONE, NULL);
		for (int at = 0; at < found; at++) {
			if (batch.messages[at].msg_len != 1) {
				count++;
				continue;
			}
			if (count > 0)
				told = count;
			count = 0;
			sendto(fd, &told, sizeof(told), 0, (struct sockaddr *)&from[at], sizeof(from[at]));
		}
		if (found < 0)
			return 1;
	}
}

static int send_all(int fd, double seconds)
{
	static struct batch batch;
	struct timeval patience = {.tv_usec = 200000};
	uint64_t arrived;
	prepare(&batch);
	for (double end = now() + seconds; now() < end;)
		(void)!sendmmsg(fd, batch.messages, BATCH, 0);
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	for (int ask = 0; ask < ASKS; ask++) {
		usleep(200000); /* what is on its way arrives */
		if (send(fd, "", 1, 0) == 1 && recv(fd, &arrived, sizeof(arrived), 0) == sizeof(arrived)) {
			printf("%.2f\n", (double)arrived / seconds / 1000);
			return 0;
		}
	}
	fprintf(stderr, "nobody told how many arrived\n");
	return 1;
}

int main(int argc, char **argv)
{
	int fd = socket(AF_INET, SOCK_DGRAM, 0);
	struct sockaddr_in place = {.sin_family = AF_INET};
	if (argc == 3 && strcmp(argv[1], "serve") == 0) {
		place.sin_port = htons((uint16_t)atoi(argv[2]));
		return bind(fd, (struct sockaddr *)&place, sizeof(place)) != 0 || serve(fd);
	}
	if (argc != 5 || inet_pton(AF_INET, argv[2], &place.sin_addr) != 1)
		return 2;
	place.sin_port = htons((uint16_t)atoi(argv[3]));
	return connect(fd, (struct sockaddr *)&place, sizeof(place)) != 0 || send_all(fd, atof(argv[4]));
}
