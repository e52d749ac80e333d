//! The system calls that nix does not wrap, and the few unsafe ones that it does: all `unsafe` of the workspace, but for
//! reading the bytes of `enter.rs`.
//!
//! Every function here is a thin, safe wrapper. None keeps state, none decides anything.

#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use nix::unistd::{ForkResult, Pid};

use crate::error::{Context, SysResult};

fn check(result: libc::c_long) -> Result<libc::c_long, Errno> {
    Errno::result(result)
}

fn own(fd: libc::c_long) -> OwnedFd {
    // SAFETY: called only on the result of a system call that has just made this descriptor for us, so nobody else owns it.
    unsafe { OwnedFd::from_raw_fd(fd as RawFd) }
}

fn c_path(path: &Path) -> Result<CString, Errno> {
    use std::os::unix::ffi::OsStrExt;
    CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)
}

/// Refuses to go on in a process that has more than one thread: a lock that another thread holds at the moment of a
/// fork, the allocator's say, would stay locked in the child for ever. See proc_pid_task(5).
///
/// Every process of this crate descends from one that passed here, and none of them starts a thread.
pub(crate) fn require_single_thread() -> SysResult<()> {
    let threads =
        std::fs::read_dir("/proc/self/task").map(Iterator::count).call_on("open", "/proc/self/task")?;
    if threads == 1 { Ok(()) } else { Err(Errno::EBUSY).call("fork with more than one thread") }
}

/// Forks; the child runs `child` and exits with what it returns, panics included. fork(2).
pub(crate) fn fork(child: impl FnOnce() -> i32) -> SysResult<Pid> {
    // SAFETY: fork(2) asks a multi-threaded caller to keep to async-signal-safe functions; this one has a single
    // thread, see `require_single_thread`.
    match unsafe { nix::unistd::fork() }.call("fork")? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => run_and_exit(child),
    }
}

/// linux/sched.h. libc's constant is of a type that is too small for it.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// As [`fork`], with the child in new namespaces (CLONE_NEW…, or none), and in the cgroup whose directory is `group` from its
/// first moment: clone3(2), CLONE_INTO_CGROUP. Joining later would cost a grace period of RCU, 5 to 20 ms on an idle
/// machine. The group is also the root of a new cgroup namespace.
pub(crate) fn fork_into(
    group: BorrowedFd<'_>,
    namespaces: u64,
    child: impl FnOnce() -> i32,
) -> SysResult<Pid> {
    // SAFETY: `clone_args` is plain integers, for which zero means "not used".
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = CLONE_INTO_CGROUP | namespaces;
    args.exit_signal = libc::SIGCHLD as u64;
    args.cgroup = group.as_raw_fd() as u64;
    // SAFETY: as in `clone_sibling`, except that the kernel writes nothing.
    match check(unsafe { libc::syscall(libc::SYS_clone3, &args, size_of_val(&args)) }).call("clone3")? {
        0 => run_and_exit(child),
        pid => Ok(Pid::from_raw(pid as i32)),
    }
}

/// clone3(2) of a child in new namespaces, as a sibling of the caller: the caller's parent becomes its parent. The child
/// runs `child` and exits with what it returns. Returned is its pidfd; its number would be that of the caller's PID
/// namespace, which need not be one that anybody else uses.
pub(crate) fn clone_sibling(namespaces: u64, child: impl FnOnce() -> i32) -> SysResult<OwnedFd> {
    let mut pidfd: RawFd = -1;
    // SAFETY: `clone_args` is plain integers, for which zero means "not used". The exit signal is not used either: a
    // sibling has the caller's.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = namespaces | (libc::CLONE_PARENT | libc::CLONE_PIDFD) as u64;
    args.pidfd = &raw mut pidfd as u64;
    // SAFETY: without CLONE_VM the child gets a copy of the memory, as after fork(2); there is one thread (see
    // `require_single_thread`), so no lock of the C library is held by another. The thread id that the library caches
    // stays the parent's: nothing here uses it. The kernel writes the pidfd to `pidfd`, which outlives the call.
    match check(unsafe { libc::syscall(libc::SYS_clone3, &args, size_of_val(&args)) }).call("clone3")? {
        0 => run_and_exit(child),
        _ => Ok(own(pidfd.into())),
    }
}

