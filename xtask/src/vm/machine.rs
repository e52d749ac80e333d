//! One run of the test machine under QEMU: what it is made of, and how it ended.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::build::Built;

/// A directory that one run at a time uses; let go of when it is dropped.
#[derive(Debug)]
pub(crate) struct Turn(#[expect(dead_code, reason = "closing it lets go of the lock")] File);

impl Turn {
    /// Makes the directory, and fails if another run uses it.
    pub(crate) fn take(directory: &Path) -> Result<Self> {
        fs::create_dir_all(directory).with_context(|| format!("failed to create {}", directory.display()))?;
        let file = File::create(directory.join(".lock"))
            .with_context(|| format!("failed to write to {}", directory.display()))?;
        let other = || format!("another machine runs in {}: wait for its end", directory.display());
        file.try_lock().with_context(other)?;
        Ok(Self(file))
    }
}

/// What emulates the processors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Accelerator {
    /// The processor itself.
    Kvm,
    /// QEMU, a thread for each processor.
    Tcg,
}

/// What the machine's network card reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Network {
    /// Nothing: there is a card, and nobody answers.
    Restricted,
    /// What this machine reaches; and port 7625 of it is the machine's.
    Open,
}

/// Where the machine's console and its program's output go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Screen {
    /// The program's output here, line by line.
    Output,
    /// Nowhere but into files.
    Silent,
    /// The program is at this terminal.
    Terminal,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Machine<'a> {
    pub(crate) built: &'a Built,
    /// As `vm/image.toml` calls it.
    pub(crate) kernel: &'a str,
    pub(crate) payload: &'a Path,
    pub(crate) accelerator: Accelerator,
    pub(crate) network: Network,
    pub(crate) screen: Screen,
    /// Until its end, from its start.
    pub(crate) timeout: Duration,
    /// It tells every second that it lives; one that was not heard for this long hangs.
    pub(crate) silence: Duration,
    /// Its console, its output and its results go here.
    pub(crate) directory: &'a Path,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The program's exit code; its results are there.
    Exited(i32),
    /// The kernel, or the init, gave up; the last lines of the console.
    Panicked(String),
    /// It no longer told that it lives; what it was at.
    Hung(String),
    /// It never told that it lives; what it was at.
    NeverUp(String),
    /// It ended without telling how.
    NoResult(String),
    /// It lived, for longer than it may; what it was at.
    TimedOut(String),
}

/// See [`Machine::silence`]: an emulated machine on a busy host may be late.
pub(crate) const SILENCE: Duration = Duration::from_secs(30);
/// Until it stands: many times what the slowest host was seen to need.
const BOOT: Duration = Duration::from_secs(60);
/// Results that fit on their disk, bytes; the file is sparse.
const RESULTS: u64 = 1 << 30;
/// A disk for tests that swap, bytes; sparse too.
const SWAP: u64 = 2 << 30;

/// A panic tells what each processor and each task was at; and an NMI is one, see [`Machine::ask`].
const COMMAND_LINE: &str =
    "console=ttyS0 loglevel=4 panic=-1 random.trust_cpu=on oops=panic unknown_nmi_panic panic_print=0x41";
/// For the panic of a machine that hangs to be told.
const LAST_WORDS: Duration = Duration::from_secs(10);

