//! What it takes to make a container, as data: specifications go in, ordered lists of [`Step`]s come out.
//!
//! Pure, so that every plan is pinned by a snapshot: a mount flag, a capability or a filter that goes missing shows up as
//! a changed line in review. [`crate::execute`] performs the steps and decides nothing.
//!
//! There are three plans, performed by three processes one after the other:
//! 1. [`template`]: the read-only root that all containers of one launcher share, in the slot builder's mount namespace;
//! 2. [`slot`]: what one container adds, in a copy of that namespace that its own user namespace owns. Copied across
//!    that border, the template's mounts arrive with their flags locked and cannot be unmounted singly
//!    (mount_namespaces(7), "Restrictions on mount namespaces");
//! 3. [`payload`]: how a command drops everything before it is executed.

use std::fmt;
use std::path::{Path, PathBuf};

use nix::mount::MsFlags;
use serde::{Deserialize, Serialize};

use crate::cgroup::Limits;
use crate::seccomp::Role;

/// One step. [`fmt::Display`] gives the line that snapshots show.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the variants' line comments and their Display say it all")]
pub enum Step {
    /// No mount made from here on shows up in the namespace that this one was copied from.
    PrivateMounts,
    Tmpfs {
        at: PathBuf,
        bytes: u64,
        inodes: u64,
        mode: u32,
        flags: MsFlags,
    },
    Directory {
        path: PathBuf,
        mode: u32,
    },
    Symlink {
        path: PathBuf,
        target: PathBuf,
    },
    File {
        path: PathBuf,
        contents: Vec<u8>,
    },
    /// A copy of the mount tree at `from`; `attributes` as in mount_setattr(2), for the whole tree.
    Bind {
        from: PathBuf,
        to: PathBuf,
        attributes: u64,
    },
    /// The same of one mount alone.
    BindAlone {
        from: PathBuf,
        to: PathBuf,
        attributes: u64,
    },
    Pivot {
        root: PathBuf,
    },
    Chroot {
        root: PathBuf,
    },
    ReadOnlyRoot,
    /// Uid and gid 0 of the new user namespace, no supplementary groups.
    BecomeRoot,
    /// The proc file system of the new PID namespace, which the builder's side mounted and passed. From here on it is
    /// read-only.
    AttachProc {
        at: PathBuf,
    },
    /// Covers a file with `/dev/null`, if it is there.
    Mask {
        path: PathBuf,
    },
    /// Covers a directory with the empty one of the template, if it is there.
    MaskDirectory {
        path: PathBuf,
    },
    Devpts,
    /// The slave of the mount through which a function's files arrive.
    AttachVar,
    LoopbackUp,
    /// Mounts something empty over the root, which everybody who is inside already does not notice, except that the kernel
    /// lets nobody make a user namespace whose root is not that of the mount namespace: user_namespaces(7), EPERM.
    CoverRoot,
    Hostname {
        name: String,
    },
    /// Of the new user namespace, before its proc is attached; see namespaces(7), "/proc/sys/user".
    Sysctl {
        name: &'static str,
        value: u32,
    },
    NewSession,
    ChangeDirectory {
        path: PathBuf,
    },
    Limit {
        resource: &'static str,
        number: u32,
        value: u64,
    },
    DropBoundingSet,
    /// Exec gives uid 0 no capabilities of its own: SECBIT_NOROOT and its lock.
    NoRoot,
    SetIds {
        id: u32,
    },
    /// In no set, the ambient one included.
    NoCapabilities,
    NoNewPrivileges,
    /// A domain around the root, where the kernel has Landlock: see [`crate::landlock`].
    Landlock,
    Undumpable,
    Seccomp {
        role: Role,
    },
}

