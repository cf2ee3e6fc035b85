// SPDX-License-Identifier: GPL-2.0 OR MIT
//
// Tells which process opens, accepts, uses and ends which connection, and which processes come and go.
//
// Only BTF tracepoints, BPF iterators and cgroup-v2 socket hooks: no kprobe, no fentry, no LSM, which many systems
// refuse. What a hook knows and what it does not is at the hook. What cannot be told for want of room is counted in
// `lost`, by facet.
//
// The owner of a socket is kept with the socket (SK_STORAGE): most changes of a TCP connection happen in an interrupt,
// where the current process is somebody else.
#include "kdefs.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include <bpf/bpf_core_read.h>
#include "events.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

// A UDP peer that was silent for longer is told anew when it speaks again.
#define UDP_IDLE_NS 60000000000ULL
enum { DNS_PORT = 53 };
// A connect that has sent nothing by then has failed.
#define ASKING_NS 10000000ULL
// A socket that processes keep handing to and fro is followed so often.
#define OWNER_CHANGES_MAX 64
// More headers before the payload of a datagram than anybody sends.
#define EXTENSIONS_MAX 12
// So often the kernel is asked to keep something with a socket.
#define STORAGE_TRIES 4
// UDP that IPsec is wrapped into.
#define NAT_TRAVERSAL_PORT 4500

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 2 << 20); /* unless the loader says otherwise */
} events SEC(".maps");

enum lost_facet { LOST_PROCESSES, LOST_CONNECTIONS, LOST_NAMES, LOST_FACETS };
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, LOST_FACETS);
	__type(key, u32);
	__type(value, u64);
} lost SEC(".maps");

// Kept with a socket, and freed with it. A socket that is accepted begins with what its listener had.
struct socket_state {
	u64 opened;
	u64 start; /* of the owner */
	u32 pid;
	u32 thread; /* who called connect */
	u64 sampled;
	u8 direction;
	u8 known;
	u8 asked;  /* connect was called and nothing came of it yet */
	u8 established; /* and that has been told; so has the end, with `ended` */
	u8 ended;
	u8 peers; /* UDP: there are some */
	u8 changes;
	u8 padding;
	u16 port;
	u16 hello; /* of a ClientHello that has begun, bytes that are still to come; or one of the following */
	u32 more_padding;
	u8 remote[16];
	u64 address; /* of the kernel's socket, as a number: for kernel_sock */
};
// Nothing has been sent yet; and: what was sent is no ClientHello, or it is over.
enum { HELLO_NOT_YET = 0, HELLO_OVER = 0xffff };
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, struct socket_state);
} sockets SEC(".maps");

// What is kept with a socket, begun if it is not yet. While another program begins or ends what it keeps with the same
// socket the kernel refuses for an instant (EAGAIN), so it is asked again.
#define state_of(sk)                                                                                                   \
	({                                                                                                             \
		struct socket_state *kept = 0;                                                                         \
		for (int i = 0; i < STORAGE_TRIES && !kept; i++)                                                       \
			kept = bpf_sk_storage_get(&sockets, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);                       \
		kept;                                                                                                  \
	})

struct peer_key {
	u64 cookie;
	u8 remote[16];
	u32 port;
	u32 padding;
};
struct peer {
	u64 first, last;
	u64 sent, received;
	u32 packets_sent, packets_received;
	u64 sender; /* when the process started that sent to it last; 0 if none did */
	u32 changes;
	u32 padding;
};
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct peer_key);
	__type(value, struct peer);
} peers SEC(".maps");

// The last route that a thread was refused to an address.
struct refusal_key {
	u8 remote[16];
	u32 thread;
	u32 padding;
};
struct refusal {
	u64 at;
	s32 error;
	u32 padding;
};
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct refusal_key);
	__type(value, struct refusal);
} refusals SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct exec_event);
} scratch SEC(".maps");

static __always_inline void count_lost(u32 facet)
{
	u64 *count = bpf_map_lookup_elem(&lost, &facet);
	if (count)
		__sync_fetch_and_add(count, 1);
}

// The time of an event is taken after its place in the buffer: so what has no place yet is younger than any moment
// before, and a reader that has emptied the buffer has everything up to when it began.
static __always_inline void stamp(struct header *header, u32 kind)
{
	header->at = bpf_ktime_get_boot_ns();
	header->kind = kind;
}

static __always_inline void copy16(u8 *to, const u8 *from)
{
	((u64 *)to)[0] = ((const u64 *)from)[0];
	((u64 *)to)[1] = ((const u64 *)from)[1];
}

static __always_inline void map_ipv4(u8 *to, __be32 address)
{
	((u64 *)to)[0] = 0;
	((u32 *)to)[2] = 0xffff0000; /* 00 00 ff ff */
	((u32 *)to)[3] = address;
}

// ---- Processes ----

SEC("tp_btf/sched_process_fork")
int BPF_PROG(on_fork, struct task_struct *parent, struct task_struct *child)
{
	if (child->pid != child->tgid)
		return 0; /* a thread */
	struct process_event *event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	if (!event) {
		count_lost(LOST_PROCESSES);
		return 0;
	}
	stamp(&event->header, KIND_FORK);
	event->header.pid = child->tgid;
	event->header.start = child->start_boottime;
	event->parent_pid = child->real_parent->tgid;
	event->parent_start = child->real_parent->group_leader->start_boottime;
	event->status = 0;
	event->user = child->cred->uid.val;
	event->effective_user = child->cred->euid.val;
	bpf_ringbuf_submit(event, 0);
	return 0;
}

SEC("tp_btf/sched_process_exit")
int BPF_PROG(on_exit, struct task_struct *task)
{
	if (task->signal->live.counter != 0)
		return 0; /* other threads go on */
	struct process_event *event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	if (!event) {
		count_lost(LOST_PROCESSES);
		return 0;
	}
	stamp(&event->header, KIND_EXIT);
	event->header.pid = task->tgid;
	event->header.start = task->group_leader->start_boottime;
	event->parent_pid = 0;
	event->parent_start = 0;
	event->status = task->exit_code;
	event->user = event->effective_user = 0;
	bpf_ringbuf_submit(event, 0);
	return 0;
}

// Writes the path's components into text at `at`, the last one first; gives their length, and sets `cut` if there were
// more than fit.
static __always_inline u32 write_path(struct exec_event *event, u32 at, struct vfsmount *vfsmount,
				      struct dentry *dentry, u16 *flags, u16 cut)
{
	struct mount *mount = (void *)vfsmount - bpf_core_field_offset(struct mount, mnt);
	struct dentry *root = BPF_CORE_READ(vfsmount, mnt_root);
	u32 length = 0;

