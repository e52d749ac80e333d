//! A server for one test.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;
use sock_gateway::{AccessKey, sigv4};

const KEY: (&str, &str) = ("SOCKTEST00000001", "a secret for tests only");

/// A running server; killed with everything in it when dropped.
pub(crate) struct Server {
    pub(crate) child: Child,
    stdout: BufReader<ChildStdout>,
    /// What it says on standard error, line by line.
    said: Mutex<Receiver<String>>,
    pub(crate) endpoint: String,
    agent: ureq::Agent,
}

/// What an invocation was answered with.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) start: String,
    pub(crate) timing: String,
    pub(crate) body: Value,
}

/// What `Invoke` was answered with.
#[derive(Debug)]
pub(crate) struct Invoked {
    pub(crate) status: u16,
    /// By their names in lower case.
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
}

/// An answer of the API.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    /// The exception's name, of an error.
    pub(crate) kind: String,
    pub(crate) body: Value,
}

/// A process of a server, or of a container of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    parent: u32,
    pub(crate) uid: u32,
    /// In ticks since the machine's start: tells it from another that got its number.
    started: u64,
}

pub(crate) fn binary() -> PathBuf {
    // target/<profile>/deps/it-… → target/<profile>/sock
    let mut path = std::env::current_exe().unwrap();
    path.pop();
    path.pop();
    let path = path.join("sock");
    assert!(path.exists(), "{} is missing: build it first with cargo build --package sock", path.display());
    path
}