const RO: u64 = libc::MOUNT_ATTR_RDONLY;
const NOSUID: u64 = libc::MOUNT_ATTR_NOSUID;
const NODEV: u64 = libc::MOUNT_ATTR_NODEV;
const NOEXEC: u64 = libc::MOUNT_ATTR_NOEXEC;

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PrivateMounts => write!(f, "make every mount private"),
            Self::Tmpfs { at, bytes, inodes, mode, flags } => {
                let flags = flags.iter_names().map(|(name, _)| name).collect::<Vec<_>>().join("|");
                write!(f, "mount tmpfs {} {bytes} bytes {inodes} inodes mode {mode:o} {flags}", at.display())
            }
            Self::Directory { path, mode } => write!(f, "mkdir {} mode {mode:o}", path.display()),
            Self::Symlink { path, target } => write!(f, "symlink {} -> {}", path.display(), target.display()),
            Self::File { path, contents } => write!(f, "write {} {} bytes", path.display(), contents.len()),
            Self::Bind { from, to, attributes } | Self::BindAlone { from, to, attributes } => {
                let names = [(RO, " ro"), (NOSUID, " nosuid"), (NODEV, " nodev"), (NOEXEC, " noexec")];
                let names: String =
                    names.iter().filter(|(bit, _)| attributes & bit != 0).map(|(_, name)| *name).collect();
                write!(f, "bind {} -> {}{names}", from.display(), to.display())
            }
            Self::Chroot { root } => write!(f, "chroot {}", root.display()),
            Self::Pivot { root } => write!(f, "pivot_root {}, detach the old root", root.display()),
            Self::ReadOnlyRoot => write!(f, "remount / ro nosuid nodev"),
            Self::BecomeRoot => write!(f, "setgroups [], setresgid 0, setresuid 0"),
            Self::AttachProc { at } => {
                write!(f, "attach {} of the new pid namespace, ro nosuid nodev noexec", at.display())
            }
            Self::Mask { path } => write!(f, "mask {}", path.display()),
            Self::MaskDirectory { path } => write!(f, "mask {}, a directory", path.display()),
            Self::Devpts => write!(f, "mount devpts /dev/pts, a new instance, nosuid noexec"),
            Self::AttachVar => write!(f, "attach the slot's mount at /var as a slave"),
            Self::CoverRoot => write!(f, "mount an empty tmpfs over /"),
            Self::LoopbackUp => write!(f, "bring lo up"),
            Self::Hostname { name } => write!(f, "sethostname {name}"),
            Self::Sysctl { name, value } => write!(f, "{name} = {value}"),
            Self::NewSession => write!(f, "setsid"),
            Self::ChangeDirectory { path } => write!(f, "chdir {}", path.display()),
            Self::Limit { resource, value, .. } => write!(f, "setrlimit {resource} {value}"),
            Self::DropBoundingSet => write!(f, "empty the capability bounding set"),
            Self::NoRoot => write!(f, "securebits noroot, locked"),
            Self::SetIds { id } => write!(f, "setgroups [], setresgid {id}, setresuid {id}"),
            Self::NoCapabilities => write!(f, "no capability in any set"),
            Self::NoNewPrivileges => write!(f, "no_new_privs"),
            Self::Landlock => write!(f, "landlock: nothing that is not beneath /"),
            Self::Undumpable => write!(f, "not dumpable"),
            Self::Seccomp { role } => write!(f, "seccomp filter of {role:?}"),
        }
    }
}

/// The read-only root that containers share.
#[derive(Debug, Clone)]
pub struct Template {
    /// Where `/usr` and its companions come from.
    pub base: Base,
    /// Files of the caller's own, by absolute path inside.
    pub files: Vec<(PathBuf, Vec<u8>)>,
    /// PEM bundle of certificate authorities that `/etc/ssl` shall have, a file that everybody may read.
    pub certificates: Option<PathBuf>,
    /// The base's `/etc/ld.so.cache`, if it has one: without it every program looks for each of its libraries in a dozen
    /// directories. ld.so(8)
    pub libraries: Option<Vec<u8>>,
}

/// What of a base directory (the host's `/`, say) goes into a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    /// Directories that are bound read-only, by name: always `usr`, and `lib`, `bin`… where those are directories.
    pub directories: Vec<String>,
    /// Symbolic links at its top, `lib` → `usr/lib` and the like.
    pub links: Vec<(String, PathBuf)>,
    /// The base directory itself.
    pub root: PathBuf,
}

/// The base directory has no `/usr`.
#[derive(Debug, thiserror::Error)]
#[error("the base directory {0} has no usr: name the root of a Linux system")]
pub struct NoBase(PathBuf);

