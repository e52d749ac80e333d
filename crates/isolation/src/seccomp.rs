//! Which system calls a container may make: allow-lists, by role.
//!
//! What is not listed fails: with EPERM where the call is known and refused for a reason (below), with ENOSYS where it is
//! not known at all, so that libraries fall back to what they did before that call existed.
//!
//! Left out, and why:
//! * mount, umount2, pivot_root, chroot, fsopen and its family, open_tree, move_mount: the root is finished before
//!   anything untrusted runs in it; only an escape needs to change it.
//! * unshare, setns, and clone with a namespace flag; clone3, whose flags a filter cannot see (ENOSYS: C libraries then
//!   use clone): a new user namespace gives back every capability inside it, and with it most of the kernel's attack surface.
//!   A zygote needs clone3 to start a process in a slot's cgroup, and setns to enter the slot. It holds no capability for a new
//!   namespace, and what keeps it from a new user namespace is its root ([`crate::plan::Step::CoverRoot`]).
//! * ptrace, process_vm_*, pidfd_getfd, kcmp: no debugging of neighbours.
//! * bpf, perf_event_open, userfaultfd, io_uring: large and often exploited parts of the kernel. io_uring also
//!   performs calls that no filter sees.
//! * keyctl and its family: keyrings are not namespaced. init_module, kexec, reboot, swapon, quotactl, acct, syslog,
//!   settimeofday and clock_settime: the machine's own.
//! * open_by_handle_at: opens by inode, past every mount. name_to_handle_at goes with it.
//! * socket: UNIX and internet families without raw sockets; no packet, netlink, vsock or any other family.
//! * ioctl TIOCSTI and TIOCLINUX: type into the terminal that `sock run` was started from.
//! * setsockopt of SO_LINGER: whoever is passed such a socket, or only throws it away, waits in close(2), and the platform's
//!   own sockets can pass one. Of netfilter, xfrm and multicast routing, and the ioctls that set up interfaces, routes and
//!   bridges: a zygote's child has every capability in its slot for a moment, and these are large parts of the kernel.
//! * signals that stop, to a process: one that the platform waits for would never answer. (job control's keys still work)
//! * sockets of other protocols than TCP and UDP.
//! * personality other than Linux's own: switches off address space randomisation.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use crate::bpf::{Program, Test, Verdict, compile};

/// Who the filter is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Role {
    /// User code after it dropped everything.
    Instance,
    /// A fork server: what an instance may, and what it takes to fork into a slot and to drop.
    Zygote,
    /// The native PID 1 of a container, which only waits.
    Init,
    /// A command of the profile `strict`: what an instance may, without what a program that computes and answers can do
    /// without.
    Strict,
}

#[cfg(target_arch = "x86_64")]
const AUDIT_ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const AUDIT_ARCH: u32 = 0xc000_00b7;

macro_rules! numbers {
    ($($name:ident)*) => { &[$(libc::$name as u32),*] };
}

