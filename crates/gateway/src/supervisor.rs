//! `sock serve`: the process that starts the two that do the work, and starts them again when one dies.
//!
//! ```text
//! sock serve   root; holds the listening socket and the lock on the data directory; waits
//! ├─ launcher  root, single-threaded; makes containers
//! └─ gateway   an ordinary user without capabilities; HTTP and scheduling
//! ```
//! Either of the two is of no use without the other: containers die with the launcher, and nobody can ask for one without
//! the gateway. So the death of one ends the other, and both are started anew; what was deployed is on disk.
//! The supervisor runs no requests, opens no files of functions, and starts no thread: it has to be able to fork.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, fchown, lchown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, OFlag};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::Backlog;
use nix::unistd::pipe2;
use sock_isolation::launcher::{self, server};
use sock_isolation::process::{self, Child};
use sock_isolation::{Exit, Host, HostOptions, IdClash, IdRange, NoBase, SyscallError, Template};

use crate::keys::{AccessKey, KeyError};
use crate::lock::{self, NotTaken};
use crate::registry::LAYOUT;

/// What `sock serve` is started with.
#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// Where everything is kept.
    pub data_dir: PathBuf,
    /// Where HTTP is spoken.
    pub listen: SocketAddr,
    /// `ID:SECRET`, beside the keys in the data directory.
    pub access_key: Option<String>,
    /// Let everybody in; on loopback only.
    pub no_auth: bool,
    /// Package index.
    pub index_url: Option<String>,
    /// Directories and pages of wheels.
    pub find_links: Vec<String>,
    /// Refuse to start where the kernel does not keep memory, process and processor limits by cgroups.
    pub require_cgroup_limits: bool,
    /// Let functions have containers of the profile `paper`, which see the host's network.
    pub allow_paper: bool,
    /// Interpreters of the base, the first is the default. Empty: `/usr/bin/python3`.
    pub pythons: Vec<PathBuf>,
    /// How the log on standard error is written.
    pub log_format: LogFormat,
    /// Memory that zygotes may take, MiB; nothing: a quarter of the machine's.
    pub zygote_memory_mb: Option<u64>,
    /// Memory that may be taken by what is forked ahead of need, MiB, 0: nothing is; none: a quarter of the zygotes'.
    pub spare_memory_mb: Option<u64>,
    /// New instances a second that one zygote is trusted with; none: 200.
    pub zygote_forks: Option<u32>,
    /// Memory of their own that idle instances may take, MiB; nothing: a quarter of the machine's.
    pub idle_memory_mb: Option<u64>,
    /// The host's user ids for containers; nothing: the first of [`IdRange::choices`] that no other server has.
    pub ids: Option<IdRange>,
}

/// What lines of a log look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// An object a line.
    Json,
}

