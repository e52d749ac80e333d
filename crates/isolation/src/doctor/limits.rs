//! Which limit is kept by which means, and why not by a better one.

use std::path::Path;

use super::{Finding, Level};
use crate::cgroup::{self, Place};

/// A limit, and what keeps it.
struct Limit {
    subject: &'static str,
    controller: &'static str,
    /// Where its controller is missing.
    otherwise: &'static str,
}

const LIMITS: [Limit; 4] = [
    Limit {
        subject: "memory limit",
        controller: "memory",
        otherwise: "kept by RLIMIT_DATA for each process, and by a look at resident memory every 50 to 100 ms; files in \
                    memory are not counted",
    },
    Limit {
        subject: "process limit",
        controller: "pids",
        otherwise: "kept by RLIMIT_NPROC under the container's own user id",
    },
    Limit {
        subject: "processor limit",
        controller: "cpu",
        otherwise: "not kept: containers compete as ordinary processes do",
    },
    Limit {
        subject: "disk limit",
        controller: "io",
        otherwise: "not kept: containers read as fast as ordinary processes do",
    },
];

/// Looks at what of this machine keeps limits: the hierarchy first, then each limit.
pub fn limits() -> Vec<Finding> {
    told(&|path| std::fs::read_to_string(path).ok())
}

/// `read` gives what a file holds, by its path.
fn told(read: &dyn Fn(&Path) -> Option<String>) -> Vec<Finding> {
    let place = match cgroup::choose(read) {
        Ok(place) => place,
        Err(error) => {
            let text = error.to_string();
            let (detail, remedy) = text.split_once("; ").unwrap_or((&text, ""));
            return vec![Finding::wrong("cgroup2", Level::Bad, detail, remedy)];
        }
    };
    let mut findings = vec![Finding::good("cgroup2", place.directory.display().to_string())];
    for Limit { subject, controller, otherwise } in LIMITS {
        findings.push(match place.lack(controller) {
            None => Finding::good(subject, format!("kept by the cgroup2 controller {controller}")),
            Some(lack) => {
                Finding::wrong(subject, Level::Warning, format!("{otherwise} ({lack})"), lack.remedy())
            }
        });
        if controller == "memory" {
            findings.push(swap(&place, read));
        }
    }
    findings
}