const PLAIN: &[u32] = numbers![
    // Files.
    SYS_read SYS_write SYS_readv SYS_writev SYS_pread64 SYS_pwrite64 SYS_preadv SYS_pwritev SYS_preadv2 SYS_pwritev2
    SYS_openat SYS_openat2 SYS_close SYS_close_range SYS_lseek SYS_fstat SYS_newfstatat SYS_statx SYS_statfs SYS_fstatfs
    SYS_faccessat SYS_faccessat2 SYS_readlinkat SYS_getdents64 SYS_mkdirat SYS_unlinkat SYS_renameat SYS_renameat2
    SYS_linkat SYS_symlinkat SYS_fchmod SYS_fchmodat SYS_fchown SYS_fchownat SYS_utimensat SYS_truncate SYS_ftruncate
    SYS_fallocate SYS_fsync SYS_fdatasync SYS_sync_file_range SYS_fadvise64 SYS_readahead SYS_copy_file_range
    SYS_sendfile SYS_splice SYS_tee SYS_vmsplice SYS_flock SYS_fcntl SYS_dup SYS_dup3 SYS_pipe2 SYS_umask SYS_chdir
    SYS_fchdir SYS_getcwd SYS_memfd_create SYS_getxattr SYS_lgetxattr SYS_fgetxattr SYS_listxattr SYS_llistxattr
    SYS_flistxattr SYS_inotify_init1 SYS_inotify_add_watch SYS_inotify_rm_watch
    // Memory.
    SYS_mmap SYS_munmap SYS_mprotect SYS_mremap SYS_madvise SYS_brk SYS_msync SYS_mincore SYS_mlock SYS_munlock
    SYS_mlock2 SYS_mlockall SYS_munlockall SYS_membarrier SYS_pkey_alloc SYS_pkey_free SYS_pkey_mprotect
    SYS_get_mempolicy SYS_set_mempolicy SYS_mbind
    // Processes and threads.
    SYS_execve SYS_execveat SYS_exit SYS_exit_group SYS_wait4 SYS_waitid SYS_getpid SYS_getppid SYS_gettid SYS_getpgid
    SYS_setpgid SYS_getsid SYS_setsid SYS_getuid SYS_geteuid SYS_getgid SYS_getegid SYS_getresuid SYS_getresgid
    SYS_getgroups SYS_capget SYS_getrlimit SYS_setrlimit SYS_prlimit64 SYS_getrusage SYS_times SYS_set_tid_address
    SYS_set_robust_list SYS_get_robust_list SYS_rseq SYS_futex SYS_sched_yield SYS_sched_getaffinity
    SYS_sched_setaffinity SYS_sched_getparam SYS_sched_getscheduler SYS_sched_get_priority_max
    SYS_sched_get_priority_min SYS_sched_rr_get_interval SYS_getpriority SYS_setpriority SYS_getcpu SYS_prctl
    SYS_pidfd_open SYS_pidfd_send_signal SYS_seccomp SYS_uname SYS_sysinfo SYS_getrandom
    // Further confinement of its own.
    SYS_landlock_create_ruleset SYS_landlock_add_rule SYS_landlock_restrict_self
    // Signals.
    SYS_kill SYS_tkill SYS_tgkill SYS_rt_sigaction SYS_rt_sigprocmask SYS_rt_sigreturn SYS_rt_sigpending
    SYS_rt_sigtimedwait SYS_rt_sigqueueinfo SYS_rt_tgsigqueueinfo SYS_rt_sigsuspend SYS_sigaltstack SYS_signalfd4
    SYS_restart_syscall
    // Time.
    SYS_clock_gettime SYS_clock_getres SYS_clock_nanosleep SYS_nanosleep SYS_gettimeofday SYS_getitimer SYS_setitimer
    SYS_timer_create SYS_timer_settime SYS_timer_gettime SYS_timer_getoverrun SYS_timer_delete SYS_timerfd_create
    SYS_timerfd_settime SYS_timerfd_gettime
    // Waiting.
    SYS_ppoll SYS_pselect6 SYS_epoll_create1 SYS_epoll_ctl SYS_epoll_pwait SYS_epoll_pwait2 SYS_eventfd2
    // Sockets; the family is looked at below.
    SYS_bind SYS_listen SYS_accept SYS_accept4 SYS_connect SYS_getsockname SYS_getpeername SYS_sendto SYS_recvfrom
    SYS_sendmsg SYS_recvmsg SYS_sendmmsg SYS_recvmmsg SYS_shutdown SYS_getsockopt SYS_setsockopt
    // IPC, all within the container's own namespace.
    SYS_shmget SYS_shmat SYS_shmdt SYS_shmctl SYS_semget SYS_semop SYS_semctl SYS_semtimedop SYS_msgget SYS_msgsnd
    SYS_msgrcv SYS_msgctl SYS_mq_open SYS_mq_unlink SYS_mq_timedsend SYS_mq_timedreceive SYS_mq_notify
    SYS_mq_getsetattr
];

#[cfg(target_arch = "x86_64")]
const PLAIN_OF_ARCHITECTURE: &[u32] = numbers![
    SYS_open SYS_creat SYS_stat SYS_lstat SYS_access SYS_readlink SYS_getdents SYS_mkdir SYS_rmdir SYS_unlink
    SYS_rename SYS_link SYS_symlink SYS_chmod SYS_chown SYS_lchown SYS_utime SYS_utimes SYS_futimesat SYS_dup2
    SYS_pipe SYS_fork SYS_vfork SYS_getpgrp SYS_time SYS_poll SYS_select SYS_epoll_create SYS_epoll_wait
    SYS_epoll_pwait SYS_eventfd SYS_signalfd SYS_inotify_init SYS_alarm SYS_pause SYS_arch_prctl
];
#[cfg(target_arch = "aarch64")]
const PLAIN_OF_ARCHITECTURE: &[u32] = &[];

