//! What installing the filter of an instance takes: as a binary tree, which it is, and as a list of comparisons.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter, sock_filter};
use sock_isolation::Role;
use sock_isolation::process::Child;
use sock_isolation::seccomp::{self, Architecture};

use super::ROUNDS;
use crate::figures::{Samples, Target, heading, judge, show};

/// Measures, prints, and tells whether the target was met.
pub(super) fn run() -> Result<bool> {
    let (ours, list) = (tree(), list()?);
    let (mut of_tree, mut of_list) = (Samples::default(), Samples::default());
    for _ in 0..ROUNDS {
        of_tree.add(install(&ours)?);
        of_list.add(install(&list)?);
    }
    heading();
    show("install a filter, a binary tree", &of_tree);
    show("the same calls, a list", &of_list);
    Ok(judge("list / binary tree", of_list.median() / of_tree.median(), Target::AtLeast(3.0)))
}

fn tree() -> BpfProgram {
    let ours = seccomp::filter(Role::Instance).iter();
    ours.map(|line| sock_filter { code: line.code, jt: line.jt, jf: line.jf, k: line.k }).collect()
}

/// Allows the same calls, without a look at their arguments.
fn list() -> Result<BpfProgram> {
    let names = seccomp::table(Role::Instance).into_iter();
    let allowed = names.filter(|(_, verdict)| !matches!(verdict, sock_isolation::bpf::Verdict::Errno(_)));
    let numbers = allowed.filter_map(|(name, _)| Architecture::NATIVE.number(name));
    let rules: BTreeMap<i64, _> = numbers.map(|number| (number.into(), Vec::new())).collect();
    let refused = SeccompAction::Errno(libc::ENOSYS as u32);
    let filter =
        SeccompFilter::new(rules, refused, SeccompAction::Allow, std::env::consts::ARCH.try_into()?)?;
    Ok(filter.try_into()?)
}

/// In a process that ends with it.
fn install(filter: &BpfProgram) -> Result<Duration> {
    let (read, write) = nix::unistd::pipe()?;
    let child = Child::fork(|| {
        let begin = Instant::now();
        let applied = apply_filter(filter);
        let took = u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let told = File::from(write).write_all(&took.to_ne_bytes());
        i32::from(applied.is_err() || told.is_err())
    })?;
    if child.wait()? != sock_isolation::Exit::Code(0) {
        bail!("a filter was not installed");
    }
    let mut took = [0; 8];
    File::from(read).read_exact(&mut took)?;
    Ok(Duration::from_nanos(u64::from_ne_bytes(took)))
}
