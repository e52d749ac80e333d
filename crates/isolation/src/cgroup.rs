//! Control groups, version 2: finding the hierarchy, making and removing groups, limits. See the kernel's
//! Documentation/admin-guide/cgroup-v2.rst.
//!
//! A group is made for one container, removed with it, and never handed on: whoever kept a descriptor of an old group's
//! `cgroup.procs` could otherwise still put processes into it. Every container has a group even where no controller is
//! to be had: membership is how its processes are found, and `cgroup.kill` how they all end at once.

mod place;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::ppoll;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::error::{Context, SysResult, SyscallError};
pub(crate) use place::choose;
pub use place::{Lack, NoHierarchy, Place};

/// The controllers that limits are kept by.
pub const CONTROLLERS: [&str; 4] = ["cpu", "io", "memory", "pids"];

/// The parent of all groups of one launcher.
#[derive(Debug)]
pub struct Hierarchy {
    root: PathBuf,
    controllers: Vec<String>,
}

/// Chooses where our groups are made. See [`Place`].
pub fn find() -> Result<Place, NoHierarchy> {
    place::choose(&|path| fs::read_to_string(path).ok())
}

impl Hierarchy {
    /// Makes (or takes over) the parent group `name` in `place`, removes what an earlier owner left in it, and hands
    /// every available controller down to its children.
    ///
    /// Returns the hierarchy and how many left-over groups of containers it removed.
    pub fn open(place: &Place, name: &str) -> SysResult<(Self, usize)> {
        let root = place.directory.join(name);
        if let Err(error) = fs::create_dir(&root)
            && error.kind() != std::io::ErrorKind::AlreadyExists
        {
            return Err(error).call_on("mkdir", &root);
        }
        let mut removed = 0;
        // All at once, so that they end side by side.
        Group { path: root.clone() }.kill()?;
        for entry in fs::read_dir(&root).call_on("open", &root)?.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                removed += Group { path: entry.path() }.destroy()?;
            }
        }
        // Down from the place, then down from our own parent.
        let controllers = handed_down(&place.controllers, &[&place.directory, &root]);
        Ok((Self { root, controllers }, removed))
    }

    /// Without a parent of our own: groups are made in `place` itself.
    pub fn in_place(place: &Place) -> Self {
        let controllers = handed_down(&place.controllers, &[&place.directory]);
        Self { root: place.directory.clone(), controllers }
    }

    /// Removes what owners left that were killed: groups that are called `prefix` and the number of a process which is no more.
    pub fn sweep(&self, prefix: &str) {
        for entry in fs::read_dir(&self.root).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let owner = name.to_str().and_then(|name| name.strip_prefix(prefix)?.parse::<u32>().ok());
            if owner.is_none_or(|owner| Path::new(&format!("/proc/{owner}")).exists()) {
                continue;
            }
            let group = Group { path: entry.path() };
            // Processes of another PID namespace have the number 0 here, and so may their owner be out of sight.
            if group.processes().is_ok_and(|all| all.iter().all(|pid| pid.as_raw() != 0)) {
                // Another one may be sweeping, and has it then.
                let _ = group.destroy();
            }
        }
    }

    /// The controllers whose limits the kernel keeps for our groups.
    pub fn controllers(&self) -> &[String] {
        &self.controllers
    }

    /// Whether `name` is one of them.
    pub fn has(&self, name: &str) -> bool {
        self.controllers.iter().any(|controller| controller == name)
    }

    /// Makes a group.
    pub fn create(&self, name: &str) -> SysResult<Group> {
        Group::make(self.root.join(name))
    }

    /// Hands every available controller down to the groups in `group`, which has no process of its own.
    pub fn hand_down(&self, group: &Group) -> SysResult<()> {
        let control = group.path.join("cgroup.subtree_control");
        self.controllers.iter().try_for_each(|name| write(&control, &format!("+{name}")))
    }

    /// Of all groups together.
    pub(crate) fn activity(&self) -> Activity {
        Activity::of(&Group { path: self.root.clone() })
    }

    /// Removes the parent with every group in it, killing what is left.
    pub fn remove_all(&self) -> SysResult<()> {
        Group { path: self.root.clone() }.destroy().map(drop)
    }
}

/// What a container may use. Zero is not "unlimited": every limit has a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Memory that the container's processes may add to what they were forked with, bytes.
    pub memory: u64,
    /// Processes and threads.
    pub processes: u32,
    /// Processor time, in thousandths of one processor.
    pub cpu_millis: u32,
    /// Its part when processors are short, beside others' parts: 1 to 10,000.
    #[serde(default = "even")]
    pub cpu_weight: u32,
    /// Open files per process.
    pub files: u32,
    /// Memory from which on it is slowed down and made to give pages back, bytes.
    pub memory_high: Option<u64>,
    /// Bytes a second that it may read from, and write to, each disk.
    pub io_bytes: Option<u64>,
}