	for (int i = 0; i < 48; i++) {
		struct dentry *parent = BPF_CORE_READ(dentry, d_parent);
		if (dentry == root || dentry == parent) {
			struct mount *above = BPF_CORE_READ(mount, mnt_parent);
			if (dentry != root && i == 0)
				break; /* it never had a place: what memfd_create(2) makes has a name alone */
			if (dentry != root || above == mount)
				return length;
			dentry = BPF_CORE_READ(mount, mnt_mountpoint);
			mount = above;
			root = BPF_CORE_READ(mount, mnt.mnt_root);
			continue;
		}
		if (length > PATH_BYTES - NAME_BYTES)
			break;
		u32 place = (at + length) & (TEXT_BYTES / 2 - 1);
		long written = bpf_probe_read_kernel_str(&event->text[place], NAME_BYTES,
							 BPF_CORE_READ(dentry, d_name.name));
		if (written <= 1)
			return length;
		length += written & (2 * NAME_BYTES - 1);
		dentry = parent;
	}
	if (length == 0) {
		u32 place = at & (TEXT_BYTES / 2 - 1);
		long written = bpf_probe_read_kernel_str(&event->text[place], NAME_BYTES,
							 BPF_CORE_READ(dentry, d_name.name));
		return written > 1 ? written & (2 * NAME_BYTES - 1) : 0;
	}
	*flags |= cut;
	return length;
}

static __always_inline u64 modified(struct inode *inode)
{
	struct inode___split *split = (void *)inode;
	struct inode___whole *whole = (void *)inode;
	struct inode___prefixed *prefixed = (void *)inode;

	if (bpf_core_field_exists(split->i_mtime_sec))
		return (u64)BPF_CORE_READ(split, i_mtime_sec) * 1000000000 + BPF_CORE_READ(split, i_mtime_nsec);
	if (bpf_core_field_exists(prefixed->__i_mtime))
		return (u64)BPF_CORE_READ(prefixed, __i_mtime.tv_sec) * 1000000000 +
		       BPF_CORE_READ(prefixed, __i_mtime.tv_nsec);
	return (u64)BPF_CORE_READ(whole, i_mtime.tv_sec) * 1000000000 + BPF_CORE_READ(whole, i_mtime.tv_nsec);
}

// The event is made elsewhere, since it can be large, and most are small: `size` bytes of it are told.
static __always_inline void tell_exec(const struct exec_event *made, u32 size)
{
	struct exec_event *event = bpf_ringbuf_reserve(&events, size, 0);
	if (!event) {
		count_lost(LOST_PROCESSES);
		return;
	}
	bpf_probe_read_kernel(event, size, made);
	stamp(&event->header, KIND_EXEC);
	bpf_ringbuf_submit(event, 0);
}

// After execve: the arguments lie in the new memory, where nobody has touched them yet.
SEC("tp_btf/sched_process_exec")
int BPF_PROG(on_exec, struct task_struct *task, int old_pid, struct linux_binprm *binprm)
{
	u32 zero = 0;
	struct exec_event *event = bpf_map_lookup_elem(&scratch, &zero);
	if (!event)
		return 0;
	event->header.pid = task->tgid;
	event->header.start = task->group_leader->start_boottime;
	event->parent_pid = task->real_parent->tgid;
	event->parent_start = task->real_parent->group_leader->start_boottime;
	event->user = task->cred->uid.val;
	event->effective_user = task->cred->euid.val;
	event->cgroup = bpf_get_current_cgroup_id();
	struct tty_struct *tty = task->signal->tty;
	event->tty_major = tty ? BPF_CORE_READ(tty, driver, major) : 0;
	event->tty_minor = tty ? BPF_CORE_READ(tty, driver, minor_start) + BPF_CORE_READ(tty, index) : 0;

	bpf_get_current_comm(event->name, sizeof(event->name));

	struct file *file = binprm->file;
	struct inode *inode = BPF_CORE_READ(file, f_inode);
	event->inode = BPF_CORE_READ(inode, i_ino);
	event->size = BPF_CORE_READ(inode, i_size);
	event->device = BPF_CORE_READ(inode, i_sb, s_dev);
	event->modified = modified(inode);

	u16 flags = 0;
	u32 path = write_path(event, 0, BPF_CORE_READ(file, f_path.mnt), BPF_CORE_READ(file, f_path.dentry), &flags, 1);
	path &= TEXT_BYTES / 4 - 1;
	u32 directory = write_path(event, path, BPF_CORE_READ(task, fs, pwd.mnt), BPF_CORE_READ(task, fs, pwd.dentry),
				   &flags, 2);
	directory &= TEXT_BYTES / 4 - 1;

	unsigned long from = BPF_CORE_READ(task, mm, arg_start);
	u64 total = BPF_CORE_READ(task, mm, arg_end) - from;
	u32 arguments = total > ARGUMENT_BYTES ? ARGUMENT_BYTES : total;
	u32 place = (path + directory) & (TEXT_BYTES / 2 - 1);
	if (arguments > ARGUMENT_BYTES - 1)
		arguments = ARGUMENT_BYTES - 1;
	if (bpf_probe_read_user(&event->text[place], arguments, (void *)from))
		arguments = 0;
	event->path_length = path;
	event->directory_length = directory;
	event->arguments_length = arguments;
	event->arguments_total = total > 0xffffffff ? 0xffffffff : total;
	event->flags = flags;

	u32 length = place + arguments;
	if (length <= TEXT_BYTES_OF_MOST)
		tell_exec(event, __builtin_offsetof(struct exec_event, text) + TEXT_BYTES_OF_MOST);
	else if (length <= TEXT_BYTES_OF_MANY)
		tell_exec(event, __builtin_offsetof(struct exec_event, text) + TEXT_BYTES_OF_MANY);
	else
		tell_exec(event, sizeof(*event));
	return 0;
}

// ---- What is common to all sockets ----

// Makes the current process the owner. For tracepoints, where the current task can be read directly.
static __always_inline void take(struct socket_state *state)
{
	struct task_struct *task = bpf_get_current_task_btf();

	state->pid = task->tgid;
	state->thread = task->pid;
	state->start = task->group_leader->start_boottime;
	/* The kernel may do it for somebody: further subflows of MPTCP. */
	state->known = task->flags & PF_KTHREAD ? KNOWN_INHERITED : KNOWN_CALL;
}

static __always_inline bool is_owner(const struct socket_state *state, struct task_struct *task)
{
	return state->pid == task->tgid && state->start == task->group_leader->start_boottime;
}