fn run_and_exit(child: impl FnOnce() -> i32) -> ! {
    let code = catch_unwind(AssertUnwindSafe(child)).unwrap_or(101);
    // SAFETY: _exit(2) has no precondition. The parent's exit handlers and buffers are not this process's to run.
    unsafe { libc::_exit(code) }
}

/// Ends the process at once. _exit(2)
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: as in `run_and_exit`.
    unsafe { libc::_exit(code) }
}

/// Where the heap began when somebody asked last, 0 if nobody has: before it is given back, proc is out of sight.
static HEAP: AtomicUsize = AtomicUsize::new(0);

/// Looks where the heap begins. proc_pid_maps(5)
pub(crate) fn find_heap() {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let line = maps.lines().find(|line| line.ends_with("[heap]"));
    let start = line.and_then(|line| usize::from_str_radix(line.split_once('-')?.0, 16).ok());
    HEAP.store(start.unwrap_or(0), Ordering::Relaxed);
}

/// Gives the pages of the heap back: what was allocated reads as zeroes from now on. For a process that neither allocates, nor frees,
/// nor looks at anything allocated any more, and leaves by [`exit_now`].
pub(crate) fn release_heap() {
    // A C library that is linked statically has its thread's own variables there, `errno` among them.
    if cfg!(target_feature = "crt-static") {
        return;
    }
    let start = HEAP.load(Ordering::Relaxed);
    // SAFETY: sbrk(0) only tells the heap's end. What is given back lies between the heap's two ends, where the C library's
    // allocator has its memory, and by this function's contract nobody uses that any more.
    unsafe {
        let end = libc::sbrk(0).addr();
        if start != 0 && start < end {
            libc::madvise(std::ptr::without_provenance_mut(start), end - start, libc::MADV_DONTNEED);
        }
    }
}

/// The arguments that the program was started with: where they are until they are hidden.
static ARGUMENTS: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];

/// Looks where the program's arguments are. proc_pid_stat(5), `arg_start` and `arg_end`
pub(crate) fn find_arguments() {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // After the name, which may hold anything, the third field is the first.
    let mut fields = text.rsplit(')').next().unwrap_or_default().split_whitespace().skip(48 - 3);
    for place in &ARGUMENTS {
        place.store(fields.next().and_then(|field| field.parse().ok()).unwrap_or(0), Ordering::Relaxed);
    }
}

/// Overwrites the program's arguments, which everybody reads in `/proc/<pid>/cmdline`, with what it is now. For a process that does not
/// look at them any more.
pub(crate) fn hide_arguments(title: &[u8]) {
    let [start, end] = [&ARGUMENTS[0], &ARGUMENTS[1]].map(|place| place.swap(0, Ordering::Relaxed));
    if start == 0 || end <= start {
        return;
    }
    let kept = title.len().min(end - start - 1);
    let memory = std::ptr::without_provenance_mut::<u8>(start);
    // SAFETY: the kernel put the arguments there, on the stack and above all frames; they are writable, and the standard library hands out
    // copies of them only.
    unsafe {
        std::ptr::write_bytes(memory, 0, end - start);
        std::ptr::copy_nonoverlapping(title.as_ptr(), memory, kept);
    }
}

/// open_tree(2) with OPEN_TREE_CLONE: a detached copy of the mount (and of those below it) at `path` beneath `dir`.
pub(crate) fn clone_tree(dir: BorrowedFd<'_>, path: &CStr) -> Result<OwnedFd, Errno> {
    let flags = libc::OPEN_TREE_CLONE
        | libc::OPEN_TREE_CLOEXEC
        | (libc::AT_RECURSIVE | libc::AT_EMPTY_PATH | libc::AT_SYMLINK_NOFOLLOW) as u32;
    // SAFETY: `path` is a C string that outlives the call; the kernel only reads it.
    let fd = check(unsafe { libc::syscall(libc::SYS_open_tree, dir.as_raw_fd(), path.as_ptr(), flags) })?;
    Ok(own(fd))
}