/// Known and refused with EPERM, see the list in the module's documentation.
const REFUSED: &[u32] = numbers![
    SYS_mount SYS_umount2 SYS_pivot_root SYS_chroot SYS_fsopen SYS_fsconfig SYS_fsmount SYS_fspick SYS_open_tree
    SYS_move_mount SYS_mount_setattr SYS_unshare SYS_setns SYS_ptrace SYS_process_vm_readv SYS_process_vm_writev
    SYS_process_madvise SYS_pidfd_getfd SYS_kcmp SYS_bpf SYS_perf_event_open SYS_userfaultfd SYS_io_uring_setup
    SYS_io_uring_enter SYS_io_uring_register SYS_keyctl SYS_add_key SYS_request_key SYS_init_module
    SYS_finit_module SYS_delete_module SYS_kexec_load SYS_reboot SYS_swapon SYS_swapoff SYS_quotactl SYS_acct
    SYS_syslog SYS_settimeofday SYS_clock_settime SYS_clock_adjtime SYS_adjtimex SYS_open_by_handle_at
    SYS_name_to_handle_at SYS_sethostname SYS_setdomainname SYS_mknodat SYS_setuid SYS_setgid SYS_setreuid
    SYS_setregid SYS_setresuid SYS_setresgid SYS_setfsuid SYS_setfsgid SYS_setgroups SYS_capset SYS_setxattr
    SYS_lsetxattr SYS_fsetxattr SYS_removexattr SYS_lremovexattr SYS_fremovexattr SYS_vhangup
    SYS_fanotify_init SYS_lookup_dcookie SYS_nfsservctl SYS_migrate_pages SYS_move_pages SYS_sched_setscheduler
    SYS_sched_setparam SYS_sched_setattr SYS_ioprio_set
];

/// What takes a zygote's child into a slot.
const ENTER_AND_DROP: &[u32] =
    numbers![SYS_clone3 SYS_setns SYS_setgroups SYS_setresuid SYS_setresgid SYS_capset];

/// Denied to `strict`: IPC of System V and POSIX, memory without a file's name, pinned and placed memory, pipes without
/// copies, watches, other processes' priorities and processors, signals with data.
const NOT_STRICT: &[u32] = numbers![
    SYS_shmget SYS_shmat SYS_shmdt SYS_shmctl SYS_semget SYS_semop SYS_semctl SYS_semtimedop SYS_msgget SYS_msgsnd
    SYS_msgrcv SYS_msgctl SYS_mq_open SYS_mq_unlink SYS_mq_timedsend SYS_mq_timedreceive SYS_mq_notify
    SYS_mq_getsetattr SYS_memfd_create SYS_execveat SYS_mlock SYS_mlock2 SYS_mlockall SYS_munlock SYS_munlockall
    SYS_pkey_alloc SYS_pkey_free SYS_pkey_mprotect SYS_set_mempolicy SYS_mbind SYS_splice SYS_tee SYS_vmsplice
    SYS_inotify_init1 SYS_inotify_add_watch SYS_inotify_rm_watch SYS_setpriority SYS_sched_setaffinity
    SYS_rt_sigqueueinfo SYS_rt_tgsigqueueinfo SYS_pidfd_send_signal SYS_pidfd_open
];

const INIT: &[u32] = numbers![
    SYS_wait4 SYS_waitid SYS_read SYS_write SYS_sendto SYS_sendmsg SYS_close SYS_rt_sigreturn SYS_rt_sigprocmask
    SYS_rt_sigtimedwait SYS_rt_sigaction SYS_ppoll SYS_exit SYS_exit_group SYS_restart_syscall SYS_munmap SYS_madvise
    SYS_mmap SYS_brk SYS_futex SYS_getpid SYS_gettid SYS_sigaltstack
];