/// Why the server does not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum SuperviseError {
    /// Not root.
    #[error(
        "sock serve needs root for now (user id is {0}): start it with sudo; only the launcher keeps root"
    )]
    NotRoot(u32),
    /// See [`IdClash`].
    #[error(transparent)]
    Ids(#[from] IdClash),
    /// See [`NoBase`].
    #[error(transparent)]
    NoBase(#[from] NoBase),
    /// Who is let in is everybody who reaches the socket.
    #[error(
        "--allow-paper with --no-auth would give such functions, which have the host's network, the whole API: leave one of the two out"
    )]
    PaperWithoutAuth,
    /// Every range of user ids that a server may choose has one.
    #[error(
        "all ranges of user ids for containers are taken by other servers; give one of your own with --id-range"
    )]
    NoIds,
    /// Another server has the range.
    #[error("another server uses the user ids from {0} on; choose another range with --id-range")]
    IdsTaken(u32),
    /// The data directory cannot be used.
    #[error(
        "failed to prepare {path}: {error}; make it a directory that root can write to, or choose another --data-dir"
    )]
    Data {
        /// What of it.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Written by a newer program.
    #[error(
        "the data directory {path} has layout {found}, and this program knows {LAYOUT}: run the newer sock that made it, or choose another --data-dir"
    )]
    Newer {
        /// The directory.
        path: PathBuf,
        /// What its `layout` says.
        found: i64,
    },
    /// Written by something else.
    #[error(
        "{path} says {found:?}, which is no layout of a data directory: put the number back that was there, or choose another --data-dir"
    )]
    NoLayout {
        /// The file.
        path: PathBuf,
        /// What it says.
        found: String,
    },
    /// See [`KeyError`].
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Somebody else serves it.
    #[error(
        "the data directory {path} is in use by process {pid}; stop that server or choose another --data-dir"
    )]
    Locked {
        /// The directory.
        path: PathBuf,
        /// The process.
        pid: String,
    },
    /// The address cannot be listened on.
    #[error("failed to listen on {address}: {error}; choose another --listen")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        error: io::Error,
    },
    /// Open to everybody, beyond this machine.
    #[error("--no-auth lets everybody in, so it works on loopback only, not on {0}")]
    OpenToAll(SocketAddr),
    /// Limits are asked for that cannot be kept.
    #[error("--require-cgroup-limits: {0}")]
    NoLimits(String),
    /// See [`sock_isolation::cgroup::NoHierarchy`].
    #[error(transparent)]
    NoHierarchy(#[from] sock_isolation::cgroup::NoHierarchy),
    /// No interpreter.
    #[error("failed to use the interpreter {path}: {reason}")]
    Python {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A system call failed.
    #[error(transparent)]
    Syscall(#[from] SyscallError),
    /// The gateway found something that starting it again will not mend, and has said what.
    #[error("the server did not start, for the reason above")]
    Refused,
    /// The processes die before they serve anybody.
    #[error("the server's processes died {0} times in a row before they could serve; see the messages above")]
    Dying(u32),
}

/// Starts in a row that come to nothing before it is no bad luck any more. A server that has served is started again without
/// end: an operator who kills its processes, or a kernel short of memory, must not end it.
const MAX_FAILED_STARTS: u32 = 5;

/// Milliseconds before the next start, by how many have failed in a row: what ends a start may be over by then.
const PAUSES: [u64; 6] = [0, 0, 100, 500, 1000, 2000];

/// Serves until SIGTERM or SIGINT; then lets running invocations finish, unless it is asked again.
pub fn supervise(options: &ServeOptions) -> Result<(), SuperviseError> {
    let uid = nix::unistd::geteuid();
    if !uid.is_root() {
        return Err(SuperviseError::NotRoot(uid.as_raw()));
    }
    if options.allow_paper && options.no_auth {
        return Err(SuperviseError::PaperWithoutAuth);
    }
    if options.no_auth && !options.listen.ip().is_loopback() {
        return Err(SuperviseError::OpenToAll(options.listen));
    }
    // The gateway reads it again; what is wrong with it need not wait for that.
    options.access_key.as_deref().map(AccessKey::parse).transpose()?;
    options.pythons.iter().try_for_each(|path| check_python(path))?;
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    check_limits(options)?;
    let template = template()?;
    check_layout(&options.data_dir)?;
    make_root(&options.data_dir)?;
    let _lock = lock(&options.data_dir)?;
    let (ids, _ids_lock) = choose_ids(options, &read("/etc/passwd"), &read("/etc/subuid"))?;
    prepare(&options.data_dir, ids)?;
    take_over(&options.data_dir, ids)?;
    let listener =
        listen(options.listen).map_err(|error| SuperviseError::Listen { address: options.listen, error })?;
    tell_endpoint(&options.data_dir, &listener)?;
    process::raise_file_limit()?;
    let signals = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().collect::<SigSet>();
    let system = |call| move |errno| SyscallError { call, path: None, errno };
    signals.thread_block().map_err(system("sigprocmask"))?;
    let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC).map_err(system("signalfd"))?;
    let (mut ever_served, mut failed_starts) = (false, 0);
    loop {
        let (ours, theirs) = launcher::socket_pair()?;
        let launcher = start_launcher(options, ids, &template, (theirs, &ours))?;
        // The gateway says on it that it serves.
        let (serving, says) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).map_err(system("pipe2"))?;
        let gateway = start_gateway(options, ids, &listener, (ours, says))?;
        let served;
        match wait(&signals, &launcher, &gateway)? {
            End::Asked => {
                gateway.signal(Signal::SIGTERM as i32)?;
                if let End::Asked = wait(&signals, &launcher, &gateway)? {
                    eprintln!("sock: asked to stop again: stopping at once, without what runs");
                    gateway.signal(Signal::SIGKILL as i32)?;
                }
                gateway.wait()?;
                launcher.wait()?;
                return Ok(());
            }
            End::Died(who) => {
                gateway.signal(Signal::SIGKILL as i32)?;
                let gateway = gateway.wait()?;
                // The launcher sees the gateway's end close, ends every container, and exits.
                let launcher = launcher.wait()?;
                served = matches!(nix::unistd::read(&serving, &mut [0]), Ok(1));
                ever_served |= served;
                // Of what it found once, it may find something else now: a program that it started was killed, say.
                if gateway == Exit::Code(GATEWAY_REFUSED) && !ever_served {
                    return Err(SuperviseError::Refused);
                }
                eprintln!(
                    "sock: the {who} died (launcher: {launcher:?}, gateway: {gateway:?}); starting both again"
                );
            }
        }
        failed_starts = if served { 0 } else { failed_starts + 1 };
        if failed_starts >= MAX_FAILED_STARTS && !ever_served {
            return Err(SuperviseError::Dying(failed_starts));
        }
        let pause = PAUSES[(failed_starts as usize).min(PAUSES.len() - 1)];
        if is_asked_within(&signals, Duration::from_millis(pause))? {
            return Ok(());
        }
    }
}

