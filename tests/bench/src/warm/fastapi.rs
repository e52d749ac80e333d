//! The function `echo` in FastAPI, served by uvicorn with two worker processes.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::client::Connection;
use crate::machine::pause;
use crate::server::tests;

/// Where its packages are, if they are installed.
const PACKAGES: &str = "SOCK_BENCH_FASTAPI";

pub(super) struct FastApi {
    child: Child,
    pub(super) address: SocketAddr,
}

impl FastApi {
    /// Nothing if it is not installed.
    pub(super) fn start() -> Result<Option<Self>> {
        let Some(packages) = std::env::var_os(PACKAGES).filter(|packages| Path::new(packages).is_dir())
        else {
            return Ok(None);
        };
        let path = std::env::join_paths([packages.into(), tests("functions/echo"), tests("bench/fastapi")])?;
        // Free a moment ago; nobody else on this machine is likely to take it before the server does.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let port = address.port().to_string();
        let child = Command::new("/usr/bin/python3")
            .args(["-m", "uvicorn", "application:app", "--host", "127.0.0.1", "--port", &port])
            .args(["--workers", "2", "--no-access-log", "--log-level", "warning"])
            .env("PYTHONPATH", path)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .context("failed to start uvicorn")?;
        let mut peer = Self { child, address };
        let begin = Instant::now();
        while Connection::open(address).is_err() {
            if let Some(status) = peer.child.try_wait()? {
                bail!("uvicorn ended with {status}");
            }
            if begin.elapsed() > Duration::from_secs(30) {
                bail!("uvicorn does not serve");
            }
            pause(Duration::from_millis(100));
        }
        Ok(Some(peer))
    }
}

impl Drop for FastApi {
    fn drop(&mut self) {
        // Its workers end with it when it is asked to end. Our own child, not waited for yet: nobody else can have its number.
        let _ = Command::new("/bin/kill").args(["-TERM", &self.child.id().to_string()]).status();
        let _ = self.child.wait();
    }
}