impl Base {
    /// Looks at what `root` has of `/usr`, `/bin`, `/sbin` and `/lib*`.
    pub fn inspect(root: &Path) -> Result<Self, NoBase> {
        if !root.join("usr").is_dir() {
            return Err(NoBase(root.to_owned()));
        }
        let mut base = Self { directories: vec!["usr".into()], links: Vec::new(), root: root.to_owned() };
        for name in ["bin", "lib", "lib32", "lib64", "libx32", "sbin"] {
            let path = root.join(name);
            match std::fs::read_link(&path) {
                Ok(target) => base.links.push((name.into(), target)),
                Err(_) if path.is_dir() => base.directories.push(name.into()),
                Err(_) => {}
            }
        }
        Ok(base)
    }
}

// The root holds a few small files; a runaway writer on it would be a bug of ours.
const ROOT_BYTES: u64 = 8 << 20;
const ROOT_INODES: u64 = 1024;

const DEVICES: [&str; 5] = ["null", "zero", "full", "random", "urandom"];

impl Template {
    /// What of the root is a mount of its own, devices aside, by paths without the slash at their beginning.
    pub fn mounts(&self) -> Vec<String> {
        let certificates = self.certificates.as_ref().map(|_| CERTIFICATES.to_owned());
        self.base.directories.iter().cloned().chain(certificates).collect()
    }
}

const CERTIFICATES: &str = "etc/ssl/certs/ca-certificates.crt";

/// The plan of `spec`'s root, assembled at `work`.
pub fn template(spec: &Template, work: &Path) -> Vec<Step> {
    let at = |path: &str| work.join(path.trim_start_matches('/'));
    let directory = |path: &str| Step::Directory { path: at(path), mode: 0o755 };
    let link = |path: &str, target: &str| Step::Symlink { path: at(path), target: target.into() };
    let mut steps = vec![
        Step::PrivateMounts,
        Step::Tmpfs {
            at: work.to_owned(),
            bytes: ROOT_BYTES,
            inodes: ROOT_INODES,
            mode: 0o755,
            flags: MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
        },
    ];
    for name in ["dev", "dev/pts", "dev/shm", "etc", "proc", "sock", "sock/empty", "sock/paper", "tmp", "var"]
    {
        steps.push(directory(name));
    }
    for name in &spec.base.directories {
        steps.push(directory(name));
        let from = spec.base.root.join(name);
        steps.push(Step::Bind { from, to: at(name), attributes: RO | NOSUID | NODEV });
    }
    for (name, target) in &spec.base.links {
        steps.push(Step::Symlink { path: at(name), target: target.clone() });
    }
    for name in DEVICES {
        let path = at("dev").join(name);
        steps.push(Step::File { path: path.clone(), contents: Vec::new() });
        // Not NODEV, or it would be no device.
        steps.push(Step::Bind { from: Path::new("/dev").join(name), to: path, attributes: NOSUID | NOEXEC });
    }
    steps.extend([
        link("dev/fd", "/proc/self/fd"),
        link("dev/stdin", "/proc/self/fd/0"),
        link("dev/stdout", "/proc/self/fd/1"),
        link("dev/stderr", "/proc/self/fd/2"),
        link("dev/ptmx", "pts/ptmx"),
        link("packages", "var/packages"),
        link("opt", "var/opt"),
    ]);
    for (name, contents) in crate::etc::files() {
        steps.push(Step::File { path: at("etc").join(name), contents: contents.into() });
    }
    steps.push(link("etc/localtime", "/usr/share/zoneinfo/Etc/UTC"));
    if let Some(libraries) = &spec.libraries {
        steps.push(Step::File { path: at("etc/ld.so.cache"), contents: libraries.clone() });
    }
    if let Some(certificates) = &spec.certificates {
        steps.extend([directory("etc/ssl"), directory("etc/ssl/certs")]);
        let path = at(CERTIFICATES);
        steps.push(Step::File { path: path.clone(), contents: Vec::new() });
        steps.push(Step::Bind {
            from: certificates.clone(),
            to: path,
            attributes: RO | NOSUID | NODEV | NOEXEC,
        });
        steps.push(link("etc/ssl/cert.pem", "certs/ca-certificates.crt"));
    }
    let mut made = Vec::new();
    for (path, contents) in &spec.files {
        let path = work.join(path.strip_prefix("/").unwrap_or(path));
        let parents: Vec<&Path> = path.ancestors().skip(1).take_while(|parent| *parent != work).collect();
        for parent in parents.into_iter().rev() {
            if parent != at("sock") && !made.contains(&parent.to_owned()) {
                made.push(parent.to_owned());
                steps.push(Step::Directory { path: parent.to_owned(), mode: 0o755 });
            }
        }
        steps.push(Step::File { path, contents: contents.clone() });
    }
    steps.extend([Step::Pivot { root: work.to_owned() }, Step::ReadOnlyRoot]);
    steps
}