/// The gateway's exit code for "starting me again will not help".
pub(crate) const GATEWAY_REFUSED: i32 = 78;

/// Whether it is told to stop before the time is over.
fn is_asked_within(signals: &SignalFd, time: Duration) -> Result<bool, SuperviseError> {
    let timeout = PollTimeout::try_from(time).unwrap_or(PollTimeout::ZERO);
    let mut wanted = [PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
    match poll(&mut wanted, timeout) {
        Ok(count) => Ok(count > 0),
        Err(Errno::EINTR) => Ok(false),
        Err(errno) => Err(SyscallError { call: "poll", path: None, errno }.into()),
    }
}

enum End {
    Asked,
    Died(&'static str),
}

fn wait(signals: &SignalFd, launcher: &Child, gateway: &Child) -> Result<End, SuperviseError> {
    loop {
        let mut wanted =
            [signals.as_fd(), launcher.pidfd(), gateway.pidfd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        match poll(&mut wanted, PollTimeout::NONE) {
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(SyscallError { call: "poll", path: None, errno }.into()),
        }
        let [asked, no_launcher, no_gateway] = wanted.map(|wanted| wanted.any().unwrap_or(false));
        if asked {
            // Taken, so that it is not seen twice.
            signals.read_signal().map_err(|errno| SyscallError { call: "read", path: None, errno })?;
            return Ok(End::Asked);
        }
        if no_launcher {
            return Ok(End::Died("launcher"));
        }
        if no_gateway {
            return Ok(End::Died("gateway"));
        }
    }
}

/// Containers see the host's `/usr` and nothing else of it.
fn check_python(path: &Path) -> Result<(), SuperviseError> {
    let fail = |reason: &str| SuperviseError::Python { path: path.to_owned(), reason: reason.to_owned() };
    let real = path.canonicalize().map_err(|error| fail(&error.to_string()))?;
    // On today's systems /bin and /lib are links into it, there as here.
    if real.starts_with("/usr") {
        return Ok(());
    }
    Err(fail("containers see nothing of this machine but /usr; install it there"))
}

fn check_limits(options: &ServeOptions) -> Result<(), SuperviseError> {
    let place = sock_isolation::cgroup::find()?;
    let Some(shortage) = place.shortage(&["cpu", "memory", "pids"]) else { return Ok(()) };
    if options.require_cgroup_limits {
        return Err(SuperviseError::NoLimits(shortage));
    }
    eprintln!(
        "sock: {shortage}: memory and process limits are kept by rlimits and a watchdog, processor shares not at \
         all (sock doctor tells more)"
    );
    Ok(())
}

/// The containers' root: the host's `/usr`, our runtime, and the filter that an instance installs.
fn template() -> Result<Template, NoBase> {
    let mut template = Template::of_base(Path::new("/"))?;
    template.files.extend(sock_zygote::runtime::files());
    Ok(template)
}

/// A range that no account of the machine and no other server has, and the lock that keeps it so. The one that the data
/// directory is from, if it is free.
fn choose_ids(
    options: &ServeOptions,
    passwd: &str,
    subuid: &str,
) -> Result<(IdRange, Flock<File>), SuperviseError> {
    let take = |ids: IdRange| {
        // In memory, and gone with the machine's next start.
        let path = PathBuf::from(format!("/run/sock-ids-{}", ids.first));
        match lock::take(&path) {
            Ok(lock) => Ok(Some(lock)),
            Err(NotTaken::Held(_)) => Ok(None),
            Err(NotTaken::Io(error)) => Err(SuperviseError::Data { path, error }),
        }
    };
    if let Some(ids) = options.ids {
        ids.check(passwd, subuid)?;
        return Ok((ids, take(ids)?.ok_or(SuperviseError::IdsTaken(ids.first))?));
    }
    let owner = fs::symlink_metadata(options.data_dir.join(OWN)).ok().map(|metadata| metadata.uid());
    let mut choices: Vec<IdRange> = IdRange::choices().collect();
    choices.sort_by_key(|ids| Some(ids.gateway()) != owner);
    let mut clash = None;
    for ids in choices {
        match ids.check(passwd, subuid) {
            Ok(()) => {
                if let Some(lock) = take(ids)? {
                    return Ok((ids, lock));
                }
            }
            Err(error) => clash = Some(error),
        }
    }
    Err(clash.map_or(SuperviseError::NoIds, Into::into))
}

/// Of the data directory, what the gateway writes among the first things, and owns.
const OWN: &str = "keys.json";

/// What a server with other user ids has left in the data directory becomes this one's.
fn take_over(root: &Path, ids: IdRange) -> Result<(), SuperviseError> {
    let id = ids.gateway();
    let own = |path: &Path| fs::symlink_metadata(path).map(|metadata| metadata.uid() == id);
    let marker = root.join(OWN);
    if !marker.exists() || own(&marker).map_err(data(&marker))? {
        return Ok(());
    }
    let mut pending: Vec<PathBuf> =
        fs::read_dir(root).map_err(data(root))?.flatten().map(|entry| entry.path()).collect();
    // The launcher's, and root's.
    pending.retain(|path| !["mnt", "lock"].iter().any(|name| path.ends_with(name)));
    while let Some(path) = pending.pop() {
        lchown(&path, Some(id), Some(id)).map_err(data(&path))?;
        if fs::symlink_metadata(&path).map_err(data(&path))?.is_dir() {
            pending.extend(fs::read_dir(&path).map_err(data(&path))?.flatten().map(|entry| entry.path()));
        }
    }
    Ok(())
}

fn data(path: &Path) -> impl FnOnce(io::Error) -> SuperviseError {
    let path = path.to_owned();
    move |error| SuperviseError::Data { path, error }
}

/// Makes the data directory, which nobody but a server looks into.
fn make_root(root: &Path) -> Result<(), SuperviseError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(root).map_err(data(root))?;
    fs::set_permissions(root, fs::Permissions::from_mode(0o700)).map_err(data(root))
}

/// What says how the data directory is laid out.
const LAYOUT_FILE: &str = "layout";
/// The URL of the server that runs, or ran last.
const ENDPOINT_FILE: &str = "endpoint";

/// Before anything in it is touched.
fn check_layout(root: &Path) -> Result<(), SuperviseError> {
    let path = root.join(LAYOUT_FILE);
    match read_no_link(&path) {
        // Cut off before its first byte was written: it holds what it held without the file.
        Ok(text) if text.is_empty() => Ok(()),
        Ok(text) => match text.trim().parse() {
            Ok(1..=LAYOUT) => Ok(()),
            Ok(found) if found > LAYOUT => Err(SuperviseError::Newer { path: root.to_owned(), found }),
            _ => Err(SuperviseError::NoLayout { path, found: text.chars().take(40).collect() }),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(data(&path)(error)),
    }
}

fn read_no_link(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let file = OpenOptions::new().read(true).custom_flags(PLAIN_FILE.bits()).open(path)?;
    require_plain(&file)?;
    file.take(128).read_to_string(&mut text).map(|_| text)
}

fn write_no_link(path: &Path, line: &str) -> Result<(), SuperviseError> {
    let open = OpenOptions::new().write(true).create(true).custom_flags(PLAIN_FILE.bits()).open(path);
    let write = |mut file: File| {
        require_plain(&file)?;
        file.set_len(0)?;
        writeln!(file, "{line}")
    };
    open.and_then(write).map_err(data(path))
}

/// Neither a link is followed, nor a pipe waited for, where somebody put one.
const PLAIN_FILE: OFlag = OFlag::O_NOFOLLOW.union(OFlag::O_NONBLOCK);

fn require_plain(file: &File) -> io::Result<()> {
    if file.metadata()?.is_file() { Ok(()) } else { Err(io::Error::other("it is no file")) }
}

/// The URL of the server of a data directory, as it wrote it down. The directory belongs to the gateway's user, who is not trusted:
/// what is there may be a link to somebody else's file, a pipe, or anything but an address, and then there is none.
pub fn written_endpoint(root: &Path) -> Option<String> {
    let text = read_no_link(&root.join(ENDPOINT_FILE)).ok()?;
    let address: SocketAddr = text.trim().strip_prefix("http://")?.parse().ok()?;
    Some(format!("http://{address}"))
}

/// Writes down where the server is found, for commands on this machine that are given its data directory.
fn tell_endpoint(root: &Path, listener: &TcpListener) -> Result<(), SuperviseError> {
    let path = root.join(ENDPOINT_FILE);
    let mut address = listener.local_addr().map_err(data(&path))?;
    if address.ip().is_unspecified() {
        let loopback =
            if address.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
        address.set_ip(loopback);
    }
    write_no_link(&path, &format!("http://{address}"))
}

/// Makes what is in the data directory, which belongs to the gateway's user and to nobody else.
///
/// That user is not trusted, and could put anything there while a server ran: no link is followed, and a directory is
/// given away through a descriptor of itself.
fn prepare(root: &Path, ids: IdRange) -> Result<(), SuperviseError> {
    write_no_link(&root.join(LAYOUT_FILE), &LAYOUT.to_string())?;
    let id = ids.gateway();
    chown(root, Some(id), Some(id)).map_err(data(root))?;
    for name in ["code", "packages", "logs"] {
        let path = root.join(name);
        let directory = directory(&path).map_err(data(&path))?;
        fchown(&directory, Some(id), Some(id)).map_err(data(&path))?;
    }
    // The launcher mounts on it; it stays root's and, outside the launcher's mount namespace, empty.
    let work = root.join("mnt");
    directory(&work).map(drop).map_err(data(&work))
}

/// Makes a directory, if there is none; a link to one is none.
fn directory(path: &Path) -> io::Result<File> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
    OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)
}

/// As many connections as the kernel lets wait until they are taken: of those that find no room each waits a second until it is tried again,
/// and the standard library's 128 are fewer than a burst has.
fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    nix::sys::socket::listen(&listener, Backlog::MAXALLOWABLE)?;
    Ok(listener)
}

