/* Sorted lists. */
#include "table.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Where this VNI is or would be. */
static size_t place(const struct table *table, uint32_t vni)
{
	size_t low = 0, high = table->count;
	while (low < high) {
		size_t middle = (low + high) / 2;
		if (table->segments[middle]->vni < vni)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

struct segment *table_find(const struct table *table, uint32_t vni)
{
	size_t at = place(table, vni);
	return at < table->count && table->segments[at]->vni == vni ? table->segments[at] : NULL;
}

struct segment *table_add(struct table *table, uint32_t vni)
{
	struct segment *segment = table_find(table, vni);
	if (segment != NULL)
		return segment;
	struct segment **longer = realloc(table->segments, (table->count + 1) * sizeof(*longer));
	if (longer == NULL)
		return NULL;
	table->segments = longer;
	segment = calloc(1, sizeof(*segment));
	if (segment == NULL)
		return NULL;
	segment->vni = vni;
	for (int queue = 0; queue < VXLAN_QUEUES_MAX; queue++)
		segment->taps[queue] = -1;
	size_t at = place(table, vni);
	memmove(longer + at + 1, longer + at, (table->count - at) * sizeof(*longer));
	longer[at] = segment;
	table->count++;
	return segment;
}

static void release(struct segment *segment)
{
	fdb_clear(&segment->fdb);
	free(segment->flood.list);
	free(segment);
}

void table_remove(struct table *table, uint32_t vni)
{
	size_t at = place(table, vni);
	if (at == table->count || table->segments[at]->vni != vni)
		return;
	release(table->segments[at]);
	table->count--;
	memmove(table->segments + at, table->segments + at + 1, (table->count - at) * sizeof(*table->segments));
}

void table_clear(struct table *table)
{
	for (size_t at = 0; at < table->count; at++)
		release(table->segments[at]);
	free(table->segments);
	free(table->peers.list);
	*table = (struct table){ 0 };
}

static int compare(const void *one, const void *other)
{
	return memcmp(one, other, sizeof(struct address));
}

bool addresses_contain(const struct addresses *addresses, const struct address *address)
{
	return addresses->count > 0 &&
	       bsearch(address, addresses->list, addresses->count, sizeof(*address), compare) != NULL;
}

int addresses_set(struct addresses *addresses, const struct address *list, size_t count)
{
	struct address *sorted = NULL;
	size_t kept = 0;
	if (count > 0) {
		sorted = malloc(count * sizeof(*sorted));
		if (sorted == NULL)
			return -ENOMEM;
		memcpy(sorted, list, count * sizeof(*sorted));
		qsort(sorted, count, sizeof(*sorted), compare);
		for (size_t at = 0; at < count; at++) {
			if (kept == 0 || compare(&sorted[kept - 1], &sorted[at]) != 0)
				sorted[kept++] = sorted[at];
		}
	}
	free(addresses->list);
	*addresses = (struct addresses){ .list = sorted, .count = kept };
	return 0;
}
