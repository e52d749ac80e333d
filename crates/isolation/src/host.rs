//! One machine's ground for containers: a mount namespace of our own, the parent cgroup, the slot builder.
//!
//! ```text
//! <work>/            tmpfs, in this process's own mount namespace: the host's table never grows
//!   root/            where the builder assembles the template
//!   views/<id>/      one overlay for each set of read-only layers
//!   slots/<number>/  shared mount; the container's /var is its slave
//!     task/ packages/ opt/
//!   empty-1/ empty-2/
//! ```
//! All of it goes with the process: the namespaces die, and with them the mounts. Only cgroups would stay; the next
//! start removes those.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use crate::builder::{Ask, Builder, Event, Make};
use crate::cgroup::{self, Group, Hierarchy, NoHierarchy};
use crate::error::{Context, SysResult, SyscallError};
use crate::execute::detached;
use crate::ids::IdRange;
use crate::init::Payload;
use crate::plan::{SlotSpec, Template};
use crate::sys;

/// What a [`Host`] is started with.
#[derive(Debug)]
pub struct HostOptions {
    /// An existing directory to mount on, invisible to the rest of the machine.
    pub work: PathBuf,
    /// The name of the parent cgroup. A start removes what an earlier owner of the name left.
    pub group: String,
    /// The root that all containers share.
    pub template: Template,
    /// The host's user ids for containers.
    pub ids: IdRange,
}

