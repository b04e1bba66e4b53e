/* Which VTEP a MAC of one segment lives behind. An open-addressing hash table of 24-octet rows, at most two thirds full. */
#ifndef VXNET_VXLAN_FDB_H
#define VXNET_VXLAN_FDB_H

#include <stddef.h>
#include <stdint.h>

/* Network order; IPv4 as ::ffff:a.b.c.d. */
struct address {
	uint8_t octets[16];
};

struct fdb_row {
	uint64_t mac;	/* six octets in the low 48 bits, and FDB_USED */
	struct address vtep;
};

#define FDB_USED ((uint64_t)1 << 63)

struct fdb {
	struct fdb_row *rows;	/* NULL: empty */
	size_t used;
	size_t mask;		/* places less one; a power of two less one */
};

/* The key of a MAC as it stands in a frame. */
uint64_t fdb_key(const uint8_t mac[6]);

/* Adds or replaces. 0 or -ENOMEM, after which the table is as it was. */
int fdb_put(struct fdb *fdb, uint64_t mac, const struct address *vtep);
/* NULL: not there. Valid until the next change. */
const struct address *fdb_find(const struct fdb *fdb, uint64_t mac);
void fdb_remove(struct fdb *fdb, uint64_t mac);
/* Leaves it empty, and good for use. */
void fdb_clear(struct fdb *fdb);

#endif