// The same for cgroup hooks.
static __always_inline void take_slowly(struct socket_state *state)
{
	struct task_struct *task = (void *)bpf_get_current_task();

	state->pid = BPF_CORE_READ(task, tgid);
	state->thread = BPF_CORE_READ(task, pid);
	state->start = BPF_CORE_READ(task, group_leader, start_boottime);
	state->known = BPF_CORE_READ(task, flags) & PF_KTHREAD ? KNOWN_INHERITED : KNOWN_CALL;
}

static __always_inline void write_owner(struct connection_event *event, const struct socket_state *state)
{
	event->header.pid = state ? state->pid : 0;
	event->header.start = state ? state->start : 0;
	event->opened = state ? state->opened : 0;
	event->direction = state ? state->direction : DIRECTION_NONE;
	event->known = state ? state->known : KNOWN_NOT;
}

// A raw socket can have TCP's number, too.
static __always_inline bool is_tcp(struct sock *sk)
{
	return sk->sk_protocol == IPPROTO_TCP && sk->sk_type == SOCK_STREAM;
}

static __always_inline void write_nothing_moved(struct connection_event *event)
{
	event->sent = event->received = 0;
	event->packets_sent = event->packets_received = event->retransmitted = event->round_trip_us = 0;
}

// ---- TCP ----

static __always_inline void write_ends(struct connection_event *event, struct sock *sk, u64 cookie,
				       const struct socket_state *state)
{
	write_owner(event, state);
	event->cookie = cookie;
	event->network_namespace = sk->__sk_common.skc_net.net->ns.inum;
	event->remote_port = __builtin_bswap16(sk->__sk_common.skc_dport);
	event->local_port = sk->__sk_common.skc_num;
	if (sk->__sk_common.skc_family == AF_INET6) {
		bpf_probe_read_kernel(event->local, 16, &sk->__sk_common.skc_v6_rcv_saddr);
		bpf_probe_read_kernel(event->remote, 16, &sk->__sk_common.skc_v6_daddr);
	} else {
		map_ipv4(event->local, sk->__sk_common.skc_rcv_saddr);
		map_ipv4(event->remote, sk->__sk_common.skc_daddr);
	}
}

static __always_inline void write_tcp(struct connection_event *event, struct sock *sk, struct tcp_sock *tcp, u64 cookie,
				      const struct socket_state *state)
{
	write_ends(event, sk, cookie, state);
	event->protocol = IPPROTO_TCP;
	if (!tcp) {
		write_nothing_moved(event);
		return;
	}
	if (!event->local_port) /* unhashed already */
		event->local_port = __builtin_bswap16(tcp->inet_conn.icsk_inet.inet_sport);
	event->sent = tcp->bytes_sent - tcp->bytes_retrans;
	/* The FIN of the other side takes a place in the sequence, and is counted as a byte. */
	event->received = tcp->bytes_received;
	if (event->received && (sk->__sk_common.skc_flags & (1UL << SOCK_DONE)))
		event->received -= 1;
	event->packets_sent = tcp->segs_out;
	event->packets_received = tcp->segs_in;
	event->retransmitted = tcp->total_retrans;
	event->round_trip_us = tcp->srtt_us >> 3;
}

// `tcp` is `sk`, as that; none if it is not whole.
static __always_inline void tell_socket(struct sock *sk, struct tcp_sock *tcp, u64 cookie, u32 kind,
					const struct socket_state *state, u8 before, s32 error)
{
	struct connection_event *event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	if (!event) {
		count_lost(LOST_CONNECTIONS);
		return;
	}
	stamp(&event->header, kind);
	write_tcp(event, sk, tcp, cookie, state);
	event->state = before;
	event->error = error;
	bpf_ringbuf_submit(event, 0);
}

static __always_inline void tell_tcp(struct sock *sk, u32 kind, const struct socket_state *state, u8 before, s32 error)
{
	tell_socket(sk, bpf_skc_to_tcp_sock(sk), bpf_get_socket_cookie(sk), kind, state, before, error);
}

// Whether the other end is the one that connect was called with: it is not for the unspecified address, nor where another
// program on the hook has put its own in its place.
static __always_inline bool is_as_asked(struct sock *sk, const struct socket_state *state)
{
	u8 remote[16] __attribute__((aligned(8)));

	if (sk->__sk_common.skc_family == AF_INET6)
		bpf_probe_read_kernel(remote, 16, &sk->__sk_common.skc_v6_daddr);
	else
		map_ipv4(remote, sk->__sk_common.skc_daddr);
	return ((u64 *)remote)[0] == ((u64 *)state->remote)[0] && ((u64 *)remote)[1] == ((u64 *)state->remote)[1] &&
	       __builtin_bswap16(sk->__sk_common.skc_dport) == state->port;
}

// Why a connect of which nothing came failed, as far as that is known.
static __always_inline s32 refusal_of(const struct socket_state *state)
{
	struct refusal_key key = { .thread = state->thread };

	copy16(key.remote, state->remote);
	struct refusal *refusal = bpf_map_lookup_elem(&refusals, &key);
	return refusal && refusal->at >= state->opened ? refusal->error : 0;
}

// As what a connection is to be told that is established now; 0 if it has been.
static __always_inline u32 establish(struct socket_state *state, bool is_accepted)
{
	if (state->established)
		return 0;
	state->established = 1;
	/* Both ends may ask at once (simultaneous open): then nobody accepts. */
	if (!is_accepted || state->direction == DIRECTION_OUTBOUND)
		return KIND_ESTABLISHED;
	state->opened = bpf_ktime_get_boot_ns();
	state->direction = DIRECTION_INBOUND;
	state->known = state->pid ? KNOWN_INHERITED : KNOWN_NOT;
	state->changes = 0;
	state->ended = 0;
	return KIND_ACCEPTED;
}

// Whether what a socket was before is no connection, so that nothing ends with it.
static __always_inline bool was_none(u8 before)
{
	return before == TCP_CLOSE || before == TCP_LISTEN || before == TCP_NEW_SYN_RECV;
}

// Whether a connection is to be told as ended. False if it has been.
static __always_inline bool end(struct socket_state *state)
{
	if (state->ended)
		return false;
	state->ended = 1;
	return true;
}

