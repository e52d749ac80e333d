//! The check from outside: whether a process that says it dropped everything really did.
//!
//! A zygote's child was forked from memory that third-party code ran in, so its word counts for nothing. What is looked at
//! here is the kernel's: proc_pid_status(5), the namespaces of proc_pid_ns(5), the cgroup's own list of processes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::fcntl::{OFlag, open, openat, readlinkat};
use nix::sys::stat::{Mode, fstat};
use nix::unistd::{Pid, SysconfVar, sysconf};

use crate::builder::NAMESPACES;
use crate::error::{Context, SysResult};
use crate::launcher::wire::Memory;
use crate::sys;

/// What a process has to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Expected {
    /// The host's uid and gid, all four of each.
    pub(crate) id: u32,
    /// At least so many seccomp filters.
    pub(crate) filters: u32,
    /// The namespaces, as the inode numbers of [`crate::builder::NAMESPACES`].
    pub(crate) namespaces: Vec<u64>,
    /// The inode number of the socket that has to be its descriptor 3.
    pub(crate) socket: Option<u64>,
}

/// The process is not what it has to be, or there is none.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Unconfined {
    /// What the kernel says differs.
    #[error("{field} is {found}, expected {expected}")]
    Differs {
        /// The field of the process's status, or the namespace.
        field: &'static str,
        /// What it has.
        found: String,
        /// What it has to have.
        expected: String,
    },
    /// Not exactly one process.
    #[error("the container has {0} processes beside its init, expected 1")]
    Processes(usize),
    /// A system call failed: most often the process is gone.
    #[error(transparent)]
    Syscall(#[from] crate::SyscallError),
}

/// A process that passed, held so that its number cannot come to mean another.
#[derive(Debug)]
pub(crate) struct Checked {
    pub(crate) pid: Pid,
    pub(crate) pidfd: OwnedFd,
    /// Its data segment, bytes: what it was forked with.
    pub(crate) data: u64,
    /// Its resident private memory, bytes.
    pub(crate) resident: u64,
}

/// The inode numbers that stand for `namespaces`.
pub(crate) fn inodes(namespaces: &[OwnedFd]) -> SysResult<Vec<u64>> {
    namespaces.iter().map(|fd| fstat(fd).map(|stat| stat.st_ino).call("fstat")).collect()
}

/// Checks the only process in `processes` beside `init`; gives its status file too.
pub(crate) fn check(
    processes: &[Pid],
    init: Pid,
    expected: &Expected,
) -> Result<(Checked, OwnedFd), Unconfined> {
    let others: Vec<Pid> = processes.iter().copied().filter(|pid| *pid != init).collect();
    let [pid] = others[..] else { return Err(Unconfined::Processes(others.len())) };
    // What is opened beneath this descriptor is about this very process: after its end every read fails.
    let path = format!("/proc/{pid}");
    let directory = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let process = open(Path::new(&path), directory, Mode::empty()).call_on("open", &path)?;
    let pidfd = sys::pidfd_open(pid).call("pidfd_open")?;
    let mut text = String::new();
    let status = openat(&process, "status", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty());
    let mut status = File::from(status.call_on("open", &path)?);
    status.read_to_string(&mut text).call_on("read", &path)?;
    check_status(&text, expected)?;
    check_links(expected, |name| {
        let link = readlinkat(process.as_fd(), name).call_on("readlink", &path)?;
        Ok(link.to_string_lossy().into_owned())
    })?;
    let fields = fields(&text);
    let bytes = |name: &str| fields.get(name).and_then(|field| kilobytes(field)).unwrap_or(0);
    let (data, resident) = (bytes("VmData"), bytes("RssAnon") + bytes("RssShmem"));
    Ok((Checked { pid, pidfd, data, resident }, status.into()))
}

