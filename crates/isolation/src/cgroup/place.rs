//! Where on this machine groups can be made, and which limits the kernel cannot keep for them: told from texts of the
//! kernel's, so that it can be told of other machines too.
//!
//! A group hands a controller down to those in it if it was handed it, and has no processes of its own: cgroups(7), "no
//! internal processes". Only the root of all groups may have some. (Of `cpu` and `pids` one with processes hands down what
//! it has, too, but nothing can then be started in the groups in it: "threaded subtrees".)

use std::path::{Path, PathBuf};

use super::CONTROLLERS;

/// Where cgroup2 is mounted, and beneath which directory of it we may make groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The directory that gets our parent group.
    pub directory: PathBuf,
    /// The controllers that it can hand down.
    pub controllers: Vec<String>,
    /// Those of [`CONTROLLERS`] that it cannot, and why.
    pub lacks: Vec<(&'static str, Lack)>,
}

impl Place {
    /// Why it does not hand `controller` down; `None` if it does.
    pub fn lack(&self, controller: &str) -> Option<&Lack> {
        self.lacks.iter().find(|(name, _)| *name == controller).map(|(_, lack)| lack)
    }

    /// Which of `wanted` it does not hand down, why, and what to do about it; `None` if it hands all of them down.
    pub fn shortage(&self, wanted: &[&str]) -> Option<String> {
        let missing = self.lacks.iter().filter(|(name, _)| wanted.contains(name));
        let (names, lacks): (Vec<&str>, Vec<&Lack>) = missing.map(|(name, lack)| (*name, lack)).unzip();
        let together = |each: Vec<String>| {
            let mut all: Vec<String> = Vec::new();
            each.into_iter().for_each(|one| {
                if !all.contains(&one) {
                    all.push(one)
                }
            });
            all.join("; ")
        };
        let why = together(lacks.iter().map(ToString::to_string).collect());
        let remedy = together(lacks.iter().map(|lack| lack.remedy()).collect());
        let (directory, list) = (self.directory.display(), names.join(", "));
        (!names.is_empty())
            .then(|| format!("{directory} has no cgroup2 controllers {list} ({why}; {remedy})"))
    }
}

/// Why a controller is not to be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Lack {
    /// A hierarchy of version 1 has it, and a controller is in one hierarchy only.
    #[error("version 1 has {controller}{}", at(.mount))]
    Version1 {
        /// Its name there.
        controller: &'static str,
        /// Where that hierarchy is mounted, if it can be seen.
        mount: Option<PathBuf>,
    },
    /// The kernel was told to leave it out.
    #[error("the kernel was started with cgroup_disable={0}")]
    Disabled(&'static str),
    /// Not even the root of all groups has it.
    #[error("this kernel was built without it")]
    Unknown,
    /// The group was not handed it.
    #[error("the group {} was not handed it", .0.display())]
    NotHandedDown(PathBuf),
    /// The group has it, and keeps it to its own processes: EBUSY.
    #[error("the group {} has processes of its own, and hands nothing down", .0.display())]
    OwnProcesses(PathBuf),
}

fn at(mount: &Option<PathBuf>) -> String {
    mount.as_ref().map(|mount| format!(", at {}", mount.display())).unwrap_or_default()
}

impl Lack {
    /// What to do about it.
    pub fn remedy(&self) -> String {
        match self {
            Self::Version1 { .. } => {
                "start the kernel with systemd.unified_cgroup_hierarchy=1, or, without systemd, with \
                 cgroup_no_v1=all"
                    .into()
            }
            Self::Disabled(controller) => {
                format!("take cgroup_disable={controller} from the kernel's parameters")
            }
            Self::Unknown => "use a kernel that has it".into(),
            Self::NotHandedDown(_) => {
                "run it from the root group, or hand the controllers down to this one: \
                 in its systemd unit Delegate=yes, for a container by its engine"
                    .into()
            }
            Self::OwnProcesses(_) => {
                "run it from the root group, or move the processes to a group below this one: \
                 in its systemd unit Delegate=yes and DelegateSubgroup=main"
                    .into()
            }
        }
    }
}

/// There is no cgroup2 hierarchy to make groups in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoHierarchy {
    /// None is mounted, nor any of version 1.
    #[error("no cgroup2 file system is mounted; mount one: mount -t cgroup2 none /sys/fs/cgroup")]
    NotMounted,
    /// Only hierarchies of version 1 are mounted.
    #[error(
        "no cgroup2 file system is mounted, only version 1 ({}); start the kernel with \
         systemd.unified_cgroup_hierarchy=1, or mount one without controllers: \
         mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified",
        .0.display()
    )]
    Version1(PathBuf),
    /// It cannot be written to: in most containers.
    #[error("cgroup2 is mounted read-only at {}; remount it (mount -o remount,rw), or start the container with more privileges", .0.display())]
    ReadOnly(PathBuf),
}