// To SYN_SENT and LISTEN: in the caller's own context. To ESTABLISHED and CLOSE: anywhere, so on_socket tells these, too.
SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(on_state, struct sock *sk, int before, int now)
{
	struct socket_state *state;

	if (!is_tcp(sk))
		return 0;
	switch (now) {
	case TCP_SYN_SENT:
	case TCP_LISTEN:
		state = state_of(sk);
		if (!state) {
			count_lost(LOST_CONNECTIONS);
			return 0;
		}
		if (now == TCP_SYN_SENT && state->asked) {
			state->asked = 0;
			if (is_as_asked(sk, state))
				return 0; /* told when connect was called */
		}
		/* A connect of which nothing came is over with this. */
		s32 error = state->asked && now == TCP_LISTEN ? refusal_of(state) : 0;
		state->opened = bpf_ktime_get_boot_ns();
		state->hello = HELLO_NOT_YET;
		state->direction = now == TCP_LISTEN ? DIRECTION_LISTENING : DIRECTION_OUTBOUND;
		state->asked = 0;
		state->established = 0;
		state->ended = 0;
		take(state);
		tell_tcp(sk, now == TCP_LISTEN ? KIND_LISTEN : KIND_ATTEMPT, state, before, error);
		return 0;
	case TCP_ESTABLISHED:
		if (before == TCP_SYN_SENT) {
			state = bpf_sk_storage_get(&sockets, sk, 0, 0);
			u32 kind = state ? establish(state, false) : KIND_ESTABLISHED;
			if (kind)
				tell_tcp(sk, kind, state, before, 0);
		} else if (before == TCP_SYN_RECV) {
			state = state_of(sk);
			if (!state)
				count_lost(LOST_CONNECTIONS);
			u32 kind = state ? establish(state, true) : KIND_ACCEPTED;
			if (kind)
				tell_tcp(sk, kind, state, before, 0);
		}
		return 0;
	case TCP_CLOSE:
		if (was_none(before))
			return 0;
		state = bpf_sk_storage_get(&sockets, sk, 0, 0);
		if (!state || end(state))
			tell_tcp(sk, KIND_CLOSED, state, before, sk->sk_err);
		return 0;
	}
	return 0;
}

// The same for what happens in interrupts. The kernel leaves out a tracepoint's program that is running on the same processor
// already, and there are kernels that leave out tracepoints in interrupts that come to an idle processor, and say nothing.
// A hook of a control group is always run. It is told of the end of those only that were opened while it was there.
SEC("sockops")
int on_socket(struct bpf_sock_ops *context)
{
	u32 operation = context->op;

	if (operation != BPF_SOCK_OPS_STATE_CB && operation != BPF_SOCK_OPS_TCP_CONNECT_CB &&
	    operation != BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB && operation != BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB)
		return 1;
	if (operation == BPF_SOCK_OPS_STATE_CB && context->args[1] != TCP_CLOSE)
		return 1;
	if (operation != BPF_SOCK_OPS_STATE_CB && !(context->bpf_sock_ops_cb_flags & BPF_SOCK_OPS_STATE_CB_FLAG))
		bpf_sock_ops_cb_flags_set(context, context->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
	struct bpf_sock *socket = context->sk;
	if (!socket || operation == BPF_SOCK_OPS_TCP_CONNECT_CB)
		return 1;
	struct tcp_sock *tcp = bpf_skc_to_tcp_sock(socket);
	if (!tcp)
		return 1;
	struct sock *sk = &tcp->inet_conn.icsk_inet.sk;
	u64 cookie = bpf_get_socket_cookie(context);
	/* Still that from before. Another program may have answered where the arguments are. */
	u8 before = sk->__sk_common.skc_state;
	struct socket_state *state = bpf_sk_storage_get(&sockets, socket, 0, 0);
	u32 kind;
	switch (operation) {
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
		if (state && (kind = establish(state, false)))
			tell_socket(sk, tcp, cookie, kind, state, TCP_SYN_SENT, 0);
		break;
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		if (!state)
			state = state_of(socket);
		/* Without storage it can be told twice, which is seen. */
		kind = state ? establish(state, true) : KIND_ACCEPTED;
		if (kind)
			tell_socket(sk, tcp, cookie, kind, state, TCP_SYN_RECV, 0);
		break;
	case BPF_SOCK_OPS_STATE_CB:
		/* Without storage on_state tells it. */
		if (!was_none(before) && state && end(state))
			tell_socket(sk, tcp, cookie, KIND_CLOSED, state, before, sk->sk_err);
		break;
	}
	return 1;
}

// A process reads from or writes to a connection: it is the owner from now on. One that has no state was accepted
// before the probe was there, and was in nobody's hands when the open files were looked through.
static __always_inline int use(struct sock *sk)
{
	struct socket_state *state = bpf_sk_storage_get(&sockets, sk, 0, 0);
	struct task_struct *task = bpf_get_current_task_btf();

	/* What is left of a connection can be read after its end. */
	if (sk->__sk_common.skc_state == TCP_CLOSE)
		return 0;
	if (!state) {
		state = state_of(sk);
		if (!state)
			return 0;
	} else if (state->ended) {
		return 0;
	} else if (state->direction == DIRECTION_LISTENING) {
		/* Its acceptance was not seen. */
		state->direction = DIRECTION_INBOUND;
	} else if (is_owner(state, task)) {
		if (state->changes < OWNER_CHANGES_MAX && !(task->flags & PF_KTHREAD))
			state->known = KNOWN_CALL;
		return 0;
	}
	if (task->flags & PF_KTHREAD || state->changes >= OWNER_CHANGES_MAX)
		return 0;
	state->changes += 1;
	take(state);
	/* From here on it is not followed any more. */
	if (state->changes == OWNER_CHANGES_MAX)
		state->known = KNOWN_INHERITED;
	tell_tcp(sk, KIND_OWNER, state, sk->__sk_common.skc_state, 0);
	return 0;
}

SEC("tp_btf/tcp_rcv_space_adjust")
int BPF_PROG(on_receive, struct sock *sk)
{
	return use(sk);
}

// Another process sends on a connected UDP socket than the one that connected it.
static __always_inline int use_datagrams(struct sock *sk)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct socket_state *state;

	/* A connected one has this state, though it is UDP. Who sends on another is known before (sendmsg). */
	if (sk->__sk_common.skc_state != TCP_ESTABLISHED || sk->sk_type != SOCK_DGRAM)
		return 0;
	state = bpf_sk_storage_get(&sockets, sk, 0, 0);
	if (!state || is_owner(state, task) || state->changes >= OWNER_CHANGES_MAX)
		return 0;
	state->changes += 1;
	take(state);
	if (state->changes == OWNER_CHANGES_MAX)
		state->known = KNOWN_INHERITED;
	struct connection_event *event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	if (!event) {
		count_lost(LOST_CONNECTIONS);
		return 0;
	}
	stamp(&event->header, KIND_OWNER);
	write_ends(event, sk, bpf_get_socket_cookie(sk), state);
	write_nothing_moved(event);
	event->protocol = IPPROTO_UDP;
	event->state = 0;
	event->error = 0;
	bpf_ringbuf_submit(event, 0);
	return 0;
}

