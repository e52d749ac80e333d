//! Performs the steps of a plan, in order, in the process that calls it. Decides nothing.

use std::ffi::CString;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid, chdir, pivot_root, setgroups, sethostname, setresgid, setresuid, setsid, write};

use crate::error::{Context, SysResult};
use crate::landlock;
use crate::plan::{self, Step};
use crate::seccomp;
use crate::sys;

/// What steps need from outside the namespaces that they are performed in.
#[derive(Default)]
pub(crate) struct Outside<'a> {
    /// A detached mount of the new PID namespace's proc, in which sysctls of the caller's own user namespace can be written
    /// until it is attached.
    pub(crate) proc_mount: Option<OwnedFd>,
    /// A detached slave of the slot's own mount.
    pub(crate) var_mount: Option<BorrowedFd<'a>>,
}

/// Performs `steps`; stops at the first that fails.
pub(crate) fn perform(steps: &[Step], outside: &Outside<'_>) -> SysResult<()> {
    #[cfg(feature = "weaken")]
    let steps = steps.iter().filter(|step| !crate::weaken::skips(&step.to_string()));
    #[cfg(not(feature = "weaken"))]
    let steps = steps.iter();
    steps.into_iter().try_for_each(|step| perform_one(step, outside))
}

const NONE: Option<&str> = None;

fn perform_one(step: &Step, outside: &Outside<'_>) -> SysResult<()> {
    match step {
        Step::PrivateMounts => {
            mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE).call_on("mount private", "/")
        }
        Step::Tmpfs { at, bytes, inodes, mode, flags } => {
            let options = format!("size={bytes},nr_inodes={inodes},mode={mode:o}");
            mount(Some("tmpfs"), at, Some("tmpfs"), *flags, Some(options.as_str())).call_on("mount tmpfs", at)
        }
        Step::Directory { path, mode } => {
            fs::DirBuilder::new().mode(*mode).create(path).call_on("mkdir", path)?;
            // The umask may have taken bits away.
            fs::set_permissions(path, fs::Permissions::from_mode(*mode)).call_on("chmod", path)
        }
        Step::Symlink { path, target } => symlink(target, path).call_on("symlink", path),
        Step::File { path, contents } => {
            fs::write(path, contents).call_on("write", path)?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o644)).call_on("chmod", path)
        }
        Step::Bind { from, to, attributes } => bind(from, to, *attributes),
        Step::BindAlone { from, to, attributes } => {
            mount(Some(from), to, NONE, MsFlags::MS_BIND, NONE).call_on("mount", to)?;
            let tree =
                nix::fcntl::open(to, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).call_on("open", to)?;
            sys::set_mount_attributes(tree.as_fd(), *attributes, 0).call_on("mount_setattr", to)
        }
        Step::Chroot { root } => {
            nix::unistd::chroot(root).call_on("chroot", root)?;
            chdir("/").call_on("chdir", "/")
        }
        Step::Pivot { root } => {
            chdir(root).call_on("chdir", root)?;
            // The old root ends up on top of the new one, from where it is detached. pivot_root(2), "NOTES".
            pivot_root(".", ".").call_on("pivot_root", root)?;
            umount2(".", MntFlags::MNT_DETACH).call_on("umount2", "/")?;
            chdir("/").call_on("chdir", "/")
        }
        Step::ReadOnlyRoot => {
            let flags = MsFlags::MS_REMOUNT
                | MsFlags::MS_BIND
                | MsFlags::MS_RDONLY
                | MsFlags::MS_NOSUID
                | MsFlags::MS_NODEV;
            mount(NONE, "/", NONE, flags, NONE).call_on("mount remount", "/")
        }
        Step::BecomeRoot => set_ids(0),
        Step::AttachProc { at } => {
            let proc = outside.proc_mount.as_ref().map(AsFd::as_fd);
            if let Some(proc) = proc {
                sys::set_mount_attributes(proc, libc::MOUNT_ATTR_RDONLY, 0).call_on("mount_setattr", at)?;
            }
            attach(proc, at)
        }
        Step::Mask { path } => cover("/dev/null", path),
        Step::MaskDirectory { path } => cover(plan::EMPTY, path),
        Step::Devpts => {
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
            let options = "newinstance,ptmxmode=0666,mode=0620";
            mount(Some("devpts"), "/dev/pts", Some("devpts"), flags, Some(options))
                .call_on("mount", "/dev/pts")
        }
        Step::AttachVar => attach(outside.var_mount, Path::new("/var")),
        Step::CoverRoot => {
            let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
            mount(Some("tmpfs"), "/", Some("tmpfs"), flags, Some("size=0,nr_inodes=2,mode=555"))
                .call_on("mount tmpfs", "/")
        }
        Step::LoopbackUp => sys::loopback_up(),
        Step::Hostname { name } => sethostname(name).call("sethostname"),
        Step::Sysctl { name, value } => {
            // These files answer for the user namespace of whoever opens them, through any mount of proc. Not the host's: there the
            // kernel keeps an entry for each namespace that ever opened one, and looks through all of them.
            let proc = outside.proc_mount.as_ref().ok_or(Errno::EBADF).call_on("open", name)?;
            let path = format!("sys/{name}");
            let file = openat(proc, path.as_str(), OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty());
            let file = match file {
                // A kernel without that kind of namespace has nothing to forbid.
                Err(Errno::ENOENT) => return Ok(()),
                file => file.call_on("open", &path)?,
            };
            write(&file, value.to_string().as_bytes()).map(drop).call_on("write", &path)
        }
        Step::NewSession => setsid().map(drop).call("setsid"),
        Step::ChangeDirectory { path } => chdir(path).call_on("chdir", path),
        Step::Limit { number, value, resource } => {
            sys::set_limit(nix::unistd::Pid::this(), *number, *value).call_on("setrlimit", resource)
        }
        Step::DropBoundingSet => sys::drop_bounding_set(),
        Step::NoRoot => {
            const NOROOT_AND_LOCK: u64 = 0b11;
            sys::prctl(libc::PR_SET_SECUREBITS, NOROOT_AND_LOCK, 0).call("prctl PR_SET_SECUREBITS")
        }
        Step::SetIds { id } => set_ids(*id),
        Step::NoCapabilities => sys::drop_capabilities(),
        Step::NoNewPrivileges => {
            sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0).call("prctl PR_SET_NO_NEW_PRIVS")
        }
        Step::Landlock => landlock::enter(),
        Step::Undumpable => sys::prctl(libc::PR_SET_DUMPABLE, 0, 0).call("prctl PR_SET_DUMPABLE"),
        Step::Seccomp { role } => sys::install_filter(seccomp::filter(*role)),
    }
}