/// How much a container may do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// What programs expect of a Linux machine, as far as it harms nobody.
    #[default]
    Lean,
    /// Less: no network at all, not even a loopback interface's sockets; no shared memory and no IPC; nothing in `/tmp` can
    /// be executed. For programs that compute and answer.
    Strict,
    /// The container of the SOCK paper (section 3): bind mounts and chroot, PID, IPC and UTS namespaces, a cgroup, and no user,
    /// mount, network or cgroup namespace. It sees the host's network and mounts are all in one table. For comparison only;
    /// what it starts is as unprivileged and filtered as in the others.
    Paper,
}

/// There is no profile of that name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no profile {0}: lean, strict, paper")]
pub struct NoProfile(String);

impl std::str::FromStr for Profile {
    type Err = NoProfile;

    fn from_str(name: &str) -> Result<Self, NoProfile> {
        match name {
            "lean" => Ok(Self::Lean),
            "strict" => Ok(Self::Strict),
            "paper" => Ok(Self::Paper),
            other => Err(NoProfile(other.to_owned())),
        }
    }
}

impl Profile {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lean => "lean",
            Self::Strict => "strict",
            Self::Paper => "paper",
        }
    }

    /// What a command in it may be.
    pub fn role(self) -> Role {
        match self {
            Self::Lean | Self::Paper => Role::Instance,
            Self::Strict => Role::Strict,
        }
    }
}

/// What one container adds to the template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotSpec {
    /// The host name inside.
    pub hostname: String,
    /// Size of `/tmp`, bytes.
    pub tmp_bytes: u64,
    /// Whether files can be shown in it later, at `/var`, `/packages` and `/opt`.
    pub var: bool,
    /// Whether user namespaces may be made beneath this one.
    pub nesting: Nesting,
    /// How much may be done in it.
    pub profile: Profile,
}

/// Whether a container may have containers below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Nesting {
    /// No namespace can be made in it, whatever its processes try.
    Forbidden,
    /// The slots that a zygote forks into are made in the zygote's own namespaces, by a process that was never in its root.
    /// The zygote itself can make none: see [`Step::CoverRoot`].
    Slots,
}

// As many files as a function may reasonably unpack into /tmp; the kernel charges about 1 KB for each.
const TMP_INODES: u64 = 65_536;
const SHM_BYTES: u64 = 64 << 20;

/// Files of proc that tell about the machine or act on it. Most belong to the host's root and could be neither read nor
/// written anyway: the mask makes that independent of the kernel's choice of modes.
const MASKED: [&str; 10] = [
    "/proc/config.gz",
    "/proc/interrupts",
    "/proc/kallsyms",
    "/proc/kcore",
    "/proc/key-users",
    "/proc/keys",
    "/proc/kmsg",
    "/proc/modules",
    "/proc/sysrq-trigger",
    "/proc/timer_list",
];

const MASKED_DIRECTORIES: [&str; 8] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/bus",
    "/proc/driver",
    "/proc/fs",
    "/proc/irq",
    "/proc/scsi",
    "/proc/sysvipc",
];

/// How many namespaces of each kind may be made beneath a container's: none.
const NAMESPACES: [&str; 8] = [
    "user/max_user_namespaces",
    "user/max_mnt_namespaces",
    "user/max_pid_namespaces",
    "user/max_net_namespaces",
    "user/max_ipc_namespaces",
    "user/max_uts_namespaces",
    "user/max_cgroup_namespaces",
    "user/max_time_namespaces",
];

/// What a new user namespace has: as good as no limit.
const ANY_NUMBER: u32 = i32::MAX as u32;

/// Takes back what [`slot`] forbade, for a container in which others are to be made.
pub fn allow_namespaces() -> Vec<Step> {
    NAMESPACES.map(|name| Step::Sysctl { name, value: ANY_NUMBER }).into()
}