#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

/// mount_setattr(2) on the whole tree that `mount` stands for.
pub(crate) fn set_mount_attributes(mount: BorrowedFd<'_>, set: u64, propagation: u64) -> Result<(), Errno> {
    let attr = MountAttr { set, clear: 0, propagation, userns_fd: 0 };
    let flags = libc::AT_EMPTY_PATH | libc::AT_RECURSIVE;
    // SAFETY: the pointer and the size describe `attr`, which has the layout of `struct mount_attr`.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &attr,
            size_of_val(&attr),
        )
    })
    .map(drop)
}

/// move_mount(2): attaches the detached `mount` at `target`.
pub(crate) fn attach_mount(mount: BorrowedFd<'_>, target: &Path) -> Result<(), Errno> {
    let target = c_path(target)?;
    // SAFETY: both strings are C strings that outlive the call; the kernel only reads them.
    check(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            target.as_ptr(),
            libc::MOVE_MOUNT_F_EMPTY_PATH,
        )
    })
    .map(drop)
}

/// A file system that is being configured: fsopen(2), fsconfig(2), fsmount(2).
pub(crate) struct Filesystem(OwnedFd);

impl Filesystem {
    pub(crate) fn open(kind: &CStr) -> Result<Self, Errno> {
        // SAFETY: `kind` is a C string that outlives the call.
        check(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), libc::FSOPEN_CLOEXEC) })
            .map(|fd| Self(own(fd)))
    }

    pub(crate) fn set(&self, key: &CStr, value: &CStr) -> Result<(), Errno> {
        // SAFETY: key and value are C strings that outlive the call, as FSCONFIG_SET_STRING asks for.
        check(unsafe {
            libc::syscall(
                libc::SYS_fsconfig,
                self.0.as_raw_fd(),
                libc::FSCONFIG_SET_STRING,
                key.as_ptr(),
                value.as_ptr(),
                0,
            )
        })
        .map(drop)
    }

    pub(crate) fn set_fd(&self, key: &CStr, value: BorrowedFd<'_>) -> Result<(), Errno> {
        let null = std::ptr::null::<libc::c_char>();
        // SAFETY: key is a C string that outlives the call, and FSCONFIG_SET_FD takes a descriptor and no value.
        check(unsafe {
            libc::syscall(
                libc::SYS_fsconfig,
                self.0.as_raw_fd(),
                libc::FSCONFIG_SET_FD,
                key.as_ptr(),
                null,
                value.as_raw_fd(),
            )
        })
        .map(drop)
    }

    pub(crate) fn mount(self, attributes: u64) -> Result<OwnedFd, Errno> {
        let null = std::ptr::null::<libc::c_char>();
        // SAFETY: FSCONFIG_CMD_CREATE takes neither key nor value.
        check(unsafe {
            libc::syscall(libc::SYS_fsconfig, self.0.as_raw_fd(), libc::FSCONFIG_CMD_CREATE, null, null, 0)
        })?;
        // SAFETY: takes integers only.
        check(unsafe {
            libc::syscall(libc::SYS_fsmount, self.0.as_raw_fd(), libc::FSMOUNT_CLOEXEC, attributes)
        })
        .map(own)
    }
}

/// pidfd_open(2).
pub(crate) fn pidfd_open(pid: Pid) -> Result<OwnedFd, Errno> {
    // SAFETY: takes integers only.
    check(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) }).map(own)
}

/// pidfd_send_signal(2).
pub(crate) fn pidfd_signal(pidfd: BorrowedFd<'_>, signal: i32) -> Result<(), Errno> {
    let none = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null siginfo asks for the one that kill(2) would send.
    check(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, none, 0) }).map(drop)
}

