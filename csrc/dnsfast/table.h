/*
 * table: packed answers by (network, name), as vxnet.core.names.table makes them.
 *
 *   (network, name) ──hash──> entry ── rrset A, rrset AAAA, …       an entry without sets: the name exists, no more
 *
 * Not locked: whoever shares it locks (dnsfast.h). Networks are numbers here; who gives them knows what they mean.
 */
#ifndef DNSFAST_TABLE_H
#define DNSFAST_TABLE_H

#include "message.h"

struct entry;

struct table {
	struct entry **buckets;
	size_t bucket_count; /* a power of two */
	size_t size;         /* entries */
	uint64_t key;        /* random: nobody can know which names share a bucket */
};

enum { SETS_MAX = 8 }; /* types of one name */

int table_init(struct table *table, uint64_t key);
void table_clear(struct table *table);

/*
 * Sets a name's answers. They are packed as one set after the other, all numbers of the host's order: type, number,
 * stride (16 bits each), two octets of nothing, size (32 bits), body. 0, -EINVAL (torn, or numbers that do not fit
 * together), -ENOMEM; then the table is as it was.
 */
int table_put(struct table *table, uint32_t network, const uint8_t *name, size_t name_size, const uint8_t *answers,
	      size_t answers_size);

/* Forgets a name; harmless if it is unknown. */
void table_drop(struct table *table, uint32_t network, const uint8_t *name, size_t name_size);

/*
 * The reply to one datagram from somebody who sees these networks, the first that has answers first. Returns its
 * octets; 0: the query is not plain, or nobody here has the name.
 */
size_t table_answer(const struct table *table, const uint32_t *networks, size_t count, const uint8_t *data, size_t size,
		    uint32_t turn, uint8_t reply[REPLY_MAX]);

#endif