// Since kernel 6.3; without it, a server that only writes is known by its listener until it closes.
SEC("tp_btf/sock_send_length")
int BPF_PROG(on_send, struct sock *sk, int length, int flags)
{
	u16 family = sk->__sk_common.skc_family;

	if (length <= 0 || (family != AF_INET && family != AF_INET6))
		return 0;
	if (is_tcp(sk))
		return use(sk);
	return sk->sk_protocol == IPPROTO_UDP ? use_datagrams(sk) : 0;
}

// The route that a connect was refused: such a connect never becomes an attempt. Without these two the
// attempt is known all the same, and its error is not.
static __always_inline void note_refusal(struct refusal_key *key, s32 error)
{
	struct refusal refusal = { .at = bpf_ktime_get_boot_ns(), .error = error };

	key->thread = (u32)bpf_get_current_pid_tgid();
	bpf_map_update_elem(&refusals, key, &refusal, BPF_ANY);
}

SEC("tp_btf/fib_table_lookup")
int BPF_PROG(on_route4, u32 table, struct flowi4 *flow, void *nexthop, int error)
{
	struct refusal_key key = {};

	if (error >= 0)
		return 0;
	map_ipv4(key.remote, flow->daddr);
	/* EAGAIN: not in this table. If it is in none, there is no route. */
	note_refusal(&key, error == -EAGAIN ? ENETUNREACH : -error);
	return 0;
}

SEC("tp_btf/fib6_table_lookup")
int BPF_PROG(on_route6, const struct net *net, const struct fib6_result *result, void *table, struct flowi6 *flow)
{
	struct refusal_key key = {};

	if (!(result->fib6_flags & RTF_REJECT))
		return 0;
	bpf_probe_read_kernel(key.remote, 16, &flow->daddr);
	if (result->f6i == net->ipv6.fib6_null_entry) { /* no route, rather than one that refuses */
		note_refusal(&key, ENETUNREACH);
		return 0;
	}
	switch (result->fib6_type) {
	case RTN_BLACKHOLE:
		note_refusal(&key, EINVAL);
		break;
	case RTN_UNREACHABLE:
		note_refusal(&key, EHOSTUNREACH);
		break;
	case RTN_PROHIBIT:
		note_refusal(&key, EACCES);
		break;
	default:
		note_refusal(&key, ENETUNREACH);
	}
	return 0;
}

// The kernel's `struct sock` behind a hook's view of it, for reading. The verifier gives the address only by way of memory;
// in the socket's own, nobody else can come in between.
static __always_inline struct sock *kernel_sock(struct bpf_sock *sk, struct socket_state *state)
{
	state->address = (u64)sk;
	return (struct sock *)*(volatile u64 *)&state->address;
}

// A process asks for a connection. Whether anything comes of it is told by the states that follow; if none does, by the
// next look at open connections, or when the socket is closed.
static __always_inline int note_connect(struct bpf_sock_addr *context, const u8 *remote)
{
	struct bpf_sock *sk = context->sk;
	if (!sk)
		return 1;
	struct socket_state *state = state_of(sk);
	if (!state) {
		count_lost(LOST_CONNECTIONS);
		return 1;
	}
	if (context->protocol != IPPROTO_TCP) {
		take_slowly(state);
		return 1;
	}
	/* The socket may have been used for another connect, of which nothing came. */
	s32 before = state->asked ? refusal_of(state) : 0;
	take_slowly(state);
	state->direction = DIRECTION_OUTBOUND;
	state->port = __builtin_bswap16(context->user_port);
	copy16(state->remote, remote);
	struct connection_event *event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	if (!event) {
		state->asked = 0; /* told again when the first packet is sent */
		count_lost(LOST_CONNECTIONS);
		return 1;
	}
	stamp(&event->header, KIND_ATTEMPT);
	state->opened = event->header.at;
	state->asked = 1;
	state->established = 0;
	state->ended = 0;
	state->hello = HELLO_NOT_YET;
	state->changes = 0;
	write_owner(event, state);
	write_nothing_moved(event);
	event->cookie = bpf_get_socket_cookie(context);
	event->protocol = IPPROTO_TCP;
	struct sock *kernel = kernel_sock(sk, state);
	event->network_namespace = BPF_CORE_READ(kernel, __sk_common.skc_net.net, ns.inum);
	event->local_port = BPF_CORE_READ(kernel, __sk_common.skc_num);
	map_ipv4(event->local, 0);
	event->remote_port = state->port;
	copy16(event->remote, remote);
	event->state = TCP_CLOSE;
	event->error = before;
	bpf_ringbuf_submit(event, 0);
	return 1;
}

SEC("cgroup/connect4")
int on_connect4(struct bpf_sock_addr *context)
{
	u8 remote[16] __attribute__((aligned(8)));

	map_ipv4(remote, context->user_ip4);
	return note_connect(context, remote);
}

SEC("cgroup/connect6")
int on_connect6(struct bpf_sock_addr *context)
{
	u8 remote[16] __attribute__((aligned(8)));

	((u32 *)remote)[0] = context->user_ip6[0];
	((u32 *)remote)[1] = context->user_ip6[1];
	((u32 *)remote)[2] = context->user_ip6[2];
	((u32 *)remote)[3] = context->user_ip6[3];
	return note_connect(context, remote);
}

// Who sends a datagram to an address. What leaves later can do so in the context of another process, which had a say in it
// (a firewall in user space).
static __always_inline int note_sender(struct bpf_sock_addr *context)
{
	struct bpf_sock *sk = context->sk;
	if (!sk || context->protocol != IPPROTO_UDP)
		return 1;
	struct socket_state *state = state_of(sk);
	if (state)
		take_slowly(state);
	return 1;
}

SEC("cgroup/sendmsg4")
int on_sendmsg4(struct bpf_sock_addr *context)
{
	return note_sender(context);
}

SEC("cgroup/sendmsg6")
int on_sendmsg6(struct bpf_sock_addr *context)
{
	return note_sender(context);
}

