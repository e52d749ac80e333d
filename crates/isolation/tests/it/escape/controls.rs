//! Controls: a probe in a container from which named protections were left out, where it has to get through, or to come as far as the
//! next protection. A probe that fails for a reason of its own proves nothing.
//!
//! They weaken containers, so they run in the test machine only. Inside, a probe that has all capabilities has them in the
//! container's user namespace: what the kernel asks of the host's root stays out of reach.
//!
//! Where several protections keep a probe out, each of them is put back alone, and has to be enough: see [`NOT_ENOUGH`].

use libtest_mimic::Failed;

use super::EXPECTED;

const FILTER: &str = "seccomp filter of Instance";
/// PID 1 has one too, which asks for no_new_privs as any does.
const EVERY_FILTER: &str = "seccomp filter";
const LANDLOCK: &str = "landlock";
const NO_NEW_PRIVILEGES: &str = "no_new_privs";
/// With these left out a command is root in its user namespace, and has every capability there.
const CAPABILITIES: [&str; 3] =
    ["empty the capability bounding set", "setgroups [], setresgid 1000", "no capability in any set"];
const NEW_USERS: &str = "user/max_user_namespaces";
const NEW_MOUNTS: &str = "user/max_mnt_namespaces";
const NEW_NETWORKS: &str = "user/max_net_namespaces";
const NEW_TIMES: &str = "user/max_time_namespaces";
const LOOPBACK: &str = "bring lo up";

#[cfg_attr(not(feature = "machine"), expect(dead_code, reason = "only there they are tried"))]
struct Control {
    probe: &'static str,
    /// Steps that are left out.
    without: Vec<&'static str>,
    /// CLONE_NEW… that it has none of.
    namespaces: i32,
    /// How it may end then. Other than "made": by what comes next.
    ends: &'static [&'static str],
}

const MADE: &[&str] = &["made"];

/// What is left out for the sake of another, and alone keeps a probe from nothing; of "all" probes or one, and why.
#[cfg(feature = "machine")]
const NOT_ENOUGH: &[(&str, &str, &str)] = &[
    ("all", LOOPBACK, "it is left out since it would be done to the interface of the host"),
    ("kill_init", FILTER, "everybody may send signals: PID 1 is another user's"),
    ("set_user_id_programs", EVERY_FILTER, "it does not go without no_new_privs"),
    ("set_user_id_programs", LANDLOCK, "it does not go without no_new_privs"),
];

/// What Landlock keeps apart, signals and sockets by name, since 6.12.
#[cfg(feature = "machine")]
const SCOPED: [&str; 3] = ["abstract_socket_of_the_host", "abstract_socket_of_a_neighbour", "kill_init"];

/// A file of the machine's root, on kernels that have it.
const NOT_OURS: &[&str] = &["EACCES", "EPERM", "ENOENT"];

fn if_there(path: &str) -> &'static [&'static str] {
    if std::path::Path::new(path).exists() { MADE } else { &["ENOENT"] }
}

fn if_kernel(
    least: (u32, u32),
    then: &'static [&'static str],
    otherwise: &'static [&'static str],
) -> &'static [&'static str] {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(['.', '-']).map_while(|number| number.trim().parse::<u32>().ok());
    if numbers.next().zip(numbers.next()).is_some_and(|version| version >= least) { then } else { otherwise }
}

/// The machine may forbid it to everybody but its root.
fn if_at_most(sysctl: &str, most: i32) -> &'static [&'static str] {
    let value = std::fs::read_to_string(format!("/proc/sys/{sysctl}")).unwrap_or_default();
    if value.trim().parse::<i32>().is_ok_and(|value| value <= most) { MADE } else { &["EPERM", "EACCES"] }
}

/// Without the filter and with every capability, and without these too.
fn with_capabilities(probe: &'static str, more: &[&'static str], ends: &'static [&'static str]) -> Control {
    Control { probe, without: [&[FILTER][..], &CAPABILITIES, more].concat(), namespaces: 0, ends }
}

fn without(probe: &'static str, steps: &[&'static str], ends: &'static [&'static str]) -> Control {
    Control { probe, without: steps.to_vec(), namespaces: 0, ends }
}

fn on_the_host(probe: &'static str, namespaces: i32, steps: &[&'static str]) -> Control {
    Control { probe, without: steps.to_vec(), namespaces, ends: MADE }
}

