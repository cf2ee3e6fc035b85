/* SPDX-License-Identifier: GPL-2.0 OR MIT
 *
 * The few kernel types that the probe reads, each with only the fields that it reads. The loader relocates every access
 * to where the running kernel has the field (CO-RE), so order and size here mean nothing.
 */
#pragma once

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;
typedef signed char __s8;
typedef short __s16;
typedef int __s32;
typedef long long __s64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u16 __sum16;
typedef __u32 __wsum;
typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;
typedef __s32 s32;
typedef __s64 s64;
typedef _Bool bool;

enum { false = 0, true = 1 };

/* User ABI: fixed for ever. */
enum { AF_INET = 2, AF_INET6 = 10 };
enum { IPPROTO_HOPOPTS = 0, IPPROTO_TCP = 6, IPPROTO_UDP = 17, IPPROTO_ROUTING = 43, IPPROTO_FRAGMENT = 44,
       IPPROTO_DSTOPTS = 60, IPPROTO_IPIP = 4, IPPROTO_IPV6 = 41, IPPROTO_ESP = 50, IPPROTO_AH = 51 };
enum { SOCK_STREAM = 1, SOCK_DGRAM = 2 };
enum { EAGAIN = 11, EACCES = 13, EINVAL = 22, ENETUNREACH = 101, EHOSTUNREACH = 113 };
enum { RTF_REJECT = 0x0200, RTN_BLACKHOLE = 6, RTN_UNREACHABLE = 7, RTN_PROHIBIT = 8 };
enum { BPF_ANY = 0 };
enum { BPF_F_NO_PREALLOC = 1, BPF_F_CLONE = 512 };
enum { BPF_SK_STORAGE_GET_F_CREATE = 1 };
enum { BPF_MAP_TYPE_HASH = 1, BPF_MAP_TYPE_PERCPU_ARRAY = 6, BPF_MAP_TYPE_LRU_HASH = 9,
       BPF_MAP_TYPE_SK_STORAGE = 24, BPF_MAP_TYPE_RINGBUF = 27 };
enum { TCP_ESTABLISHED = 1, TCP_SYN_SENT, TCP_SYN_RECV, TCP_FIN_WAIT1, TCP_FIN_WAIT2, TCP_TIME_WAIT, TCP_CLOSE,
       TCP_CLOSE_WAIT, TCP_LAST_ACK, TCP_LISTEN, TCP_CLOSING, TCP_NEW_SYN_RECV };
/* enum sock_flags of the kernel, unchanged since 2.6. */
enum { SOCK_DONE = 1 };
/* A kernel thread (include/linux/sched.h). */
enum { PF_KTHREAD = 0x00200000 };

struct bpf_sock {
	__u32 bound_dev_if, family, type, protocol, mark, priority, src_ip4, src_ip6[4], src_port;
	__be16 dst_port;
	__u16 : 16;
	__u32 dst_ip4, dst_ip6[4], state;
	__s32 rx_queue_mapping;
};
struct bpf_sock_addr {
	__u32 user_family, user_ip4, user_ip6[4], user_port, family, type, protocol, msg_src_ip4, msg_src_ip6[4];
	union {
		struct bpf_sock *sk;
		__u64 : 64;
	} __attribute__((aligned(8)));
};
struct __sk_buff {
	__u32 len, pkt_type, mark, queue_mapping, protocol, vlan_present, vlan_tci, vlan_proto, priority,
		ingress_ifindex, ifindex, tc_index, cb[5], hash, tc_classid, data, data_end, napi_id, family, remote_ip4,
		local_ip4, remote_ip6[4], local_ip6[4], remote_port, local_port, data_meta;
	__u64 : 64; /* flow_keys */
	__u64 tstamp;
	__u32 wire_len, gso_segs;
	union {
		struct bpf_sock *sk;
		__u64 : 64;
	} __attribute__((aligned(8)));
	__u32 gso_size;
};