impl Default for Limits {
    /// 128 MiB, as a Lambda function has unless it asks for more; 512 processes and two processors are beyond what a
    /// function needs and far below what hurts the machine; 1,024 files is what a function has there too. Disks are not held
    /// back unless somebody says so: a function writes to memory only, and reads what others have read before.
    fn default() -> Self {
        Self {
            memory: 128 << 20,
            processes: 512,
            cpu_millis: 2000,
            cpu_weight: 100,
            files: 1024,
            memory_high: None,
            io_bytes: None,
        }
    }
}

fn even() -> u32 {
    Limits::default().cpu_weight
}

/// One container's group.
#[derive(Debug, Clone)]
pub struct Group {
    path: PathBuf,
}

/// Whether processes in a group ran, told by the time they took, which the kernel counts in every group: cpu.stat in the
/// kernel's Documentation/admin-guide/cgroup-v2.rst. It counts at each tick of the clock and when a process stops running.
#[derive(Debug)]
pub(crate) struct Activity {
    file: Option<File>,
    last: Option<u64>,
}

impl Activity {
    pub(crate) fn of(group: &Group) -> Self {
        Self { file: File::open(group.path.join("cpu.stat")).ok(), last: None }
    }

    /// Whether some ran since this was last asked: yes at first, and where the kernel does not tell.
    pub(crate) fn changed(&mut self) -> bool {
        let now = self.file.as_ref().and_then(micros);
        now.is_none() || std::mem::replace(&mut self.last, now) != now
    }

    /// Microseconds that they took since this was last asked; none at first.
    pub(crate) fn grown(&mut self) -> u64 {
        let Some(now) = self.file.as_ref().and_then(micros) else { return 0 };
        self.last.replace(now).map_or(0, |before| now.saturating_sub(before))
    }
}

fn micros(stat: &File) -> Option<u64> {
    let mut text = [0; 64];
    let length = stat.read_at(&mut text, 0).ok()?;
    let line = std::str::from_utf8(&text[..length]).ok()?.lines().next()?;
    line.strip_prefix("usage_usec ")?.parse().ok()
}

/// How a group's memory stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Processes that the kernel killed for want of memory.
    pub oom_kills: u64,
    /// The most memory ever charged, bytes; 0 where the kernel does not tell.
    pub memory_peak: u64,
}

/// What a group has and uses. Where the kernel does not tell, a number is 0 and a pressure `None`.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Stats {
    /// Memory that is charged to it, bytes.
    pub memory: u64,
    /// The most that ever was, bytes.
    pub memory_peak: u64,
    /// Processes that the kernel killed for want of memory.
    pub oom_kills: u64,
    /// Processes and threads.
    pub processes: u64,
    /// Processor time, microseconds.
    pub cpu_micros: u64,
    /// Whether every process stands still.
    pub frozen: bool,
    /// The share of the last ten seconds in which some process had to wait for a processor, for memory, for a disk.
    pub pressure: [Option<f64>; 3],
}

impl Group {
    fn make(path: PathBuf) -> SysResult<Self> {
        fs::create_dir(&path).call_on("mkdir", &path)?;
        Ok(Self { path })
    }

    /// Makes a group in this one.
    pub fn create(&self, name: &str) -> SysResult<Self> {
        Self::make(self.path.join(name))
    }

    /// Lets the user `uid` move processes into the group and out of it, as far as it may do so at the other end too. What
    /// limits the group stays root's.
    pub fn let_join(&self, uid: u32) -> SysResult<()> {
        let path = self.path.join("cgroup.procs");
        std::os::unix::fs::chown(&path, Some(uid), None).call_on("chown", &path)
    }
    /// The group's directory, for clone3(2) to start a process in it. Never for anything untrusted: a directory leads out.
    pub(crate) fn directory(&self) -> SysResult<File> {
        File::open(&self.path).call_on("open", &self.path)
    }

    /// Where the group is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The processes in it, by the caller's numbers.
    pub fn processes(&self) -> SysResult<Vec<Pid>> {
        let path = self.path.join("cgroup.procs");
        let list = fs::read_to_string(&path).call_on("read", &path)?;
        Ok(list.lines().filter_map(|line| line.parse().ok()).map(Pid::from_raw).collect())
    }

