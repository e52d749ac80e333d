//! Ways out of a container: each is refused as it should be, and each protection is what refuses it.
//!
//! `escape/probes.py` tries them, `escape/expected.txt` says how each ends, `escape/controls.rs` what happens where there are
//! holes.

mod controls;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Seek, Write};
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

use libtest_mimic::{Failed, Trial};
use sock_isolation::{Container, Program};

use crate::shop::{Shop, pipe};

const PROBES: &str = include_str!("escape/probes.py");
const EXPECTED: &str = include_str!("escape/expected.txt");

pub(crate) fn trials() -> Vec<Trial> {
    let lines = EXPECTED.lines().filter(|line| !line.starts_with('#'));
    let mut trials: Vec<Trial> = lines
        .filter_map(|line| line.split_once(' '))
        .map(|(name, outcomes)| {
            Trial::test(format!("escape::{name}"), move || {
                let found = attempt(name)?;
                if outcomes.split(' ').any(|outcome| outcome == found && !outcome.contains(':')) {
                    return Ok(());
                }
                Err(format!("{name} ended with {found:?}, and should with {outcomes}").into())
            })
        })
        .collect();
    trials.push(Trial::test("escape::every_probe_has_its_outcome", every_probe));
    trials.push(Trial::test("escape::every_probe_has_a_control_or_a_reason", controls::complete));
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
        // A segment of shared memory and a queue that everybody may use, as the host's own would be.
        let made = std::process::Command::new("/usr/bin/python3")
            .args([
                "-c",
                "import ctypes, os, sys; libc = ctypes.CDLL(None); os.umask(0); key = int(sys.argv[1]); \
                 queue = libc.mq_open(b'/sock-escape-%d' % key, os.O_CREAT, 0o666, None); \
                 sys.exit(libc.shmget(key, 4096, 0o1666) < 0 or queue < 0)",
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
        let (key, queue) = (self.key.to_string(), format!("/sock-escape-{}", self.key));
        let _ = std::process::Command::new("ipcrm").args(["-M", &key]).status();
        let unlink = "import ctypes, sys; ctypes.CDLL(None).mq_unlink(sys.argv[1].encode())";
        let _ = std::process::Command::new("/usr/bin/python3").args(["-c", unlink, &queue]).status();
    }
}

/// Another container, and what probes get to know of it.
fn neighbour(shop: &Shop) -> Result<(Container, BTreeMap<String, String>), Failed> {
    let mut script = tempfile::tempfile()?;
    script.write_all(PROBES.as_bytes())?;
    script.rewind()?;
    let (read, write) = pipe()?;
    let script: OwnedFd = script.into();
    let mut container = shop.workshop.create()?;
    let argv = ["/usr/bin/python3", "-I", "-S", "-", "be_a_neighbour"].map(String::from).into();
    let program = Program { argv, env: Vec::new(), directory: "/tmp".into() };
    container.start(&program, &[script.as_fd(), write.as_fd(), write.as_fd()])?;
    drop(write);
    let mut said = String::new();
    BufReader::new(File::from(read)).read_line(&mut said)?;
    let mut environment: BTreeMap<String, String> =
        serde_json::from_str(&said).map_err(|error| format!("{error}: {said}"))?;
    let described = fs::read_to_string(format!("/proc/self/fdinfo/{}", container.pidfd()?.as_raw_fd()))?;
    let number = described.lines().find_map(|line| line.strip_prefix("Pid:")).ok_or("it has no number")?;
    environment.insert("NEIGHBOUR".into(), number.trim().into());
    Ok((container, environment))
}

fn attempt(name: &str) -> Result<String, Failed> {
    let shop = Shop::open()?;
    let mut script = tempfile::tempfile()?;
    script.write_all(PROBES.as_bytes())?;
    script.rewind()?;
    let bait = Bait::lay()?;
    let (neighbour, of_neighbour) = neighbour(&shop)?;
    let (read, write) = pipe()?;
    let script: OwnedFd = script.into();
    let mut container = shop.workshop.create()?;
    let argv = ["/usr/bin/python3", "-I", "-S", "-", name].map(String::from).into();
    let env = bait.environment()?.into_iter().chain(of_neighbour).collect();
    let program = Program { argv, env, directory: "/tmp".into() };
    container.start(&program, &[script.as_fd(), write.as_fd(), write.as_fd()])?;
    drop(write);
    let mut said = String::new();
    File::from(read).read_to_string(&mut said)?;
    container.destroy()?;
    neighbour.destroy()?;
    shop.close()?;
    let outcome =
        said.trim().strip_prefix(&format!("{{\"{name}\": \"")).and_then(|rest| rest.strip_suffix("\"}"));
    Ok(outcome.ok_or_else(|| format!("it said: {said}"))?.to_owned())
}

fn every_probe() -> Result<(), Failed> {
    let named: Vec<&str> = EXPECTED.lines().filter_map(|line| line.split(' ').next()).collect();
    let helpers = PROBES.lines().find(|line| line.starts_with("HELPERS = ")).unwrap_or_default();
    for line in PROBES.lines().filter_map(|line| line.strip_prefix("def ")) {
        let name = line.split('(').next().unwrap_or_default();
        let is_helper =
            helpers.contains(&format!("\"{name}\"")) || ["outcome", "attempt", "handler"].contains(&name);
        if !is_helper && !named.contains(&name) {
            return Err(format!("{name} has no line in expected.txt").into());
        }
    }
    Ok(())
}
