//! Whether a request may be granted, as far as the request alone tells. Pure.
//!
//! The gateway is not believed: whoever took it over can ask for anything that [`Request`] can express. Names become parts
//! of paths here and limits become the kernel's, so both are bounded before anything is done. Paths are not looked at:
//! the kernel resolves them beneath the data directory (`sys::open_beneath`), and there is no second opinion on that.

use super::wire::{Files, MAX_SLOTS, MAX_SPARES, Request};
use crate::cgroup::Limits;
use crate::init::Command;
use crate::seccomp::Role;

/// overlay's own bound.
const MAX_LAYERS: usize = 500;

/// Lambda's largest function has 10,240 MB; a zygote may be as large.
const MAX_MEMORY: u64 = 10_240 << 20;

impl Request {
    /// Why it is refused, if it is, whatever exists at the time.
    pub fn validate(&self) -> Result<(), String> {
        match self {
            Self::AddView { view, layers } => {
                if layers.len() > MAX_LAYERS {
                    return Err(format!("a view of {} layers; {MAX_LAYERS} at most", layers.len()));
                }
                plain_name(view)
            }
            Self::StartZygote(start) => command(&start.command, Role::Zygote).and(files(&start.files)),
            Self::ForkZygote(fork) => bounds(&fork.limits).and(files(&fork.files)),
            Self::Keep { spares, slots, .. } if *spares > MAX_SPARES || *slots > MAX_SLOTS => Err(format!(
                "{spares} spares and {slots} slots of a zygote; {MAX_SPARES} and {MAX_SLOTS} at most"
            )),
            Self::Fork { files: shown, limits, .. } => bounds(limits).and(files(shown)),
            Self::Execute { profile, files: shown, command: executed } => {
                command(executed, profile.role()).and(files(shown))
            }
            Self::Admit { .. }
            | Self::StopZygote { .. }
            | Self::Keep { .. }
            | Self::Check { .. }
            | Self::Memory { .. }
            | Self::Count
            | Self::Release { .. }
            | Self::Destroy { .. } => Ok(()),
        }
    }
}

fn files(files: &Files) -> Result<(), String> {
    files.view.as_deref().map_or(Ok(()), plain_name)
}

fn plain_name(name: &str) -> Result<(), String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if !name.is_empty() && name.len() <= 100 && name.chars().all(plain) {
        Ok(())
    } else {
        Err(format!("{name:?} is not a name of letters, digits, - and _ (100 at most)"))
    }
}

fn bounds(limits: &Limits) -> Result<(), String> {
    let good = (1 << 20..=MAX_MEMORY).contains(&limits.memory)
        && (1..=65_536).contains(&limits.processes)
        && (1..=1_000_000).contains(&limits.cpu_millis)
        && (1..=10_000).contains(&limits.cpu_weight)
        && limits.memory_high.is_none_or(|high| (1 << 20..=MAX_MEMORY).contains(&high))
        && limits.io_bytes.is_none_or(|bytes| (1 << 10..=1 << 40).contains(&bytes))
        && (16..=1_048_576).contains(&limits.files);
    if good { Ok(()) } else { Err(format!("limits out of bounds: {limits:?}")) }
}

fn command(command: &Command, role: Role) -> Result<(), String> {
    bounds(&command.limits)?;
    if command.role != role {
        return Err(format!("a command of role {role:?} is expected, not {:?}", command.role));
    }
    if !command.argv.first().is_some_and(|program| program.starts_with('/')) {
        return Err("the command has to start with an absolute path".into());
    }
    Ok(())
}