/// The wait(2) status of the process behind `pidfd`, after its parent reaped it: PIDFD_GET_INFO with PIDFD_INFO_EXIT,
/// Linux 6.15. `None` when the kernel has it not, or not yet.
pub(crate) fn pidfd_exit_status(pidfd: BorrowedFd<'_>) -> Option<i32> {
    #[repr(C)]
    #[derive(Default)]
    struct PidfdInfo {
        mask: u64,
        cgroup_id: u64,
        ids: [u32; 11],
        exit_code: i32,
    }
    const INFO_EXIT: u64 = 1 << 3;
    // _IOWR(0xff, 11, struct pidfd_info), first published size.
    let request = nix::request_code_readwrite!(0xff, 11, size_of::<PidfdInfo>());
    let mut info = PidfdInfo { mask: INFO_EXIT, ..PidfdInfo::default() };
    // SAFETY: the request's number carries the size of `info`, and the kernel writes no more than that.
    let result = unsafe { libc::ioctl(pidfd.as_raw_fd(), request as _, &mut info) };
    (result == 0 && info.mask & INFO_EXIT != 0).then_some(info.exit_code)
}

/// Leaves the process with nothing but `fds` as descriptors 0, 1, 2 and so on, and `keep`, close-on-exec, after them.
/// dup3(2), close_range(2).
///
/// For children that go on to `exec` or `_exit`: every other `OwnedFd` in their memory is stale afterwards, and since
/// neither way runs destructors, none of them is closed again.
pub(crate) fn arrange(fds: &[BorrowedFd<'_>], keep: OwnedFd) -> SysResult<OwnedFd> {
    let count = fds.len() as RawFd;
    // First out of the way of the numbers that they are to get, then onto them.
    let high = |fd: BorrowedFd<'_>| {
        // SAFETY: takes integers only.
        Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, count + 1) }).call("fcntl")
    };
    let kept = high(keep.as_fd())?;
    let others = fds.iter().map(|fd| high(*fd)).collect::<SysResult<Vec<_>>>()?;
    for (number, fd) in others.into_iter().enumerate() {
        // SAFETY: takes integers only; whatever had that number was copied above or is not wanted.
        Errno::result(unsafe { libc::dup3(fd, number as RawFd, 0) }).call("dup3")?;
    }
    // SAFETY: as above.
    Errno::result(unsafe { libc::dup3(kept, count, libc::O_CLOEXEC) }).call("dup3")?;
    std::mem::forget(keep);
    // SAFETY: takes integers only.
    check(unsafe { libc::syscall(libc::SYS_close_range, count + 1, u32::MAX, 0) }).call("close_range")?;
    Ok(own(count.into()))
}

/// Closes descriptors that only the parent is to have. close(2).
///
/// For a child that has just been forked and leaves by `_exit`: its copies of the `OwnedFd`s are never dropped.
pub(crate) fn close_in_child(fds: &[&OwnedFd]) -> SysResult<()> {
    for fd in fds {
        // SAFETY: takes an integer only; nothing in this process uses or closes that number again, see above.
        Errno::result(unsafe { libc::close(fd.as_raw_fd()) }).call("close")?;
    }
    Ok(())
}

/// Leaves the calling thread no capability in any set: capset(2), and the ambient set with the permitted one, see
/// capabilities(7).
pub(crate) fn drop_capabilities() -> SysResult<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    // _LINUX_CAPABILITY_VERSION_3: two triples of 32 bits. Pid 0 is the calling thread.
    let header = Header { version: 0x2008_0522, pid: 0 };
    let none = [[0u32; 3]; 2];
    // SAFETY: version 3 takes a header and two triples of 32 bits, which these are.
    check(unsafe { libc::syscall(libc::SYS_capset, &header, &none) }).map(drop).call("capset")
}