impl Machine<'_> {
    /// Starts it and waits for its end. One that does not come up at all is told of, with what it was at, and started once more:
    /// nothing of what is tested has run then, and in hundreds of starts one was seen to stop there.
    pub(crate) fn run(&self) -> Result<Outcome> {
        match self.run_once()? {
            Outcome::NeverUp(said) => {
                eprintln!(
                    "warning: the machine did not come up within {BOOT:?} and is started again; it was at:\n{said}"
                );
                self.run_once()
            }
            outcome => Ok(outcome),
        }
    }

    fn run_once(&self) -> Result<Outcome> {
        // Whatever is read afterwards is of this run.
        for name in ["console.log", "qemu.log", "output.log"] {
            File::create(self.directory.join(name)).with_context(|| format!("failed to create {name}"))?;
        }
        if self.directory.join("results").exists() {
            fs::remove_dir_all(self.directory.join("results"))?;
        }
        for (name, bytes) in [("results.tar", RESULTS), ("swap", SWAP)] {
            let path = self.directory.join(name);
            File::create(&path)
                .and_then(|file| file.set_len(bytes))
                .with_context(|| format!("failed to create {}", path.display()))?;
        }
        let (control, theirs) = UnixStream::pair()?;
        let (output, their_output) = UnixStream::pair()?;
        let (monitor, their_monitor) = UnixStream::pair()?;
        let began = Instant::now();
        let mut qemu = self.start([theirs.into(), their_output.into(), their_monitor.into()])?;
        let printer = self.print(output)?;
        let (sender, events) = channel::<String>();
        let listener = std::thread::spawn(move || {
            for line in BufReader::new(control).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let stands = |after: Duration| {
            if self.screen == Screen::Output {
                println!("ready after {:.1} s", after.as_secs_f64());
            }
        };
        let patience = Patience { boot: BOOT, timeout: self.timeout, silence: self.silence };
        let ended = listen(&events, began, patience, stands);
        if matches!(ended, End::Silent | End::NeverUp | End::TimedOut) {
            self.ask(monitor, &events)?;
        }
        if !matches!(ended, End::Exited(_)) {
            // Nothing more will be heard of it: QEMU is gone, or has to go.
            let _ = qemu.kill();
        }
        let status = qemu.wait().context("failed to wait for QEMU")?;
        fs::remove_file(self.directory.join("swap"))?;
        let _ = (listener.join(), printer.join());
        let outcome = match ended {
            End::Exited(code) => Outcome::Exited(code),
            End::TimedOut => Outcome::TimedOut(self.what_it_was_at()),
            End::Silent => Outcome::Hung(self.what_it_was_at()),
            End::NeverUp => Outcome::NeverUp(self.what_it_was_at()),
            End::Gone => judge(&self.said("console.log"), &self.said("qemu.log"), status.code()),
        };
        if !matches!(outcome, Outcome::Exited(_)) {
            fs::remove_file(self.directory.join("results.tar"))?;
        }
        Ok(outcome)
    }

    /// The command, and descriptors that it inherits.
    fn start(&self, sockets: [OwnedFd; 3]) -> Result<Child> {
        // It ends with us, however we do.
        let starter = ["setpriv", "--pdeathsig", "KILL", "--"];
        let mut command = self.built.tools.command_by(&starter, "usr/bin/qemu-system-x86_64");
        command.args(self.arguments(sockets.each_ref().map(AsRawFd::as_raw_fd)));
        if self.screen == Screen::Terminal {
            command.env("TERM", "dumb");
        } else {
            command.stdin(Stdio::null());
        }
        command.stdout(if self.screen == Screen::Terminal { Stdio::inherit() } else { Stdio::null() });
        command.stderr(if self.screen == Screen::Terminal {
            Stdio::inherit()
        } else {
            File::create(self.directory.join("qemu.log"))?.into()
        });
        for fd in &sockets {
            nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty()))?;
        }
        command.spawn().context("failed to start QEMU")
    }

    fn arguments(&self, [control, output, monitor]: [i32; 3]) -> Vec<String> {
        let image = |name: &str| self.built.directory.join(name).display().to_string();
        let tools = |path: &str| self.built.tools.path(path).display().to_string();
        let mut all: Vec<String> = Vec::new();
        let mut add = |arguments: &[&str]| all.extend(arguments.iter().map(|one| (*one).to_owned()));
        add(&["-L", &tools("usr/share/qemu"), "-L", &tools("usr/share/seabios")]);
        add(&["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
        add(&["-machine", "q35", "-cpu", if self.accelerator == Accelerator::Kvm { "host" } else { "max" }]);
        add(&["-accel", if self.accelerator == Accelerator::Kvm { "kvm" } else { "tcg,thread=multi" }]);
        add(&["-smp", "2", "-m", "4096", "-device", "virtio-rng-pci"]);
        add(&["-kernel", &image(&format!("vmlinuz-{}", self.kernel))]);
        add(&["-initrd", &image(&format!("initrd-{}", self.kernel)), "-append", COMMAND_LINE]);
        let payload = self.payload.display().to_string();
        let ours = |name: &str| self.directory.join(name).display().to_string();
        let disks = [
            ("root", image("root.erofs"), "on"),
            ("payload", payload, "on"),
            ("results", ours("results.tar"), "off"),
            ("swap", ours("swap"), "off"),
        ];
        for (serial, file, read_only) in disks {
            let file = file.replace(',', ",,");
            add(&["-drive", &format!("if=none,id={serial},format=raw,readonly={read_only},file={file}")]);
            add(&["-device", &format!("virtio-blk-pci,drive={serial},serial={serial}")]);
        }
        let restrict = match self.network {
            Network::Restricted => "restrict=on",
            Network::Open => "hostfwd=tcp:127.0.0.1:7625-:7625",
        };
        add(&[
            "-netdev",
            &format!("user,id=net,{restrict}"),
            "-device",
            "virtio-net-pci,netdev=net,romfile=",
        ]);
        let console = self.directory.join("console.log").display().to_string().replace(',', ",,");
        add(&["-chardev", &format!("file,id=console,path={console}"), "-serial", "chardev:console"]);
        add(&["-device", "virtio-serial-pci"]);
        for (name, fd) in [("control", control), ("output", output)] {
            add(&["-chardev", &format!("socket,id={name},fd={fd}")]);
            add(&["-device", &format!("virtserialport,chardev={name},name={name}")]);
        }
        add(&["-chardev", &format!("socket,id=monitor,fd={monitor}"), "-mon", "chardev=monitor"]);
        if self.screen == Screen::Terminal {
            add(&["-chardev", "stdio,id=terminal,signal=off", "-device", "virtconsole,chardev=terminal"]);
        }
        all
    }

    /// Copies what the program prints to a file, and here.
    fn print(&self, mut output: UnixStream) -> Result<std::thread::JoinHandle<()>> {
        let mut file = File::create(self.directory.join("output.log"))?;
        let shown = self.screen == Screen::Output;
        Ok(std::thread::spawn(move || {
            let mut buffer = [0; 1 << 14];
            while let Ok(length @ 1..) = output.read(&mut buffer) {
                let _ = file.write_all(&buffer[..length]);
                if shown {
                    let mut stdout = std::io::stdout();
                    let _ = stdout.write_all(&buffer[..length]).and_then(|()| stdout.flush());
                }
            }
        }))
    }

    /// Has the kernel of a machine that hangs panic, if it still can, so that the console has what it was at. Where it cannot, there
    /// are the processors' registers.
    fn ask(&self, mut monitor: UnixStream, events: &Receiver<String>) -> Result<()> {
        let mut log = File::create(self.directory.join("monitor.log"))?;
        monitor.write_all(b"info registers -a\nnmi\n")?;
        std::thread::spawn(move || io::copy(&mut monitor, &mut log));
        let end = Instant::now() + LAST_WORDS;
        while !matches!(
            events.recv_timeout(end.saturating_duration_since(Instant::now())),
            Err(RecvTimeoutError::Disconnected | RecvTimeoutError::Timeout)
        ) {}
        Ok(())
    }

    /// The stacks of the first process and of its child, as far as they were told; else how the console ends.
    fn what_it_was_at(&self) -> String {
        let console = self.said("console.log");
        let stack = |task: &str| {
            let lines = console.lines().skip_while(|line| !line.contains(task)).take(STACK_LINES);
            lines.collect::<Vec<_>>().join("\n")
        };
        // As which the first process begins.
        let stacks = ["task:swapper/0 ", "task:init ", "task:sh "].map(stack).join("\n");
        if stacks.trim().is_empty() { last(&console, CONSOLE_LINES) } else { stacks }
    }

    /// What is in one of its logs.
    fn said(&self, log: &str) -> String {
        String::from_utf8_lossy(&fs::read(self.directory.join(log)).unwrap_or_default()).into_owned()
    }
}

/// Of the console, after a panic.
const PANIC_LINES: usize = 40;
/// Of a task that a panic tells of.
const STACK_LINES: usize = 16;
/// Of the console, where it says nothing of a panic.
const CONSOLE_LINES: usize = 10;

fn last(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// A panic shows on the console; anything else that ends QEMU is an end without a result.
fn judge(console: &str, qemu: &str, code: Option<i32>) -> Outcome {
    if let Some(at) = console.find("Kernel panic") {
        // From there on: how much the kernel says afterwards, and whether all of it gets out, differs from time to time.
        let begin = console[..at].rfind('\n').map_or(0, |end| end + 1);
        let said: Vec<&str> = console[begin..].lines().take(PANIC_LINES).collect();
        return Outcome::Panicked(said.join("\n"));
    }
    let console = last(console, CONSOLE_LINES);
    Outcome::NoResult(format!("QEMU: {code:?} {}\nconsole: {console}", qemu.trim()))
}

/// How long is waited until it stands, until its end, and for a word of it in between.
#[derive(Clone, Copy)]
struct Patience {
    boot: Duration,
    timeout: Duration,
    silence: Duration,
}

/// What was heard of a machine last.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// Its program's exit code.
    Exited(i32),
    /// Nothing for too long.
    Silent,
    /// Nothing at all.
    NeverUp,
    /// That it lives, for too long.
    TimedOut,
    /// QEMU is gone.
    Gone,
}

/// Follows the events until the end; `stands` is told when the system stood, from QEMU's start.
fn listen(
    events: &Receiver<String>,
    began: Instant,
    Patience { boot, timeout, silence }: Patience,
    stands: impl Fn(Duration),
) -> End {
    let (mut ready, mut exit) = (false, None);
    let mut heard = began;
    loop {
        let (silent, over) = (heard + if ready { silence } else { boot }, began + timeout);
        match events.recv_timeout(silent.min(over).saturating_duration_since(Instant::now())) {
            Ok(line) => {
                heard = Instant::now();
                match line.split_once(' ') {
                    Some(("ready", _)) => {
                        ready = true;
                        stands(began.elapsed());
                    }
                    Some(("exit", code)) => exit = code.parse().ok(),
                    _ => {}
                }
            }
            // With an exit it powers off; until then its disks are not written.
            Err(RecvTimeoutError::Disconnected) => return exit.map_or(End::Gone, End::Exited),
            Err(RecvTimeoutError::Timeout) if over <= Instant::now() => return End::TimedOut,
            Err(RecvTimeoutError::Timeout) if ready => return End::Silent,
            Err(RecvTimeoutError::Timeout) => return End::NeverUp,
        }
    }
}

impl Outcome {
    /// For people.
    pub(crate) fn describe(&self, directory: &Path) -> String {
        let logs = directory.display();
        match self {
            Self::Exited(0) => "the machine's program succeeded".to_owned(),
            Self::Exited(code) => {
                format!("the machine's program failed: exit code {code}; logs are in {logs}")
            }
            Self::Panicked(said) => {
                format!("the machine panicked; its console, in {logs}, then said:\n{said}")
            }
            Self::Hung(said) => {
                format!(
                    "the machine hangs: it does not tell that it lives; logs are in {logs}; it was at:\n{said}"
                )
            }
            Self::NeverUp(said) => {
                format!("the machine did not come up; logs are in {logs}; it was at:\n{said}")
            }
            Self::NoResult(said) => {
                format!("the machine ended without a result; logs are in {logs}:\n{said}")
            }
            Self::TimedOut(said) => {
                format!(
                    "the machine ran longer than it may and was ended; logs are in {logs}; it was at:\n{said}"
                )
            }
        }
    }
}

/// Unpacks what the machine left.
pub(crate) fn results(directory: &Path) -> Result<PathBuf> {
    let out = directory.join("results");
    if out.exists() {
        fs::remove_dir_all(&out)?;
    }
    let archive = File::open(directory.join("results.tar"))?;
    tar::Archive::new(BufReader::new(archive))
        .unpack(&out)
        .context("the machine's results are not readable")?;
    fs::remove_file(directory.join("results.tar"))?;
    Ok(out)
}

#[cfg(test)]
mod tests;
