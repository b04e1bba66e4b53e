/* Requests, taken apart. */
#include "command.h"

#include <errno.h>
#include <string.h>

enum { HEADER = 8, VNI_MAX = 0xffffff, MTU_MIN = 68, MTU_MAX = 65535 };

static uint32_t number(const uint8_t *at)
{
	uint32_t value;
	memcpy(&value, at, 4);
	return value;
}

int command_parse(const uint8_t *message, size_t size, struct command *command)
{
	if (size < HEADER || size > COMMAND_MAX)
		return -EBADMSG;
	const uint8_t *body = message + HEADER;
	size_t room = size - HEADER;
	*command = (struct command){ .operation = number(message), .vni = number(message + 4) };
	if (command->vni > VNI_MAX)
		return -EBADMSG;
	switch (command->operation) {
	case COMMAND_SEGMENT:
		if (room != 8)
			return -EBADMSG;
		command->mtu = number(body);
		command->flags = number(body + 4);
		return command->mtu < MTU_MIN || command->mtu > MTU_MAX ? -EBADMSG : 0;
	case COMMAND_PUT:
	case COMMAND_DROP:
	case COMMAND_STAGE:
		command->rows = (const struct row *)(const void *)body;	/* octets only: any alignment will do */
		command->count = (uint32_t)(room / sizeof(struct row));
		return room % sizeof(struct row) == 0 ? 0 : -EBADMSG;
	case COMMAND_FLOOD:
	case COMMAND_PEERS:
		command->addresses = (const struct address *)(const void *)body;
		command->count = (uint32_t)(room / sizeof(struct address));
		return room % sizeof(struct address) == 0 ? 0 : -EBADMSG;
	case COMMAND_SEGMENTS:
	case COMMAND_ROWS:
		if (room != 4)
			return -EBADMSG;
		command->from = number(body);
		return 0;
	case COMMAND_REMOVE:
	case COMMAND_COMMIT:
	case COMMAND_FLOODS:
	case COMMAND_PEERED:
	case COMMAND_COUNTERS:
	case COMMAND_STOP:
		return room == 0 ? 0 : -EBADMSG;
	default:
		return -EBADMSG;
	}
}
