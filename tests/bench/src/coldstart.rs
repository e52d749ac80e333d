//! What a new instance takes, as its client sees it: that has its function already, with a spare, forked on demand, and by an interpreter of its own.
//!
//! Every invocation has an instance of its own (`--single-use`). What is forked on demand is asked of another server, which forks nothing ahead: so it is after the
//! same idle time as everything else, and as a bare fork. A round gives each contender of each function one turn: caches that others have used meanwhile are part of what a request meets.

mod bare;

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::client::Answer;
use crate::figures::{ByKind, Samples, Target, heading, judge, show};
use crate::machine::pause;
use crate::server::Server;
use bare::{BareFork, import, site};

/// Rounds; the slow contenders take part in the first few only.
const ROUNDS: usize = 200;
const SLOW_ROUNDS: usize = 12;

/// Before each turn.
const IDLE: Duration = Duration::from_millis(50);

/// After an answer: no spare is made yet, and its instance waits for a lull to end in.
const MOMENT: Duration = Duration::from_millis(10);

/// Memory for what the first server forks ahead, MB: spares for what arrives one by one, and none for bursts, which these few requests would be.
const SPARES: &str = "8";

/// One of the functions, with all that was measured of it.
struct Contender {
    name: &'static str,
    path: &'static str,
    /// What it imports of third parties.
    module: Option<&'static str>,
    answer: &'static str,
    bare: Option<BareFork>,
    /// The first request after the idle time; the one a moment later, which finds a spare that has no function yet; the first of a server
    /// without either; its next, at once; `--fresh`.
    first: ByKind,
    second: ByKind,
    demanded: ByKind,
    next: ByKind,
    fresh: ByKind,
    forks: Samples,
    interpreters: Samples,
}

impl Contender {
    fn new(
        name: &'static str,
        path: &'static str,
        module: Option<&'static str>,
        answer: &'static str,
    ) -> Self {
        let [first, second, demanded, next, fresh] = [(); 5].map(|()| ByKind::default());
        let (forks, interpreters) = (Samples::default(), Samples::default());
        Self {
            name,
            path,
            module,
            answer,
            bare: None,
            first,
            second,
            demanded,
            next,
            fresh,
            forks,
            interpreters,
        }
    }

    fn deploy(&self, server: &Server) -> Result<()> {
        server.deploy(self.path, self.name, &["--single-use"])?;
        server.deploy(self.path, &self.fresh_name(), &["--single-use", "--fresh"])
    }

    fn fresh_name(&self) -> String {
        format!("{}-fresh", self.name)
    }

    fn ask(&self, server: &mut Server, name: &str) -> Result<Answer> {
        let answer = server.invoke(&server.invocation(name, "\"hello\""))?;
        if answer.body != self.answer.as_bytes() {
            bail!("{name} answered {}", String::from_utf8_lossy(&answer.body));
        }
        Ok(answer)
    }

    fn turn(&mut self, [server, other]: [&mut Server; 2], site: &Path, slow: bool) -> Result<()> {
        server.settle()?;
        server.is_ready(self.name)?;
        pause(IDLE);
        self.first.add(&self.ask(server, self.name)?);
        pause(MOMENT);
        self.second.add(&self.ask(server, self.name)?);
        server.settle()?;
        other.settle()?;
        pause(IDLE);
        self.demanded.add(&self.ask(other, self.name)?);
        self.next.add(&self.ask(other, self.name)?);
        other.settle()?;
        pause(IDLE);
        if let Some(bare) = &mut self.bare {
            self.forks.add(bare.fork()?);
        }
        if slow {
            pause(IDLE);
            self.fresh.add(&self.ask(server, &self.fresh_name())?);
            pause(IDLE);
            self.interpreters.time(|| import(site, self.module))?;
        }
        Ok(())
    }

    fn judge(self) -> bool {
        let ready = self.first.show(self.name, "ready");
        let spare = self.second.show(&format!("{}, a moment later", self.name), "spare");
        let zygote = self.demanded.show(self.name, "zygote");
        self.next.show(&format!("{}, the next at once", self.name), "zygote");
        self.fresh.show(self.name, "cold");
        show(&format!("{}, bare os.fork()", self.name), &self.forks);
        let import = self.module.map_or_else(|| "pass".to_owned(), |module| format!("import {module}"));
        show(&format!("python3 -c '{import}'"), &self.interpreters);
        let name = self.name;
        let mut met = judge(&format!("{name}, ready: p50, ms"), ready.median(), Target::AtMost(0.8));
        met &= judge(&format!("{name}, ready: p99, ms"), ready.quantile(0.99), Target::AtMost(5.0));
        met &= judge(&format!("{name}, spare: p50, ms"), spare.median(), Target::AtMost(0.8));
        met &= judge(&format!("{name}, spare: p99, ms"), spare.quantile(0.99), Target::AtMost(5.0));
        let beyond = zygote.median() - self.forks.median();
        met &= judge(&format!("{name}, on demand: p50 beyond a bare fork, ms"), beyond, Target::AtMost(1.0));
        println!();
        met
    }
}

/// Measures, prints, and tells whether every target was met.
pub(crate) fn run(sock: &Path) -> Result<bool> {
    let mut server = Server::start(sock, &["--spare-memory", SPARES])?;
    let mut other = Server::start(sock, &["--spare-memory", "0"])?;
    let mut contenders = [
        Contender::new("echo", "functions/echo", None, "\"hello\""),
        Contender::new("numpy", "bench/functions/numbers", Some("numpy"), "\"2.2.6\""),
        Contender::new("pandas", "bench/functions/tables", Some("pandas"), "\"2.3.3\""),
    ];
    for contender in &contenders {
        contender.deploy(&server)?;
        contender.deploy(&other)?;
        // What its first instance tells may change its zygote.
        contender.ask(&mut server, contender.name)?;
        contender.ask(&mut other, contender.name)?;
        server.is_ready(contender.name)?;
    }
    let site_directory = tempfile::tempdir()?;
    let site = site(&server.data(), site_directory.path())?;
    for contender in &mut contenders {
        contender.bare = Some(BareFork::start(&site, contender.module)?);
        import(&site, contender.module)?;
    }
    let (mut nothing, ask_nothing) = (Samples::default(), server.nothing());
    for round in 0..ROUNDS {
        pause(IDLE);
        nothing.add(server.invoke(&ask_nothing)?.took);
        for contender in &mut contenders {
            contender.turn([&mut server, &mut other], &site, round < SLOW_ROUNDS)?;
        }
    }
    heading();
    // How much of it is the machine's: to wake an idle processor, again and again.
    show("GET /healthz", &nothing);
    println!();
    let mut met = true;
    for contender in contenders {
        met &= contender.judge();
    }
    server.stop()?;
    other.stop()?;
    Ok(met)
}
