/* SPDX-License-Identifier: GPL-2.0 OR MIT
 *
 * What the probe tells. `capture/linux/ebpf/event.rs` reads it: change both together.
 *
 * Times are nanoseconds since boot, suspend included. Addresses have 16 bytes in network order, IPv4 mapped into IPv6.
 * Ports are in host order. A process is its thread group: the leader's pid and start.
 */
#pragma once

enum kind {
	KIND_FORK = 1,
	KIND_EXEC,
	KIND_EXIT,
	KIND_LISTEN,
	KIND_ATTEMPT,
	KIND_ESTABLISHED,
	KIND_ACCEPTED,
	KIND_OWNER,
	KIND_CLOSED,
	KIND_PEER,
	KIND_RELEASED,
	KIND_SAMPLE,
	KIND_FOUND,
	KIND_PACKET,
};

enum direction { DIRECTION_NONE, DIRECTION_OUTBOUND, DIRECTION_INBOUND, DIRECTION_LISTENING };

/* How the owner is known. */
enum known { KNOWN_NOT, KNOWN_INHERITED, KNOWN_TABLE, KNOWN_CALL };

struct header {
	u64 at;
	u32 kind;
	u32 pid;
	u64 start;
};

struct process_event {
	struct header header;
	u64 parent_start;
	u32 parent_pid;
	s32 status; /* as wait(2) has it */
	u32 user, effective_user;
};

#define PATH_BYTES 1024
#define NAME_BYTES 256
#define ARGUMENT_BYTES 4096
#define TEXT_BYTES 8192
/* An exec is told with as much text as it needs, in three sizes. */
#define TEXT_BYTES_OF_MOST 384
#define TEXT_BYTES_OF_MANY 1536

struct exec_event {
	struct header header;
	u64 parent_start;
	u64 inode, size, modified;
	u64 cgroup;
	u32 parent_pid;
	u32 device; /* as the kernel packs it: major << 20 | minor */
	u32 user, effective_user;
	u32 tty_major, tty_minor;
	u32 arguments_total;
	u16 path_length, directory_length, arguments_length;
	u16 flags; /* 1: path cut, 2: directory cut */
	char name[16];
	/* Path and directory by component, the last one first, each ended by NUL; then the arguments, each ended by NUL. */
	char text[TEXT_BYTES];
};

struct connection_event {
	struct header header; /* of the owner */
	u64 cookie;
	u64 opened;
	u64 sent, received;
	u32 packets_sent, packets_received, retransmitted;
	u32 round_trip_us;
	u32 network_namespace;
	s32 error;
	u16 local_port, remote_port;
	u8 protocol, direction, known, state; /* the state before a close; now in a sample */
	u8 local[16], remote[16];
};

#define PACKET_BYTES 4096
/* Most packets with a name are told in less. */
#define PACKET_BYTES_OF_MOST 512

struct packet_event {
	struct header header; /* of the owner of the socket */
	u64 cookie;
	u32 network_namespace;
	u16 length; /* of what is kept */
	u8 leaving;
	u8 padding;
	/* From the IP header on; a packet that was to be sent is here before it is cut for the network. */
	u8 bytes[PACKET_BYTES];
};