fn all() -> Vec<Control> {
    vec![
        // The root and its mounts.
        with_capabilities("chroot", &[], MADE),
        with_capabilities("chroot_twice", &[], MADE),
        with_capabilities("pivot_root", &[LANDLOCK], MADE),
        with_capabilities("mount", &[LANDLOCK], MADE),
        with_capabilities("mount_cgroup", &[LANDLOCK], MADE),
        // The kernel asks for a capability over the host's user namespace, since 5.17, or has no version 1.
        with_capabilities("release_agent", &[LANDLOCK], &["EPERM", "EINVAL", "ENODEV", "EBUSY"]),
        with_capabilities("mount_proc", &[LANDLOCK], MADE),
        with_capabilities("unmask_proc", &[LANDLOCK], MADE),
        with_capabilities("unmount_proc", &[LANDLOCK], MADE),
        // What a copy of the root alone would uncover is locked.
        with_capabilities("open_tree", &[LANDLOCK, NEW_MOUNTS], &["EINVAL"]),
        with_capabilities("new_mount_interface", &[], MADE),
        with_capabilities("move_mount", &[LANDLOCK], MADE),
        without("set_user_id_programs", &[EVERY_FILTER, LANDLOCK, NO_NEW_PRIVILEGES], MADE),
        // Processes.
        with_capabilities("namespaces_allowed", &[LANDLOCK], &["EROFS"]),
        with_capabilities("kill_init", &[LANDLOCK], MADE),
        with_capabilities("become_root", &[], MADE),
        on_the_host("others_seen", libc::CLONE_NEWPID, &[]),
        // Seen, and another user's.
        Control { ends: &["EPERM"], ..on_the_host("kill_outside", libc::CLONE_NEWPID, &[]) },
        Control { ends: &["EPERM"], ..on_the_host("kill_a_neighbour", libc::CLONE_NEWPID, &[]) },
        // The number is the host's.
        without("ptrace_a_neighbour", &[FILTER], &["ESRCH"]),
        without("memory_of_a_neighbour", &[FILTER], &["ESRCH"]),
        on_the_host("kill_all", libc::CLONE_NEWPID, &[]),
        without("ptrace_me", &[FILTER], MADE),
        // It asks for nothing, which some kernels give and others refuse.
        without("read_memory", &[FILTER], &["EINVAL", "made"]),
        without("stop_a_process", &[FILTER], MADE),
        without("stop_by_a_childs_end", &[FILTER], MADE),
        without("stop_by_a_parents_death", &[FILTER], MADE),
        without("signal_by_descriptor", &[FILTER], MADE),
        // Namespaces.
        without("user_namespace", &[FILTER, NEW_USERS], MADE),
        without("user_namespace_by_clone", &[FILTER, NEW_USERS], MADE),
        without("user_namespace_by_clone3", &[FILTER, NEW_USERS], MADE),
        with_capabilities("mount_namespace", &[NEW_MOUNTS], MADE),
        with_capabilities("network_namespace", &[NEW_NETWORKS], MADE),
        with_capabilities("time_namespace", &[NEW_TIMES], MADE),
        // What the kernel tells, and is told.
        without("core_dumps", &["setrlimit CORE"], MADE),
        without("all_locked_memory", &["setrlimit MEMLOCK"], MADE),
        without("kernel_symbols", &["mask /proc/kallsyms"], MADE),
        without("kernel_memory", &["mask /proc/kcore"], NOT_OURS),
        without("sysrq", &["mask /proc/sysrq-trigger"], NOT_OURS),
        without("interrupts", &["mask /proc/irq"], if_there("/proc/irq/0")),
        // The kernel's large doors.
        without("keyring", &[FILTER], MADE),
        without("add_key", &[FILTER], MADE),
        without("all_keys", &[FILTER], &["EDQUOT"]),
        without("all_user_namespaces", &[FILTER, NEW_USERS], &["ENOSPC", "EUSERS", "EPERM"]),
        without("userfaultfd", &[FILTER], MADE),
        without("io_uring", &[FILTER], MADE),
        without("bpf", &[FILTER], if_at_most("kernel/unprivileged_bpf_disabled", 0)),
        without("perf", &[FILTER], if_at_most("kernel/perf_event_paranoid", 2)),
        without("kernel_log", &[FILTER], if_at_most("kernel/dmesg_restrict", 0)),
        without("watch_everything", &[FILTER], MADE),
        without("no_randomisation", &[FILTER], MADE),
        without("old_segments", &[FILTER], MADE),
        without("type_into_the_terminal", &[FILTER], &["made", "EIO"]),
        with_capabilities("host_name", &[], MADE),
        with_capabilities("reboot", &[], &["EINVAL"]),
        // The network, and what is shared.
        without("netlink_socket", &[FILTER], MADE),
        without("lingering_socket", &[FILTER], MADE),
        without("multipath_socket", &[FILTER], &["made", "EPROTONOSUPPORT", "ENOPROTOOPT"]),
        without("vsock", &[FILTER], &["made", "EAFNOSUPPORT"]),
        without("crypto_socket", &[FILTER], &["made", "EAFNOSUPPORT"]),
        with_capabilities("raw_socket", &[], MADE),
        with_capabilities("packet_socket", &[], MADE),
        with_capabilities("packet_filter", &[], &["EINVAL", "ENOPROTOOPT"]),
        with_capabilities("interface", &[], MADE),
        on_the_host("loopback_of_the_host", libc::CLONE_NEWNET, &[LOOPBACK]),
        on_the_host("loopback_of_a_neighbour", libc::CLONE_NEWNET, &[LOOPBACK]),
        on_the_host("abstract_socket_of_a_neighbour", libc::CLONE_NEWNET, &[LOOPBACK, LANDLOCK]),
        on_the_host("shared_memory_of_a_neighbour", libc::CLONE_NEWIPC, &[]),
        without("message_queue_for_neighbours", &[LANDLOCK], MADE),
        // By Landlock alone, where it keeps them apart.
        Control {
            ends: if_kernel((6, 12), &["EPERM"], MADE),
            ..on_the_host("abstract_socket_of_the_host", libc::CLONE_NEWNET, &[LOOPBACK])
        },
        on_the_host("abstract_socket_of_the_host", libc::CLONE_NEWNET, &[LOOPBACK, LANDLOCK]),
        on_the_host("shared_memory_of_the_host", libc::CLONE_NEWIPC, &[]),
        on_the_host("message_queue", libc::CLONE_NEWIPC, &[LANDLOCK]),
        on_the_host("cgroup_path", libc::CLONE_NEWCGROUP, &[]),
    ]
}