/// The template's empty directory.
pub(crate) const EMPTY: &str = "/sock/empty";

/// The arguments that a PID 1 seems to have been started with.
pub(crate) const TITLE: &[u8] = b"sock: container";

/// The plan of one container, performed by its PID 1.
pub fn slot(spec: &SlotSpec) -> Vec<Step> {
    let scratch = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let mut steps = vec![Step::BecomeRoot];
    if spec.nesting == Nesting::Forbidden {
        steps.extend(NAMESPACES.map(|name| Step::Sysctl { name, value: 0 }));
    }
    steps.push(Step::AttachProc { at: "/proc".into() });
    steps.extend(MASKED_DIRECTORIES.map(|path| Step::MaskDirectory { path: path.into() }));
    steps.extend(MASKED.map(|path| Step::Mask { path: path.into() }));
    let noexec = scratch | MsFlags::MS_NOEXEC;
    let flags = if spec.profile == Profile::Strict { noexec } else { scratch };
    let at = "/tmp".into();
    steps.push(Step::Tmpfs { at, bytes: spec.tmp_bytes, inodes: TMP_INODES, mode: 0o1777, flags });
    if spec.profile == Profile::Lean {
        let at = "/dev/shm".into();
        steps.push(Step::Tmpfs { at, bytes: SHM_BYTES, inodes: 1024, mode: 0o1777, flags: noexec });
        steps.extend([Step::Devpts, Step::LoopbackUp]);
    }
    steps.push(Step::Hostname { name: spec.hostname.clone() });
    if spec.var {
        steps.push(Step::AttachVar);
    }
    if spec.nesting == Nesting::Slots {
        steps.push(Step::CoverRoot);
    }
    // Once for all that is started in it: it is inherited, and matters to an exec only.
    steps.push(Step::DropBoundingSet);
    steps
}

/// Where the roots of paper containers are, in a mount namespace that nobody else is in.
pub(crate) const PAPER: &str = "/sock/paper";

/// A place for those roots, which can be written to.
pub(crate) fn room_for_paper() -> Step {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    Step::Tmpfs { at: PAPER.into(), bytes: 1 << 20, inodes: 1 << 16, mode: 0o700, flags }
}

/// The plan of a container of the profile `paper`, performed by its PID 1 in a mount namespace that all of them share. `mounts`:
/// [`Template::mounts`].
pub fn paper(spec: &SlotSpec, mounts: &[String], root: &Path) -> Vec<Step> {
    let mut steps = vec![
        Step::Directory { path: root.to_owned(), mode: 0o755 },
        Step::BindAlone { from: "/".into(), to: root.to_owned(), attributes: RO | NOSUID | NODEV },
    ];
    for name in mounts {
        let from = Path::new("/").join(name);
        steps.push(Step::Bind { from, to: root.join(name), attributes: RO | NOSUID | NODEV });
    }
    for name in DEVICES {
        let from = Path::new("/dev").join(name);
        steps.push(Step::Bind { from, to: root.join("dev").join(name), attributes: NOSUID | NOEXEC });
    }
    steps.extend([Step::AttachProc { at: root.join("proc") }]);
    let inside = |path: &str| root.join(path.trim_start_matches('/'));
    steps.extend(MASKED_DIRECTORIES.map(|path| Step::MaskDirectory { path: inside(path) }));
    steps.extend(MASKED.map(|path| Step::Mask { path: inside(path) }));
    steps.extend([
        Step::Tmpfs {
            at: root.join("tmp"),
            bytes: spec.tmp_bytes,
            inodes: TMP_INODES,
            mode: 0o1777,
            flags: MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
        },
        Step::Hostname { name: spec.hostname.clone() },
        Step::Chroot { root: root.to_owned() },
    ]);
    if spec.var {
        steps.push(Step::AttachVar);
    }
    steps.push(Step::DropBoundingSet);
    steps
}

/// How PID 1 drops everything once its container is made.
pub fn init() -> Vec<Step> {
    vec![Step::NoCapabilities, Step::NoNewPrivileges, Step::Undumpable, Step::Seccomp { role: Role::Init }]
}

