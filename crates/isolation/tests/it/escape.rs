//! Ways out of a container: each is refused as it should be, and each protection is what refuses it.
//!
//! `escape/probes.py` tries them, `escape/expected.txt` says how each ends. A *control* runs a probe in a container from which
//! named protections were left out, where it has to get through: a probe that fails for a reason of its own proves
//! nothing. Controls weaken containers, so they run in the test machine only.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

use libtest_mimic::{Failed, Trial};
use sock_isolation::Program;

use crate::shop::{Shop, pipe};

const PROBES: &str = include_str!("escape/probes.py");
const EXPECTED: &str = include_str!("escape/expected.txt");

pub(crate) fn trials() -> Vec<Trial> {
    let lines = EXPECTED.lines().filter(|line| !line.starts_with('#'));
    let mut trials: Vec<Trial> = lines
        .filter_map(|line| line.split_once(' '))
        .map(|(name, outcomes)| {
            Trial::test(format!("escape::{name}"), move || {
                let found = attempt(&Shop::open()?, name)?;
                if outcomes.split(' ').any(|outcome| outcome == found) {
                    return Ok(());
                }
                Err(format!("{name} ended with {found:?}, and should with {outcomes}").into())
            })
        })
        .collect();
    trials.push(Trial::test("escape::every_probe_has_its_outcome", every_probe));
    #[cfg(feature = "machine")]
    trials.extend(controls::trials());
    trials
}

/// What of the host a probe is to reach: held for as long as it runs.
struct Bait {
    loopback: TcpListener,
    name: String,
    _abstract: UnixListener,
    key: i32,
}

impl Bait {
    fn lay() -> Result<Self, Failed> {
        let loopback = TcpListener::bind("127.0.0.1:0")?;
        let name = format!("sock-escape-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name)?;
        let _abstract = UnixListener::bind_addr(&address)?;
        let key = 0x50c4_0000 | (std::process::id() & 0xffff) as i32;
        // A segment of shared memory that everybody may use, as the host's own would be.
        let made = std::process::Command::new("/usr/bin/python3")
            .args([
                "-c",
                "import ctypes, sys; sys.exit(ctypes.CDLL(None).shmget(int(sys.argv[1]), 4096, 0o1666) < 0)",
            ])
            .arg(key.to_string())
            .status()?;
        if !made.success() {
            return Err("failed to make a segment of shared memory".into());
        }
        Ok(Self { loopback, name, _abstract, key })
    }

    fn environment(&self) -> Result<Vec<(String, String)>, Failed> {
        let port = self.loopback.local_addr()?.port().to_string();
        let pairs = [("PORT", port), ("ABSTRACT", self.name.clone()), ("KEY", self.key.to_string())];
        Ok(pairs.map(|(name, value)| (name.to_owned(), value)).into())
    }
}

impl Drop for Bait {
    fn drop(&mut self) {
        let _ = std::process::Command::new("ipcrm").args(["-M", &self.key.to_string()]).status();
    }
}

fn attempt(shop: &Shop, name: &str) -> Result<String, Failed> {
    let mut script = tempfile::tempfile()?;
    script.write_all(PROBES.as_bytes())?;
    script.rewind()?;
    let bait = Bait::lay()?;
    let (read, write) = pipe()?;
    let script: OwnedFd = script.into();
    let mut container = shop.workshop.create()?;
    let argv = ["/usr/bin/python3", "-I", "-S", "-", name].map(String::from).into();
    let program = Program { argv, env: bait.environment()?, directory: "/tmp".into() };
    container.start(&program, &[script.as_fd(), write.as_fd(), write.as_fd()])?;
    drop(write);
    let mut said = String::new();
    File::from(read).read_to_string(&mut said)?;
    container.destroy()?;
    let outcome =
        said.trim().strip_prefix(&format!("{{\"{name}\": \"")).and_then(|rest| rest.strip_suffix("\"}"));
    Ok(outcome.ok_or_else(|| format!("it said: {said}"))?.to_owned())
}

fn every_probe() -> Result<(), Failed> {
    let named: Vec<&str> = EXPECTED.lines().filter_map(|line| line.split(' ').next()).collect();
    let helpers = ["call", "reads", "writes", "outcome", "attempt", "handler"];
    for line in PROBES.lines().filter_map(|line| line.strip_prefix("def ")) {
        let name = line.split('(').next().unwrap_or_default();
        if !helpers.contains(&name) && !named.contains(&name) {
            return Err(format!("{name} has no line in expected.txt").into());
        }
    }
    Ok(())
}

#[cfg(feature = "machine")]
mod controls {
    use libtest_mimic::Trial;
    use sock_isolation::weaken::{self, Weakened};