// The last reference of a process to a socket is gone. In the caller's own context.
SEC("cgroup/sock_release")
int on_release(struct bpf_sock *sk)
{
	struct socket_state *state = bpf_sk_storage_get(&sockets, sk, 0, 0);
	if (!state)
		return 1;
	bool never_sent = sk->protocol == IPPROTO_TCP && state->asked;
	bool had_peers = sk->protocol == IPPROTO_UDP && state->peers;
	if (!never_sent && !had_peers) {
		/* Accepted and closed unused. */
		if (state->direction == DIRECTION_INBOUND && state->known == KNOWN_INHERITED)
			take_slowly(state);
		return 1;
	}
	struct connection_event *event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	if (!event) {
		count_lost(LOST_CONNECTIONS);
		return 1;
	}
	stamp(&event->header, never_sent ? KIND_CLOSED : KIND_RELEASED);
	write_owner(event, state);
	write_nothing_moved(event);
	event->cookie = bpf_get_socket_cookie(sk);
	event->protocol = sk->protocol;
	struct sock *kernel = kernel_sock(sk, state);
	event->network_namespace = BPF_CORE_READ(kernel, __sk_common.skc_net.net, ns.inum);
	event->local_port = BPF_CORE_READ(kernel, __sk_common.skc_num);
	map_ipv4(event->local, 0);
	event->remote_port = state->port;
	copy16(event->remote, state->remote);
	event->state = TCP_SYN_SENT;
	event->error = 0;
	if (never_sent) {
		event->error = refusal_of(state);
		/* The attempt ended when it was refused, not when its socket was closed. */
		event->header.at = state->opened;
		state->asked = 0;
	}
	bpf_ringbuf_submit(event, 0);
	return 1;
}

// ---- UDP ----

// At most `most` bytes of it.
static __always_inline void tell_beginning(struct __sk_buff *skb, struct bpf_sock *sk, struct socket_state *state,
					   bool leaving, u32 most)
{
	struct packet_event *event =
		bpf_ringbuf_reserve(&events, __builtin_offsetof(struct packet_event, bytes) + most, 0);
	u32 length = skb->len;

	if (!event) {
		count_lost(LOST_NAMES);
		return;
	}
	if (length > most)
		length = most;
	stamp(&event->header, KIND_PACKET);
	event->header.pid = state->pid;
	event->header.start = state->start;
	event->cookie = bpf_get_socket_cookie(skb);
	struct sock *kernel = kernel_sock(sk, state);
	event->network_namespace = BPF_CORE_READ(kernel, __sk_common.skc_net.net, ns.inum);
	event->leaving = leaving;
	event->padding = 0;
	event->length = length;
	if (length == 0 || bpf_skb_load_bytes(skb, 0, event->bytes, length)) {
		count_lost(LOST_NAMES);
		bpf_ringbuf_discard(event, 0);
		return;
	}
	bpf_ringbuf_submit(event, 0);
}

// A packet with a name in it, for the agent to read.
static __always_inline void tell_packet(struct __sk_buff *skb, struct bpf_sock *sk, bool leaving)
{
	struct socket_state *state = state_of(sk);

	if (!state)
		count_lost(LOST_NAMES);
	else if (skb->len <= PACKET_BYTES_OF_MOST)
		tell_beginning(skb, sk, state, leaving, PACKET_BYTES_OF_MOST);
	else
		tell_beginning(skb, sk, state, leaving, PACKET_BYTES);
}

// The first that a process sends on a connection: if it is a TLS ClientHello, it says by which name the other end is
// meant. Here a packet is as large as the process wrote it, so most are whole; the rest of one that is not follows.
static __always_inline void look_for_hello(struct __sk_buff *skb, struct bpf_sock *sk)
{
	struct socket_state *state = bpf_sk_storage_get(&sockets, sk, 0, 0);
	u8 ip[20];
	u8 record[6];
	u8 words;

	if (!state || state->hello == HELLO_OVER)
		return;
	if (state->direction != DIRECTION_OUTBOUND) {
		state->hello = HELLO_OVER;
		return;
	}
	if (bpf_skb_load_bytes(skb, 0, ip, sizeof(ip)))
		return;
	u32 offset = ip[0] >> 4 == 4 ? (ip[0] & 15) * 4 : 40;
	if (ip[0] >> 4 == 6 && ip[6] != IPPROTO_TCP)
		return;
	if (bpf_skb_load_bytes(skb, offset + 12, &words, 1))
		return;
	offset += (words >> 4) * 4;
	if (skb->len <= offset)
		return; /* carries nothing */
	u32 payload = skb->len - offset;
	if (state->hello == HELLO_NOT_YET) {
		/* A handshake record of TLS 1.x that begins with a ClientHello. */
		if (payload < sizeof(record) || bpf_skb_load_bytes(skb, offset, record, sizeof(record)) ||
		    record[0] != 0x16 || record[1] != 3 || record[5] != 1) {
			state->hello = HELLO_OVER;
			return;
		}
		u32 whole = 5 + (record[3] << 8 | record[4]);
		state->hello = whole > payload && whole < HELLO_OVER ? whole - payload : HELLO_OVER;
	} else {
		state->hello = state->hello > payload ? state->hello - payload : HELLO_OVER;
	}
	tell_packet(skb, sk, true);
}

// Most packets of TCP have no name in them: what leaves carries nothing, what arrives is from no DNS server. That is seen
// from the headers alone, if they are the usual ones. A datagram is never told from here.
static __always_inline bool has_no_name(const struct __sk_buff *skb, bool leaving)
{
	const u8 *ip = (const u8 *)(long)skb->data, *end = (const u8 *)(long)skb->data_end;
	const u8 *tcp;

	if (ip + 40 > end)
		return false;
	if (ip[0] == 0x45 && ip[9] == IPPROTO_TCP) {
		tcp = ip + 20;
	} else {
		if (ip + 60 > end || ip[0] >> 4 != 6 || ip[6] != IPPROTO_TCP)
			return false;
		tcp = ip + 40;
	}
	if (leaving)
		return skb->len == (u32)(tcp - ip) + (tcp[12] >> 4) * 4;
	return tcp[0] != 0 || tcp[1] != DNS_PORT;
}

static __always_inline bool is_loopback(const u8 *remote)
{
	const u64 *halves = (const u64 *)remote;
	const u32 *words = (const u32 *)remote;

	if (halves[0])
		return false;
	return (words[2] == 0xffff0000 && remote[12] == 127) || (words[2] == 0 && words[3] == __builtin_bswap32(1));
}

// Whether a payload looks like a DNS question: for one name, with nothing answered yet.
static __always_inline bool is_question(struct __sk_buff *skb, u32 offset)
{
	u8 header[8];

	if (bpf_skb_load_bytes(skb, offset, header, sizeof(header)))
		return false;
	return !(header[2] & 0xfe) && !(header[3] & 0x8f) && header[4] == 0 && header[5] == 1 && header[6] == 0 &&
	       header[7] == 0;
}

// Where the payload of a datagram begins, if it is UDP. IPsec may have made something else of what a UDP socket sent.
struct shape {
	u32 offset;
	u8 protocol;
	u8 detours; /* Its destination is not the last (IPv6 routing header). */
};