fn set_ids(id: u32) -> SysResult<()> {
    let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
    setgroups(&[]).call("setgroups")?;
    setresgid(gid, gid, gid).call("setresgid")?;
    setresuid(uid, uid, uid).call("setresuid")
}

fn attach(mount: Option<BorrowedFd<'_>>, target: &Path) -> SysResult<()> {
    let mount = mount.ok_or(Errno::EBADF).call_on("move_mount", target)?;
    sys::attach_mount(mount, target).call_on("move_mount", target)
}

fn bind(from: &Path, to: &Path, attributes: u64) -> SysResult<()> {
    let tree = detached(nix::fcntl::AT_FDCWD, from, attributes)?;
    sys::attach_mount(tree.as_fd(), to).call_on("move_mount", to)
}

/// A detached copy of the mount tree at `path`, with `attributes`.
pub(crate) fn detached(dir: BorrowedFd<'_>, path: &Path, attributes: u64) -> SysResult<OwnedFd> {
    let name =
        CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL).call_on("open_tree", path)?;
    let tree = sys::clone_tree(dir, &name).call_on("open_tree", path)?;
    sys::set_mount_attributes(tree.as_fd(), attributes, 0).call_on("mount_setattr", path)?;
    Ok(tree)
}

/// What the kernel does not have need not be covered.
fn cover(with: &str, path: &Path) -> SysResult<()> {
    match mount(Some(with), path, NONE, MsFlags::MS_BIND, NONE) {
        Err(Errno::ENOENT) => Ok(()),
        covered => covered.call_on("mount", path),
    }
}