/// A file or directory beneath `tests/`.
pub(crate) fn tests(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

impl Server {
    pub(crate) fn start(data: &Path) -> Self {
        Self::start_with(data, &[])
    }

    pub(crate) fn start_with(data: &Path, flags: &[&str]) -> Self {
        Self::start_in(data, flags, &[])
    }

    /// The same with variables of its environment set or, without a value, taken away.
    pub(crate) fn start_in(data: &Path, flags: &[&str], environment: &[(&str, Option<&str>)]) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "these tests make containers: run them as root");
        let mut command = Command::new(binary());
        for (name, value) in environment {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let mut child = command
            .args(["serve", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(data)
            .args(flags)
            .env("SOCK_ACCESS_KEY", format!("{}:{}", KEY.0, KEY.1.replace(' ', "-")))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (sender, said) = channel();
        // Ends when the last process that may write there has ended.
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                eprintln!("{line}");
                let _ = sender.send(line);
            }
        });
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let endpoint = line.trim().strip_prefix("serving ").unwrap_or_else(|| panic!("no server: {line:?}"));
        // A connection that is kept would be the one of a gateway that a test has killed since.
        let agent = ureq::Agent::config_builder().http_status_as_error(false).proxy(None);
        let agent = agent.max_idle_connections(0).build().into();
        Self { child, stdout, said: Mutex::new(said), endpoint: endpoint.to_owned(), agent }
    }

    /// Waits until it says something with `text` in it.
    pub(crate) fn wait_for(&self, text: &str) {
        let said = self.said.lock().unwrap();
        while !said.recv_timeout(Duration::from_secs(30)).unwrap().contains(text) {}
    }

    /// Looks again and again, as it says something and ten times a second, until `state` is what was hoped for.
    pub(crate) fn wait_until<T: std::fmt::Debug>(
        &self,
        mut state: impl FnMut() -> T,
        hoped: impl Fn(&T) -> bool,
    ) -> T {
        let said = self.said.lock().unwrap();
        let began = Instant::now();
        loop {
            let now = state();
            if hoped(&now) {
                return now;
            }
            assert!(began.elapsed() < Duration::from_secs(120), "for 120 s: {now:?}");
            let _ = said.recv_timeout(Duration::from_millis(100));
        }
    }

    pub(crate) fn port(&self) -> u16 {
        self.endpoint.rsplit(':').next().unwrap().parse().unwrap()
    }

    /// The command line, against this server.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command
            .args(arguments)
            .args(["--endpoint", &self.endpoint])
            .env("AWS_ACCESS_KEY_ID", KEY.0)
            .env("AWS_SECRET_ACCESS_KEY", KEY.1.replace(' ', "-"));
        command
    }

    /// Runs it to its end.
    pub(crate) fn sock(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// As [`Server::sock`], of a command that must succeed; returns what it printed.
    pub(crate) fn succeed(&self, arguments: &[&str]) -> String {
        let output = self.sock(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "sock {}: {said}", arguments.join(" "));
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) fn deploy(&self, path: &Path, name: &str, flags: &[&str]) {
        let path = path.to_str().unwrap();
        self.succeed(&[&["deploy", path, "--name", name], flags].concat());
    }

    pub(crate) fn run(&self, name: &str, event: &Value) -> Answer {
        self.try_run(name, event).unwrap()
    }

    /// As [`Server::run`]; the error is that of a connection that did not hold.
    pub(crate) fn try_run(&self, name: &str, event: &Value) -> Result<Answer, ureq::Error> {
        let url = format!("{}/run/{name}", self.endpoint);
        let bearer = format!("Bearer {}", KEY.1.replace(' ', "-"));
        let mut response = self.agent.post(&url).header("authorization", &bearer).send(&event.to_string())?;
        let text = response.body_mut().read_to_string()?;
        let header = |name: &str| {
            response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
        };
        Ok(Answer {
            status: response.status().as_u16(),
            start: header("x-sock-start"),
            timing: header("server-timing"),
            body: serde_json::from_str(&text).unwrap_or(Value::String(text)),
        })
    }

    /// A page that needs the token, as text.
    pub(crate) fn page(&self, path: &str) -> String {
        let bearer = format!("Bearer {}", KEY.1.replace(' ', "-"));
        let response =
            self.agent.get(format!("{}{path}", self.endpoint)).header("authorization", &bearer).call();
        response.unwrap().body_mut().read_to_string().unwrap()
    }

    /// The sum of the metrics whose names and labels begin so.
    pub(crate) fn metric(&self, name: &str) -> u64 {
        let page = self.page("/metrics");
        let lines = page.lines().filter(|line| line.starts_with(name));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
    }

    /// `Invoke` of the Lambda API, of a server that asks for no signature.
    pub(crate) fn invoke(&self, name: &str, headers: &[(&str, &str)], body: &[u8]) -> Invoked {
        let url = format!("{}/2015-03-31/functions/{name}/invocations", self.endpoint);
        let mut request = self.agent.post(&url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut response = request.send(body).unwrap();
        let text = |value: &ureq::http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        Invoked {
            status: response.status().as_u16(),
            headers: response.headers().iter().map(|(name, value)| (name.to_string(), text(value))).collect(),
            body: response.body_mut().read_to_vec().unwrap(),
        }
    }

    /// The headers of a signed request.
    pub(crate) fn signed(&self, method: &str, target: &str, body: &[u8]) -> Vec<(String, String)> {
        let key = AccessKey { id: KEY.0.to_owned(), secret: KEY.1.replace(' ', "-") };
        let host = self.endpoint.split_once("://").unwrap().1.to_owned();
        let mut headers = vec![("host".to_owned(), host)];
        sigv4::sign(method, target, &mut headers, body, &key, SystemTime::now());
        headers
    }

    /// A signed request of the Lambda API.
    pub(crate) fn ask(&self, method: &str, target: &str, body: &[u8]) -> Reply {
        let headers = self.signed(method, target, body);
        let mut request =
            ureq::http::Request::builder().method(method).uri(format!("{}{target}", self.endpoint));
        for (name, value) in &headers {
            request = request.header(name, value);
        }
        let mut response = self.agent.run(request.body(body).unwrap()).unwrap();
        let kind = response.headers().get("x-amzn-errortype").and_then(|value| value.to_str().ok());
        let kind = kind.unwrap_or_default().to_owned();
        let text = response.body_mut().read_to_string().unwrap();
        let status = response.status().as_u16();
        Reply { status, kind, body: serde_json::from_str(&text).unwrap_or(Value::String(text)) }
    }

    /// All processes of the server and of its containers, itself included.
    pub(crate) fn processes(&self) -> BTreeSet<Process> {
        let all = processes();
        let mut ours: BTreeSet<u32> = [self.child.id()].into();
        loop {
            let more = all.iter().filter(|p| ours.contains(&p.parent)).map(|p| p.pid);
            let before = ours.len();
            ours.extend(more.collect::<Vec<u32>>());
            if ours.len() == before {
                return all.into_iter().filter(|process| ours.contains(&process.pid)).collect();
            }
        }
    }

    /// kill -9 of the one process that was started, as a crash or an impatient operator does it. Returns when all
    /// processes that had its output open are gone.
    pub(crate) fn kill_9(mut self) {
        self.child.kill().unwrap();
        self.ended();
    }

    /// Ends it as an operator does; returns whether it ended well.
    pub(crate) fn stop(mut self) -> bool {
        self.ask_to_stop();
        self.ended();
        self.child.wait().unwrap().success()
    }

    pub(crate) fn ask_to_stop(&self) {
        // Our own child, not waited for yet: nobody else can have its number.
        let pid = self.child.id().to_string();
        let told = Command::new("/bin/kill").args(["-TERM", &pid]).status().unwrap();
        assert!(told.success());
    }

    /// All that it has said on standard error until its end.
    pub(crate) fn everything_said(self) -> Vec<String> {
        self.said.lock().unwrap().iter().collect()
    }

    fn ended(&mut self) {
        self.stdout.read_to_end(&mut Vec::new()).unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already. Asked to, so that it leaves nothing; a server that does not listen is killed by nextest.
        if let Ok(None) = self.child.try_wait() {
            let _ = Command::new("/bin/kill").args(["-TERM", &self.child.id().to_string()]).status();
        }
        let _ = self.child.wait();
    }
}

/// All processes of the machine. One that ends meanwhile is left out.
pub(crate) fn processes() -> BTreeSet<Process> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter_map(process).collect()
}

