//! One command in a lean container of its own, as `sock run` does it.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use crate::cgroup::Limits;
use crate::container::{ContainerSpec, CreateError, Workshop};
use crate::error::SyscallError;
use crate::host::{Host, HostError, HostOptions};
use crate::ids::{IdClash, IdRange};
use crate::init::{Exit, Program};
use crate::plan::{Base, NoBase, Profile, Template};

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
    /// See [`CreateError`].
    #[error(transparent)]
    Create(#[from] CreateError),
    /// A system call failed.
    #[error(transparent)]
    Syscall(#[from] SyscallError),
    /// No directory for mounts could be made.
    #[error("failed to make {0}: {1}")]
    Work(PathBuf, std::io::Error),
}

/// Runs a command with the caller's standard input, output and error, and waits for its end. `None`: it was killed as a
/// whole, by the kernel for want of memory most often.
pub fn run_command(options: &RunOptions) -> Result<Option<Exit>, RunError> {
    options.ids.check(&read("/etc/passwd"), &read("/etc/subuid"))?;
    let argv = resolve(&options.argv)?;
    let template = Template::of_base(Path::new("/"))?;
    let name = format!("sock-run-{}", std::process::id());
    let work = Path::new("/run").join(&name);
    let uid = nix::unistd::geteuid();
    if !uid.is_root() {
        return Err(HostError::NotRoot(uid.as_raw()).into());
    }
    std::fs::create_dir(&work).map_err(|error| RunError::Work(work.clone(), error))?;
    let result =
        run_in(options, argv, HostOptions { work: work.clone(), group: name, template, ids: options.ids });
    // Our own namespace still has a mount on it; in the host's it is an empty directory, and removing that is allowed.
    let _ = nix::mount::umount2(&work, nix::mount::MntFlags::MNT_DETACH);
    let _ = std::fs::remove_dir(&work);
    result
}

fn run_in(options: &RunOptions, argv: Vec<String>, host: HostOptions) -> Result<Option<Exit>, RunError> {
    let RunOptions { tmp_bytes, limits, profile, .. } = *options;
    let spec = ContainerSpec { hostname: "sock".into(), tmp_bytes, limits, profile };
    let workshop = Workshop::new(Host::start(host)?, spec);
    let mut env: Vec<(String, String)> =
        [("PATH", "/usr/local/bin:/usr/bin:/bin"), ("HOME", "/tmp"), ("LANG", "C.UTF-8")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into();
    env.extend(std::env::var("TERM").ok().map(|value| ("TERM".to_owned(), value)));
    let program = Program { argv, env, directory: "/tmp".into() };
    let (input, output, error) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    let ended = (|| {
        let mut container = workshop.create()?;
        container.start(&program, &[input.as_fd(), output.as_fd(), error.as_fd()])?;
        Ok(container.wait()?)
    })();
    workshop.stop()?;
    ended
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
        let certificates = candidates.filter_map(|path| std::fs::read(path).ok()).next();
        let libraries = std::fs::read(base.join("etc/ld.so.cache")).ok();
        Ok(Self { base: Base::inspect(base)?, files: Vec::new(), certificates, libraries })
    }
}