/// Why others have none.
const NONE: &[(&str, &[&str])] = &[
    (
        "a hole would let it write to the machine's own files",
        &["writable_usr", "own_program", "library_of_the_host"],
    ),
    (
        "the root of the containers is the machine's root's, and read-only by the template, not by a step of a container's",
        &["writable_root", "writable_etc"],
    ),
    (
        "it is nowhere that a container comes from: nothing keeps it out that could be left out",
        &["file_of_the_host", "home_of_root", "disk", "memory_device", "sysfs", "cgroup"],
    ),
    (
        "the flags of mounts are locked by the host's user namespace, whatever capability one has inside; tried",
        &["remount_writable", "mount_attributes"],
    ),
    ("a new sysfs has to show no more than one that is there, and none is; tried", &["mount_sys"]),
    (
        "PID 1's memory is the host's user namespace's, being a copy of the builder's: nobody inside has a capability over \
         that, be it left dumpable or not; tried",
        &[
            "root_of_init",
            "working_directory_of_init",
            "descriptors_of_init",
            "memory_of_init",
            "environment_of_init",
            "network_of_init",
            "namespace_of_init",
            "ptrace",
            "steal_descriptor",
            "oom_score_of_init",
        ],
    ),
    (
        "the kernel asks for a capability over the host's user namespace, which only root itself has: that would be no container",
        &[
            "file_handles",
            "make_device",
            "make_null",
            "priority",
            "kexec",
            "kexec_by_file",
            "load_module",
            "load_module_by_file",
            "swap",
            "accounting",
            "clock",
            "io_ports",
            "core_pattern",
            "host_name_file",
            "module_loader",
            "overcommit",
        ],
    ),
    ("unmasked it shows the keys that one may see, of which there are none", &["keys_of_others"]),
    (
        "they are overwritten by whoever makes containers, by no step of a plan: see the mutant",
        &["arguments_of_init"],
    ),
    ("the kernels here have no system calls of x32", &["old_system_calls"]),
    (
        "no process of the host walks a path that a container can change: /tmp itself is a mount, in a root that is read-only",
        &["swap_links"],
    ),
    ("with the host's network it would send packets to somebody", &["abroad"]),
    ("it is one: what is allowed", &["other_options"]),
    (
        "descriptors are closed by no step of a plan: see inside::no_descriptor_is_inherited",
        &["inherited_descriptors"],
    ),
    (
        "without the limit it takes all that the machine has",
        &["all_processes", "all_descriptors", "all_sockets", "all_of_tmp", "all_inodes", "all_watches"],
    ),
];

