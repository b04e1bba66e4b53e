/* The container's log, in Kubernetes' CRI form, one line of output a line:
 *
 *   2026-01-31T12:00:00.123456789Z stdout F text
 *
 * F: the line ended there; P: more of it follows in the next entry of that stream (it is longer than LINE_MAX_LENGTH,
 * or the output ended without a newline), so that nothing is added or lost when it is put together again.
 *
 * A file that would grow beyond `max` is turned over between two entries: log becomes log.1, that log.2 and so on up to
 * `files` of them, of which the oldest is lost. */
#ifndef VXNET_SHIM_LOG_H
#define VXNET_SHIM_LOG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define LINE_MAX_LENGTH 16384
#define LOG_ENTRY_OVERHEAD 64

struct log {
	int fd;		/* appended to; -1: nothing is kept */
	off_t size;	/* up to the last whole entry */
	off_t max;	/* 0: no bound */
	int files;
	const char *path;
	uint64_t lost;	/* octets that the disk did not take */
	size_t used;
	char out[LINE_MAX_LENGTH + LOG_ENTRY_OVERHEAD];
};

/* The begun line of one stream. */
struct log_line {
	const char *stream;
	size_t used;
	char text[LINE_MAX_LENGTH];
};

/* `path` is borrowed. 0 or -errno. */
int log_open(struct log *log, const char *path, off_t max, int files);

/* Adds output, and writes all that is whole. Never fails: what the disk refuses is counted in `lost`, and the file
 * still ends with a whole entry. */
void log_append(struct log *log, struct log_line *line, const char *data, size_t size);
/* The stream has ended. */
void log_finish(struct log *log, struct log_line *line);

#endif
