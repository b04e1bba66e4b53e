/* Names to answers. */
#include "table.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { BUCKETS_MIN = 64, SET_HEADER = 12 };

struct entry {
	struct entry *next;
	uint64_t hash;
	uint32_t network;
	uint32_t name_size;
	uint32_t count;
	struct rrset sets[SETS_MAX]; /* their bodies are in `octets` */
	uint8_t octets[];            /* the name, then the answers as they came */
};

/* FNV-1a from a random start, and its high bits folded down. */
static uint64_t hash_of(const struct table *table, uint32_t network, const uint8_t *name, size_t size)
{
	uint64_t hash = table->key ^ network;
	for (size_t one = 0; one < size; one++)
		hash = (hash ^ name[one]) * 0x100000001b3u;
	return hash ^ hash >> 29;
}

static struct entry **find(const struct table *table, uint64_t hash, uint32_t network, const uint8_t *name, size_t size)
{
	struct entry **at = &table->buckets[hash & (table->bucket_count - 1)];
	while (*at != NULL && ((*at)->hash != hash || (*at)->network != network || (*at)->name_size != size ||
			       memcmp((*at)->octets, name, size) != 0))
		at = &(*at)->next;
	return at;
}

int table_init(struct table *table, uint64_t key)
{
	struct entry **buckets = calloc(BUCKETS_MIN, sizeof(struct entry *));
	*table = (struct table){.buckets = buckets, .bucket_count = buckets != NULL ? BUCKETS_MIN : 0, .key = key};
	return buckets != NULL ? 0 : -ENOMEM;
}

void table_clear(struct table *table)
{
	for (size_t bucket = 0; bucket < table->bucket_count; bucket++) {
		struct entry *next;
		for (struct entry *one = table->buckets[bucket]; one != NULL; one = next) {
			next = one->next;
			free(one);
		}
	}
	free(table->buckets);
	*table = (struct table){0};
}

/* Without memory for more buckets the old ones do, more slowly. */
static void grow(struct table *table)
{
	size_t count = table->bucket_count * 2;
	struct entry **buckets = calloc(count, sizeof(struct entry *));
	if (buckets == NULL)
		return;
	for (size_t bucket = 0; bucket < table->bucket_count; bucket++) {
		struct entry *next;
		for (struct entry *one = table->buckets[bucket]; one != NULL; one = next) {
			next = one->next;
			one->next = buckets[one->hash & (count - 1)];
			buckets[one->hash & (count - 1)] = one;
		}
	}
	free(table->buckets);
	table->buckets = buckets;
	table->bucket_count = count;
}

static int unpack(struct entry *entry, const uint8_t *at, size_t size)
{
	while (size > 0) {
		if (size < SET_HEADER || entry->count == SETS_MAX)
			return -EINVAL;
		struct rrset *set = &entry->sets[entry->count];
		memcpy(&set->type, at, 2);
		memcpy(&set->number, at + 2, 2);
		memcpy(&set->stride, at + 4, 2);
		memcpy(&set->size, at + 8, 4);
		set->body = at + SET_HEADER;
		if (set->size > size - SET_HEADER)
			return -EINVAL;
		if (set->stride != 0 && set->size != (uint32_t)set->stride * set->number)
			return -EINVAL;
		at += SET_HEADER + set->size;
		size -= SET_HEADER + set->size;
		entry->count++;
	}
	return 0;
}

int table_put(struct table *table, uint32_t network, const uint8_t *name, size_t name_size, const uint8_t *answers,
	      size_t answers_size)
{
	if (name_size == 0 || name_size > NAME_MAX_OCTETS)
		return -EINVAL;
	struct entry *entry = malloc(sizeof(*entry) + name_size + answers_size);
	if (entry == NULL)
		return -ENOMEM;
	*entry = (struct entry){.network = network, .name_size = (uint32_t)name_size};
	memcpy(entry->octets, name, name_size);
	if (answers_size > 0)
		memcpy(entry->octets + name_size, answers, answers_size);
	int error = unpack(entry, entry->octets + name_size, answers_size);
	if (error != 0) {
		free(entry);
		return error;
	}
	if (table->size >= table->bucket_count)
		grow(table);
	entry->hash = hash_of(table, network, name, name_size);
	struct entry **at = find(table, entry->hash, network, name, name_size), *old = *at;
	entry->next = old != NULL ? old->next : NULL;
	*at = entry;
	table->size += old == NULL;
	free(old);
	return 0;
}

void table_drop(struct table *table, uint32_t network, const uint8_t *name, size_t name_size)
{
	struct entry **at = find(table, hash_of(table, network, name, name_size), network, name, name_size), *old = *at;
	if (old == NULL)
		return;
	*at = old->next;
	table->size--;
	free(old);
}

size_t table_answer(const struct table *table, const uint32_t *networks, size_t count, const uint8_t *data, size_t size,
		    uint32_t turn, uint8_t reply[REPLY_MAX])
{
	struct query query;
	if (!query_parse(&query, data, size))
		return 0;
	bool known = false;
	for (size_t one = 0; one < count; one++) {
		uint64_t hash = hash_of(table, networks[one], query.name, query.name_size);
		const struct entry *entry = *find(table, hash, networks[one], query.name, query.name_size);
		if (entry == NULL)
			continue;
		known = true;
		if (entry->count == 0)
			continue;
		if (query.type == TYPE_ANY)
			return reply_write(reply, &query, entry->sets, entry->count, turn);
		for (uint32_t set = 0; set < entry->count; set++)
			if (entry->sets[set].type == query.type)
				return reply_write(reply, &query, &entry->sets[set], 1, turn);
		break; /* the name exists, the type does not */
	}
	return known ? reply_write(reply, &query, NULL, 0, turn) : 0;
}
