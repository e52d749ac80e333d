//! A file that one server holds at a time, with the number of the process that took it inside.
//!
//! flock(2): the lock belongs to the open file, which the server's other processes have from their parent. So it is free
//! when the last of them is gone, be it that they stop or that the first was killed and the rest die with it. For that
//! moment the file names a process that is no more, and whoever wants the lock waits.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};

/// How long the processes of a server that was killed may take to die: they have up to thousands of containers to take
/// down, and the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(5);

/// A link, which whoever owns the directory may have put there, is not followed: root takes this lock.
const NO_LINK: i32 = OFlag::O_NOFOLLOW.bits();

/// Why the lock is not ours.
#[derive(Debug)]
pub(crate) enum NotTaken {
    /// It is this process's.
    Held(String),
    /// The file cannot be used.
    Io(io::Error),
}

#[expect(clippy::disallowed_methods, reason = "flock(2) tells nobody but who waits in it, for ever")]
fn pause() {
    std::thread::sleep(PAUSE);
}

/// Takes the lock; it goes with the value and all that was forked with it. Waits for a dead owner's processes to end.
pub(crate) fn take(path: &Path) -> Result<Flock<File>, NotTaken> {
    take_within(path, PATIENCE, pause)
}

fn take_within(path: &Path, patience: Duration, mut pause: impl FnMut()) -> Result<Flock<File>, NotTaken> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .mode(0o600)
        .custom_flags(NO_LINK)
        .open(path);
    let mut file = file.map_err(NotTaken::Io)?;
    let began = std::time::Instant::now();
    loop {
        file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut lock) => {
                let named = lock.set_len(0).and_then(|()| write!(lock, "{}", std::process::id()));
                return named.map(|()| lock).map_err(NotTaken::Io);
            }
            Err((file, Errno::EWOULDBLOCK)) => file,
            Err((_, errno)) => return Err(NotTaken::Io(errno.into())),
        };
        // Read anew through another descriptor: ours has to stay at the beginning.
        let mut owner = String::new();
        File::open(path).and_then(|mut file| file.read_to_string(&mut owner)).map_err(NotTaken::Io)?;
        if lives(owner.trim()) || began.elapsed() > patience {
            return Err(NotTaken::Held(owner));
        }
        pause();
    }
}

/// Whether the process runs; a zombie does not, it only was not waited for yet. Nor does nobody: the file is empty for the
/// moment in which its owner is about to write it, and is read again.
fn lives(pid: &str) -> bool {
    if pid.is_empty() {
        return false;
    }
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // proc_pid_stat(5): the state follows the command's name, which is in parentheses and may hold anything.
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['Z', 'X']))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The number of a process that has ended.
    fn dead() -> String {
        let mut child = std::process::Command::new("/bin/true").spawn().unwrap();
        child.wait().unwrap();
        child.id().to_string()
    }

    fn held(path: &Path, owner: &str) -> Flock<File> {
        let lock = take(path).unwrap();
        fs::write(path, owner).unwrap();
        lock
    }

    #[test]
    fn a_living_owner_keeps_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let lock = held(&path, &std::process::id().to_string());
        let Err(NotTaken::Held(owner)) = take_within(&path, PATIENCE, || panic!("it waits")) else {
            panic!()
        };
        assert_eq!(owner, std::process::id().to_string());
        drop(lock);
        assert_eq!(fs::read_to_string(take(&path).map(|_| path).unwrap()).unwrap(), owner);
    }

    #[test]
    fn a_dead_owners_processes_are_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let mut last = Some(held(&path, &dead()));
        take_within(&path, PATIENCE, || drop(last.take())).unwrap();
        assert!(last.is_none());
    }

    #[test]
    fn a_zombie_is_dead() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let mut child = std::process::Command::new("/bin/cat")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut last = Some(held(&path, &child.id().to_string()));
        assert!(lives(&child.id().to_string()));
        drop(child.stdin.take());
        let id = nix::sys::wait::Id::Pid(nix::unistd::Pid::from_raw(child.id() as i32));
        let flags = nix::sys::wait::WaitPidFlag::WEXITED | nix::sys::wait::WaitPidFlag::WNOWAIT;
        nix::sys::wait::waitid(id, flags).unwrap();
        take_within(&path, PATIENCE, || drop(last.take())).unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn patience_ends() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let owner = dead();
        let _lock = held(&path, &owner);
        let Err(NotTaken::Held(named)) = take_within(&path, Duration::ZERO, || {}) else { panic!() };
        assert_eq!(named, owner);
    }
}
