//! What of a machine containers need, what they would use, and what is missing: for people to read.

mod limits;

use serde::Serialize;

use crate::ids::IdRange;

pub use limits::limits;

/// How a finding is to be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Good,
    /// It works, less well: the finding says how.
    Warning,
    /// It does not work.
    Bad,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub subject: &'static str,
    /// How it is.
    pub level: Level,
    /// What was found, and what follows.
    pub detail: String,
    /// What to do about it; nothing when all is well.
    pub remedy: Option<String>,
}

impl Finding {
    /// All is well.
    pub fn good(subject: &'static str, detail: impl Into<String>) -> Self {
        Self { subject, level: Level::Good, detail: detail.into(), remedy: None }
    }

    /// Something is less than it could be, or missing.
    pub fn wrong(
        subject: &'static str,
        level: Level,
        detail: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { subject, level, detail: detail.into(), remedy: Some(remedy.into()) }
    }
}

/// Looks at the machine. Changes nothing.
pub fn examine(ids: &IdRange) -> Vec<Finding> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let uid = nix::unistd::geteuid();
    let mut findings = vec![
        kernel(read("/proc/sys/kernel/osrelease").trim()),
        if uid.is_root() {
            Finding::good("privilege", "root")
        } else {
            Finding::wrong(
                "privilege",
                Level::Bad,
                format!("user id {uid}"),
                "run sock serve and sock run with sudo",
            )
        },
        namespaces(read("/proc/sys/user/max_user_namespaces").trim()),
        overlay(&read("/proc/filesystems")),
    ];
    match ids.check(&read("/etc/passwd"), &read("/etc/subuid")) {
        Ok(()) => {
            findings.push(Finding::good("user ids", format!("{} blocks from {}", ids.blocks, ids.first)))
        }
        Err(clash) => {
            findings.push(Finding::wrong("user ids", Level::Bad, clash.to_string(), "choose another range"));
        }
    }
    findings.extend(limits());
    findings
}

fn kernel(release: &str) -> Finding {
    let mut numbers = release.split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= (6, 1) {
        Finding::good("kernel", release)
    } else {
        Finding::wrong("kernel", Level::Bad, format!("{release} is older than 6.1"), "install a newer kernel")
    }
}

fn namespaces(maximum: &str) -> Finding {
    match maximum.parse::<u64>() {
        Ok(0) | Err(_) => Finding::wrong(
            "user namespaces",
            Level::Bad,
            "switched off",
            "sysctl user.max_user_namespaces=10000",
        ),
        Ok(count) if count < 1000 => Finding::wrong(
            "user namespaces",
            Level::Warning,
            format!("{count} at most, one for each container"),
            "sysctl user.max_user_namespaces=10000",
        ),
        Ok(count) => Finding::good("user namespaces", format!("{count} at most")),
    }
}

fn overlay(filesystems: &str) -> Finding {
    if filesystems.lines().any(|line| line.ends_with("\toverlay")) {
        Finding::good("overlay", "available")
    } else {
        Finding::wrong(
            "overlay",
            Level::Warning,
            "not loaded; it is loaded when first used, if there is a module",
            "modprobe overlay",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_kernels_are_refused() {
        assert_eq!(kernel("6.1.0-13-amd64").level, Level::Good);
        assert_eq!(kernel("5.15.0").level, Level::Bad);
    }
}
