//! Other ways to run one command in a container, each as a whole process.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::{TRUE, succeed};

pub(super) const SOCK: &str = "sock run";
pub(super) const BUBBLEWRAP: &str = "bubblewrap";
pub(super) const RUNC: &str = "runc";
pub(super) const DOCKER: &str = "docker run";

/// One of them.
pub(super) struct Peer {
    pub(super) name: &'static str,
    /// Whether a run takes milliseconds.
    pub(super) is_fast: bool,
    argv: Vec<String>,
    directory: PathBuf,
    _daemon: Option<Daemon>,
}

impl Peer {
    pub(super) fn run(&self) -> Result<()> {
        succeed(Command::new(&self.argv[0]).args(&self.argv[1..]).current_dir(&self.directory))
    }
}

/// Those that are installed; each was seen to work.
pub(super) fn all(work: &Path, sock: &Path) -> Result<Vec<Peer>> {
    let peer = |name, is_fast, argv: &[&str], directory: &Path| Peer {
        name,
        is_fast,
        argv: argv.iter().map(|argument| (*argument).to_owned()).collect(),
        directory: directory.to_owned(),
        _daemon: None,
    };
    let sock = sock.to_str().context("the path of sock is not text")?;
    let mut peers = vec![peer(SOCK, true, &[sock, "run", "--", TRUE], work)];
    if exists("bwrap") {
        let argv = [
            "bwrap",
            "--unshare-all",
            "--die-with-parent",
            "--ro-bind",
            "/usr",
            "/usr",
            "--symlink",
            "usr/bin",
            "/bin",
            "--symlink",
            "usr/lib",
            "/lib",
            "--symlink",
            "usr/lib64",
            "/lib64",
            "--proc",
            "/proc",
            "--dev",
            "/dev",
            "--tmpfs",
            "/tmp",
            TRUE,
        ];
        peers.push(peer(BUBBLEWRAP, true, &argv, work));
    }
    if exists("runc") {
        let bundle = bundle(work)?;
        peers.push(peer(RUNC, false, &["runc", "run", "sock-bench"], &bundle));
    }
    if exists("dockerd") {
        let daemon = Daemon::start(work)?;
        let host = daemon.host();
        let argv = ["docker", "-H", &host, "run", "--rm", "--network", "none", "bench", "/true"];
        let mut docker = peer(DOCKER, false, &argv, work);
        docker._daemon = Some(daemon);
        peers.push(docker);
    }
    for peer in &peers {
        peer.run().with_context(|| peer.name)?;
    }
    Ok(peers)
}

fn exists(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

/// A bundle whose root is an empty directory with the host's `/usr` in it.
fn bundle(work: &Path) -> Result<PathBuf> {
    let bundle = work.join("bundle");
    fs::create_dir_all(bundle.join("rootfs/usr"))?;
    for name in ["bin", "lib", "lib64"] {
        std::os::unix::fs::symlink(format!("usr/{name}"), bundle.join("rootfs").join(name))?;
    }
    succeed(Command::new("runc").arg("spec").current_dir(&bundle))?;
    let path = bundle.join("config.json");
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&path)?)?;
    config["process"]["terminal"] = json!(false);
    config["process"]["args"] = json!([TRUE]);
    let usr = json!({"destination": "/usr", "source": "/usr", "type": "bind", "options": ["rbind", "ro"]});
    config["mounts"].as_array_mut().context("the spec has no mounts")?.insert(0, usr);
    fs::write(&path, config.to_string())?;
    Ok(bundle)
}

/// A docker daemon of the benchmark's own, without networks.
struct Daemon {
    process: Child,
    socket: PathBuf,
}

impl Daemon {
    fn start(work: &Path) -> Result<Self> {
        let at = |name: &str| work.join("docker").join(name);
        fs::create_dir_all(at("data"))?;
        let log = File::create(at("log"))?;
        let socket = at("socket");
        let process = Command::new("dockerd")
            .args(["--iptables=false", "--ip6tables=false", "--bridge=none", "--storage-driver=vfs"])
            .arg("--data-root")
            .arg(at("data"))
            .arg("--exec-root")
            .arg(at("exec"))
            .arg("--pidfile")
            .arg(at("pid"))
            .arg("--host")
            .arg(format!("unix://{}", socket.display()))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let daemon = Self { process, socket };
        let begin = Instant::now();
        while !daemon.client(&["info"]).output()?.status.success() {
            if begin.elapsed() > Duration::from_secs(60) {
                bail!("dockerd does not come up; its log is {}", at("log").display());
            }
            #[expect(clippy::disallowed_methods, reason = "a daemon that comes up tells nobody")]
            std::thread::sleep(Duration::from_millis(200));
        }
        let image = at("image.tar");
        let mut archive = tar::Builder::new(File::create(&image)?);
        archive.append_path_with_name("/bin/busybox", "true").context("busybox-static is missing")?;
        archive.into_inner()?;
        let path = image.to_str().context("the image's path is not text")?;
        succeed(&mut daemon.client(&["import", path, "bench"]))?;
        Ok(daemon)
    }

    fn host(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    fn client(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command.arg("-H").arg(self.host()).args(arguments);
        command
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It takes its containers down when it is asked to end. It was not waited for, so its number is its own.
        let pid = nix::unistd::Pid::from_raw(self.process.id() as i32);
        #[expect(clippy::disallowed_methods, reason = "a child that was not waited for")]
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _ = self.process.wait();
    }
}