struct bpf_sock_ops {
	__u32 op, args[4], family, remote_ip4, local_ip4, remote_ip6[4], local_ip6[4], remote_port, local_port,
		is_fullsock, snd_cwnd, srtt_us, bpf_sock_ops_cb_flags, state, rtt_min, snd_ssthresh, rcv_nxt, snd_nxt,
		snd_una, mss_cache, ecn_flags, rate_delivered, rate_interval_us, packets_out, retrans_out,
		total_retrans, segs_in, data_segs_in, segs_out, data_segs_out, lost_out, sacked_out, sk_txhash;
	__u64 bytes_received, bytes_acked;
	union {
		struct bpf_sock *sk;
		__u64 : 64;
	} __attribute__((aligned(8)));
};
enum { BPF_SOCK_OPS_TCP_CONNECT_CB = 3, BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB,
       BPF_SOCK_OPS_STATE_CB = 10 };
enum { BPF_SOCK_OPS_STATE_CB_FLAG = 4 };

/* Kernel types. */
#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

typedef struct { int counter; } atomic_t;
typedef struct { u32 val; } kuid_t;
struct cred { kuid_t uid, euid; };
struct tty_driver { int major, minor_start; };
struct tty_struct { int index; struct tty_driver *driver; };
struct signal_struct { atomic_t live; struct tty_struct *tty; };
struct mm_struct { unsigned long arg_start, arg_end; };
struct qstr { const unsigned char *name; };
struct super_block { u32 s_dev; };
struct inode { unsigned long i_ino; s64 i_size; struct super_block *i_sb; };
struct dentry { struct dentry *d_parent; struct qstr d_name; };
struct vfsmount { struct dentry *mnt_root; };
struct mount { struct mount *mnt_parent; struct dentry *mnt_mountpoint; struct vfsmount mnt; };
struct path { struct vfsmount *mnt; struct dentry *dentry; };
struct fs_struct { struct path pwd; };
struct file { struct path f_path; struct inode *f_inode; };
struct linux_binprm { struct file *file; };
struct task_struct {
	unsigned int flags;
	int pid, tgid, exit_code;
	u64 start_boottime;
	struct task_struct *real_parent, *group_leader;
	struct signal_struct *signal;
	struct mm_struct *mm;
	const struct cred *cred;
	struct fs_struct *fs;
};

struct ns_common { unsigned int inum; };
struct fib6_info;
struct netns_ipv6 { struct fib6_info *fib6_null_entry; };
struct net { struct ns_common ns; struct netns_ipv6 ipv6; };
typedef struct { struct net *net; } possible_net_t;
struct in6_addr { union { u8 u6_addr8[16]; __be32 u6_addr32[4]; } in6_u; };
struct sock_common {
	__be32 skc_daddr, skc_rcv_saddr;
	__be16 skc_dport;
	u16 skc_num, skc_family;
	volatile unsigned char skc_state;
	unsigned long skc_flags;
	possible_net_t skc_net;
	struct in6_addr skc_v6_daddr, skc_v6_rcv_saddr;
};
struct sock { struct sock_common __sk_common; u16 sk_protocol, sk_type; int sk_err; };
struct inet_sock { struct sock sk; __be16 inet_sport; };
struct inet_connection_sock { struct inet_sock icsk_inet; };
struct tcp_sock {
	struct inet_connection_sock inet_conn;
	u64 bytes_received, bytes_sent, bytes_retrans;
	u32 srtt_us, total_retrans, segs_in, segs_out;
};
struct socket { struct sock *sk; };
struct flowi4 { __be32 daddr; };
struct flowi6 { struct in6_addr daddr; };
struct fib6_result { struct fib6_info *f6i; u32 fib6_flags; u8 fib6_type; };

struct seq_file;
struct bpf_iter_meta { struct seq_file *seq; };
struct bpf_iter__task_file { struct bpf_iter_meta *meta; struct task_struct *task; u32 fd; struct file *file; };
struct bpf_map;
struct bpf_iter__bpf_sk_storage_map { struct bpf_iter_meta *meta; struct bpf_map *map; struct sock *sk; void *value; };

#pragma clang attribute pop

/* Where the modification time is has changed twice (6.6, 6.11); the loader finds the one that there is. */
struct timespec64 { s64 tv_sec; long tv_nsec; };
struct inode___split { s64 i_mtime_sec; u32 i_mtime_nsec; } __attribute__((preserve_access_index));
struct inode___whole { struct timespec64 i_mtime; } __attribute__((preserve_access_index));
struct inode___prefixed { struct timespec64 __i_mtime; } __attribute__((preserve_access_index));
