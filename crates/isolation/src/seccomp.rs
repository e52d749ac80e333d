//! Which system calls a container may make: allow-lists, by role.
//!
//! What is not listed fails: see [`left_out`] for which call, how, and why. Of what is listed some arguments are refused with EPERM:
//! * clone with a flag for a new namespace; see there.
//! * socket: other families than UNIX and the internet's, raw sockets, other protocols than TCP and UDP. No packet, netlink, vsock:
//!   each is a large part of the kernel.
//! * ioctl TIOCSTI and TIOCLINUX: type into the terminal that `sock run` was started from.
//! * setsockopt of SO_LINGER: whoever is passed such a socket, or only throws it away, waits in close(2), and the platform's
//!   own sockets can pass one. Of netfilter, xfrm and multicast routing, and the ioctls that set up interfaces, routes and
//!   bridges: a zygote's child has every capability in its slot for a moment, and these are large parts of the kernel.
//! * signals that stop, to a process, and fcntl F_SETSIG, which chooses one: what the platform waits for would never answer.
//!   (job control's keys still work)
//! * personality other than Linux's own: switches off address space randomisation.
//!
//! Calls are listed by name and found by number for either architecture, see [`Architecture`]. Numbers of arguments are the same on both.

/// Names of system calls, which [`numbers`] has the numbers of.
macro_rules! names {
    ($($name:ident)*) => { &[$(stringify!($name)),*] };
}

mod left_out;
mod numbers;

use std::collections::BTreeMap;
use std::sync::LazyLock;

use crate::bpf::{Program, Test, Verdict, compile};
use left_out::{FAMILIES, Family};
use numbers::NUMBERS;

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

/// Whose numbers a filter is for. The kernel's linux/audit.h
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// Of Intel and AMD.
    X86_64,
    /// Of Arm.
    Aarch64,
}

impl Architecture {
    /// What this program was built for.
    #[cfg(target_arch = "x86_64")]
    pub const NATIVE: Self = Self::X86_64;
    /// What this program was built for.
    #[cfg(target_arch = "aarch64")]
    pub const NATIVE: Self = Self::Aarch64;

    fn audit(self) -> u32 {
        match self {
            Self::X86_64 => 0xc000_003e,
            Self::Aarch64 => 0xc000_00b7,
        }
    }

    /// The number of a system call, if there is such a call.
    pub fn number(self, name: &str) -> Option<u32> {
        let at = NUMBERS.binary_search_by_key(&name, |(name, ..)| name).ok()?;
        let (_, x86_64, aarch64) = NUMBERS[at];
        match self {
            Self::X86_64 => x86_64,
            Self::Aarch64 => aarch64,
        }
    }
}

const PLAIN: &[&str] = names![
    // Files.
    read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 openat openat2 close close_range
    lseek fstat newfstatat statx statfs fstatfs faccessat faccessat2 readlinkat getdents64 mkdirat unlinkat
    renameat renameat2 linkat symlinkat fchmod fchmodat fchown fchownat utimensat truncate ftruncate fallocate
    fsync fdatasync sync_file_range fadvise64 readahead copy_file_range sendfile splice tee vmsplice flock
    fcntl dup dup3 pipe2 umask chdir fchdir getcwd memfd_create getxattr lgetxattr fgetxattr listxattr
    llistxattr flistxattr inotify_init1 inotify_add_watch inotify_rm_watch
    // Memory.
    mmap munmap mprotect mremap madvise brk msync mincore mlock munlock mlock2 mlockall munlockall membarrier
    pkey_alloc pkey_free pkey_mprotect get_mempolicy set_mempolicy mbind
    // Processes and threads.
    execve execveat exit exit_group wait4 waitid getpid getppid gettid getpgid setpgid getsid setsid getuid
    geteuid getgid getegid getresuid getresgid getgroups capget getrlimit setrlimit prlimit64 getrusage times
    set_tid_address set_robust_list get_robust_list rseq futex sched_yield sched_getaffinity sched_setaffinity
    sched_getparam sched_getscheduler sched_get_priority_max sched_get_priority_min sched_rr_get_interval
    getpriority setpriority getcpu pidfd_open pidfd_send_signal seccomp uname sysinfo getrandom
    // Further confinement of its own.
    landlock_create_ruleset landlock_add_rule landlock_restrict_self
    // Signals.
    kill tkill tgkill rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigtimedwait rt_sigqueueinfo
    rt_tgsigqueueinfo rt_sigsuspend sigaltstack signalfd4 restart_syscall
    // Time.
    clock_gettime clock_getres clock_nanosleep nanosleep gettimeofday getitimer setitimer timer_create
    timer_settime timer_gettime timer_getoverrun timer_delete timerfd_create timerfd_settime timerfd_gettime
    // Waiting.
    ppoll pselect6 epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 eventfd2
    // Sockets; the family is looked at below.
    bind listen accept accept4 connect getsockname getpeername sendto recvfrom sendmsg recvmsg sendmmsg
    recvmmsg shutdown getsockopt setsockopt
    // IPC, all within the container's own namespace.
    shmget shmat shmdt shmctl semget semop semctl semtimedop msgget msgsnd msgrcv msgctl mq_open mq_unlink
    mq_timedsend mq_timedreceive mq_notify mq_getsetattr
];