/// fcntl(2); not in every libc.
const F_SETSIG: u32 = 10;

/// Socket options, of IP and IPv6, that set up packet filters (IPT_, IP6T_, ARPT_ and EBT_SO_SET_…), encryption (…_XFRM_POLICY and
/// its kin) and multicast routing (MRT_…).
const TABLES: &[u32] = &[
    16, 17, 34, 35, 64, 65, 66, 67, 96, 97, 98, 99, 128, 129, 130, 131, 200, 201, 202, 203, 204, 205, 206,
    207, 208, 209, 210, 211, 212,
];

/// ioctls that change interfaces, addresses, routes, neighbours, bridges and bonds: netdevice(7) and linux/sockios.h.
const SET_UP_NETWORKS: &[u32] = &[
    0x890b, 0x890c, 0x890d, 0x8911, 0x8914, 0x8916, 0x8918, 0x891a, 0x891c, 0x891e, 0x8920, 0x8922, 0x8923,
    0x8924, 0x8926, 0x8928, 0x8930, 0x8931, 0x8932, 0x8934, 0x8936, 0x8937, 0x8943, 0x8946, 0x8949, 0x8953,
    0x8955, 0x8960, 0x8962, 0x8971, 0x8980, 0x8981, 0x8983, 0x8990, 0x8991, 0x8992, 0x8993, 0x8994, 0x8995,
    0x89a0, 0x89a1, 0x89a2, 0x89a3, 0x89b0,
];

const NEW_NAMESPACE: u32 = (libc::CLONE_NEWUSER
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWCGROUP) as u32;

/// The table behind the filter of `role`: also what the documentation and the snapshot show.
pub fn table(role: Role) -> BTreeMap<u32, Verdict> {
    if role == Role::Init {
        return INIT.iter().map(|&number| (number, Verdict::Allow)).collect();
    }
    let mut table = BTreeMap::new();
    for &number in REFUSED {
        table.insert(number, Verdict::Errno(libc::EPERM as u16));
    }
    for &number in PLAIN.iter().chain(PLAIN_OF_ARCHITECTURE) {
        table.insert(number, Verdict::Allow);
    }
    let refuse = |tests| Verdict::If(tests, libc::EPERM as u16);
    table.insert(libc::SYS_clone as u32, refuse(vec![Test::NoBits { argument: 0, bits: NEW_NAMESPACE }]));
    table.insert(libc::SYS_clone3 as u32, Verdict::Errno(libc::ENOSYS as u16));
    let (unix, inet, inet6) = (libc::AF_UNIX as u32, libc::AF_INET as u32, libc::AF_INET6 as u32);
    // Above the type's four bits are SOCK_CLOEXEC and SOCK_NONBLOCK.
    let kinds = [libc::SOCK_STREAM, libc::SOCK_DGRAM, libc::SOCK_SEQPACKET].map(|kind| kind as u32).to_vec();
    let kind = Test::OneOf { argument: 1, mask: 0xf, values: kinds };
    let values = if role == Role::Strict { vec![unix] } else { vec![unix, inet, inet6] };
    let families = Test::OneOf { argument: 0, mask: u32::MAX, values };
    let usual = [0, libc::IPPROTO_TCP as u32, libc::IPPROTO_UDP as u32].to_vec();
    let protocol = Test::OneOf { argument: 2, mask: u32::MAX, values: usual };
    table.insert(libc::SYS_socket as u32, refuse(vec![families, kind.clone(), protocol]));
    let local = Test::OneOf { argument: 0, mask: u32::MAX, values: vec![unix] };
    table.insert(libc::SYS_socketpair as u32, refuse(vec![local, kind]));
    let mut setting = vec![libc::TIOCSTI as u32, libc::TIOCLINUX as u32];
    setting.extend(SET_UP_NETWORKS);
    table.insert(libc::SYS_ioctl as u32, refuse(vec![Test::NoneOf { argument: 1, values: setting }]));
    let lingering = (1, vec![libc::SOL_SOCKET as u32]);
    let linger = Test::NotBoth { first: lingering, second: (2, vec![libc::SO_LINGER as u32]) };
    let levels = (1, vec![libc::IPPROTO_IP as u32, libc::IPPROTO_IPV6 as u32]);
    let tables = Test::NotBoth { first: levels, second: (2, TABLES.to_vec()) };
    table.insert(libc::SYS_setsockopt as u32, refuse(vec![linger, tables]));
    let stopping: Vec<u32> =
        [libc::SIGSTOP, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU].map(|signal| signal as u32).to_vec();
    for (number, argument) in [
        (libc::SYS_kill, 1),
        (libc::SYS_tkill, 1),
        (libc::SYS_tgkill, 2),
        (libc::SYS_rt_sigqueueinfo, 1),
        (libc::SYS_rt_tgsigqueueinfo, 2),
        (libc::SYS_pidfd_send_signal, 1),
    ] {
        let test = Test::NoneOf { argument, values: stopping.clone() };
        table.insert(number as u32, refuse(vec![test]));
    }
    // A signal of the caller's choice, when something can be read.
    let by_descriptor = Test::NoneOf { argument: 1, values: vec![F_SETSIG] };
    table.insert(libc::SYS_fcntl as u32, refuse(vec![by_descriptor]));
    // 0 is Linux; all ones asks which it is.
    let own = Test::OneOf { argument: 0, mask: u32::MAX, values: vec![0, u32::MAX] };
    table.insert(libc::SYS_personality as u32, refuse(vec![own]));
    if role == Role::Strict {
        table.extend(NOT_STRICT.iter().map(|&number| (number, Verdict::Errno(libc::EPERM as u16))));
    }
    if role == Role::Zygote {
        table.extend(ENTER_AND_DROP.iter().map(|&number| (number, Verdict::Allow)));
    }
    table
}

