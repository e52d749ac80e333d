//! PID 1 of the test machine: makes a Debian system out of the disks, runs what the payload says, and powers off.
//!
//! ```text
//! initrd ─▶ modules ─▶ disks by their serial numbers
//!            root     EROFS, beneath a tmpfs by overlay: everything can be written, nothing stays
//!            payload  EROFS: manifest.json, and the files of the workspace, at the path that they have outside
//!            results  raw: a tar archive of what the programs left
//! ports      control  one line an event, to the machine outside (see `control`)
//!            output   what the programs print
//! ```
//! What fails here ends PID 1, at which the kernel panics, which is noticed outside. Nothing is read from the kernel's
//! command line.

mod control;
mod disks;
mod machine;
mod manifest;
mod program;

use std::fs;
use std::path::Path;

use control::Control;
use manifest::Manifest;

/// A sentence that says what failed.
type Failure = String;
type Attempt<T> = Result<T, Failure>;

/// Adds what was tried to an error.
fn failed<E: std::fmt::Display>(what: impl std::fmt::Display) -> impl FnOnce(E) -> Failure {
    move |error| format!("failed to {what}: {error}")
}

fn main() {
    if std::process::id() != 1 {
        eprintln!("init: this is PID 1 of the test machine and of no use elsewhere");
        std::process::exit(2);
    }
    if let Err(failure) = run() {
        eprintln!("init: {failure}");
        // The kernel panics, which is what it is for.
        std::process::exit(1);
    }
}

fn run() -> Attempt<()> {
    machine::mount_kernel()?;
    machine::load_modules(Path::new("/modules"))?;
    machine::enter_root(&disks::wait_for("root")?)?;
    machine::mount_rest()?;
    let payload = Path::new("/run/payload");
    machine::mount_image(&disks::wait_for("payload")?, payload)?;
    let text = fs::read_to_string(payload.join("manifest.json")).map_err(failed("read manifest.json"))?;
    let manifest: Manifest = serde_json::from_str(&text).map_err(failed("understand manifest.json"))?;
    machine::show(&payload.join("tree"), &manifest.workspace)?;
    machine::start_network(manifest.network)?;
    let control = Control::open()?;
    control.ready()?;
    let exit = program::run(&manifest, &control)?;
    if let Some(directory) = &manifest.results {
        disks::save(directory, &disks::wait_for("results")?)?;
    }
    control.exit(exit)?;
    machine::power_off()
}
