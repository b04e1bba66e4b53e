/* What the forwarder knows: segments with their TAPs and FDBs, and who may send. Changed by the control thread alone,
 * while it holds the lock of every worker; read by a worker under its own. */
#ifndef VXNET_VXLAN_TABLE_H
#define VXNET_VXLAN_TABLE_H

#include "command.h"
#include "fdb.h"
#include "join.h"
#include "vxlan.h"

/* Sorted, without doubles. */
struct addresses {
	struct address *list;	/* NULL: empty */
	size_t count;
};

struct segment {
	uint32_t vni;
	uint32_t flags;
	struct join_rules rules;
	int taps[VXLAN_QUEUES_MAX];
	struct fdb fdb;
	struct addresses flood;
};

struct table {
	struct segment **segments;	/* by VNI */
	size_t count;
	struct addresses peers;
};

/* NULL: not there. */
struct segment *table_find(const struct table *table, uint32_t vni);
/* The segment of this VNI, new and empty if there was none. NULL: no memory. */
struct segment *table_add(struct table *table, uint32_t vni);
/* The TAP's queues stay open. */
void table_remove(struct table *table, uint32_t vni);
void table_clear(struct table *table);

bool addresses_contain(const struct addresses *addresses, const struct address *address);
/* 0 or -ENOMEM, after which they are as they were. */
int addresses_set(struct addresses *addresses, const struct address *list, size_t count);

#endif