/// Older forms, which aarch64 never had.
const PLAIN_OF_X86_64: &[&str] = names![
    open creat stat lstat access readlink getdents mkdir rmdir unlink rename link symlink chmod chown lchown
    utime utimes futimesat dup2 pipe fork vfork getpgrp time poll select epoll_create epoll_wait epoll_pwait
    eventfd signalfd inotify_init alarm pause arch_prctl
];
/// What takes a zygote's child into a slot.
const ENTER_AND_DROP: &[&str] = names![
    clone3 setns setgroups setresuid setresgid capset
];

/// Denied to `strict`: IPC of System V and POSIX, memory without a file's name, pinned and placed memory, pipes without
/// copies, watches, other processes' priorities and processors, signals with data.
const NOT_STRICT: &[&str] = names![
    shmget shmat shmdt shmctl semget semop semctl semtimedop msgget msgsnd msgrcv msgctl mq_open mq_unlink
    mq_timedsend mq_timedreceive mq_notify mq_getsetattr memfd_create execveat mlock mlock2 mlockall munlock
    munlockall pkey_alloc pkey_free pkey_mprotect set_mempolicy mbind splice tee vmsplice inotify_init1
    inotify_add_watch inotify_rm_watch setpriority sched_setaffinity rt_sigqueueinfo rt_tgsigqueueinfo
    pidfd_send_signal pidfd_open
];

