/* The hash table. */
#include "fdb.h"

#include <errno.h>
#include <stdlib.h>

static size_t home(const struct fdb *fdb, uint64_t mac)
{
	return (size_t)((mac * 0x9e3779b97f4a7c15u) >> 32) & fdb->mask;
}

uint64_t fdb_key(const uint8_t mac[6])
{
	uint64_t key = 0;
	for (int at = 0; at < 6; at++)
		key = key << 8 | mac[at];
	return key | FDB_USED;
}

/* The row of this MAC, or the free place where it would be. Needs one free place. */
static size_t place(const struct fdb *fdb, uint64_t mac)
{
	size_t at = home(fdb, mac);
	while (fdb->rows[at].mac != 0 && fdb->rows[at].mac != mac)
		at = (at + 1) & fdb->mask;
	return at;
}

static int grow(struct fdb *fdb)
{
	size_t places = fdb->rows == NULL ? 16 : (fdb->mask + 1) * 2;
	struct fdb bigger = { .rows = calloc(places, sizeof(*bigger.rows)), .used = fdb->used, .mask = places - 1 };
	if (bigger.rows == NULL)
		return -ENOMEM;
	for (size_t at = 0; fdb->rows != NULL && at <= fdb->mask; at++) {
		if (fdb->rows[at].mac != 0)
			bigger.rows[place(&bigger, fdb->rows[at].mac)] = fdb->rows[at];
	}
	free(fdb->rows);
	*fdb = bigger;
	return 0;
}

int fdb_put(struct fdb *fdb, uint64_t mac, const struct address *vtep)
{
	if (fdb->rows == NULL || (fdb->used + 1) * 3 > (fdb->mask + 1) * 2) {
		int failed = grow(fdb);
		if (failed)
			return failed;
	}
	struct fdb_row *row = &fdb->rows[place(fdb, mac)];
	fdb->used += row->mac == 0;
	*row = (struct fdb_row){ .mac = mac, .vtep = *vtep };
	return 0;
}

const struct address *fdb_find(const struct fdb *fdb, uint64_t mac)
{
	if (fdb->rows == NULL)
		return NULL;
	const struct fdb_row *row = &fdb->rows[place(fdb, mac)];
	return row->mac == 0 ? NULL : &row->vtep;
}

/* Whoever was pushed past the freed place moves back into it, so that no search ends early. */
void fdb_remove(struct fdb *fdb, uint64_t mac)
{
	if (fdb->rows == NULL)
		return;
	size_t free_place = place(fdb, mac);
	if (fdb->rows[free_place].mac == 0)
		return;
	fdb->used--;
	for (size_t at = (free_place + 1) & fdb->mask; fdb->rows[at].mac != 0; at = (at + 1) & fdb->mask) {
		size_t wanted = home(fdb, fdb->rows[at].mac);
		if (((at - wanted) & fdb->mask) < ((at - free_place) & fdb->mask))
			continue;
		fdb->rows[free_place] = fdb->rows[at];
		free_place = at;
	}
	fdb->rows[free_place].mac = 0;
}

void fdb_clear(struct fdb *fdb)
{
	free(fdb->rows);
	*fdb = (struct fdb){ 0 };
}