/// Each probe has a control, or a reason why it cannot have one.
pub(super) fn complete() -> Result<(), Failed> {
    let all = all();
    let lines = EXPECTED.lines().filter(|line| !line.starts_with('#'));
    for probe in lines.filter_map(|line| line.split(' ').next()) {
        let controls = all.iter().filter(|control| control.probe == probe).count();
        let reasons = NONE.iter().filter(|(_, probes)| probes.contains(&probe)).count();
        if (controls > 0) == (reasons > 0) || reasons > 1 {
            return Err(format!("{probe} has {controls} controls and {reasons} reasons why not").into());
        }
    }
    Ok(())
}

/// One protection: the steps of all capabilities are one, and so are namespaces.
#[cfg(feature = "machine")]
fn protections(control: &Control) -> Vec<(String, Vec<&'static str>, i32)> {
    let Control { without, namespaces, .. } = control;
    let is_capability = |step: &&&str| CAPABILITIES.contains(*step);
    let mut all: Vec<_> = without
        .iter()
        .filter(|step| !is_capability(step))
        .map(|step| ((*step).to_owned(), vec![*step], 0))
        .collect();
    if without.iter().any(|step| CAPABILITIES.contains(step)) {
        all.push(("capabilities".to_owned(), CAPABILITIES.to_vec(), 0));
    }
    if *namespaces != 0 {
        all.push(("namespaces".to_owned(), Vec::new(), *namespaces));
    }
    all
}

/// Each protection alone, where there are several: without the others, and the probe does not get as far as without any.
#[cfg(feature = "machine")]
fn alone() -> Vec<libtest_mimic::Trial> {
    use sock_isolation::weaken::{self, Weakened};
    let mut trials = Vec::new();
    let is_old = !if_kernel((6, 12), &[], MADE).is_empty();
    // What ends in no success without any ends so for a reason of the kernel's: nothing would tell them apart.
    for control in all().into_iter().filter(|control| control.ends.contains(&"made")) {
        let all = protections(&control);
        for (name, steps, namespaces) in all.iter().filter(|_| all.len() > 1) {
            let Control { probe, without, namespaces: missing, .. } = &control;
            if NOT_ENOUGH.iter().any(|(of, step, _)| (*of == *probe || *of == "all") && step == name)
                || (is_old && SCOPED.contains(probe) && name == LANDLOCK)
            {
                continue;
            }
            let (probe, name) = (*probe, name.clone());
            let steps: Vec<_> = without.iter().copied().filter(|step| !steps.contains(step)).collect();
            let namespaces = (missing & !namespaces) as u64;
            trials.push(libtest_mimic::Trial::test(format!("escape::alone::{probe}: {name}"), move || {
                let weakened = Weakened { steps: steps.clone(), namespaces };
                let found = weaken::during(weakened, || super::attempt(probe))?;
                if found == "made" {
                    return Err(format!("{probe} gets through where nothing is left but {name}").into());
                }
                Ok(())
            }));
        }
    }
    trials
}

#[cfg(feature = "machine")]
pub(super) fn trials() -> Vec<libtest_mimic::Trial> {
    use sock_isolation::weaken::{self, Weakened};
    let mut seen = std::collections::BTreeMap::<&str, usize>::new();
    let control = |control: Control| {
        let Control { probe, without, namespaces, ends } = control;
        let count = seen.entry(probe).or_default();
        *count += 1;
        let name = if *count == 1 { probe.to_owned() } else { format!("{probe}_{count}") };
        libtest_mimic::Trial::test(format!("escape::control::{name}"), move || {
            let weakened = Weakened { steps: without.clone(), namespaces: namespaces as u64 };
            let found = weaken::during(weakened, || super::attempt(probe))?;
            if ends.contains(&found.as_str()) {
                return Ok(());
            }
            Err(format!("without {without:?} {probe} ended with {found}, and should with {ends:?}").into())
        })
    };
    all().into_iter().map(control).chain(alone()).collect()
}
