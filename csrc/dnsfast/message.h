/*
 * message: DNS queries that need no thought, and the replies to them. RFC 1035 section 4, RFC 6891.
 *
 * Pure: octets in, octets out, every read bounds-checked. Only the plain form is taken: one question of class IN with
 * an uncompressed name, and at most one additional record, an OPT of version 0 with nothing behind it. Whatever else
 * comes is not judged here but left to vxnet.core.names, which knows every refusal. Where both answer, they answer
 * with the same octets: tests/host/test_dnsfast.py compares them.
 */
#ifndef DNSFAST_MESSAGE_H
#define DNSFAST_MESSAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
	QUERY_MAX = 1232, /* octets; more are no plain query */
	REPLY_MAX = 1232, /* octets of a reply by UDP, as in vxnet.core.names.message.UDP_QUERY_MAX */
	REPLY_MIN = 512,  /* octets that a client without EDNS takes */
	NAME_MAX_OCTETS = 255,
	TYPE_OPT = 41,
	TYPE_ANY = 255,
};

struct query {
	const uint8_t *data;
	const uint8_t *question; /* name, type and class as asked: a reply repeats them octet for octet */
	size_t question_size;
	uint8_t name[NAME_MAX_OCTETS]; /* on the wire, in lower case */
	size_t name_size;
	uint16_t type;
	uint16_t flags;
	uint16_t limit; /* octets of a reply */
	bool edns;
	bool dnssec_ok;
};

/* Answers of one name and type, as vxnet.core.names.table.RRset. */
struct rrset {
	uint16_t type;
	uint16_t number; /* of records */
	uint16_t stride; /* octets of each, so that they can be shuffled and cut; 0: as a whole or not at all */
	uint32_t size;
	const uint8_t *body;
};

/* True if the message is a plain query; it must outlive `query`. */
bool query_parse(struct query *query, const uint8_t *data, size_t size);

/*
 * An authoritative NOERROR reply with these sets, in order; a single set of one stride is shuffled by `turn`, which is
 * random, and cut to what fits. Returns its octets, at most query->limit.
 */
size_t reply_write(uint8_t reply[REPLY_MAX], const struct query *query, const struct rrset *sets, size_t count,
		   uint32_t turn);

#endif
