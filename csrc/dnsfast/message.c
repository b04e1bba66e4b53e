/* Queries and replies. */
#include "message.h"

#include <string.h>

enum {
	HEADER_SIZE = 12,
	OPT_SIZE = 11,
	QR = 0x8000,
	OPCODE = 0x7800,
	AA = 0x0400,
	TC = 0x0200,
	RD = 0x0100,
	RA = 0x0080,
	CD = 0x0010,
	DO = 0x8000,
	CLASS_IN = 1,
	RECORDS_MAX = REPLY_MAX / 12, /* the shortest record there can be: a pointer, ten octets */
};

static uint16_t read_u16(const uint8_t *at)
{
	return (uint16_t)(at[0] << 8 | at[1]);
}

static void write_u16(uint8_t *at, unsigned value)
{
	at[0] = (uint8_t)(value >> 8);
	at[1] = (uint8_t)value;
}

/* The name at `at`, in lower case; octets read, or 0 if it is no plain name. */
static size_t read_name(uint8_t name[NAME_MAX_OCTETS], const uint8_t *at, size_t size)
{
	size_t used = 0;
	for (;;) {
		if (used >= size || used >= NAME_MAX_OCTETS)
			return 0;
		size_t label = at[used];
		if (label > 63 || used + label >= size || used + label >= NAME_MAX_OCTETS)
			return 0;
		name[used] = (uint8_t)label;
		if (label == 0)
			return used + 1;
		for (size_t octet = used + 1; octet <= used + label; octet++)
			name[octet] = at[octet] >= 'A' && at[octet] <= 'Z' ? (uint8_t)(at[octet] | 0x20) : at[octet];
		used += label + 1;
	}
}

static bool read_opt(struct query *query, const uint8_t *at, size_t size)
{
	if (size < OPT_SIZE || at[0] != 0 || read_u16(at + 1) != TYPE_OPT)
		return false;
	uint16_t offered = read_u16(at + 3);
	if (at[6] != 0 /* version */ || size != OPT_SIZE + (size_t)read_u16(at + 9))
		return false;
	query->edns = true;
	query->dnssec_ok = (read_u16(at + 7) & DO) != 0;
	query->limit = offered < REPLY_MIN ? REPLY_MIN : offered > REPLY_MAX ? REPLY_MAX : offered;
	return true;
}

bool query_parse(struct query *query, const uint8_t *data, size_t size)
{
	if (size < HEADER_SIZE || size > QUERY_MAX)
		return false;
	uint16_t additional = read_u16(data + 10);
	query->flags = read_u16(data + 2);
	if ((query->flags & (QR | OPCODE)) != 0 || read_u16(data + 4) != 1 || read_u16(data + 6) != 0 ||
	    read_u16(data + 8) != 0 || additional > 1)
		return false;
	query->data = data;
	query->question = data + HEADER_SIZE;
	query->name_size = read_name(query->name, query->question, size - HEADER_SIZE);
	if (query->name_size == 0 || size - HEADER_SIZE - query->name_size < 4)
		return false;
	query->question_size = query->name_size + 4;
	query->type = read_u16(query->question + query->name_size);
	if (read_u16(query->question + query->name_size + 2) != CLASS_IN)
		return false;
	query->limit = REPLY_MIN;
	query->edns = query->dnssec_ok = false;
	size_t end = HEADER_SIZE + query->question_size;
	return additional == 0 ? end == size : read_opt(query, data + end, size - end);
}

/* 16 random bits; by Knuth's and Lewis's constants, as the same records must come of the same turn in Python too. */
static uint32_t draw(uint32_t *turn)
{
	*turn = *turn * 1664525u + 1013904223u;
	return *turn >> 16;
}

/* As many records of the set as fit, in random order; returns their number. Where not all fit, it is those from a random
 * one on. */
static size_t write_shuffled(uint8_t *at, size_t room, const struct rrset *set, uint32_t turn)
{
	uint16_t order[RECORDS_MAX];
	size_t fits = room / set->stride;
	size_t number = set->number <= fits ? set->number : fits;
	if (number > RECORDS_MAX)
		number = RECORDS_MAX;
	size_t start = number < set->number ? (size_t)draw(&turn) * set->number >> 16 : 0;
	for (size_t one = 0; one < number; one++)
		order[one] = (uint16_t)((start + one) % set->number);
	for (size_t one = 0; one < number; one++) {
		size_t other = one + ((size_t)draw(&turn) * (number - one) >> 16);
		uint16_t chosen = order[other];
		order[other] = order[one];
		memcpy(at + one * set->stride, set->body + (size_t)chosen * set->stride, set->stride);
	}
	return number;
}

size_t reply_write(uint8_t reply[REPLY_MAX], const struct query *query, const struct rrset *sets, size_t count,
		   uint32_t turn)
{
	size_t used = HEADER_SIZE + query->question_size;
	size_t room = query->limit - used - (query->edns ? OPT_SIZE : 0);
	size_t wanted = 0, number = 0, total = 0;
	for (size_t one = 0; one < count; one++) {
		total += sets[one].number;
		wanted += sets[one].size;
	}
	memcpy(reply, query->data, HEADER_SIZE);
	memcpy(reply + HEADER_SIZE, query->question, query->question_size);
	if (count == 1 && sets->number > 0 && sets->stride > 0) {
		number = write_shuffled(reply + used, room, sets, turn);
		used += number * sets->stride;
	} else if (wanted <= room) {
		number = total;
		for (size_t one = 0; one < count; one++) {
			memcpy(reply + used, sets[one].body, sets[one].size);
			used += sets[one].size;
		}
	}
	unsigned flags = (query->flags & (RD | CD)) | QR | AA | RA | (number < total ? TC : 0u);
	write_u16(reply + 2, flags);
	write_u16(reply + 6, (unsigned)number);
	write_u16(reply + 8, 0);
	write_u16(reply + 10, query->edns ? 1 : 0);
	if (query->edns) {
		uint8_t *opt = reply + used;
		memset(opt, 0, OPT_SIZE);
		write_u16(opt + 1, TYPE_OPT);
		write_u16(opt + 3, QUERY_MAX);
		write_u16(opt + 7, query->dnssec_ok ? DO : 0u);
		used += OPT_SIZE;
	}
	return used;
}
