//! What holds for the workspace as a whole.

#![allow(clippy::unwrap_used, reason = "a test's panic is its report, in its helpers too")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// Files of ours with this ending, build output left out.
fn files(ending: &str) -> Vec<PathBuf> {
    let (mut pending, mut found) = (vec![root()], Vec::new());
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(directory).unwrap().flatten() {
            let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
            if entry.file_type().unwrap().is_dir() {
                if name != "target" && name != ".git" {
                    pending.push(path);
                }
            } else if name.ends_with(ending) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

#[test]
fn the_crate_graph() {
    let metadata = cargo_metadata::MetadataCommand::new()
        .manifest_path(root().join("Cargo.toml"))
        .no_deps()
        .other_options(["--offline".to_owned()])
        .exec()
        .unwrap();
    let ours: BTreeSet<String> = metadata.packages.iter().map(|package| package.name.to_string()).collect();
    let mut lines = Vec::new();
    for package in &metadata.packages {
        let mut edges: BTreeSet<&str> = BTreeSet::new();
        for dependency in &package.dependencies {
            if dependency.kind == cargo_metadata::DependencyKind::Normal && ours.contains(&dependency.name) {
                edges.insert(&dependency.name);
            }
        }
        let edges: Vec<&str> = edges.into_iter().collect();
        lines.push(format!("{} -> {}", package.name, edges.join(" ")).trim_end().to_owned());
    }
    lines.sort();
    // The benchmark has the zygotes' policy to simulate it, and nothing of what runs them.
    insta::assert_snapshot!(lines.join("\n"), @r"
    sock -> sock-gateway sock-isolation
    sock-bench -> sock-isolation sock-zygote
    sock-e2e ->
    sock-fuzz -> sock-gateway sock-isolation sock-pkgcache sock-zygote
    sock-gateway -> sock-isolation sock-pkgcache sock-zygote
    sock-isolation ->
    sock-pkgcache ->
    sock-vm-init ->
    sock-zygote -> sock-isolation
    workspace-tests ->
    xtask ->
    ");
}

#[test]
fn only_the_gateway_is_asynchronous() {
    let text = fs::read_to_string(root().join("crates/gateway/Cargo.toml")).unwrap();
    assert!(text.contains("tokio"));
    for name in ["isolation", "zygote", "pkgcache"] {
        let text = fs::read_to_string(root().join("crates").join(name).join("Cargo.toml")).unwrap();
        assert!(!text.contains("tokio") && !text.contains("hyper"), "{name}");
    }
}

#[test]
fn every_module_says_what_it_is() {
    for path in files(".rs") {
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("//!"), "{} does not open with //!", path.display());
    }
}

#[test]
fn no_file_is_a_wall() {
    for path in files(".rs").into_iter().chain(files(".py")) {
        let lines = fs::read_to_string(&path).unwrap().lines().count();
        assert!(lines <= 800, "{} has {lines} lines; 800 at most", path.display());
    }
}

#[test]
fn links_between_documents_lead_somewhere() {
    for path in files(".md") {
        let text = fs::read_to_string(&path).unwrap();
        for (at, _) in text.match_indices("](") {
            let target = text[at + 2..].split(')').next().unwrap_or_default();
            let target = target.split('#').next().unwrap_or_default();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            let file = path.parent().unwrap().join(target);
            assert!(file.exists(), "{}: {target} does not exist", path.display());
        }
    }
}