/// `link` gives where a link in the process's directory leads.
fn check_links(expected: &Expected, link: impl Fn(&str) -> SysResult<String>) -> Result<(), Unconfined> {
    if expected.namespaces.len() != NAMESPACES.len() {
        // Nothing to compare with is no reason to pass.
        let (found, expected) = (expected.namespaces.len().to_string(), "all of its slot".to_owned());
        return Err(Unconfined::Differs { field: "number of known namespaces", found, expected });
    }
    let is = |field, path: &str, expected: String| {
        let found = link(path)?;
        if found == expected { Ok(()) } else { Err(Unconfined::Differs { field, found, expected }) }
    };
    for (name, inode) in NAMESPACES.into_iter().zip(&expected.namespaces) {
        is(name, &format!("ns/{name}"), format!("{name}:[{inode}]"))?;
    }
    match expected.socket {
        Some(inode) => is("descriptor 3", "fd/3", format!("socket:[{inode}]")),
        None => Ok(()),
    }
}

fn kilobytes(field: &str) -> Option<u64> {
    field.strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kilobytes| kilobytes << 10)
}

/// The resident private memory of a process, bytes; 0 when it is gone.
pub(crate) fn resident(pid: Pid) -> u64 {
    resident_in(&std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default())
}

/// The same out of the text of a status file.
pub(crate) fn resident_in(status: &str) -> u64 {
    let fields = fields(status);
    let bytes = |name: &str| fields.get(name).and_then(|field| kilobytes(field)).unwrap_or(0);
    bytes("RssAnon") + bytes("RssShmem")
}

/// All that is resident of a process, with the files that it maps, bytes: never less than [`resident`], and asked for in a
/// tenth of the time. 0 when it is gone.
pub(crate) fn resident_at_most(pid: Pid) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    let pages = text.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0);
    pages * sysconf(SysconfVar::PAGE_SIZE).ok().flatten().map_or(4096, |size| size as u64)
}

/// The private memory of a process with its share of what others share with it, bytes; 0 when it is gone.
pub(crate) fn proportional(pid: Pid) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let fields = fields(&text);
    let bytes = |name: &str| fields.get(name).and_then(|field| kilobytes(field)).unwrap_or(0);
    bytes("Pss_Anon") + bytes("Pss_Shmem")
}

/// Which memory a process has; none when it is gone.
pub(crate) fn memory(pid: Pid) -> Memory {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let fields = fields(&text);
    let bytes = |name: &str| fields.get(name).and_then(|field| kilobytes(field)).unwrap_or(0);
    Memory {
        private: bytes("Private_Clean") + bytes("Private_Dirty"),
        proportional: bytes("Pss"),
        anonymous: bytes("Anonymous"),
    }
}

fn fields(status: &str) -> BTreeMap<&str, &str> {
    status.lines().filter_map(|line| line.split_once(':')).map(|(name, value)| (name, value.trim())).collect()
}

