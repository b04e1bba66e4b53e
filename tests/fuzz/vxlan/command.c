/* Messages of the control socket, taken apart and done to an FDB, which stays one that finds its rows. */
#include "command.h"
#include "frames.h"
#include "table.h"

static void is_whole(const struct fdb *fdb)
{
	size_t used = 0;
	for (size_t at = 0; fdb->rows != NULL && at <= fdb->mask; at++) {
		if (fdb->rows[at].mac == 0)
			continue;
		assert(fdb->rows[at].mac & FDB_USED);
		assert(fdb_find(fdb, fdb->rows[at].mac) == &fdb->rows[at].vtep);
		used++;
	}
	assert(used == fdb->used && (used == 0 || used * 3 <= (fdb->mask + 1) * 2));
}

static void change(struct fdb *fdb, const struct command *command)
{
	for (uint32_t at = 0; at < command->count; at++) {
		const struct row *row = &command->rows[at];
		uint64_t key = fdb_key(row->mac);
		if (command->operation == COMMAND_DROP) {
			fdb_remove(fdb, key);
			assert(fdb_find(fdb, key) == NULL);
			continue;
		}
		assert(fdb_put(fdb, key, &row->vtep) == 0);
		const struct address *found = fdb_find(fdb, key);
		assert(found != NULL && memcmp(found, &row->vtep, sizeof(*found)) == 0);
	}
	is_whole(fdb);
}

static void set(struct addresses *addresses, const struct command *command)
{
	assert(addresses_set(addresses, command->addresses, command->count) == 0);
	assert(addresses->count <= command->count);
	for (uint32_t at = 0; at < command->count; at++) {
		struct address one;
		memcpy(&one, &command->addresses[at], sizeof(one));
		assert(addresses_contain(addresses, &one));
	}
	for (size_t at = 1; at < addresses->count; at++)
		assert(memcmp(&addresses->list[at - 1], &addresses->list[at], sizeof(struct address)) < 0);
}

static void obey(struct table *table, struct fdb *staged, const struct command *command)
{
	if (command->operation == COMMAND_PEERS) {
		set(&table->peers, command);
		return;
	}
	if (command->operation == COMMAND_SEGMENT && table->count < 64)
		assert(table_add(table, command->vni) == table_find(table, command->vni));
	struct segment *segment = table_find(table, command->vni);
	for (size_t at = 1; at < table->count; at++)
		assert(table->segments[at - 1]->vni < table->segments[at]->vni);
	if (segment == NULL)
		return;
	switch (command->operation) {
	case COMMAND_REMOVE:
		table_remove(table, command->vni);
		assert(table_find(table, command->vni) == NULL);
		break;
	case COMMAND_PUT:
	case COMMAND_DROP:
		change(&segment->fdb, command);
		break;
	case COMMAND_STAGE:
		change(staged, command);
		break;
	case COMMAND_FLOOD:
		set(&segment->flood, command);
		break;
	case COMMAND_COMMIT:
		fdb_clear(&segment->fdb);
		segment->fdb = *staged;
		*staged = (struct fdb){ 0 };
		is_whole(&segment->fdb);
		break;
	default:
		break;
	}
}

/* Each: u16 size, message. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct table table = { 0 };
	struct fdb staged = { 0 };
	while (size >= 2) {
		size_t length = load16(data);
		data += 2;
		size -= 2;
		if (length > size)
			length = size;
		uint8_t *message = exact(data, length);
		struct command command;
		if (command_parse(message, length, &command) == 0) {
			const uint8_t *end = message + length;
			assert(command.vni <= 0xffffff && command.operation >= COMMAND_SEGMENT);
			assert(command.rows == NULL || (const uint8_t *)(command.rows + command.count) == end);
			assert(command.addresses == NULL || (const uint8_t *)(command.addresses + command.count) == end);
			obey(&table, &staged, &command);
		}
		free(message);
		data += length;
		size -= length;
	}
	table_clear(&table);
	fdb_clear(&staged);
	return 0;
}