// False if it cannot be told.
static __always_inline bool read_shape(struct __sk_buff *skb, u8 protocol, struct shape *shape)
{
	for (int i = 0; i < EXTENSIONS_MAX; i++) {
		struct {
			u8 next, length, type, left;
		} extension;
		switch (protocol) {
		case IPPROTO_HOPOPTS:
		case IPPROTO_ROUTING:
		case IPPROTO_FRAGMENT:
		case IPPROTO_AH:
		case IPPROTO_DSTOPTS:
			break;
		default:
			shape->protocol = protocol;
			return true;
		}
		if (bpf_skb_load_bytes(skb, shape->offset, &extension, sizeof(extension)))
			return false;
		if (protocol == IPPROTO_ROUTING && extension.left)
			shape->detours = 1;
		if (protocol == IPPROTO_FRAGMENT)
			shape->offset += 8;
		else if (protocol == IPPROTO_AH)
			shape->offset += (extension.length + 2) * 4;
		else
			shape->offset += (extension.length + 1) * 8;
		protocol = extension.next;
	}
	return false;
}

// A datagram of a UDP socket that cannot be told.
static __always_inline int lose_datagram(void)
{
	count_lost(LOST_CONNECTIONS);
	return 1;
}

// To and from whom: each datagram as it leaves or reaches the socket, whichever call it is sent or received by.
static __always_inline int datagram(struct __sk_buff *skb, bool leaving)
{
	struct bpf_sock *sk = skb->sk;
	struct {
		u8 bytes[40];
	} ip __attribute__((aligned(8)));
	struct {
		__be16 from, to;
	} ports = {};
	struct shape shape = {};
	struct peer_key key = {};
	u8 local[16] __attribute__((aligned(8)));

	if (!sk || has_no_name(skb, leaving))
		return 1;
	sk = bpf_sk_fullsock(sk);
	if (!sk)
		return 1;
	if (sk->protocol == IPPROTO_TCP) {
		if (sk->dst_port == __builtin_bswap16(DNS_PORT))
			tell_packet(skb, sk, leaving);
		else if (leaving)
			look_for_hello(skb, sk);
		return 1;
	}
	if (sk->protocol != IPPROTO_UDP)
		return 1;
	if (bpf_skb_load_bytes(skb, 0, ip.bytes, 20))
		return lose_datagram();
	if (ip.bytes[0] >> 4 == 4) {
		shape.protocol = ip.bytes[9];
		shape.offset = (ip.bytes[0] & 15) * 4;
		map_ipv4(local, *(u32 *)&ip.bytes[leaving ? 12 : 16]);
		map_ipv4(key.remote, *(u32 *)&ip.bytes[leaving ? 16 : 12]);
	} else {
		if (bpf_skb_load_bytes(skb, 20, &ip.bytes[20], 20))
			return lose_datagram();
		copy16(local, &ip.bytes[leaving ? 8 : 24]);
		copy16(key.remote, &ip.bytes[leaving ? 24 : 8]);
		shape.offset = 40;
		if (!read_shape(skb, ip.bytes[6], &shape))
			return lose_datagram();
	}
	if (shape.protocol == IPPROTO_UDP && bpf_skb_load_bytes(skb, shape.offset, &ports, 4))
		return lose_datagram();
	if (shape.detours)
		count_lost(LOST_CONNECTIONS); /* told below, to where it goes first */
	u64 bytes = skb->len - shape.offset - 8;
	key.port = __builtin_bswap16(leaving ? ports.to : ports.from);
	if (leaving && (shape.protocol == IPPROTO_ESP || shape.protocol == IPPROTO_IPV6 ||
			shape.protocol == IPPROTO_IPIP ||
			(ports.from == __builtin_bswap16(NAT_TRAVERSAL_PORT) && sk->src_port != NAT_TRAVERSAL_PORT))) {
		/* IPsec has wrapped it up for a gateway; the socket knows whom it is for, if it is connected. */
		if (sk->state != TCP_ESTABLISHED)
			return lose_datagram();
		if (sk->family == AF_INET6) {
			((u32 *)key.remote)[0] = sk->dst_ip6[0];
			((u32 *)key.remote)[1] = sk->dst_ip6[1];
			((u32 *)key.remote)[2] = sk->dst_ip6[2];
			((u32 *)key.remote)[3] = sk->dst_ip6[3];
		} else {
			map_ipv4(key.remote, sk->dst_ip4);
		}
		key.port = __builtin_bswap16(sk->dst_port);
		ports.from = __builtin_bswap16(sk->src_port);
	} else if (shape.protocol != IPPROTO_UDP) {
		return lose_datagram();
	}
	u64 now = bpf_ktime_get_boot_ns();
	u32 packets = skb->gso_segs > 1 ? skb->gso_segs : 1;
	key.cookie = bpf_get_socket_cookie(skb);
	/* Questions too: only answers to them are believed. On loopback the port may have been translated already, as for a
	   container's resolver. */
	if (key.port == DNS_PORT || (leaving && is_loopback(key.remote) && is_question(skb, shape.offset + 8)))
		tell_packet(skb, sk, leaving);

	struct socket_state *state = state_of(sk);
	if (!state)
		return lose_datagram();
	/* Where the kernel does not tell who sends, it is whoever is at work now. */
	if (leaving && state->known != KNOWN_CALL && !state->changes)
		take_slowly(state);
	struct peer *peer = bpf_map_lookup_elem(&peers, &key);
	/* Another processor may have been here later, and be done earlier. */
	u64 silent_since = peer ? peer->last : 0;
	bool is_new = !peer || (now > silent_since && now - silent_since > UDP_IDLE_NS);
	if (!peer) {
		struct peer fresh = { .first = now, .last = now };
		if (bpf_map_update_elem(&peers, &key, &fresh, BPF_ANY))
			return lose_datagram();
		peer = bpf_map_lookup_elem(&peers, &key);
		if (!peer)
			return lose_datagram();
	}
	/* A server's socket is shared with the processes that it forks: whoever answers is the owner. */
	bool is_handed = leaving && state->start != peer->sender && peer->changes < OWNER_CHANGES_MAX;
	struct connection_event *event = 0;
	if (is_new || is_handed) {
		event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
		if (!event) {
			/* It is told with the next datagram, which is new then. */
			if (is_new)
				bpf_map_delete_elem(&peers, &key);
			return lose_datagram();
		}
		stamp(&event->header, is_new ? KIND_PEER : KIND_OWNER);
		state->peers = 1;
		if (leaving) {
			if (!is_new)
				peer->changes += 1;
			peer->sender = state->start;
		}
		write_owner(event, state);
		/* Whoever gets what arrives need not be who sent last; and one that changes often is not followed for ever. */
		if (event->known == KNOWN_CALL && (!leaving || peer->changes == OWNER_CHANGES_MAX))
			event->known = KNOWN_INHERITED;
		event->direction = leaving ? DIRECTION_OUTBOUND : DIRECTION_INBOUND;
		event->opened = silent_since; /* of a peer, when it was heard last before this */
		event->cookie = key.cookie;
		event->protocol = IPPROTO_UDP;
		struct sock *kernel = kernel_sock(sk, state);
		event->network_namespace = BPF_CORE_READ(kernel, __sk_common.skc_net.net, ns.inum);
		event->local_port = __builtin_bswap16(leaving ? ports.from : ports.to);
		event->remote_port = key.port;
		copy16(event->local, local);
		copy16(event->remote, key.remote);
		/* What it had moved before, when it was told last. */
		event->sent = peer->sent;
		event->received = peer->received;
		event->packets_sent = peer->packets_sent;
		event->packets_received = peer->packets_received;
		event->retransmitted = event->round_trip_us = 0;
		event->state = 0;
		event->error = 0;
	}
	if (now > peer->last)
		peer->last = now;
	if (leaving) {
		__sync_fetch_and_add(&peer->sent, bytes);
		__sync_fetch_and_add(&peer->packets_sent, packets);
	} else {
		__sync_fetch_and_add(&peer->received, bytes);
		__sync_fetch_and_add(&peer->packets_received, packets);
	}
	if (event)
		bpf_ringbuf_submit(event, 0);
	return 1;
}