fn swap(place: &Place, read: &dyn Fn(&Path) -> Option<String>) -> Finding {
    // The first line is a heading. proc_swaps(5)
    let swaps = read(Path::new("/proc/swaps")).is_some_and(|text| text.lines().nth(1).is_some());
    match place.lack("memory") {
        None => Finding::good("swap limit", "kept by the cgroup2 controller memory: containers have none"),
        Some(_) if !swaps => Finding::good("swap limit", "this machine has no swap"),
        Some(_) => Finding::wrong(
            "swap limit",
            Level::Warning,
            "not kept: what a container has in swap is not counted as its memory",
            "swapoff -a, or what the memory limit needs",
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::cgroup::Lack;

    /// A machine, as its files.
    fn report(files: &[(&str, &str)]) -> String {
        let files: HashMap<&Path, &str> =
            files.iter().map(|(path, text)| (Path::new(*path), *text)).collect();
        let line = |finding: Finding| {
            let Finding { subject, level, detail, remedy } = finding;
            let remedy = remedy.map(|remedy| format!("\n    {remedy}")).unwrap_or_default();
            format!("{level:?} {subject}: {detail}{remedy}\n")
        };
        told(&|path| files.get(path).map(|text| (*text).to_owned())).into_iter().map(line).collect()
    }

    const V2: &str = "24 1 254:0 / / rw,relatime - ext4 /dev/root rw\n\
        30 24 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
    const ALL: &str = "cpuset cpu io memory hugetlb pids rdma misc\n";
    const SERVICE: &str = "0::/system.slice/sock.service\n";
    const SWAP: &str = "Filename\tType\tSize\tUsed\tPriority\n/dev/dm-1\tpartition\t999420\t0\t-2\n";
    const NO_SWAP: &str = "Filename\tType\tSize\tUsed\tPriority\n";

    #[test]
    fn of_a_host_with_version_2_alone() {
        insta::assert_snapshot!(report(&[
            ("/proc/self/mountinfo", V2),
            ("/proc/self/cgroup", SERVICE),
            ("/proc/cgroups", "#subsys_name\thierarchy\tnum_cgroups\tenabled\nmemory\t0\t90\t1\n"),
            ("/proc/swaps", SWAP),
            ("/sys/fs/cgroup/cgroup.controllers", ALL),
            ("/sys/fs/cgroup/cgroup.subtree_control", "cpu memory pids\n"),
            ("/sys/fs/cgroup/cgroup.procs", "1\n2\n"),
            // Delegated, and of no use: this process is in it.
            ("/sys/fs/cgroup/system.slice/sock.service/cgroup.controllers", ALL),
            ("/sys/fs/cgroup/system.slice/sock.service/cgroup.type", "domain\n"),
            ("/sys/fs/cgroup/system.slice/sock.service/cgroup.procs", "700\n"),
        ]));
    }

    #[test]
    fn of_a_hybrid_host() {
        insta::assert_snapshot!(report(&[
            (
                "/proc/self/mountinfo",
                "31 23 0:28 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs rw,mode=755\n\
                 32 31 0:29 / /sys/fs/cgroup/unified rw,nosuid,relatime shared:9 - cgroup2 cgroup2 rw\n\
                 35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
                 36 31 0:33 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n\
                 37 31 0:34 / /sys/fs/cgroup/blkio rw,relatime - cgroup cgroup rw,blkio\n",
            ),
            ("/proc/self/cgroup", "4:memory:/user.slice\n3:cpu,cpuacct:/\n0::/user.slice/session-1.scope\n"),
            (
                "/proc/cgroups",
                "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpuset\t0\t1\t1\ncpu\t3\t1\t1\ncpuacct\t3\t1\t1\n\
                 blkio\t5\t1\t1\nmemory\t4\t55\t1\npids\t8\t60\t1\n",
            ),
            ("/proc/swaps", SWAP),
            ("/sys/fs/cgroup/unified/cgroup.controllers", "hugetlb\n"),
            ("/sys/fs/cgroup/unified/cgroup.procs", "1\n"),
        ]));
    }

    #[test]
    fn of_a_machine_without_cgroup2() {
        let version_1 = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n";
        let read_only = V2.replace(" rw,nosuid,nodev", " ro,nosuid,nodev");
        let none = "24 1 254:0 / / rw,relatime - ext4 /dev/root rw\n";
        let told = [none, version_1, &read_only].map(|mounts| report(&[("/proc/self/mountinfo", mounts)]));
        insta::assert_snapshot!(told.concat());
    }

    #[test]
    fn of_a_container_that_was_handed_nothing() {
        insta::assert_snapshot!(report(&[
            ("/proc/self/mountinfo", V2),
            ("/proc/self/cgroup", "0::/\n"),
            ("/proc/cgroups", "memory\t0\t90\t0\n"),
            ("/proc/swaps", NO_SWAP),
            ("/sys/fs/cgroup/cgroup.controllers", "cpuset\n"),
            ("/sys/fs/cgroup/cgroup.type", "domain\n"),
            ("/sys/fs/cgroup/cgroup.procs", "1\n"),
        ]));
    }

    #[test]
    fn of_a_group_with_processes_of_its_own() {
        insta::assert_snapshot!(report(&[
            ("/proc/self/mountinfo", V2),
            ("/proc/self/cgroup", "0::/\n"),
            ("/proc/swaps", NO_SWAP),
            ("/sys/fs/cgroup/cgroup.controllers", ALL),
            ("/sys/fs/cgroup/cgroup.type", "domain\n"),
            ("/sys/fs/cgroup/cgroup.procs", "1\n42\n"),
        ]));
    }

    #[test]
    fn of_a_container_whose_main_process_is_below() {
        insta::assert_snapshot!(report(&[
            ("/proc/self/mountinfo", V2),
            ("/proc/self/cgroup", "0::/main\n"),
            ("/proc/swaps", NO_SWAP),
            ("/sys/fs/cgroup/cgroup.controllers", "cpu memory pids\n"),
            ("/sys/fs/cgroup/cgroup.type", "domain\n"),
            ("/sys/fs/cgroup/cgroup.procs", ""),
            ("/sys/fs/cgroup/main/cgroup.controllers", "cpu memory pids\n"),
            ("/sys/fs/cgroup/main/cgroup.type", "domain\n"),
            ("/sys/fs/cgroup/main/cgroup.procs", "1\n"),
        ]));
    }

    #[test]
    fn a_shortage_is_told_once() {
        let lacks = vec![
            ("cpu", Lack::OwnProcesses("/cgroup".into())),
            ("io", Lack::Unknown),
            ("pids", Lack::OwnProcesses("/cgroup".into())),
        ];
        let place = Place { directory: "/cgroup".into(), controllers: vec!["memory".into()], lacks };
        assert_eq!(place.shortage(&["memory"]), None);
        insta::assert_snapshot!(place.shortage(&["cpu", "memory", "pids"]).unwrap_or_default());
    }

    #[test]
    fn a_mount_with_a_blank_in_its_name_is_found() {
        let told = report(&[
            (
                "/proc/self/mountinfo",
                "41 31 0:38 / /sys/fs/cgroup/a\\040b rw,relatime shared:9 - cgroup2 cgroup2 rw\n",
            ),
            ("/sys/fs/cgroup/a b/cgroup.controllers", "pids\n"),
        ]);
        assert!(told.contains("Good cgroup2: /sys/fs/cgroup/a b\n"), "{told}");
        assert!(told.contains("Good process limit: kept by"), "{told}");
        assert!(told.contains("this kernel was built without it"), "{told}");
    }
}