    /// Sets the limits that `hierarchy` has controllers for.
    pub fn limit(&self, hierarchy: &Hierarchy, limits: &Limits) -> SysResult<()> {
        const PERIOD: u64 = 100_000;
        if hierarchy.has("memory") {
            write(&self.path.join("memory.max"), &limits.memory.to_string())?;
            write(&self.path.join("memory.oom.group"), "1")?;
            if let Some(high) = limits.memory_high {
                write(&self.path.join("memory.high"), &high.to_string())?;
            }
            // A kernel without swap accounting has no such file, and then nothing to limit.
            let swap = self.path.join("memory.swap.max");
            if swap.exists() {
                write(&swap, "0")?;
            }
        }
        if hierarchy.has("pids") {
            write(&self.path.join("pids.max"), &limits.processes.to_string())?;
        }
        if hierarchy.has("cpu") {
            let quota = u64::from(limits.cpu_millis) * PERIOD / 1000;
            write(&self.path.join("cpu.max"), &format!("{quota} {PERIOD}"))?;
            write(&self.path.join("cpu.weight"), &limits.cpu_weight.to_string())?;
        }
        match limits.io_bytes {
            Some(bytes) if hierarchy.has("io") => self.hold_back(&disks(Path::new("/sys/block")), bytes),
            _ => Ok(()),
        }
    }

    fn hold_back(&self, disks: &[String], bytes: u64) -> SysResult<()> {
        disks.iter().try_for_each(|disk| {
            write(&self.path.join("io.max"), &format!("{disk} rbps={bytes} wbps={bytes}"))
        })
    }

    /// What it has and uses now.
    pub fn stats(&self) -> Stats {
        let read = |file: &str| fs::read_to_string(self.path.join(file)).unwrap_or_default();
        let number = |file: &str| read(file).trim().parse().unwrap_or(0);
        let field = |file: &str, name: &str| {
            let text = read(file);
            let value =
                text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse::<u64>().ok());
            value.unwrap_or(0)
        };
        let Usage { oom_kills, memory_peak } = self.usage();
        let counted = number("pids.current");
        Stats {
            memory: number("memory.current"),
            memory_peak,
            oom_kills,
            processes: if counted > 0 { counted } else { self.processes().map_or(0, |all| all.len() as u64) },
            cpu_micros: field("cpu.stat", "usage_usec"),
            frozen: field("cgroup.events", "frozen") == 1,
            pressure: ["cpu", "memory", "io"].map(|what| pressure(&read(&format!("{what}.pressure")))),
        }
    }

    /// Stops every process where it is, or lets them go on; returns when they do. `cgroup.events` is read again and again:
    /// the kernel holds a notification back for 10 ms, and this takes some microseconds.
    pub fn freeze(&self, frozen: bool) -> SysResult<()> {
        // A process in the kernel stops when it leaves it.
        const PATIENCE: Duration = Duration::from_secs(5);
        let events = self.path.join("cgroup.events");
        write(&self.path.join("cgroup.freeze"), if frozen { "1" } else { "0" })?;
        let (begin, wanted) = (Instant::now(), format!("frozen {}", u8::from(frozen)));
        while !fs::read_to_string(&events).call_on("read", &events)?.lines().any(|line| line == wanted) {
            if begin.elapsed() > PATIENCE {
                return Err(Errno::ETIMEDOUT).call_on("freeze", &self.path);
            }
            std::thread::yield_now();
        }
        Ok(())
    }

    /// Has every process in it stop, and does not wait for that.
    pub(crate) fn stop(&self) -> SysResult<()> {
        write(&self.path.join("cgroup.freeze"), "1")
    }

    /// What it is charged with, bytes; 0 where no controller counts.
    pub(crate) fn memory(&self) -> u64 {
        let text = fs::read_to_string(self.path.join("memory.current")).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    }

    /// Its `cgroup.freeze`, to write to.
    pub(crate) fn freezer(&self) -> SysResult<OwnedFd> {
        let path = self.path.join("cgroup.freeze");
        OpenOptions::new().write(true).open(&path).map(OwnedFd::from).call_on("open", &path)
    }

    /// Its `memory.peak`, to read from; `None` where the kernel has none.
    pub(crate) fn memory_peak(&self) -> Option<OwnedFd> {
        File::open(self.path.join("memory.peak")).map(OwnedFd::from).ok()
    }

    /// What the group's memory controller counted.
    pub fn usage(&self) -> Usage {
        let read = |file: &str| fs::read_to_string(self.path.join(file)).unwrap_or_default();
        let events = read("memory.events");
        let oom = events.lines().find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok());
        Usage { oom_kills: oom.unwrap_or(0), memory_peak: read("memory.peak").trim().parse().unwrap_or(0) }
    }

    /// Kills every process in it at once, frozen ones and ones that are being forked included.
    pub fn kill(&self) -> SysResult<()> {
        write(&self.path.join("cgroup.kill"), "1")
    }

    /// Removes the group; `Ok(false)` while a process is still in it.
    pub fn try_remove(&self) -> SysResult<bool> {
        match fs::remove_dir(&self.path) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Ok(false),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(true),
            Err(error) => Err(error).call_on("rmdir", &self.path),
        }
    }

    /// Kills what is in it and below it (`cgroup.kill` reaches both), waits until that is gone, and removes it: for a group that a crash left. Returns
    /// how many it removed that had none below.
    pub fn destroy(&self) -> SysResult<usize> {
        // Hundreds of containers that end together take a second or two; a process that takes longer is stuck in the kernel.
        const PATIENCE: Duration = Duration::from_secs(30);
        self.kill()?;
        let mut removed = 0;
        for entry in fs::read_dir(&self.path).call_on("open", &self.path)?.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                removed += Group { path: entry.path() }.destroy()?;
            }
        }
        let began = Instant::now();
        while !self.try_remove()? {
            if began.elapsed() > PATIENCE {
                return Err(SyscallError {
                    call: "rmdir",
                    path: Some(self.path.clone()),
                    errno: Errno::EBUSY,
                });
            }
            pause(began.elapsed())?;
        }
        Ok(removed.max(1))
    }
}