SEC("cgroup_skb/egress")
int on_leaving(struct __sk_buff *skb)
{
	return datagram(skb, true);
}

SEC("cgroup_skb/ingress")
int on_arriving(struct __sk_buff *skb)
{
	return datagram(skb, false);
}

// Who binds is the owner of what arrives before anything was sent.
static __always_inline int note_bind(struct bpf_sock *sk)
{
	if (sk->protocol != IPPROTO_UDP)
		return 1;
	struct socket_state *state = state_of(sk);
	if (state) {
		take_slowly(state);
		state->known = KNOWN_INHERITED; /* it may be bound for somebody else */
	}
	return 1;
}

SEC("cgroup/post_bind4")
int on_bind4(struct bpf_sock *sk)
{
	return note_bind(sk);
}

SEC("cgroup/post_bind6")
int on_bind6(struct bpf_sock *sk)
{
	return note_bind(sk);
}

// ---- Looking, instead of waiting ----

static __always_inline void write_seq(struct seq_file *seq, struct sock *sk, u32 kind, struct socket_state *state)
{
	struct connection_event event = {};

	stamp(&event.header, kind);
	write_tcp(&event, sk, bpf_skc_to_tcp_sock(sk), bpf_get_socket_cookie(sk), state);
	event.protocol = sk->sk_protocol;
	event.state = sk->__sk_common.skc_state;
	bpf_seq_write(seq, &event, sizeof(event));
}

static __always_inline void tell_refused(struct seq_file *seq, struct sock *sk, struct socket_state *state)
{
	struct connection_event event = {};

	stamp(&event.header, KIND_CLOSED);
	event.header.at = state->opened;
	write_owner(&event, state);
	event.cookie = bpf_get_socket_cookie(sk);
	event.protocol = IPPROTO_TCP;
	event.network_namespace = sk->__sk_common.skc_net.net->ns.inum;
	event.local_port = sk->__sk_common.skc_num;
	map_ipv4(event.local, 0);
	event.remote_port = state->port;
	copy16(event.remote, state->remote);
	event.state = TCP_SYN_SENT;
	event.error = refusal_of(state);
	state->asked = 0;
	bpf_seq_write(seq, &event, sizeof(event));
}

static __always_inline int look(struct bpf_iter__bpf_sk_storage_map *context, bool all)
{
	struct sock *sk = context->sk;
	struct socket_state *state = context->value;

	if (!sk || !state || !is_tcp(sk) || state->ended)
		return 0;
	if (sk->__sk_common.skc_state == TCP_CLOSE) {
		/* Asked for, and the call is over: it came to nothing. */
		if (state->asked && bpf_ktime_get_boot_ns() - state->opened > ASKING_NS)
			tell_refused(context->meta->seq, sk, state);
		else if (state->asked && all)
			write_seq(context->meta->seq, sk, KIND_FOUND, state); /* it is there, and not more yet */
		return 0;
	}
	if (sk->__sk_common.skc_state == TCP_LISTEN)
		return 0;
	/* About to be accepted, with what its listener had. */
	if (sk->__sk_common.skc_state == TCP_SYN_RECV && state->direction == DIRECTION_LISTENING)
		return 0;
	struct tcp_sock *tcp = bpf_skc_to_tcp_sock(sk);
	if (!tcp)
		return 0;
	u64 moved = 1 + (u64)tcp->segs_in + tcp->segs_out;
	if (!all && moved == state->sampled)
		return 0;
	state->sampled = moved;
	write_seq(context->meta->seq, sk, KIND_SAMPLE, state);
	return 0;
}

// Every TCP connection that has moved something since it was looked at last.
SEC("iter/bpf_sk_storage_map")
int sample(struct bpf_iter__bpf_sk_storage_map *context)
{
	return look(context, false);
}

// Every TCP connection.
SEC("iter/bpf_sk_storage_map")
int list(struct bpf_iter__bpf_sk_storage_map *context)
{
	return look(context, true);
}

// Every socket that was open before the probe was there, by the open files of each process.
SEC("iter/task_file")
int find(struct bpf_iter__task_file *context)
{
	struct task_struct *task = context->task;
	struct file *file = context->file;

	if (!task || !file)
		return 0;
	struct socket *socket = bpf_sock_from_file(file);
	if (!socket)
		return 0;
	struct sock *sk = socket->sk;
	if (!sk)
		return 0;
	u16 family = sk->__sk_common.skc_family;
	if ((family != AF_INET && family != AF_INET6) || (!is_tcp(sk) && sk->sk_protocol != IPPROTO_UDP))
		return 0;
	struct socket_state *state = state_of(sk);
	struct socket_state holder = { .known = KNOWN_TABLE };
	if (state) {
		if (state->known == KNOWN_NOT) {
			state->pid = task->tgid;
			state->start = task->group_leader->start_boottime;
			state->known = KNOWN_TABLE;
			if (sk->__sk_common.skc_state == TCP_LISTEN)
				state->direction = DIRECTION_LISTENING;
		} else if (state->known != KNOWN_TABLE && state->direction != DIRECTION_NONE) {
			return 0; /* a hook saw it begin */
		}
		holder = *state;
		holder.known = KNOWN_TABLE;
	}
	/* What the kernel keeps nothing with is told all the same. */
	holder.pid = task->tgid;
	holder.start = task->group_leader->start_boottime;
	write_seq(context->meta->seq, sk, KIND_FOUND, &holder);
	return 0;
}
