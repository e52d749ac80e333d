//! Events for the machine outside, over a virtio port, a line each:
//!
//! ```text
//! ready SECONDS    the system stands, SECONDS after the kernel's start
//! alive            every second from then on: whoever misses it knows that the machine hangs
//! exit NUMBER      the program ended, and its results are on their disk
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::{Attempt, failed};

const BEAT: Duration = Duration::from_secs(1);

pub(crate) struct Control {
    port: Arc<Mutex<File>>,
}

/// The device of the port called `name`.
pub(crate) fn port(name: &str) -> Attempt<PathBuf> {
    let class = "/sys/class/virtio-ports";
    let entries = fs::read_dir(class).map_err(failed(format!("read {class}")))?;
    for entry in entries.flatten() {
        if fs::read_to_string(entry.path().join("name")).is_ok_and(|found| found.trim() == name) {
            return Ok(PathBuf::from("/dev").join(entry.file_name()));
        }
    }
    Err(format!("the machine has no port {name}"))
}

impl Control {
    pub(crate) fn open() -> Attempt<Self> {
        let path = port("control")?;
        let file = OpenOptions::new().write(true).open(&path).map_err(failed("open the control port"))?;
        Ok(Self { port: Arc::new(Mutex::new(file)) })
    }

    pub(crate) fn ready(&self) -> Attempt<()> {
        let uptime = fs::read_to_string("/proc/uptime").map_err(failed("read /proc/uptime"))?;
        self.say(&format!("ready {}", uptime.split(' ').next().unwrap_or_default()))
    }

    pub(crate) fn exit(&self, code: i32) -> Attempt<()> {
        self.say(&format!("exit {code}"))
    }

    fn say(&self, line: &str) -> Attempt<()> {
        let mut port = self.port.lock().map_err(failed("lock the control port"))?;
        port.write_all(format!("{line}\n").as_bytes()).map_err(failed("write to the control port"))
    }

    /// Tells that the machine lives, for as long as it does.
    pub(crate) fn beat(&self) {
        let port = Arc::clone(&self.port);
        std::thread::spawn(move || {
            loop {
                #[expect(clippy::disallowed_methods, reason = "that time goes by is what is told")]
                std::thread::sleep(BEAT);
                let Ok(mut port) = port.lock() else { return };
                if port.write_all(b"alive\n").is_err() {
                    return;
                }
            }
        });
    }
}