/// The resource limits of a container's processes: `(name, number, value)`. `memory_by_kernel` says whether a memory
/// controller keeps the memory limit; if not, RLIMIT_DATA keeps each process below it. getrlimit(2).
pub fn resource_limits(
    limits: &Limits,
    memory_by_kernel: bool,
    inherited_data: u64,
) -> Vec<(&'static str, u32, u64)> {
    let mut list = vec![
        ("NPROC", libc::RLIMIT_NPROC, u64::from(limits.processes)),
        ("NOFILE", libc::RLIMIT_NOFILE, u64::from(limits.files)),
        ("CORE", libc::RLIMIT_CORE, 0),
        ("MEMLOCK", libc::RLIMIT_MEMLOCK, 64 << 10),
        ("MSGQUEUE", libc::RLIMIT_MSGQUEUE, 800 << 10),
        ("SIGPENDING", libc::RLIMIT_SIGPENDING, 1024),
    ];
    if !memory_by_kernel {
        list.push(("DATA", libc::RLIMIT_DATA, limits.memory + inherited_data));
    }
    list
}

/// How a command becomes what `role` may be, right before it is executed; `id`: its uid and gid, inside.
pub fn payload(role: Role, id: u32, directory: &Path, limits: &Limits, memory_by_kernel: bool) -> Vec<Step> {
    let mut steps = vec![Step::NewSession, Step::ChangeDirectory { path: directory.to_owned() }];
    let limits = resource_limits(limits, memory_by_kernel, 0);
    steps.extend(limits.into_iter().map(|(resource, number, value)| Step::Limit { resource, number, value }));
    match role {
        // It stays the root of its user namespace, by number only: the slots that it enters are owned by that number.
        Role::Zygote => steps.extend([Step::NoRoot, Step::NoCapabilities]),
        Role::Instance | Role::Strict | Role::Init => {
            steps.extend([Step::SetIds { id }, Step::NoCapabilities])
        }
    }
    steps.extend([Step::NoNewPrivileges, Step::Landlock, Step::Seccomp { role }]);
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::INSIDE;

    fn lines(steps: &[Step]) -> String {
        steps.iter().map(Step::to_string).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn plan_of_the_template() {
        let spec = Template {
            base: Base {
                directories: vec!["usr".into()],
                links: vec![("bin".into(), "usr/bin".into()), ("lib".into(), "usr/lib".into())],
                root: "/".into(),
            },
            files: vec![
                ("/sock/runtime/a.py".into(), b"1".to_vec()),
                ("/sock/runtime/b.py".into(), b"22".to_vec()),
            ],
            certificates: Some("/etc/ssl/certs/ca.pem".into()),
            libraries: Some(b"cache".to_vec()),
        };
        insta::assert_snapshot!(lines(&template(&spec, Path::new("/work"))));
    }

    #[test]
    fn plan_of_a_slot() {
        let mut spec = SlotSpec {
            hostname: "sock".into(),
            tmp_bytes: 512 << 20,
            var: true,
            nesting: Nesting::Forbidden,
            profile: Profile::Lean,
        };
        insta::assert_snapshot!("slot", lines(&slot(&spec)));
        let strict = SlotSpec { profile: Profile::Strict, var: false, ..spec.clone() };
        insta::assert_snapshot!("slot_strict", lines(&slot(&strict)));
        let root = Path::new("/sock/paper/7");
        insta::assert_snapshot!(
            "slot_paper",
            lines(&paper(&strict, &["usr".into(), CERTIFICATES.into()], root))
        );
        insta::assert_snapshot!("slot_paper_of_a_function", lines(&paper(&spec, &["usr".into()], root)));
        spec.nesting = Nesting::Slots;
        insta::assert_snapshot!("slot_of_a_zygote", lines(&slot(&spec)));
        insta::assert_snapshot!("allow_namespaces", lines(&allow_namespaces()));
    }

    #[test]
    fn plans_of_the_drops() {
        let plan = |role| lines(&payload(role, INSIDE, Path::new("/"), &Limits::default(), false));
        insta::assert_snapshot!("payload_instance", plan(Role::Instance));
        insta::assert_snapshot!("payload_zygote", plan(Role::Zygote));
        insta::assert_snapshot!("payload_strict", plan(Role::Strict));
        insta::assert_snapshot!("init", lines(&init()));
    }
}