/// Has `socket`, of the family UNIX, take no descriptors any more, where the kernel can (Linux 6.16: SO_PASSRIGHTS). What
/// somebody passes has to be closed by who got it, and closing may wait.
pub(crate) fn refuse_descriptors(socket: BorrowedFd<'_>) {
    const SO_PASSRIGHTS: libc::c_int = 83;
    let no: libc::c_int = 0;
    // SAFETY: the value is an integer of the size that is told, and outlives the call. A kernel that does not know the option
    // changes nothing.
    unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PASSRIGHTS,
            (&raw const no).cast(),
            size_of_val(&no) as libc::socklen_t,
        );
    }
}

/// landlock_create_ruleset(2), asked for its version.
pub(crate) fn landlock_version() -> Result<i32, Errno> {
    const VERSION: u32 = 1;
    let none = std::ptr::null::<libc::c_void>();
    // SAFETY: asked for the version, the call takes no attributes.
    check(unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, none, 0, VERSION) })
        .map(|version| version as i32)
}

/// landlock_create_ruleset(2). A kernel that does not know scopes takes the longer attributes if those are zero.
pub(crate) fn landlock_ruleset(files: u64, scopes: u64) -> Result<OwnedFd, Errno> {
    let attributes: [u64; 3] = [files, 0, scopes];
    // SAFETY: pointer and size describe `attributes`, which is laid out as `struct landlock_ruleset_attr` is: files,
    // network, scopes.
    check(unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, &attributes, size_of_val(&attributes), 0)
    })
    .map(own)
}

/// landlock_add_rule(2) with LANDLOCK_RULE_PATH_BENEATH.
pub(crate) fn landlock_allow_beneath(ruleset: &OwnedFd, root: &OwnedFd, access: u64) -> Result<(), Errno> {
    #[repr(C, packed)]
    struct PathBeneath {
        access: u64,
        root: i32,
    }
    const PATH_BENEATH: u32 = 1;
    let rule = PathBeneath { access, root: root.as_raw_fd() };
    // SAFETY: `rule` has the layout of `struct landlock_path_beneath_attr` and outlives the call.
    check(unsafe {
        libc::syscall(libc::SYS_landlock_add_rule, ruleset.as_raw_fd(), PATH_BENEATH, &raw const rule, 0)
    })
    .map(drop)
}

/// landlock_restrict_self(2).
pub(crate) fn landlock_restrict(ruleset: &OwnedFd) -> Result<(), Errno> {
    // SAFETY: takes integers only.
    check(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0) }).map(drop)
}

/// prctl(2) with integer arguments.
pub(crate) fn prctl(option: libc::c_int, a: libc::c_ulong, b: libc::c_ulong) -> Result<(), Errno> {
    // SAFETY: the options used in this crate (the callers') take integers only.
    Errno::result(unsafe { libc::prctl(option, a, b, 0, 0) }).map(drop)
}

/// Drops every capability from the bounding set, so that no exec can ever give one back.
pub(crate) fn drop_bounding_set() -> SysResult<()> {
    for capability in 0..64 {
        match prctl(libc::PR_CAPBSET_DROP, capability, 0) {
            // The first number that the running kernel does not know.
            Err(Errno::EINVAL) => return Ok(()),
            other => other.call("prctl PR_CAPBSET_DROP")?,
        }
    }
    Ok(())
}

/// seccomp(2) SECCOMP_SET_MODE_FILTER.
pub(crate) fn install_filter(program: &[libc::sock_filter]) -> SysResult<()> {
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
    // SAFETY: `program` points to `len` instructions that outlive the call; the kernel copies them and writes nothing.
    check(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &program) })
        .map(drop)
        .call("seccomp")
}

/// setrlimit(2) of another process: prlimit(2). Soft and hard limit become `value`.
pub(crate) fn set_limit(pid: Pid, resource: u32, value: u64) -> Result<(), Errno> {
    let limit = libc::rlimit64 { rlim_cur: value, rlim_max: value };
    // SAFETY: `limit` outlives the call; the old limits are not asked for.
    Errno::result(unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            pid.as_raw(),
            resource,
            &limit,
            std::ptr::null_mut::<libc::rlimit64>(),
        )
    })
    .map(drop)
}