fn check_status(status: &str, expected: &Expected) -> Result<(), Unconfined> {
    let fields = fields(status);
    let found = |field: &'static str| fields.get(field).copied().unwrap_or("missing");
    let ids = [expected.id; 4].map(|id| id.to_string()).join("\t");
    let none = "0000000000000000";
    for (field, wanted) in [
        ("Uid", ids.as_str()),
        ("Gid", ids.as_str()),
        ("Groups", ""),
        ("CapInh", none),
        ("CapPrm", none),
        ("CapEff", none),
        ("CapBnd", none),
        ("CapAmb", none),
        ("NoNewPrivs", "1"),
        ("Seccomp", "2"),
        ("TracerPid", "0"),
        ("Threads", "1"),
    ] {
        if found(field) != wanted {
            let (found, expected) = (found(field).to_owned(), wanted.to_owned());
            return Err(Unconfined::Differs { field, found, expected });
        }
    }
    let filters = found("Seccomp_filters");
    if filters.parse::<u32>().is_ok_and(|count| count >= expected.filters) {
        return Ok(());
    }
    let expected = format!("at least {}", expected.filters);
    Err(Unconfined::Differs { field: "Seccomp_filters", found: filters.to_owned(), expected })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "Name:\tpython3\nTracerPid:\t0\nUid:\t7\t7\t7\t7\nGid:\t7\t7\t7\t7\nGroups:\t \n\
        Threads:\t1\nCapInh:\t0000000000000000\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\n\
        CapBnd:\t0000000000000000\nCapAmb:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t2\n";

    fn expected() -> Expected {
        Expected { id: 7, filters: 2, namespaces: Vec::new(), socket: None }
    }

    #[test]
    fn a_dropped_process_passes() {
        assert_eq!(check_status(GOOD, &expected()), Ok(()));
    }

    #[test]
    fn every_way_to_have_kept_something_is_noticed() {
        for (good, bad) in [
            ("Uid:\t7\t7\t7\t7", "Uid:\t7\t7\t0\t7"),
            ("Gid:\t7\t7\t7\t7", "Gid:\t7\t7\t7\t0"),
            ("Groups:\t ", "Groups:\t0"),
            ("CapInh:\t0000000000000000", "CapInh:\t0000000000200000"),
            ("CapPrm:\t0000000000000000", "CapPrm:\t0000000000200000"),
            ("CapEff:\t0000000000000000", "CapEff:\t0000000000200000"),
            ("CapBnd:\t0000000000000000", "CapBnd:\t000001ffffffffff"),
            ("CapAmb:\t0000000000000000", "CapAmb:\t0000000000200000"),
            ("NoNewPrivs:\t1", "NoNewPrivs:\t0"),
            ("Seccomp:\t2", "Seccomp:\t0"),
            ("Seccomp_filters:\t2", "Seccomp_filters:\t1"),
            ("TracerPid:\t0", "TracerPid:\t9"),
            ("Threads:\t1", "Threads:\t2"),
            ("NoNewPrivs:\t1\n", ""),
        ] {
            let status = GOOD.replace(good, bad);
            assert_ne!(status, GOOD);
            assert!(check_status(&status, &expected()).is_err(), "{bad}");
        }
    }

    /// Where its links lead, but for `other`.
    fn lead(path: &str, other: &str) -> String {
        let inode = |at: usize| if path == other { 1 } else { 100 + at };
        match NAMESPACES.iter().position(|name| path == format!("ns/{name}")) {
            Some(at) => format!("{}:[{}]", NAMESPACES[at], inode(at)),
            None => format!("socket:[{}]", inode(7)),
        }
    }

    #[test]
    fn it_is_in_all_of_its_slot_and_at_its_own_socket() {
        let all = Expected { namespaces: (100..107).collect(), socket: Some(107), ..expected() };
        let check = |expected: &Expected, other: &str| check_links(expected, |path| Ok(lead(path, other)));
        assert_eq!(check(&all, ""), Ok(()));
        let elsewhere = NAMESPACES.map(|name| (format!("ns/{name}"), name));
        for (path, what) in elsewhere.into_iter().chain([("fd/3".to_owned(), "descriptor 3")]) {
            let refused = check(&all, &path);
            assert!(
                matches!(refused, Err(Unconfined::Differs { field, .. }) if field == what),
                "{refused:?}"
            );
        }
        let refused = check(&Expected { namespaces: (100..106).collect(), ..all.clone() }, "");
        let wanted = "number of known namespaces is 6, expected all of its slot";
        assert_eq!(refused.map_err(|error| error.to_string()), Err(wanted.to_owned()));
        assert_eq!(check(&Expected { socket: None, ..all }, "fd/3"), Ok(()), "nobody asked for it");
        let gone = check_links(&Expected { namespaces: (100..107).collect(), ..expected() }, |path| {
            Err(nix::errno::Errno::ENOENT).call_on("readlink", path)
        });
        assert!(matches!(gone, Err(Unconfined::Syscall(_))), "{gone:?}");
    }
}