/// Why a host could not be started.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// See [`NoHierarchy`].
    #[error(transparent)]
    NoHierarchy(#[from] NoHierarchy),
    /// A system call failed.
    #[error(transparent)]
    Syscall(#[from] SyscallError),
    /// Not root.
    #[error("containers need root for now (user id is {0}); run it with sudo")]
    NotRoot(u32),
}

/// See the module.
#[derive(Debug)]
pub struct Host {
    pub(crate) hierarchy: Hierarchy,
    pub(crate) ids: IdRange,
    work: PathBuf,
    builder: Builder,
    removed: usize,
}

/// The outside parts of a container, made before the builder is asked for the rest.
#[derive(Debug)]
pub(crate) struct Ground {
    pub(crate) number: u64,
    pub(crate) group: Group,
    /// What a zygote's own group and those of its slots are in.
    pub(crate) family: Option<Group>,
    /// The mount through which it gets files.
    pub(crate) var: Option<PathBuf>,
}

/// Where the cgroup of a container is made.
#[derive(Clone, Copy)]
pub(crate) enum Within<'a> {
    Host,
    /// In a new group, for a container that others are made in.
    NewFamily,
    /// In an existing one, whose user may start processes in it.
    Family(&'a Group, u32),
    /// In a new group in an existing one, whose user may start the first process: for a zygote that is forked from another one.
    NewFamilyIn(&'a Group, u32),
}

/// The namespaces that a container is made in: a zygote's, for the slots that it forks into.
pub(crate) struct Parent<'a> {
    pub(crate) user: BorrowedFd<'a>,
    pub(crate) pids: BorrowedFd<'a>,
}

impl Host {
    /// Starts the ground. The calling process has to be root and single-threaded, gets a mount namespace of its own, and
    /// must stay for as long as the containers shall.
    pub fn start(options: HostOptions) -> Result<Self, HostError> {
        let uid = nix::unistd::geteuid();
        if !uid.is_root() {
            return Err(HostError::NotRoot(uid.as_raw()));
        }
        sys::require_single_thread()?;
        let (hierarchy, removed) = Hierarchy::open(&cgroup::find()?, &options.group)?;
        unshare(CloneFlags::CLONE_NEWNS).call("unshare")?;
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).call_on("mount", "/")?;
        let work = options.work;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("tmpfs"), &work, Some("tmpfs"), flags, Some("mode=700,size=64m"))
            .call_on("mount", &work)?;
        for name in ["root", "views", "slots"].into_iter().chain(EMPTY) {
            let path = work.join(name);
            fs::create_dir(&path).call_on("mkdir", &path)?;
        }
        let builder = Builder::start(&options.template, &work.join("root"))?;
        Ok(Self { hierarchy, ids: options.ids, work, builder, removed })
    }

    /// How many cgroups of an earlier owner the start removed.
    pub fn removed(&self) -> usize {
        self.removed
    }

    /// Whether the kernel keeps limits by the controller `name`.
    pub fn has_controller(&self, name: &str) -> bool {
        self.hierarchy.has(name)
    }

    pub(crate) fn builder_socket(&self) -> BorrowedFd<'_> {
        self.builder.socket()
    }

    pub(crate) fn builder_pidfd(&self) -> BorrowedFd<'_> {
        self.builder.pidfd()
    }

    pub(crate) fn event(&self) -> SysResult<Option<Event>> {
        self.builder.event()
    }

    /// Makes the cgroup of container `number`, and its `/var` if it shall have one; all or nothing.
    pub(crate) fn ground(&self, number: u64, within: Within<'_>, var: bool) -> SysResult<Ground> {
        let name = number.to_string();
        let var = var.then(|| self.work.join("slots").join(&name));
        let (group, family) = match within {
            Within::Host => (self.hierarchy.create(&name)?, None),
            Within::NewFamily => {
                let family = self.hierarchy.create(&name)?;
                (family.create(OWN)?, Some(family))
            }
            Within::Family(family, _) => (family.create(&name)?, None),
            Within::NewFamilyIn(parent, _) => {
                let family = parent.create(&name)?;
                (family.create(OWN)?, Some(family))
            }
        };
        let ground = Ground { number, group, family, var };
        let made = ground.var.as_deref().map_or(Ok(()), make_var).and_then(|()| match within {
            Within::Family(_, uid) | Within::NewFamilyIn(_, uid) => ground.group.let_join(uid),
            Within::Host | Within::NewFamily => Ok(()),
        });
        match made {
            Ok(()) => Ok(ground),
            Err(error) => {
                self.clear(&ground)?;
                Err(error)
            }
        }
    }

    /// Once a zygote's own process is in its own group: hands the limits down in its family, and lets the user `uid`, who is
    /// the zygote, start processes there.
    pub(crate) fn open_family(&self, family: &Group, uid: u32) -> SysResult<()> {
        self.hierarchy.hand_down(family)?;
        family.let_join(uid)
    }

    /// Asks the builder for the rest; it answers by an [`Event`].
    pub(crate) fn build(
        &self,
        ground: &Ground,
        (map, outside): (String, [u32; 2]),
        parent: Option<Parent<'_>>,
        what: (SlotSpec, Payload, &[BorrowedFd<'_>]),
    ) -> SysResult<()> {
        let group = ground.group.directory()?;
        let var = ground.var.as_deref().map(slave).transpose()?;
        let (spec, payload, payload_fds) = what;
        let mut fds = vec![group.as_fd()];
        fds.extend(var.as_ref().map(AsFd::as_fd));
        let family = ground.family.as_ref().map(Group::directory).transpose()?;
        fds.extend(family.as_ref().map(AsFd::as_fd));
        fds.extend(parent.iter().flat_map(|parent| [parent.user, parent.pids]));
        fds.extend(payload_fds);
        let (family, within) = (family.is_some(), parent.is_some());
        let make = Make { slot: ground.number, map, outside, family, within, spec, payload };
        self.builder.ask(&Ask::Make(Box::new(make)), &fds)
    }

    /// Has a finished container opened for others that are made in it; the builder answers by an [`Event`].
    pub(crate) fn open(&self, slot: u64, user: BorrowedFd<'_>, mounts: BorrowedFd<'_>) -> SysResult<()> {
        self.builder.ask(&Ask::Open { slot }, &[user, mounts])
    }

    /// What a zygote may have of a slot's cgroup: good for starting a process in it by clone3(2), and for nothing else. It
    /// leads nowhere, being attached nowhere, and nothing in it can be opened for writing.
    pub(crate) fn entrance(&self, group: &Group) -> SysResult<OwnedFd> {
        detached(nix::fcntl::AT_FDCWD, group.path(), READ_ONLY | libc::MOUNT_ATTR_NOEXEC)
    }

    /// Makes the directory `path` beneath `dir` appear in the container, read-only, at `/var/<place>`.
    pub(crate) fn show(
        &self,
        ground: &Ground,
        place: &str,
        dir: BorrowedFd<'_>,
        path: &str,
    ) -> SysResult<()> {
        let flags = nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_DIRECTORY;
        let directory = sys::open_beneath(dir, path, flags)?;
        let tree = detached(directory.as_fd(), Path::new(""), READ_ONLY)?;
        let target = place_of(ground, place)?;
        sys::attach_mount(tree.as_fd(), &target).call_on("move_mount", &target)
    }

    /// Makes the view `id` appear in the container at `/var/packages`.
    pub(crate) fn show_view(&self, ground: &Ground, id: &str) -> SysResult<()> {
        let tree = detached(nix::fcntl::AT_FDCWD, &self.view(id), READ_ONLY)?;
        let target = place_of(ground, "packages")?;
        sys::attach_mount(tree.as_fd(), &target).call_on("move_mount", &target)
    }

    fn view(&self, id: &str) -> PathBuf {
        self.work.join("views").join(id)
    }

    /// Stacks directories beneath `dir` into one read-only tree, the first on top: an overlay without an upper layer,
    /// which nobody can ever write to. overlay(5) of the kernel's documentation.
    pub(crate) fn add_view(&self, id: &str, dir: BorrowedFd<'_>, layers: &[String]) -> SysResult<()> {
        let path = self.view(id);
        match fs::create_dir(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => return Ok(()),
            made => made.call_on("mkdir", &path)?,
        }
        let mounted = self.mount_view(&path, dir, layers);
        if mounted.is_err() {
            let _ = fs::remove_dir(&path);
        }
        mounted
    }

    fn mount_view(&self, path: &Path, dir: BorrowedFd<'_>, layers: &[String]) -> SysResult<()> {
        let flags = nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_DIRECTORY;
        let open = |layer: &String| sys::open_beneath(dir, layer, flags);
        let mut layers = layers.iter().map(open).collect::<SysResult<Vec<_>>>()?;
        // Two at least, and different ones, is what an overlay without an upper layer takes: empty ones fill up.
        for name in &EMPTY[layers.len().min(2)..] {
            let empty = self.work.join(name);
            let directory = nix::fcntl::open(&empty, flags, nix::sys::stat::Mode::empty());
            layers.push(directory.call_on("open", &empty)?);
        }
        overlay(&layers, path)
    }

    /// Kills what is left of a container and takes its ground away; `false` while a process is still in its cgroup.
    pub(crate) fn clear(&self, ground: &Ground) -> SysResult<bool> {
        let groups = [Some(&ground.group), ground.family.as_ref()];
        for group in groups.into_iter().flatten() {
            if !group.try_remove()? {
                group.kill().or_else(|error| ignore(error, Errno::ENOENT))?;
                return Ok(false);
            }
        }
        ground.var.as_deref().map_or(Ok(()), remove_var).map(|()| true)
    }

    /// Ends the builder, with it every container, and removes the parent cgroup.
    pub fn stop(self) -> SysResult<()> {
        self.end()
    }

    pub(crate) fn end(&self) -> SysResult<()> {
        self.builder.end();
        self.hierarchy.remove_all()
    }
}

/// The name of a zygote's own group in its family's.
const OWN: &str = "own";

const EMPTY: [&str; 2] = ["empty-1", "empty-2"];

const READ_ONLY: u64 = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;

/// A directory for what a container shall see, shared so that what is mounted on it later arrives inside.
fn make_var(var: &Path) -> SysResult<()> {
    for path in [var.to_owned(), var.join("task"), var.join("packages"), var.join("opt")] {
        fs::create_dir(&path).call_on("mkdir", &path)?;
    }
    std::os::unix::fs::symlink("/tmp", var.join("tmp")).call_on("symlink", var)?;
    let none: Option<&str> = None;
    mount(Some(var), var, none, MsFlags::MS_BIND, none).call_on("mount", var)?;
    mount(none, var, none, MsFlags::MS_SHARED, none).call_on("mount", var)
}

fn remove_var(var: &Path) -> SysResult<()> {
    match umount2(var, MntFlags::MNT_DETACH) {
        // Not mounted, or not even there: its making had come no further.
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
        failed => failed.call_on("umount2", var)?,
    }
    match fs::remove_dir_all(var) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        removed => removed.call_on("rmdir", var),
    }
}