    use super::attempt;
    use crate::shop::Shop;

    const FILTER: &str = "seccomp filter of Instance";
    const LANDLOCK: &str = "landlock";
    /// With these left out a command is root in its user namespace, and has every capability there.
    const CAPABILITIES: [&str; 3] =
        ["empty the capability bounding set", "setgroups [], setresgid 1000", "no capability in any set"];
    const NEW_USERS: &str = "user/max_user_namespaces";
    const NEW_MOUNTS: &str = "user/max_mnt_namespaces";
    const NEW_NETWORKS: &str = "user/max_net_namespaces";

    /// Probe, steps that are left out, namespaces that are not made.
    fn all() -> Vec<(&'static str, Vec<&'static str>, i32)> {
        let with_capabilities = |more: &[&'static str]| [&[FILTER][..], &CAPABILITIES, more].concat();
        let mut all = vec![
            ("user_namespace", vec![FILTER, NEW_USERS], 0),
            ("user_namespace_by_clone", vec![FILTER, NEW_USERS], 0),
            ("user_namespace_by_clone3", vec![FILTER, NEW_USERS], 0),
            ("mount_namespace", with_capabilities(&[NEW_MOUNTS]), 0),
            ("network_namespace", with_capabilities(&[NEW_NETWORKS]), 0),
            ("pivot_root", with_capabilities(&[LANDLOCK]), 0),
            ("mount", with_capabilities(&[LANDLOCK]), 0),
            ("mount_cgroup", with_capabilities(&[LANDLOCK]), 0),
            ("unmask_proc", with_capabilities(&[LANDLOCK]), 0),
            ("new_mount_interface", with_capabilities(&[]), 0),
            ("chroot", with_capabilities(&[]), 0),
            ("become_root", with_capabilities(&[]), 0),
            ("raw_socket", with_capabilities(&[]), 0),
            ("packet_socket", with_capabilities(&[]), 0),
            ("host_name", with_capabilities(&[]), 0),
            ("core_dumps", vec!["setrlimit CORE"], 0),
            ("kernel_symbols", vec!["mask /proc/kallsyms"], 0),
            ("interrupts", vec!["mask /proc/irq"], 0),
            ("loopback_of_the_host", vec!["bring lo up"], libc::CLONE_NEWNET),
            ("abstract_socket_of_the_host", vec!["bring lo up", LANDLOCK], libc::CLONE_NEWNET),
            ("shared_memory_of_the_host", vec![], libc::CLONE_NEWIPC),
            ("cgroup_path", vec![], libc::CLONE_NEWCGROUP),
        ];
        let by_the_filter_alone = [
            "keyring",
            "add_key",
            "userfaultfd",
            "io_uring",
            "netlink_socket",
            "no_randomisation",
            "ptrace_me",
            "old_segments",
        ];
        all.extend(by_the_filter_alone.map(|probe| (probe, vec![FILTER], 0)));
        all
    }

    pub(super) fn trials() -> Vec<Trial> {
        let control = |(name, steps, namespaces): (&'static str, Vec<&'static str>, i32)| {
            Trial::test(format!("escape::control::{name}"), move || {
                let weakened = Weakened { steps: steps.clone(), namespaces: namespaces as u64 };
                let found = weaken::during(weakened, || attempt(&Shop::open()?, name))?;
                if found == "made" {
                    return Ok(());
                }
                Err(format!("without {steps:?} {name} ended with {found}: something else stops it").into())
            })
        };
        all().into_iter().map(control).collect()
    }
}
