//! Disks, by the serial numbers that the machine outside gave them.

use std::fs::{self, File, OpenOptions};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::{Attempt, failed};

/// A disk appears when its driver has looked at it, which may be after the module was loaded.
const PATIENCE: Duration = Duration::from_secs(20);

/// The device of the disk with this serial number.
pub(crate) fn wait_for(serial: &str) -> Attempt<PathBuf> {
    let began = Instant::now();
    loop {
        for entry in fs::read_dir("/sys/block").map_err(failed("read /sys/block"))?.flatten() {
            let device = PathBuf::from("/dev").join(entry.file_name());
            let found = fs::read_to_string(entry.path().join("serial")).unwrap_or_default();
            if found.trim() == serial && device.exists() {
                return Ok(device);
            }
        }
        if began.elapsed() > PATIENCE {
            return Err(format!("the machine has no disk {serial}"));
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "the kernel tells of devices by netlink, at the length of a udev"
        )]
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Writes what is in `directory` to a disk, as a tar archive.
pub(crate) fn save(directory: &Path, disk: &Path) -> Attempt<()> {
    let file =
        OpenOptions::new().write(true).open(disk).map_err(failed(format!("open {}", disk.display())))?;
    let mut archive = tar::Builder::new(BufWriter::new(file));
    archive.follow_symlinks(false);
    if directory.exists() {
        archive.append_dir_all(".", directory).map_err(failed(format!("save {}", directory.display())))?;
    }
    let file: BufWriter<File> = archive.into_inner().map_err(failed("save the results"))?;
    let file = file.into_inner().map_err(failed("save the results"))?;
    file.sync_all().map_err(failed("write the results to their disk"))
}