/// A copy for the container, where what is mounted on `var` from now on appears.
fn slave(var: &Path) -> SysResult<OwnedFd> {
    let copy = detached(nix::fcntl::AT_FDCWD, var, READ_ONLY)?;
    sys::set_mount_attributes(copy.as_fd(), 0, MsFlags::MS_SLAVE.bits()).call_on("mount_setattr", var)?;
    Ok(copy)
}

/// Where the container's `/var` is filled.
fn place_of(ground: &Ground, place: &str) -> SysResult<PathBuf> {
    ground
        .var
        .as_ref()
        .map(|var| var.join(place))
        .ok_or(Errno::ENOENT)
        .call("show files in a container without /var")
}

fn ignore(error: SyscallError, errno: Errno) -> SysResult<()> {
    if error.errno == errno { Ok(()) } else { Err(error) }
}

/// Mounts `layers` at `path`: one by one where the kernel takes them so (Linux 6.8), else all at once.
fn overlay(layers: &[OwnedFd], path: &Path) -> SysResult<()> {
    let name = |layer: &OwnedFd| format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(layer));
    let names: Vec<String> = layers.iter().map(name).collect();
    match one_by_one(&names) {
        // Kernels before 6.5 take any option, and find out when the whole is made.
        Err(Errno::EINVAL) => at_once(&names, path),
        tree => {
            let tree = tree.call_on("mount overlay", path)?;
            sys::attach_mount(tree.as_fd(), path).call_on("move_mount", path)
        }
    }
}