/// A mounted hierarchy, out of a mountinfo file. proc_pid_mountinfo(5)
struct Mount<'a> {
    point: PathBuf,
    writable: bool,
    filesystem: &'a str,
    options: &'a str,
}

fn mounts(mountinfo: &str) -> impl Iterator<Item = Mount<'_>> {
    mountinfo.lines().filter_map(|line| {
        let (mount, rest) = line.split_once(" - ")?;
        let mut fields = mount.split(' ');
        let point = PathBuf::from(unescape(fields.nth(4)?));
        let writable = fields.next()?.split(',').any(|option| option == "rw");
        let mut rest = rest.split(' ');
        let filesystem = rest.next()?;
        let options = rest.nth(1)?;
        matches!(filesystem, "cgroup" | "cgroup2").then_some(Mount { point, writable, filesystem, options })
    })
}

/// Undoes mountinfo's octal escapes of blank characters.
fn unescape(field: &str) -> String {
    field.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

/// The root of a hierarchy, as far as it is seen: of all groups, or of those of a container.
struct Root {
    directory: PathBuf,
    /// Of [`CONTROLLERS`], what it was handed.
    has: Vec<&'static str>,
    is_root: bool,
    occupied: bool,
}

impl Root {
    fn look(directory: PathBuf, read: &dyn Fn(&Path) -> Option<String>) -> Self {
        let text = |file: &str| read(&directory.join(file));
        let list = text("cgroup.controllers").unwrap_or_default();
        let has = |name: &&str| list.split_whitespace().any(|one| one == *name);
        Self {
            has: CONTROLLERS.into_iter().filter(has).collect(),
            // Every other group has this file.
            is_root: text("cgroup.type").is_none(),
            occupied: text("cgroup.procs").is_some_and(|processes| !processes.trim().is_empty()),
            directory,
        }
    }

    fn can_hand_down(&self, name: &str) -> bool {
        self.has.contains(&name) && (self.is_root || !self.occupied)
    }
}

/// Chooses the place: the root of the hierarchy, as far as it is seen. The group that this process is in would be no better,
/// even where it was delegated: it has a process. `read` gives what a file holds, by its path.
pub(crate) fn choose(read: &dyn Fn(&Path) -> Option<String>) -> Result<Place, NoHierarchy> {
    let text = |path: &str| read(Path::new(path)).unwrap_or_default();
    let mountinfo = text("/proc/self/mountinfo");
    let (new, old): (Vec<_>, Vec<_>) = mounts(&mountinfo).partition(|mount| mount.filesystem == "cgroup2");
    let mount = match (new.iter().find(|mount| mount.writable), new.first(), old.first()) {
        (Some(mount), ..) => mount,
        (None, Some(mount), _) => return Err(NoHierarchy::ReadOnly(mount.point.clone())),
        (None, None, Some(old)) => return Err(NoHierarchy::Version1(old.point.clone())),
        (None, None, None) => return Err(NoHierarchy::NotMounted),
    };
    let group = Root::look(mount.point.clone(), read);
    let kernel = text("/proc/cgroups");
    let mut place = Place { controllers: Vec::new(), lacks: Vec::new(), directory: group.directory.clone() };
    for name in CONTROLLERS {
        if group.can_hand_down(name) {
            place.controllers.push(name.to_owned());
        } else {
            place.lacks.push((name, lack(name, &group, (&kernel, &old))));
        }
    }
    Ok(place)
}

/// Why `group` cannot hand `name` down, by what it is and what version 1 has: the lines of /proc/cgroups, the mounts.
fn lack(name: &'static str, group: &Root, (kernel, old): (&str, &[Mount<'_>])) -> Lack {
    let controller = if name == "io" { "blkio" } else { name };
    let line = kernel.lines().find_map(|line| line.strip_prefix(controller)?.strip_prefix('\t'));
    let mut fields = line.unwrap_or_default().split('\t');
    let (hierarchy, enabled) = (fields.next().unwrap_or("0"), fields.nth(1).unwrap_or("1"));
    let has_it = |mount: &&Mount<'_>| mount.options.split(',').any(|option| option == controller);
    if group.has.contains(&name) {
        Lack::OwnProcesses(group.directory.clone())
    } else if enabled == "0" {
        Lack::Disabled(controller)
    } else if hierarchy != "0" && !hierarchy.is_empty() {
        let mount = old.iter().find(has_it).map(|mount| mount.point.clone());
        Lack::Version1 { controller, mount }
    } else if group.is_root {
        Lack::Unknown
    } else {
        Lack::NotHandedDown(group.directory.clone())
    }
}