fn lock(root: &Path) -> Result<Flock<File>, SuperviseError> {
    let path = root.join("lock");
    lock::take(&path).map_err(|error| match error {
        NotTaken::Held(pid) => SuperviseError::Locked { path: root.to_owned(), pid },
        NotTaken::Io(error) => SuperviseError::Data { path, error },
    })
}

fn start_launcher(
    options: &ServeOptions,
    ids: IdRange,
    template: &Template,
    (socket, gateways): (OwnedFd, &OwnedFd),
) -> Result<Child, SuperviseError> {
    let data = options.data_dir.clone();
    let group = group_name(&options.data_dir);
    let host = HostOptions { work: options.data_dir.join("mnt"), group, template: template.clone(), ids };
    // The gateway's end has to close when the gateway dies, so no copy of it may stay in the launcher.
    let child = Child::fork_without(&[gateways], move || {
        let host = match Host::start(host) {
            Ok(host) => host,
            Err(error) => {
                eprintln!("sock: launcher: failed to start: {error}");
                return 1;
            }
        };
        if host.removed() > 0 {
            eprintln!("sock: launcher: removed {} cgroups that an earlier server left", host.removed());
        }
        let options = server::Options { data, tmp_bytes: TMP_BYTES, paper: options.allow_paper };
        match server::serve(host, options, socket) {
            Ok(()) => 0,
            Err(error) => {
                eprintln!("sock: launcher: {error}");
                1
            }
        }
    })?;
    Ok(child)
}