/// Which of these still run, whoever their parent is by now: an orphan has another one. What is ending has no memory any
/// more; it goes once the machine's first process, which has inherited it, takes note of it.
pub(crate) fn still_running(before: &BTreeSet<Process>) -> Vec<&Process> {
    let now = processes();
    let same = |one: &Process, other: &Process| (one.pid, one.started) == (other.pid, other.started);
    let runs = |process: &Process| !process.status("VmSize").is_empty();
    before.iter().filter(|process| now.iter().any(|one| same(one, process)) && runs(process)).collect()
}

fn process(pid: u32) -> Option<Process> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u32>().ok()
    };
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command's name, in parentheses, may hold anything; proc_pid_stat(5), field 22.
    let started = stat.rsplit(") ").next()?.split(' ').nth(19)?.parse().ok()?;
    Some(Process { pid, parent: field("PPid:")?, uid: field("Uid:")?, started })
}

impl Process {
    /// kill -9 of a process that has not ended yet, so that its number is its own.
    pub(crate) fn kill(&self) {
        let killed = Command::new("/bin/kill").args(["-KILL", &self.pid.to_string()]).status();
        assert!(killed.unwrap().success());
    }

    /// As [`Process::kill`], of one that may have ended since it was seen.
    pub(crate) fn try_kill(&self) {
        if process(self.pid).as_ref() == Some(self) {
            let _ = Command::new("/bin/kill").args(["-KILL", &self.pid.to_string()]).output();
        }
    }

    /// A line of its status. proc_pid_status(5)
    pub(crate) fn status(&self, field: &str) -> String {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(":"));
        line.unwrap_or_default().trim().to_owned()
    }

    /// The cgroup that it is in: each container has one that never comes again, unlike the numbers of its namespaces.
    pub(crate) fn group(&self) -> String {
        let text = fs::read_to_string(format!("/proc/{}/cgroup", self.pid)).unwrap_or_default();
        text.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default().to_owned()
    }

    /// A path as it sees it.
    pub(crate) fn inside(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.pid))
    }

    /// One of its namespaces; nothing once it has ended.
    pub(crate) fn namespace(&self, kind: &str) -> Option<PathBuf> {
        fs::read_link(format!("/proc/{}/ns/{kind}", self.pid)).ok()
    }

    /// False of one that has ended, and of those that a zygote forks its children with: each is in the zygote's own namespace, for a moment.
    pub(crate) fn stays(&self) -> bool {
        let inside = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let own = inside(self.pid);
        let is_first = |pid: u32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
            line.and_then(|line| line.split_whitespace().last()) == Some("1")
        };
        own.is_some() && (own != inside(self.parent) || is_first(self.parent))
    }

    pub(crate) fn is_forked_from(&self, other: &Self) -> bool {
        self.parent == other.pid
    }

    pub(crate) fn is_child_of(&self, server: &Server) -> bool {
        self.parent == server.child.id()
    }
}