const INIT: &[&str] = names![
    wait4 waitid read write sendto sendmsg close rt_sigreturn rt_sigprocmask rt_sigtimedwait rt_sigaction
    ppoll exit exit_group restart_syscall munmap madvise mmap brk futex getpid gettid sigaltstack
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

/// The table behind the filter of `role`, by names: what is not in it is answered with ENOSYS.
pub fn table(role: Role) -> BTreeMap<&'static str, Verdict> {
    if role == Role::Init {
        return INIT.iter().map(|&name| (name, Verdict::Allow)).collect();
    }
    let mut table = BTreeMap::new();
    for Family { answer, calls, .. } in FAMILIES {
        table.extend(calls.iter().map(|&name| (name, answer.clone())));
    }
    table.extend(PLAIN.iter().chain(PLAIN_OF_X86_64).map(|&name| (name, Verdict::Allow)));
    let refuse = |tests| Verdict::If(tests, libc::EPERM as u16);
    // The lowest byte is the signal that a parent gets: none, or the usual one.
    let told = Test::OneOf { argument: 0, mask: 0xff, values: vec![0, libc::SIGCHLD as u32] };
    table.insert("clone", refuse(vec![Test::NoBits { argument: 0, bits: NEW_NAMESPACE }, told]));
    let (unix, inet, inet6) = (libc::AF_UNIX as u32, libc::AF_INET as u32, libc::AF_INET6 as u32);
    // Above the type's four bits are SOCK_CLOEXEC and SOCK_NONBLOCK.
    let kinds = [libc::SOCK_STREAM, libc::SOCK_DGRAM, libc::SOCK_SEQPACKET].map(|kind| kind as u32).to_vec();
    let kind = Test::OneOf { argument: 1, mask: 0xf, values: kinds };
    let values = if role == Role::Strict { vec![unix] } else { vec![unix, inet, inet6] };
    let families = Test::OneOf { argument: 0, mask: u32::MAX, values };
    let usual = [0, libc::IPPROTO_TCP as u32, libc::IPPROTO_UDP as u32].to_vec();
    let protocol = Test::OneOf { argument: 2, mask: u32::MAX, values: usual };
    table.insert("socket", refuse(vec![families, kind.clone(), protocol]));
    let local = Test::OneOf { argument: 0, mask: u32::MAX, values: vec![unix] };
    table.insert("socketpair", refuse(vec![local, kind]));
    let mut setting = vec![libc::TIOCSTI as u32, libc::TIOCLINUX as u32];
    setting.extend(SET_UP_NETWORKS);
    table.insert("ioctl", refuse(vec![Test::NoneOf { argument: 1, values: setting }]));
    let lingering = (1, vec![libc::SOL_SOCKET as u32]);
    let linger = Test::NotBoth { first: lingering, second: (2, vec![libc::SO_LINGER as u32]) };
    let levels = (1, vec![libc::IPPROTO_IP as u32, libc::IPPROTO_IPV6 as u32]);
    let tables = Test::NotBoth { first: levels, second: (2, TABLES.to_vec()) };
    table.insert("setsockopt", refuse(vec![linger, tables]));
    let stopping: Vec<u32> =
        [libc::SIGSTOP, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU].map(|signal| signal as u32).to_vec();
    for (name, argument) in [
        ("kill", 1),
        ("tkill", 1),
        ("tgkill", 2),
        ("rt_sigqueueinfo", 1),
        ("rt_tgsigqueueinfo", 2),
        ("pidfd_send_signal", 1),
    ] {
        let test = Test::NoneOf { argument, values: stopping.clone() };
        table.insert(name, refuse(vec![test]));
    }
    let parents_death = (0, vec![libc::PR_SET_PDEATHSIG as u32]);
    let test = Test::NotBoth { first: parents_death, second: (1, stopping) };
    table.insert("prctl", refuse(vec![test]));
    // A signal of the caller's choice, when something can be read.
    let by_descriptor = Test::NoneOf { argument: 1, values: vec![F_SETSIG] };
    table.insert("fcntl", refuse(vec![by_descriptor]));
    // 0 is Linux; all ones asks which it is.
    let own = Test::OneOf { argument: 0, mask: u32::MAX, values: vec![0, u32::MAX] };
    table.insert("personality", refuse(vec![own]));
    if role == Role::Strict {
        table.extend(NOT_STRICT.iter().map(|&name| (name, Verdict::Errno(libc::EPERM as u16))));
    }
    if role == Role::Zygote {
        table.extend(ENTER_AND_DROP.iter().map(|&name| (name, Verdict::Allow)));
    }
    table
}

/// Why nobody may make the call `name`; `None` if somebody may.
pub fn reason(name: &str) -> Option<&'static str> {
    FAMILIES.iter().find(|family| family.calls.contains(&name)).map(|family| family.why)
}

/// The filter of `role` for `architecture`.
fn program(role: Role, architecture: Architecture) -> Program {
    let numbered = table(role).into_iter();
    let numbered = numbered.filter_map(|(name, verdict)| Some((architecture.number(name)?, verdict)));
    compile(architecture.audit(), &numbered.collect(), Verdict::Errno(libc::ENOSYS as u16))
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

/// What a zygote's child adds to the filter that it inherited, to be left with what an instance may: only what the two differ in. To install a
/// whole filter again is a twentieth of what a fork takes.
pub fn after_zygote() -> &'static Program {
    static FILTER: LazyLock<Program> = LazyLock::new(|| difference(Architecture::NATIVE));
    &FILTER
}

fn difference(architecture: Architecture) -> Program {
    let (mut instance, zygote) = (table(Role::Instance), table(Role::Zygote));
    instance.retain(|name, verdict| zygote.get(name) != Some(verdict));
    let numbered = instance.into_iter();
    let numbered = numbered.filter_map(|(name, verdict)| Some((architecture.number(name)?, verdict)));
    compile(architecture.audit(), &numbered.collect(), Verdict::Allow)
}

fn compiled(role: Role) -> Program {
    program(role, Architecture::NATIVE)
}

/// Compiles the filters now, so that processes that are forked later have them.
pub(crate) fn compile_ahead(roles: &[Role]) {
    for role in roles {
        filter(*role);
    }
}

#[cfg(test)]
mod tests;
