//! One command in a lean container of its own, as `sock run` does it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::stat::Mode;
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use crate::builder::maker::{Maker, read_init};
use crate::builder::{Make, Order, pair};
use crate::cgroup::{self, Group, Hierarchy, Limits};
use crate::error::{Context, SysResult, SyscallError};
use crate::execute::{Outside, perform};
use crate::host::HostError;
use crate::ids::{IdClash, IdRange, Pair};
use crate::init::{Command, End, Exit, FromInit, Payload};
use crate::plan::{self, Base, Nesting, NoBase, Profile, SlotSpec, Template};
use crate::seccomp::{self, Role};
use crate::sys;
use crate::watch::{Bound, INTERVAL, Watched};

/// What to run and how.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// Program and arguments; a program without a slash is looked for in `/usr/local/bin`, `/usr/bin` and `/bin`.
    pub argv: Vec<String>,
    /// What it may use.
    pub limits: Limits,
    /// Size of its `/tmp`, bytes.
    pub tmp_bytes: u64,
    /// How much it may do.
    pub profile: Profile,
    /// The host's user ids for containers.
    pub ids: IdRange,
}

/// Why a command could not be run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Not found.
    #[error("there is no {0} in the container's /usr/local/bin, /usr/bin or /bin: give a full path")]
    NotFound(String),
    /// No command.
    #[error("no command given: sock run -- CMD [ARG]…")]
    NoCommand,
    /// See [`NoBase`].
    #[error(transparent)]
    NoBase(#[from] NoBase),
    /// See [`IdClash`].
    #[error(transparent)]
    Ids(#[from] IdClash),
    /// See [`HostError`].
    #[error(transparent)]
    Host(#[from] HostError),
    /// The container could not be made.
    #[error("failed to {0}")]
    Inside(String),
    /// The command could not be started in it.
    #[error("failed to {error}")]
    NotStarted {
        /// What it was, and in which step.
        error: String,
        /// The kernel's answer.
        errno: Errno,
    },
    /// A system call failed.
    #[error(transparent)]
    Syscall(#[from] SyscallError),
}

/// Runs a command with the caller's standard input, output and error, and waits for its end. A signal that asks the caller to end ends the
/// container. What has more memory than it may is killed: by the kernel, or where no controller does it, at a look each 50 ms.
///
/// Without a slot builder: the calling process, which has to have a single thread, makes the one container itself.
pub fn run_command(options: &RunOptions) -> Result<End, RunError> {
    options.ids.check(&read("/etc/passwd"), &read("/etc/subuid"))?;
    let argv = resolve(&options.argv)?;
    let uid = nix::unistd::geteuid();
    if !uid.is_root() {
        return Err(HostError::NotRoot(uid.as_raw()).into());
    }
    sys::require_single_thread()?;
    let template = Template::of_base(Path::new("/"))?;
    let hierarchy = Hierarchy::in_place(&cgroup::find().map_err(HostError::from)?);
    hierarchy.sweep(GROUP);
    let group = hierarchy.create(&format!("{GROUP}{}", std::process::id()))?;
    let before = asked().thread_swap_mask(SigmaskHow::SIG_BLOCK).call("sigprocmask")?;
    let ended = run_in(options, argv, &template, (&hierarchy, &group));
    let removed = group.try_remove().and_then(|removed| if removed { Ok(1) } else { group.destroy() });
    before.thread_set_mask().call("sigprocmask")?;
    let ended = ended?;
    removed?;
    Ok(ended)
}

/// What the cgroups of such commands are called, before the number of who runs it.
const GROUP: &str = "sock-run-";

fn run_in(
    options: &RunOptions,
    argv: Vec<String>,
    template: &Template,
    (hierarchy, group): (&Hierarchy, &Group),
) -> Result<End, RunError> {
    let RunOptions { tmp_bytes, limits, profile, ids, .. } = *options;
    group.limit(hierarchy, &limits)?;
    let mut env: Vec<(String, String)> =
        [("PATH", "/usr/local/bin:/usr/bin:/bin"), ("HOME", "/tmp"), ("LANG", "C.UTF-8")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into();
    env.extend(std::env::var("TERM").ok().map(|value| ("TERM".to_owned(), value)));
    let (role, memory_by_kernel) = (profile.role(), hierarchy.has("memory"));
    let command = Command { argv, env, directory: "/tmp".into(), role, limits, memory_by_kernel };
    let ids_of = Pair::for_process(std::process::id());
    let make = Make {
        slot: 0,
        map: ids_of.map(ids.block(0)),
        outside: ids_of.both(ids.block(0)),
        family: false,
        within: false,
        spec: SlotSpec {
            hostname: "sock".into(),
            tmp_bytes,
            var: false,
            nesting: Nesting::Forbidden,
            profile,
        },
        payload: Payload::Command(command),
    };
    let (input, output, error) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    let clone = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().call("fcntl");
    let payload =
        [input.as_fd(), output.as_fd(), error.as_fd()].map(clone).into_iter().collect::<SysResult<_>>()?;
    let order =
        Order { make, group: group.directory()?.into(), var: None, family: None, within: None, payload };
    let home = open("/proc/self/ns/mnt", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
        .call_on("open", "/proc/self/ns/mnt")?;
    let maker = Maker::new()?;
    seccomp::compile_ahead(&[Role::Init, role]);
    let signals = SignalFd::with_flags(&asked(), SfdFlags::SFD_CLOEXEC).call("signalfd")?;
    unshare(CloneFlags::CLONE_NEWNS).call("unshare")?;
    let (socket, theirs) = pair()?;
    let begun = begin(&maker, &order, template, (theirs, &socket));
    // Its mounts are PID 1's now; the cgroup is seen in the namespace from before.
    setns(&home, CloneFlags::CLONE_NEWNS).call("setns")?;
    let init = begun?;
    let watched = (!memory_by_kernel).then(|| Watched::new(group));
    let ended = wait((&socket, &signals), &mut Guard { group, init, limit: limits.memory, watched });
    end(init);
    ended
}

/// It is dead, or nobody waits for it.
fn end(init: Pid) {
    // Nobody has reaped it, so the number is its own.
    if let Ok(pidfd) = sys::pidfd_open(init) {
        let _ = sys::pidfd_signal(pidfd.as_fd(), libc::SIGKILL);
    }
    let _ = waitpid(init, None);
}

/// In a mount namespace of its own, whose root becomes the template.
fn begin(
    maker: &Maker,
    order: &Order,
    template: &Template,
    (theirs, socket): (OwnedFd, &OwnedFd),
) -> SysResult<Pid> {
    let covered = |work: &&&str| template.certificates.as_ref().is_some_and(|file| file.starts_with(work));
    let work =
        WORK.iter().find(|work| !covered(work)).ok_or(Errno::ENOENT).call("find a place to mount on")?;
    let stand = || perform(&plan::template(template, Path::new(work)), &Outside::default());
    let spec = &order.make.spec;
    let init = match spec.profile {
        Profile::Paper => {
            stand()?;
            perform(&[plan::room_for_paper()], &Outside::default())?;
            let steps = plan::paper(spec, &template.mounts(), &Path::new(plan::PAPER).join("0"));
            maker.clone_init(order, &steps, (theirs, socket))?
        }
        Profile::Lean | Profile::Strict => {
            let init = maker.clone_early(order, &plan::slot(spec), (theirs, socket))?;
            stand().and_then(|()| Maker::template_stands(socket)).inspect_err(|_| end(init))?;
            init
        }
    };
    maker.prepare(init, false, socket).map(|_| init).inspect_err(|_| end(init))
}

/// The signals that ask for an end.
fn asked() -> SigSet {
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT].into_iter().collect()
}

/// Directories to mount on, in a namespace of which nobody else sees anything. What is beneath them is not needed there.
const WORK: [&str; 2] = ["/run", "/tmp"];

/// What is looked at while it runs.
struct Guard<'a> {
    group: &'a Group,
    init: Pid,
    /// Bytes.
    limit: u64,
    /// Where no controller keeps the limit.
    watched: Option<Watched>,
}

impl Guard<'_> {
    /// Whether it has more memory than it may.
    fn is_over(&mut self) -> bool {
        let bound = Bound { memory: self.limit, inherited: 0 };
        self.watched.as_mut().is_some_and(|watched| watched.is_over(self.group, self.init, bound))
    }

    fn end(&self, exit: Option<Exit>) -> End {
        End::of(exit, self.group.usage().oom_kills > 0)
    }
}

/// Until PID 1 has told how the command ended, has died, has more than it may, or a signal asks for the end.
fn wait((socket, signals): (&OwnedFd, &SignalFd), guard: &mut Guard<'_>) -> Result<End, RunError> {
    let mut looked = Instant::now();
    loop {
        let mut wanted = [socket.as_fd(), signals.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        let patience = if guard.watched.is_some() { INTERVAL } else { Duration::MAX };
        match poll(&mut wanted, PollTimeout::try_from(patience).unwrap_or(PollTimeout::NONE)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno).call("poll")?,
        }
        if looked.elapsed() >= INTERVAL {
            looked = Instant::now();
            if guard.is_over() {
                return Ok(End::OutOfMemory);
            }
        }
        if wanted[1].any() == Some(true)
            && let Ok(Some(signal)) = signals.read_signal()
        {
            return Ok(End::Exited(Exit::Signal(signal.ssi_signo as i32)));
        }
        if wanted[0].any() == Some(true) {
            match read_init(socket) {
                Ok(FromInit::Ready) => {}
                Ok(FromInit::Failed { error, start: None }) => return Err(RunError::Inside(error)),
                Ok(FromInit::Failed { error, start: Some(errno) }) => {
                    return Err(RunError::NotStarted { error, errno: Errno::from_raw(errno) });
                }
                Ok(FromInit::Exited(exit)) => return Ok(guard.end(Some(exit))),
                Err(_) => return Ok(guard.end(None)),
            }
        }
    }
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// The container's `/usr` is the host's, so a program can be found from here.
fn resolve(argv: &[String]) -> Result<Vec<String>, RunError> {
    let program = argv.first().ok_or(RunError::NoCommand)?;
    if program.contains('/') {
        return Ok(argv.to_vec());
    }
    let mut argv = argv.to_vec();
    for directory in ["/usr/local/bin", "/usr/bin", "/bin"] {
        let path = Path::new(directory).join(program);
        if path.is_file() {
            argv[0] = path.to_string_lossy().into_owned();
            return Ok(argv);
        }
    }
    Err(RunError::NotFound(program.clone()))
}

impl Template {
    /// The usual root: `/usr` and its companions of `base`, and the machine's certificate authorities
    /// (`SSL_CERT_FILE`, else the places where distributions keep them), and the base's list of libraries.
    pub fn of_base(base: &Path) -> Result<Self, NoBase> {
        let known =
            ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];
        let own = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
        let candidates = own.into_iter().chain(known.map(PathBuf::from));
        let readable = |path: &PathBuf| {
            path.metadata().is_ok_and(|file| file.permissions().mode() & 0o4 != 0 && file.is_file())
        };
        let certificates = candidates.filter_map(|path| path.canonicalize().ok()).find(readable);
        let libraries = std::fs::read(base.join("etc/ld.so.cache")).ok();
        Ok(Self { base: Base::inspect(base)?, files: Vec::new(), certificates, libraries })
    }
}