/// The compiled filter of `role`, compiled once.
pub fn filter(role: Role) -> &'static Program {
    static FILTERS: [LazyLock<Program>; 4] = [
        LazyLock::new(|| compiled(Role::Instance)),
        LazyLock::new(|| compiled(Role::Zygote)),
        LazyLock::new(|| compiled(Role::Init)),
        LazyLock::new(|| compiled(Role::Strict)),
    ];
    &FILTERS[role as usize]
}

fn compiled(role: Role) -> Program {
    compile(AUDIT_ARCH, &table(role), Verdict::Errno(libc::ENOSYS as u16))
}

/// Compiles the filters now, so that processes that are forked later have them.
pub(crate) fn compile_ahead(roles: &[Role]) {
    for role in roles {
        filter(*role);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zygote_may_what_an_instance_may_and_fork_into_a_slot() {
        let (instance, zygote) = (table(Role::Instance), table(Role::Zygote));
        let more: Vec<u32> = zygote.keys().filter(|n| instance.get(n) != zygote.get(n)).copied().collect();
        let mut expected = ENTER_AND_DROP.to_vec();
        expected.sort_unstable();
        assert_eq!(more, expected);
    }

    #[test]
    fn what_is_refused_is_not_allowed_elsewhere() {
        let both: Vec<u32> = REFUSED
            .iter()
            .filter(|n| PLAIN.contains(n) || PLAIN_OF_ARCHITECTURE.contains(n))
            .copied()
            .collect();
        assert_eq!(both, Vec::<u32>::new());
    }

    #[test]
    fn strict_allows_nothing_that_lean_does_not() {
        let (lean, strict) = (table(Role::Instance), table(Role::Strict));
        let allowed = |verdict: &Verdict| matches!(verdict, Verdict::Allow | Verdict::If(..));
        assert!(strict.iter().filter(|(_, verdict)| allowed(verdict)).all(|(n, _)| allowed(&lean[n])));
        let lost = lean.iter().filter(|(n, verdict)| allowed(verdict) && !allowed(&strict[n])).count();
        assert_eq!(lost, NOT_STRICT.len());
    }

    #[test]
    fn the_filters_fit_the_kernel() {
        for role in [Role::Instance, Role::Zygote, Role::Init, Role::Strict] {
            assert!(filter(role).len() < libc::BPF_MAXINSNS as usize, "{role:?}");
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn table_of_an_instance_x86_64() {
        let lines: Vec<String> =
            table(Role::Instance).iter().map(|(number, verdict)| format!("{number} {verdict:?}")).collect();
        insta::assert_snapshot!(lines.join("\n"));
    }
}
