/* Lines to entries. */
#include "log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

int log_open(struct log *log, const char *path, off_t max, int files)
{
	*log = (struct log){
		.fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600), .max = max, .files = files, .path = path,
	};
	if (log->fd < 0)
		return -errno;
	struct stat found;
	log->size = fstat(log->fd, &found) == 0 ? found.st_size : 0;
	return 0;
}

/* The oldest is dropped by being renamed over, or with one file alone cut to nothing. Without room for
 * a new file the old one goes on. */
static void turn_over(struct log *log)
{
	char from[4096], to[4096];
	if (log->files == 1) {
		if (ftruncate(log->fd, 0) == 0)
			log->size = 0;
		return;
	}
	/* First what can fail: no descriptor or no room left. */
	int used = snprintf(to, sizeof(to), "%s.next", log->path);
	int fd = used < (int)sizeof(to) ? open(to, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0600) : -1;
	if (fd < 0)
		return;
	for (int number = log->files - 1; number > 0; number--) {
		if (number > 1)
			snprintf(from, sizeof(from), "%s.%d", log->path, number - 1);
		else
			snprintf(from, sizeof(from), "%s", log->path);
		snprintf(to, sizeof(to), "%s.%d", log->path, number);
		(void)!rename(from, to);
	}
	snprintf(from, sizeof(from), "%s.next", log->path);
	(void)!rename(from, log->path);
	close(log->fd);
	log->fd = fd;
	log->size = 0;
}

static void flush(struct log *log)
{
	size_t done = 0;
	if (log->fd >= 0 && log->max > 0 && log->size > 0 && log->size + (off_t)log->used > log->max)
		turn_over(log);
	while (done < log->used) {
		ssize_t written = log->fd < 0 ? 0 : write(log->fd, log->out + done, log->used - done);
		if (written < 0 && errno == EINTR)
			continue;
		if (written <= 0)
			break;
		done += (size_t)written;
	}
	if (done == log->used) {
		log->size += (off_t)done;
	} else {
		/* A torn entry would swallow the next one: back to the last whole flush. */
		log->lost += log->used;
		if (log->fd >= 0 && done > 0)
			(void)!ftruncate(log->fd, log->size);
	}
	log->used = 0;
}

static void entry(struct log *log, const char *stream, char tag, const struct timespec *now, const char *text,
		  size_t size)
{
	if (log->used + LOG_ENTRY_OVERHEAD + size > sizeof(log->out))
		flush(log);
	struct tm date;
	gmtime_r(&now->tv_sec, &date);
	char *at = log->out + log->used;
	size_t head = strftime(at, LOG_ENTRY_OVERHEAD, "%Y-%m-%dT%H:%M:%S", &date);
	head += (size_t)snprintf(at + head, LOG_ENTRY_OVERHEAD - head, ".%09ldZ %s %c ", now->tv_nsec, stream, tag);
	memcpy(at + head, text, size);
	at[head + size] = '\n';
	log->used += head + size + 1;
}

void log_append(struct log *log, struct log_line *line, const char *data, size_t size)
{
	struct timespec now;
	clock_gettime(CLOCK_REALTIME, &now);
	while (size > 0) {
		size_t room = sizeof(line->text) - line->used;
		const char *end = memchr(data, '\n', size);
		size_t length = end != NULL ? (size_t)(end - data) : size;
		if (end != NULL && line->used == 0 && length <= sizeof(line->text)) {
			entry(log, line->stream, 'F', &now, data, length);
		} else {
			length = length < room ? length : room;
			memcpy(line->text + line->used, data, length);
			line->used += length;
			if (end != NULL && data + length == end) {
				entry(log, line->stream, 'F', &now, line->text, line->used);
				line->used = 0;
			} else {
				end = NULL;
				if (line->used == sizeof(line->text)) {
					entry(log, line->stream, 'P', &now, line->text, line->used);
					line->used = 0;
				}
			}
		}
		size_t taken = length + (end != NULL ? 1 : 0);
		data += taken;
		size -= taken;
	}
	flush(log);
}

void log_finish(struct log *log, struct log_line *line)
{
	struct timespec now;
	clock_gettime(CLOCK_REALTIME, &now);
	if (line->used > 0)
		entry(log, line->stream, 'P', &now, line->text, line->used);
	line->used = 0;
	flush(log);
}
