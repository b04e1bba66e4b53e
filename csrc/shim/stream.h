/* The command's output on its way to the log and to whoever is attached.
 *
 *   pipe or pty master -> chunk -> log
 *                               -> sink (a client's pipe), sink …
 *
 * Nothing is read on before every sink took the chunk: a client that reads slowly slows the command, as a pipe in a
 * shell would; one that closes its pipe is forgotten. */
#ifndef VXNET_SHIM_STREAM_H
#define VXNET_SHIM_STREAM_H

#include "log.h"

#include <sys/epoll.h>

/* Something that epoll watches; the first member of its owner. */
struct source {
	void (*ready)(struct source *source, uint32_t events);
	int fd;
};

/* 0 or -errno. */
int source_watch(int epoll, struct source *source, uint32_t events);
void source_forget(int epoll, struct source *source);

struct sink {
	struct source source;
	struct stream *stream;
	struct sink *next;
	size_t sent; /* of the chunk */
};

struct stream {
	struct source source; /* fd -1: has ended */
	int epoll;
	bool watched;
	struct log *log;
	struct log_line line;
	struct sink *sinks;
	size_t used; /* of the chunk; > 0 while a sink has not taken it all */
	char chunk[LINE_MAX_LENGTH];
};

/* Takes over `fd`, made non-blocking. */
int stream_open(struct stream *stream, int epoll, int fd, const char *name, struct log *log);
/* Takes over `fd`, also on failure; 0 or -errno. Its reader gets what comes from now on. */
int stream_attach(struct stream *stream, int fd);
/* No more will be written: reads and logs what is there as far as the sinks let it. True once all is through, and
 * the stream closed with its sinks. */
bool stream_drain(struct stream *stream);

#endif