fn start_gateway(
    options: &ServeOptions,
    ids: IdRange,
    listener: &TcpListener,
    (launcher, serving): (OwnedFd, OwnedFd),
) -> Result<Child, SuperviseError> {
    let listener =
        listener.try_clone().map_err(|error| SuperviseError::Listen { address: options.listen, error })?;
    let child = Child::fork(move || {
        let id = ids.gateway();
        // Until this process has said what it has to say: the launcher ends when it is hung up on, and whoever finds that one's end
        // first kills this one.
        let _held = launcher.try_clone();
        let ordinary = process::become_ordinary(id).map_err(|error| error.to_string());
        match ordinary.and_then(|()| crate::ordinary::run(options, listener, (launcher, serving))) {
            Ok(()) => 0,
            Err(error) => {
                eprintln!("sock: gateway: {error}");
                GATEWAY_REFUSED
            }
        }
    })?;
    Ok(child)
}

/// Lambda's default for `/tmp`.
const TMP_BYTES: u64 = 512 << 20;

/// One server for a data directory, so its cgroups are found again after a crash.
fn group_name(data_dir: &Path) -> String {
    use sha2::{Digest, Sha256};
    use std::os::unix::ffi::OsStrExt;
    let path = fs::canonicalize(data_dir).unwrap_or_else(|_| data_dir.to_owned());
    format!("sock-{}", &hex::encode(Sha256::digest(path.as_os_str().as_bytes()))[..12])
}
