//! What a lean container costs, beside a plain process and beside its peers.

mod filters;
mod peers;

use std::ffi::CString;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use sock_isolation::process::Child;
use sock_isolation::{
    Container, ContainerSpec, End, Exit, Host, HostOptions, IdRange, Limits, Program, Template, Workshop,
};

use crate::figures::{Samples, Target, heading, judge, show};
use crate::machine::{available, field};
use peers::Peer;

const TRUE: &str = "/bin/true";

/// Rounds, in each of which every contender has one turn. The slow ones take part in the first few only.
const ROUNDS: usize = 200;
const SLOW_ROUNDS: usize = 20;

/// How many containers are kept ready.
const READY: usize = 8;

/// How many are alive while the next one is measured.
const FEW: usize = 10;
const MANY: usize = 2_000;
const CROWDED_ROUNDS: usize = 200;

const THROUGHPUT: Duration = Duration::from_secs(5);

/// Something that takes no memory to speak of, and no time to start.
const SLEEPER: [&str; 3] = ["/bin/busybox", "sleep", "1000000"];

/// What can be measured alone.
pub(crate) const PARTS: [&str; 4] = ["latency", "throughput", "crowd", "filters"];

/// Measures, prints, and tells whether every target was met.
pub(crate) fn run(sock: &Path, part: Option<&str>) -> Result<bool> {
    if let Some(part) = part.filter(|part| !PARTS.contains(part)) {
        bail!("there is no part {part}; there are: {}", PARTS.join(", "));
    }
    // A workshop can only be opened while there is one thread; peers are other processes.
    sock_isolation::process::raise_file_limit()?;
    let work = tempfile::tempdir()?;
    let mut met = true;
    for one in PARTS.into_iter().filter(|one| part.is_none_or(|part| part == *one)) {
        met &= match one {
            "latency" => latency(work.path(), &peers::all(work.path(), sock)?)?,
            "throughput" => throughput(work.path())?,
            "filters" => filters::run()?,
            _ => crowd(work.path())?,
        };
    }
    Ok(met)
}

struct Shop {
    workshop: Workshop,
    null: File,
}

impl Shop {
    fn open(work: &Path) -> Result<Self> {
        let work = work.join("host");
        fs::create_dir_all(&work)?;
        let group = format!("sock-bench-{}", std::process::id());
        let template = Template::of_base(Path::new("/"))?;
        let host = Host::start(HostOptions { work, group, template, ids: IdRange::default() })?;
        let limits = Limits { memory: 32 << 20, processes: 16, ..Limits::default() };
        let spec = ContainerSpec { tmp_bytes: 1 << 20, limits, ..ContainerSpec::default() };
        Ok(Self {
            workshop: Workshop::new(host, spec),
            null: File::options().read(true).write(true).open("/dev/null")?,
        })
    }

    fn start(&self, argv: &[&str]) -> Result<Container> {
        let mut container = self.workshop.create()?;
        let argv = argv.iter().map(|argument| (*argument).to_owned()).collect();
        let program = Program { argv, env: Vec::new(), directory: "/tmp".into() };
        container.start(&program, &[self.null.as_fd(); 3])?;
        Ok(container)
    }

    /// Create, execute, reap, destroy.
    fn once(&self) -> Result<()> {
        let mut container = self.start(&[TRUE])?;
        let end = container.wait()?;
        container.destroy()?;
        if end == End::Exited(Exit::Code(0)) { Ok(()) } else { bail!("{TRUE} ended with {end:?}") }
    }

