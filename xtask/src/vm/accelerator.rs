//! Whether the processor itself can run the machine: only if it was seen to. Nested KVM may abort QEMU, or hang, and
//! `-accel kvm -accel tcg` falls back in neither case.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

use super::build::Built;
use super::machine::{self, Accelerator, Machine, Network, Outcome, Screen};
use super::payload::{self, Manifest};
use super::tree::Tree;

/// A machine under KVM stands in less than a second.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Boots the machine once with KVM, if there is KVM; the verdict holds until this machine boots again.
pub(crate) fn choose(built: &Built, kernel: &str) -> Result<Accelerator> {
    // Whether we may use it can differ from run to run; whether it works cannot.
    if fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_err() {
        return Ok(Accelerator::Tcg);
    }
    let boot =
        fs::read_to_string("/proc/sys/kernel/random/boot_id").context("failed to read the boot's id")?;
    let verdict = built.directory.join(format!("kvm-{kernel}"));
    let known = fs::read_to_string(&verdict).unwrap_or_default();
    let works = match known.strip_prefix(&boot) {
        Some(verdict) => verdict.trim() == "works",
        None => {
            let works = try_kvm(built, kernel)?;
            fs::write(&verdict, format!("{boot}{}\n", if works { "works" } else { "does not work" }))?;
            works
        }
    };
    Ok(if works { Accelerator::Kvm } else { Accelerator::Tcg })
}

fn try_kvm(built: &Built, kernel: &str) -> Result<bool> {
    let work = tempfile::tempdir()?;
    let payload = work.path().join("payload.erofs");
    let manifest = Manifest {
        workspace: "/mnt".into(),
        command: vec!["/bin/true".into()],
        directory: "/".into(),
        ..Manifest::default()
    };
    payload::make(built, &manifest, &Tree::default(), &payload)?;
    let machine = Machine {
        built,
        kernel,
        payload: &payload,
        accelerator: Accelerator::Kvm,
        network: Network::Restricted,
        screen: Screen::Silent,
        timeout: TIMEOUT,
        silence: machine::SILENCE,
        directory: work.path(),
    };
    Ok(machine.run()? == Outcome::Exited(0))
}