/// Brings the loopback interface up. netdevice(7), SIOCSIFFLAGS.
pub(crate) fn loopback_up() -> SysResult<()> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    let control =
        socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).call("socket")?;
    // SAFETY: `ifreq` is plain data, for which zero is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
    // SAFETY: SIOCSIFFLAGS reads one `ifreq`, which is what is passed.
    let result = unsafe { libc::ioctl(control.as_raw_fd(), libc::SIOCSIFFLAGS, &request) };
    Errno::result(result).map(drop).call("ioctl SIOCSIFFLAGS")
}

/// Sends one message with descriptors over a socket. unix(7), SCM_RIGHTS.
pub(crate) fn send(socket: BorrowedFd<'_>, message: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    send_with(socket, message, fds, MsgFlags::MSG_NOSIGNAL)
}

/// As [`send`]; EAGAIN where that would have to wait.
pub(crate) fn send_if_room(
    socket: BorrowedFd<'_>,
    message: &[u8],
    fds: &[BorrowedFd<'_>],
) -> Result<(), Errno> {
    send_with(socket, message, fds, MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT)
}

fn send_with(
    socket: BorrowedFd<'_>,
    message: &[u8],
    fds: &[BorrowedFd<'_>],
    flags: MsgFlags,
) -> Result<(), Errno> {
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &rights[..0] } else { &rights[..] };
    let sent = sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(message)], control, flags, None)?;
    if sent == message.len() { Ok(()) } else { Err(Errno::EMSGSIZE) }
}

/// The most descriptors that one message may carry.
pub(crate) const MAX_FDS: usize = 16;

/// Receives one message with descriptors, all close-on-exec. An empty message means that the peer is gone.
///
/// A message or a list of descriptors that did not fit is EMSGSIZE: half a message is never worked on.
pub(crate) fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<(usize, Vec<OwnedFd>), Errno> {
    match receive_what_fits(socket, buffer)? {
        (_, _, true) => Err(Errno::EMSGSIZE),
        (length, fds, false) => Ok((length, fds)),
    }
}

/// As [`receive`], and whether something did not fit: a process that has no descriptors left gets the message without them.
pub(crate) fn receive_what_fits(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
) -> Result<(usize, Vec<OwnedFd>, bool), Errno> {
    let mut space = nix::cmsg_space!([RawFd; MAX_FDS]);
    let mut slices = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = match recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut space), flags) {
        // It is gone and had not read everything that was sent to it.
        Err(Errno::ECONNRESET) => return Ok((0, Vec::new(), false)),
        received => received?,
    };
    let cut = message.flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC);
    let mut fds = Vec::new();
    if let Ok(control) = message.cmsgs() {
        for item in control {
            if let ControlMessageOwned::ScmRights(raw) = item {
                fds.extend(raw.into_iter().map(|fd| own(fd.into())));
            }
        }
    }
    Ok((message.bytes, fds, cut))
}

/// openat2(2) that never leaves `dir`: no `..`, no absolute path, no symbolic link, no magic link, no other mount.
pub(crate) fn open_beneath(dir: BorrowedFd<'_>, path: &str, flags: nix::fcntl::OFlag) -> SysResult<OwnedFd> {
    use nix::fcntl::{OpenHow, ResolveFlag, openat2};
    let resolve = ResolveFlag::RESOLVE_BENEATH
        | ResolveFlag::RESOLVE_NO_SYMLINKS
        | ResolveFlag::RESOLVE_NO_MAGICLINKS
        | ResolveFlag::RESOLVE_NO_XDEV;
    let how = OpenHow::new().flags(flags | nix::fcntl::OFlag::O_CLOEXEC).resolve(resolve);
    openat2(dir.as_fd(), path, how).call_on("openat2", path)
}