    /// Until as many are ready as shall be.
    fn fill(&self) -> Result<()> {
        let begin = Instant::now();
        while self.workshop.tend()? < READY {
            if begin.elapsed() > Duration::from_secs(10) {
                bail!("the pool does not fill");
            }
            #[expect(
                clippy::disallowed_methods,
                reason = "what fills the pool tells nobody outside the library"
            )]
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

fn plain() -> Result<()> {
    let child = Child::fork(|| {
        let program = CString::new(TRUE).unwrap_or_default();
        let never = nix::unistd::execve(&program, &[&program], &[] as &[&CString]);
        never.map_or(127, |never| match never {})
    })?;
    match child.wait()? {
        Exit::Code(0) => Ok(()),
        exit => bail!("{TRUE} ended with {exit:?}"),
    }
}

fn latency(work: &Path, peers: &[Peer]) -> Result<bool> {
    let shop = Shop::open(work)?;
    shop.workshop.keep_ready(READY);
    let (mut bare, mut lean) = (Samples::default(), Samples::default());
    let mut theirs: Vec<Samples> = peers.iter().map(|_| Samples::default()).collect();
    for round in 0..ROUNDS {
        shop.fill()?;
        bare.time(plain)?;
        lean.time(|| shop.once())?;
        for (peer, samples) in peers.iter().zip(&mut theirs) {
            if round < SLOW_ROUNDS || peer.is_fast {
                samples.time(|| peer.run())?;
            }
        }
    }
    shop.workshop.stop()?;
    heading();
    show("fork, exec, wait", &bare);
    show("lean container, by the library", &lean);
    for (peer, samples) in peers.iter().zip(&theirs) {
        show(peer.name, samples);
    }
    let of = |name: &str| peers.iter().position(|peer| peer.name == name).map(|at| theirs[at].median());
    let mut met = judge("lean / plain process", lean.median() / bare.median(), Target::AtMost(2.5));
    met &= judge("lean p99 / p50", lean.quantile(0.99) / lean.median(), Target::AtMost(10.0));
    let sock = of(peers::SOCK).context("sock run was not measured")?;
    for (name, ours, against, bound) in [
        (peers::DOCKER, lean.median(), "lean", 200.0),
        (peers::BUBBLEWRAP, sock, "sock run", 2.0),
        (peers::RUNC, sock, "sock run", 12.0),
    ] {
        match of(name) {
            Some(theirs) => {
                met &= judge(&format!("{name} / {against}"), theirs / ours, Target::AtLeast(bound))
            }
            None => println!("{name} is not there: not compared"),
        }
    }
    Ok(met)
}

fn throughput(work: &Path) -> Result<bool> {
    let shop = Shop::open(work)?;
    shop.workshop.keep_ready(READY);
    shop.fill()?;
    let (begin, mut count) = (Instant::now(), 0u32);
    while begin.elapsed() < THROUGHPUT {
        shop.once()?;
        shop.workshop.tend()?;
        count += 1;
    }
    let rate = f64::from(count) / begin.elapsed().as_secs_f64();
    shop.workshop.stop()?;
    Ok(judge("created and destroyed, refilling included, a second", rate, Target::AtLeast(1000.0)))
}

/// With few and with many alive.
fn crowd(work: &Path) -> Result<bool> {
    if !Path::new(SLEEPER[0]).exists() {
        bail!("{} is missing: apt-get install busybox-static", SLEEPER[0]);
    }
    let shop = Shop::open(work)?;
    let mut alive = Vec::new();
    let few = among(&shop, &mut alive, FEW)?;
    let before = available()?;
    let many = among(&shop, &mut alive, MANY)?;
    let each = (before.saturating_sub(available()?)) / (MANY - FEW) as u64;
    let processes = [std::process::id(), builder()?];
    let resident: u64 = processes.iter().map(|pid| resident(*pid)).collect::<Result<Vec<_>>>()?.iter().sum();
    drop(alive);
    shop.workshop.stop()?;
    heading();
    show(&format!("lean, with {FEW} alive"), &few);
    show(&format!("lean, with {MANY} alive"), &many);
    let mut met = judge("p50 with many / with few", many.median() / few.median(), Target::AtMost(1.5));
    met &= judge("p99 / p50 with many", many.quantile(0.99) / many.median(), Target::AtMost(10.0));
    met &= judge("memory of one that is idle, KiB", each as f64, Target::AtMost(400.0));
    met &= judge("resident memory of who makes them, MiB", resident as f64 / 1024.0, Target::AtMost(10.0));
    Ok(met)
}

fn among(shop: &Shop, alive: &mut Vec<Container>, count: usize) -> Result<Samples> {
    shop.workshop.keep_ready(READY);
    while alive.len() < count {
        alive.push(shop.start(&SLEEPER)?);
        shop.workshop.tend()?;
    }
    let mut samples = Samples::default();
    for _ in 0..CROWDED_ROUNDS {
        shop.fill()?;
        samples.time(|| shop.once())?;
    }
    Ok(samples)
}

/// Of a process, KiB. proc_pid_status(5)
fn resident(pid: u32) -> Result<u64> {
    field(&format!("/proc/{pid}/status"), "VmRSS:")
}

/// The child that `Host::start` forked, which has this program's name as no peer's daemon has; the containers are its own
/// children.
fn builder() -> Result<u32> {
    let id = std::process::id();
    let name = |pid: u32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children"))?;
    let mut children = children.split_whitespace().filter_map(|pid| pid.parse().ok());
    children.find(|pid| name(*pid) == name(id)).context("there is no builder")
}

/// A program, with nothing on its standard streams, that has to succeed.
fn succeed(command: &mut Command) -> Result<()> {
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status()?;
    if status.success() { Ok(()) } else { bail!("{command:?} ended with {status}") }
}
