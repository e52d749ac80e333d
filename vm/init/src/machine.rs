//! From an archive in memory to a Debian system: modules, file systems, control groups, network.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::process::Command;

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::unistd::{chdir, chroot, sethostname, sync};

use crate::{Attempt, failed};

const PLAIN: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);

fn mount_new(kind: &str, target: &str, flags: MsFlags, data: &str) -> Attempt<()> {
    fs::create_dir_all(target).map_err(failed(format!("create {target}")))?;
    mount(Some(kind), target, Some(kind), flags, Some(data))
        .map_err(failed(format!("mount {kind} on {target}")))
}

fn move_mount(from: &str, to: &str) -> Attempt<()> {
    let none: Option<&str> = None;
    mount(Some(from), to, none, MsFlags::MS_MOVE, none).map_err(failed(format!("move {from} to {to}")))
}

/// What is needed to see devices.
pub(crate) fn mount_kernel() -> Attempt<()> {
    mount_new("proc", "/proc", PLAIN, "")?;
    mount_new("sysfs", "/sys", PLAIN, "")?;
    mount_new("devtmpfs", "/dev", MsFlags::MS_NOSUID, "mode=755")
}

/// Loads the modules of `directory`, in the order of their names.
pub(crate) fn load_modules(directory: &Path) -> Attempt<()> {
    let entries = fs::read_dir(directory).map_err(failed(format!("read {}", directory.display())))?;
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        let file = File::open(&path).map_err(failed(format!("open {}", path.display())))?;
        match finit_module(&file, c"", ModuleInitFlags::empty()) {
            // A driver for what this machine does not have says ENODEV.
            Ok(()) | Err(Errno::EEXIST | Errno::ENODEV) => {}
            Err(errno) => return Err(format!("failed to load {}: {errno}", path.display())),
        }
    }
    Ok(())
}

/// Mounts an EROFS image, read-only.
pub(crate) fn mount_image(device: &Path, target: &Path) -> Attempt<()> {
    fs::create_dir_all(target).map_err(failed(format!("create {}", target.display())))?;
    mount(Some(device), target, Some("erofs"), MsFlags::MS_RDONLY | MsFlags::MS_NODEV, None::<&str>)
        .map_err(failed(format!("mount {} on {}", device.display(), target.display())))
}

fn mount_overlay(lower: &str, work: &str, target: &str) -> Attempt<()> {
    for directory in ["upper", "work"] {
        let path = format!("{work}/{directory}");
        fs::create_dir_all(&path).map_err(failed(format!("create {path}")))?;
    }
    fs::create_dir_all(target).map_err(failed(format!("create {target}")))?;
    let data = format!("lowerdir={lower},upperdir={work}/upper,workdir={work}/work");
    mount(Some("overlay"), target, Some("overlay"), MsFlags::empty(), Some(data.as_str()))
        .map_err(failed(format!("mount an overlay on {target}")))
}

/// Makes the root disk the root, under a layer in memory.
pub(crate) fn enter_root(disk: &Path) -> Attempt<()> {
    mount_image(disk, Path::new("/image"))?;
    mount_new("tmpfs", "/over", MsFlags::empty(), "mode=755")?;
    mount_overlay("/image", "/over", "/root")?;
    for name in ["dev", "proc", "sys"] {
        move_mount(&format!("/{name}"), &format!("/root/{name}"))?;
    }
    // The archive that we come from cannot be left by pivot_root(2): its root has no parent.
    chdir("/root").map_err(failed("enter the root"))?;
    move_mount(".", "/")?;
    chroot(".").map_err(failed("change the root"))?;
    chdir("/").map_err(failed("enter the root"))
}

/// What a distribution's own init would have made.
pub(crate) fn mount_rest() -> Attempt<()> {
    let safe = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount_new("tmpfs", "/run", safe, "mode=755")?;
    mount_new("tmpfs", "/tmp", safe, "mode=1777")?;
    mount_new("tmpfs", "/dev/shm", safe, "mode=1777")?;
    mount_new("devpts", "/dev/pts", MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC, "gid=5,mode=620,ptmxmode=666")?;
    let groups = "/sys/fs/cgroup";
    mount_new("cgroup2", groups, PLAIN, "nsdelegate,memory_recursiveprot")?;
    let controllers = fs::read_to_string(format!("{groups}/cgroup.controllers"))
        .map_err(failed("read the controllers of control groups"))?;
    for controller in controllers.split_whitespace() {
        let path = format!("{groups}/cgroup.subtree_control");
        let mut file = OpenOptions::new().write(true).open(&path).map_err(failed(format!("open {path}")))?;
        file.write_all(format!("+{controller}").as_bytes())
            .map_err(failed(format!("delegate {controller}")))?;
    }
    sethostname("vm").map_err(failed("set the host's name"))?;
    // As on a system with udev.
    for (name, to) in [("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")] {
        std::os::unix::fs::symlink(to, format!("/dev/{name}"))
            .map_err(failed(format!("link /dev/{name}")))?;
    }
    Ok(())
}

/// Shows the payload's tree at the path that it has outside, under a layer in memory.
pub(crate) fn show(tree: &Path, workspace: &Path) -> Attempt<()> {
    mount_overlay(&tree.to_string_lossy(), "/run/workspace", &workspace.to_string_lossy())
}

/// The loopback, and QEMU's own network if it is asked for.
pub(crate) fn start_network(outside: bool) -> Attempt<()> {
    ip(&["link", "set", "lo", "up"])?;
    if outside {
        ip(&["link", "set", "eth0", "up"])?;
        ip(&["address", "add", "10.0.2.15/24", "dev", "eth0"])?;
        ip(&["route", "add", "default", "via", "10.0.2.2"])?;
    }
    Ok(())
}

fn ip(arguments: &[&str]) -> Attempt<()> {
    let status = Command::new("/usr/sbin/ip").args(arguments).status().map_err(failed("start ip"))?;
    if status.success() { Ok(()) } else { Err(format!("ip {}: {status}", arguments.join(" "))) }
}

/// The end.
pub(crate) fn power_off() -> Attempt<()> {
    sync();
    match reboot(RebootMode::RB_POWER_OFF) {
        Ok(never) => match never {},
        Err(errno) => Err(format!("failed to power off: {errno}")),
    }
}
