/* Output to log and sinks, without waiting for any of them but by not reading on. */
#include "stream.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

int source_watch(int epoll, struct source *source, uint32_t events)
{
	struct epoll_event event = {.events = events, .data.ptr = source};
	if (epoll_ctl(epoll, EPOLL_CTL_ADD, source->fd, &event) == 0)
		return 0;
	if (errno != EEXIST)
		return -errno;
	return epoll_ctl(epoll, EPOLL_CTL_MOD, source->fd, &event) < 0 ? -errno : 0;
}

void source_forget(int epoll, struct source *source)
{
	epoll_ctl(epoll, EPOLL_CTL_DEL, source->fd, NULL);
}

static int set_nonblocking(int fd)
{
	int flags = fcntl(fd, F_GETFL);
	return flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 ? -errno : 0;
}

static void sink_close(struct sink *sink)
{
	struct sink **link = &sink->stream->sinks;
	while (*link != sink)
		link = &(*link)->next;
	*link = sink->next;
	source_forget(sink->stream->epoll, &sink->source);
	close(sink->source.fd);
	free(sink);
}

/* True when it has the whole chunk, or is no more. */
static bool sink_push(struct sink *sink)
{
	struct stream *stream = sink->stream;
	while (sink->sent < stream->used) {
		ssize_t written = write(sink->source.fd, stream->chunk + sink->sent, stream->used - sink->sent);
		if (written >= 0) {
			sink->sent += (size_t)written;
		} else if (errno == EAGAIN) {
			source_watch(stream->epoll, &sink->source, EPOLLOUT);
			return false;
		} else if (errno != EINTR) {
			sink_close(sink);
			return true;
		}
	}
	return true;
}

/* Offers the chunk to all; true when none is behind. */
static bool push(struct stream *stream)
{
	bool through = true;
	for (struct sink *sink = stream->sinks, *next; sink != NULL; sink = next) {
		next = sink->next;
		through &= sink_push(sink);
	}
	if (through)
		stream->used = 0;
	return through;
}

/* A pipe without writers is always ready, so a stream that waits for a sink is not watched. */
static void watch(struct stream *stream, bool wanted)
{
	if (stream->watched == wanted || stream->source.fd < 0)
		return;
	stream->watched = wanted;
	if (wanted)
		source_watch(stream->epoll, &stream->source, EPOLLIN);
	else
		source_forget(stream->epoll, &stream->source);
}

static void end(struct stream *stream)
{
	watch(stream, false);
	close(stream->source.fd);
	stream->source.fd = -1;
	log_finish(stream->log, &stream->line);
	while (stream->sinks != NULL)
		sink_close(stream->sinks);
}

/* One read; 1 passed on, 0 a sink is behind, -EAGAIN nothing there, another -errno (EIO of a pty) or -EPIPE at the
 * end. */
static int pump(struct stream *stream)
{
	if (stream->used > 0 && !push(stream))
		return 0;
	ssize_t got = read(stream->source.fd, stream->chunk, sizeof(stream->chunk));
	if (got < 0)
		return -errno;
	if (got == 0)
		return -EPIPE;
	stream->used = (size_t)got;
	log_append(stream->log, &stream->line, stream->chunk, stream->used);
	for (struct sink *sink = stream->sinks; sink != NULL; sink = sink->next)
		sink->sent = 0;
	return push(stream) ? 1 : 0;
}

static void stream_ready(struct source *source, uint32_t events)
{
	(void)events;
	struct stream *stream = (struct stream *)source;
	int result = pump(stream);
	if (result == 0)
		watch(stream, false);
	else if (result < 0 && result != -EAGAIN && result != -EINTR)
		end(stream);
}

static void sink_ready(struct source *source, uint32_t events)
{
	struct sink *sink = (struct sink *)source;
	struct stream *stream = sink->stream;
	if ((events & (EPOLLERR | EPOLLHUP)) != 0)
		sink_close(sink);
	else
		source_watch(stream->epoll, source, 0);
	if (push(stream))
		watch(stream, true);
}

int stream_open(struct stream *stream, int epoll, int fd, const char *name, struct log *log)
{
	stream->source = (struct source){.ready = stream_ready, .fd = fd};
	stream->epoll = epoll;
	stream->log = log;
	stream->line.stream = name;
	int error = set_nonblocking(fd);
	if (error == 0)
		watch(stream, true);
	return error;
}

int stream_attach(struct stream *stream, int fd)
{
	struct sink *sink = calloc(1, sizeof(*sink));
	int error = sink == NULL ? -ENOMEM : set_nonblocking(fd);
	if (error == 0) {
		*sink = (struct sink){
			.source = {.ready = sink_ready, .fd = fd}, .stream = stream, .next = stream->sinks,
			.sent = stream->used,
		};
		error = source_watch(stream->epoll, &sink->source, 0);
	}
	if (error < 0) {
		free(sink);
		close(fd);
		return error;
	}
	stream->sinks = sink;
	return 0;
}

bool stream_drain(struct stream *stream)
{
	if (stream->source.fd < 0)
		return true;
	int result;
	do
		result = pump(stream);
	while (result == 1 || result == -EINTR);
	if (result != 0)
		end(stream);
	else
		watch(stream, false);
	return result != 0;
}