fn one_by_one(layers: &[String]) -> Result<OwnedFd, Errno> {
    let filesystem = sys::Filesystem::open(c"overlay")?;
    for layer in layers {
        let layer = std::ffi::CString::new(layer.as_str()).map_err(|_| Errno::EINVAL)?;
        filesystem.set(c"lowerdir+", &layer)?;
    }
    filesystem.mount(libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV)
}

/// All layers as one option, which has to fit the page that mount(2) copies: about 200 of them.
fn at_once(layers: &[String], path: &Path) -> SysResult<()> {
    const PAGE: usize = 4096;
    let option = format!("lowerdir={}", layers.join(":"));
    if option.len() >= PAGE {
        return Err(Errno::E2BIG)
            .call_on("mount overlay (before Linux 6.8, of about 200 packages at most)", path);
    }
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("overlay"), path, Some("overlay"), flags, Some(option.as_str())).call_on("mount overlay", path)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What an overlay of `count` layers, mounted by `how`, shows. In a mount namespace of its own, which is the thread's.
    fn shows(count: usize, how: fn(&[String], &Path) -> SysResult<()>) -> SysResult<usize> {
        let shown = std::thread::spawn(move || {
            let directory = tempfile::tempdir().unwrap();
            let none: Option<&str> = None;
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            mount(Some("tmpfs"), directory.path(), Some("tmpfs"), MsFlags::empty(), none).unwrap();
            let names = (0..count).map(|number| {
                let layer = directory.path().join(number.to_string());
                fs::create_dir(&layer).unwrap();
                fs::write(layer.join(format!("of-{number}")), "").unwrap();
                layer
            });
            let layers: Vec<fs::File> = names.map(|layer| fs::File::open(layer).unwrap()).collect();
            let name = |layer: &fs::File| format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(layer));
            let at = directory.path().join("at");
            fs::create_dir(&at).unwrap();
            let mounted = how(&layers.iter().map(name).collect::<Vec<_>>(), &at);
            let shown = mounted.map(|()| fs::read_dir(&at).unwrap().count());
            // The thread's namespace goes with it; the directory itself is removed by its owner.
            drop(layers);
            umount2(directory.path(), MntFlags::MNT_DETACH).unwrap();
            shown
        });
        shown.join().unwrap()
    }

    #[test]
    fn a_view_of_many_layers_on_a_kernel_that_takes_them_at_once() {
        assert_eq!(shows(200, at_once), Ok(200));
        let error = shows(400, at_once).unwrap_err();
        assert!(error.to_string().contains("about 200 packages at most"), "{error}");
    }
}
