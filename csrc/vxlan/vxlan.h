/* A VXLAN tunnel (RFC 7348) in user space: what the kernel's vxlan device does, between TAPs and UDP sockets.
 *
 *   bridge ── TAP ──> read ── look up MAC ── cut ──────────> sendmmsg, UDP_SEGMENT ──> underlay      one thread
 *   bridge ── TAP <── write ── join flows ── check, VNI <── recvmmsg, UDP_GRO <──────── underlay     another
 *
 *   the daemon ── SOCK_SEQPACKET ──> segments, FDB rows, peers                                       the caller's
 *
 * The library opens nothing of the machine: sockets come as options, TAPs over the control socket (SCM_RIGHTS), and what
 * it knows of remote endpoints is told it (command.h). It learns nothing from traffic. What it drops it counts. */
#ifndef VXNET_VXLAN_H
#define VXNET_VXLAN_H

#include <stdint.h>

#define VXLAN_QUEUES_MAX 8
#define VXLAN_LANES 4	/* sending sockets of a queue, each with a source port: what ECMP and RSS tell flows apart by */

struct vxlan_options {
	int control;			/* listening SOCK_SEQPACKET socket */
	int family;			/* AF_INET or AF_INET6, of the underlay */
	int port;			/* where VXLAN is received, here and there */
	int queues;			/* pairs of threads; a TAP has as many queues */
	int receive[VXLAN_QUEUES_MAX];	/* UDP, bound to `port`; non-blocking, UDP_GRO, TOS told; not connected */
	int send[VXLAN_QUEUES_MAX * VXLAN_LANES];	/* UDP, bound to this host's VTEP; PMTUDISC_DO, RECVERR */
	int loose[VXLAN_QUEUES_MAX];	/* the same without PMTUDISC: for packets that may be fragmented */
	int spin_us;			/* longest busy wait before a thread sleeps; 0: none */
	int virtual_underlay;		/* see join.h: frames may arrive uncut */
};

/* Counted since the start, over all queues. */
struct vxlan_counters {
	uint64_t sent_frames;		/* datagrams, that is */
	uint64_t sent_octets;		/* of inner frames */
	uint64_t received_frames;
	uint64_t received_octets;
	uint64_t joined_frames;		/* received ones that went on as part of a longer one */
	uint64_t unknown_destination;	/* dropped: a MAC without a row */
	uint64_t bad_frame;		/* dropped: the TAP's header and frame do not fit together */
	uint64_t too_big;		/* not sent: longer than the path; the sender was told where there is a way to */
	uint64_t not_sent;		/* dropped: the kernel refused, or its queue is full */
	uint64_t unreachable;		/* ICMP errors that came back */
	uint64_t unknown_source;	/* dropped: not a peer's address */
	uint64_t truncated;		/* dropped: shorter than its headers */
	uint64_t bad_header;		/* dropped: no VNI flag */
	uint64_t unknown_vni;		/* dropped: no such segment here */
	uint64_t bad_checksum;		/* passed on as it came; the receiver drops it */
	uint64_t not_written;		/* dropped: the TAP refused */
	uint64_t congested;		/* dropped: marked by the underlay, and its sender knows no marks (RFC 6040) */
};

/* Forwards until it is told to stop (command.h). 0 or -errno of what could not be set up; the descriptors stay the
 * caller's, TAPs that came later are closed. One call a process. */
int vxlan_run(const struct vxlan_options *options);

#endif
