//! A server for a scenario: its data beneath a temporary directory, on a free port of the loopback, with a key of its own.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::client::{Answer, Connection, Crowd, request};
use crate::machine::pause;

const KEY: &str = "SOCKBENCH0000001";

/// How long it may take until spares are there again, or instances frozen.
const PATIENCE: Duration = Duration::from_secs(60);

/// Between two looks at it. It makes spares when it was asked for nothing for 20 ms.
const LOOK: Duration = Duration::from_millis(60);

/// Lines of the log that are shown when a scenario fails.
const LAST_WORDS: usize = 8;

pub(crate) struct Server {
    child: Child,
    _stdout: BufReader<ChildStdout>,
    pub(crate) address: SocketAddr,
    token: String,
    work: tempfile::TempDir,
    sock: PathBuf,
    /// For what is asked beside what is measured.
    connection: Connection,
}

impl Server {
    pub(crate) fn start(sock: &Path, flags: &[&str]) -> Result<Self> {
        let work = tempfile::Builder::new().prefix("sock-bench-").tempdir()?;
        // Its user is another one, who has to get to the data.
        fs::set_permissions(work.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let token = fs::read_to_string("/proc/sys/kernel/random/uuid")?.trim().replace('-', "");
        let mut child = Command::new(sock)
            .args(["serve", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(work.path().join("data"))
            .args(flags)
            .env("SOCK_ACCESS_KEY", format!("{KEY}:{token}"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            // As much as it logs by default.
            .stderr(File::create(work.path().join("log"))?)
            .spawn()
            .with_context(|| format!("failed to start {}", sock.display()))?;
        let mut stdout = BufReader::new(child.stdout.take().context("the server has no output")?);
        let mut line = String::new();
        stdout.read_line(&mut line)?;
        let Some(address) = line.trim().strip_prefix("serving http://") else {
            let log = fs::read_to_string(work.path().join("log"))?;
            bail!("the server did not start: {}\n{log}", child.wait()?);
        };
        let address = address.parse()?;
        let connection = Connection::open(address)?;
        Ok(Self { child, _stdout: stdout, address, token, work, sock: sock.to_owned(), connection })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.work.path().join("data")
    }

    /// Deploys what is at `path` beneath `tests`.
    pub(crate) fn deploy(&self, path: &str, name: &str, flags: &[&str]) -> Result<()> {
        let path = tests(path);
        let path = path.to_str().context("the path of a function is not text")?;
        let fixed = [
            "deploy",
            path,
            "--name",
            name,
            "--handler",
            "main.handler",
            "--memory",
            "512",
            "--timeout",
            "60",
        ];
        let output = Command::new(&self.sock)
            .args(fixed)
            .args(flags)
            .args(["--endpoint", &format!("http://{}", self.address)])
            .env("AWS_ACCESS_KEY_ID", KEY)
            .env("AWS_SECRET_ACCESS_KEY", &self.token)
            .output()?;
        if output.status.success() {
            Ok(())
        } else {
            bail!("sock deploy {name}: {}", String::from_utf8_lossy(&output.stderr).trim())
        }
    }

    /// Takes a function away, and with it its idle instances.
    pub(crate) fn delete(&self, name: &str) -> Result<()> {
        let output = Command::new(&self.sock)
            .args(["delete", name, "--endpoint", &format!("http://{}", self.address)])
            .env("AWS_ACCESS_KEY_ID", KEY)
            .env("AWS_SECRET_ACCESS_KEY", &self.token)
            .output()?;
        if output.status.success() {
            Ok(())
        } else {
            bail!("sock delete {name}: {}", String::from_utf8_lossy(&output.stderr).trim())
        }
    }

    /// The bytes of an invocation.
    pub(crate) fn invocation(&self, name: &str, event: &str) -> Vec<u8> {
        request("POST", &format!("/run/{name}"), &self.token, event)
    }

    /// What asks it for nothing but an answer.
    pub(crate) fn nothing(&self) -> Vec<u8> {
        request("GET", "/healthz", &self.token, "")
    }

    /// Connections, each of which was used once.
    pub(crate) fn crowd(&self, count: usize) -> Result<Crowd> {
        Crowd::open(self.address, count, &self.nothing())
    }

    /// Invokes, on a connection that is kept. Anything but success is an error.
    pub(crate) fn invoke(&mut self, invocation: &[u8]) -> Result<Answer> {
        let answer = self.connection.ask(invocation)?;
        match answer.status() {
            200 => Ok(answer),
            status => bail!("an invocation failed: {status} {}", String::from_utf8_lossy(&answer.body)),
        }
    }

    /// What it tells of itself.
    pub(crate) fn report(&mut self) -> Result<Report> {
        let answer = self.connection.ask(&request("GET", "/report", &self.token, ""))?;
        if answer.status() != 200 {
            bail!("no report: {} {}", answer.status(), String::from_utf8_lossy(&answer.body));
        }
        Ok(Report(serde_json::from_slice(&answer.body)?))
    }

    /// Looks again and again, until `hoped` is so.
    pub(crate) fn wait_until(&mut self, what: &str, hoped: impl Fn(&Report) -> bool) -> Result<Report> {
        let begin = Instant::now();
        loop {
            let report = self.report()?;
            if hoped(&report) {
                return Ok(report);
            }
            if begin.elapsed() > PATIENCE {
                bail!("{what}: not within {} s; {}", PATIENCE.as_secs(), report.0["counts"]);
            }
            pause(LOOK);
        }
    }

    /// Waits until every spare is there that it wants to have, and what was used is gone.
    pub(crate) fn settle(&mut self) -> Result<()> {
        let settled = |report: &Report| {
            report.count("spares") >= report.wanted_spares()
                && report.count("running") == 0
                && report.count("dying") == 0
        };
        self.wait_until("every spare is there again", settled).map(drop)
    }

    /// Waits until an instance of a single-use function waits for its invocation.
    pub(crate) fn is_ready(&mut self, name: &str) -> Result<()> {
        self.wait_until("an instance is ready", |report| report.of(name, "idle") > 0).map(drop)
    }

    /// Ends it, with everything in it.
    pub(crate) fn stop(mut self) -> Result<()> {
        let status = self.end()?;
        if status.success() { Ok(()) } else { bail!("the server did not end well: {status}") }
    }

    fn last_words(&self) -> String {
        let log = fs::read_to_string(self.work.path().join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LAST_WORDS)..].join("\n")
    }

    fn end(&mut self) -> Result<ExitStatus> {
        if self.child.try_wait()?.is_none() {
            // Our own child, not waited for yet: nobody else can have its number.
            Command::new("/bin/kill").args(["-TERM", &self.child.id().to_string()]).status()?;
        }
        Ok(self.child.wait()?)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.end();
            // The scenario has failed.
            eprintln!("the server's last words:\n{}", self.last_words());
        }
    }
}

/// A file or directory beneath `tests/`.
pub(crate) fn tests(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// An answer to `GET /report`.
pub(crate) struct Report(Value);

impl Report {
    pub(crate) fn count(&self, what: &str) -> u64 {
        self.0["counts"][what].as_u64().unwrap_or_default()
    }

    fn wanted_spares(&self) -> u64 {
        let nodes = self.0["nodes"].as_array().into_iter().flatten();
        nodes.filter_map(|node| node["spares"].as_u64()).sum()
    }

    /// Of a function's idle instances: `idle`, `frozen` or `private_bytes`.
    pub(crate) fn of(&self, function: &str, what: &str) -> u64 {
        let mut functions = self.0["functions"].as_array().into_iter().flatten();
        let found = functions.find(|one| one["name"] == function);
        found.and_then(|one| one[what].as_u64()).unwrap_or_default()
    }
}