/// Waits before a group that was killed is looked at again: as long as was waited already, a millisecond at most. Who polls `cgroup.events` is told
/// ten milliseconds late.
pub(crate) fn pause(waited: Duration) -> SysResult<()> {
    let pause = waited.clamp(Duration::from_micros(20), Duration::from_millis(1));
    ppoll(&mut [], Some(pause.into()), None).map(drop).call("ppoll")
}

/// Of `controllers`, those that every one of `directories` hands down. One that refuses (it has processes of its own, say) is one we
/// do not have, and the limits that need it are kept by other means.
fn handed_down(controllers: &[String], directories: &[&PathBuf]) -> Vec<String> {
    let enable = |directory: &Path, name: &str| {
        write(&directory.join("cgroup.subtree_control"), &format!("+{name}")).is_ok()
    };
    let all = |name: &&String| directories.iter().all(|directory| enable(directory, name));
    controllers.iter().filter(all).cloned().collect()
}

/// Whole disks that something can be read from, as "major:minor". sysfs(5)
fn disks(block: &Path) -> Vec<String> {
    let entries = fs::read_dir(block).into_iter().flatten().flatten();
    let filled = entries.filter(|entry| {
        fs::read_to_string(entry.path().join("size")).is_ok_and(|sectors| sectors.trim() != "0")
    });
    let numbers = filled.filter_map(|entry| fs::read_to_string(entry.path().join("dev")).ok());
    numbers.map(|number| number.trim().to_owned()).collect()
}

/// The share of ten seconds in which some had to wait, out of a pressure file: the kernel's Documentation/accounting/psi.rst.
fn pressure(text: &str) -> Option<f64> {
    let some = text.lines().find_map(|line| line.strip_prefix("some avg10="))?;
    some.split(' ').next()?.parse::<f64>().ok().map(|percent| percent / 100.0)
}

fn write(path: &Path, value: &str) -> SysResult<()> {
    let mut file = OpenOptions::new().write(true).open(path).call_on("open", path)?;
    file.write_all(value.as_bytes()).call_on("write", path)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn pressures_are_read() {
        let text = "some avg10=12.50 avg60=0.00 avg300=0.00 total=1\nfull avg10=1.00 avg60=0.00 avg300=0.00 total=1\n";
        assert_eq!(pressure(text), Some(0.125));
        assert_eq!(pressure(""), None);
    }

    #[test]
    fn every_disk_is_held_back() {
        let block = tempfile::tempdir().unwrap();
        let disk = |name: &str, size: Option<&str>, number: &str| {
            let directory = block.path().join(name);
            fs::create_dir(&directory).unwrap();
            fs::write(directory.join("dev"), format!("{number}\n")).unwrap();
            size.into_iter().for_each(|size| fs::write(directory.join("size"), format!("{size}\n")).unwrap());
        };
        for (name, size, number) in [
            ("sda", Some("500118192"), "8:0"),
            ("nvme0n1", Some("8"), "259:0"),
            ("loop0", Some("0"), "7:0"),
            ("odd", None, "9:9"),
            ("sdb", Some("16"), "8:16"),
        ] {
            disk(name, size, number);
        }
        let mut disks = disks(block.path());
        disks.sort_unstable();
        assert_eq!(disks, ["259:0", "8:0", "8:16"]);

        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("io.max");
        // Keeps what is written one after the other, as a file would not.
        nix::unistd::mkfifo(&file, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let mut written = OpenOptions::new().read(true).write(true).open(&file).unwrap();
        Group { path: directory.path().to_owned() }.hold_back(&disks, 4096).unwrap();
        written.write_all(b".").unwrap();
        let expected = "259:0 rbps=4096 wbps=40968:0 rbps=4096 wbps=40968:16 rbps=4096 wbps=4096.";
        let mut found = [0; 4096];
        let length = written.read(&mut found).unwrap();
        assert_eq!(std::str::from_utf8(&found[..length]).unwrap(), expected);
    }
}
