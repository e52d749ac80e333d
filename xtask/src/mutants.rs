//! `cargo xtask mutants`: breaks the system in one place after another, and wants the tests to notice.
//!
//! A mutant is a patch, `tests/mutants/<name>.patch`: a sentence that says what is broken, where its tests run, the tests
//! of which every one has to fail, and the difference.
//!
//! ```text
//! A command in a container keeps a full capability bounding set.
//!
//! Where: host
//! Test: sock-isolation inside::nobody_with_nothing
//!
//! --- a/crates/isolation/src/plan.rs
//! …
//! ```
//!
//! Each is applied to a copy of the checkout, which has build output of its own: `target/mutants/`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::e2e;
use crate::tasks::{self, cargo};
use crate::tools;
use crate::vm::image::{target, workspace};
use crate::vm::payload;

/// Where a mutant's tests run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Host,
    /// The test machine, which has cgroup controllers for certain.
    Machine,
}

#[derive(Debug, PartialEq, Eq)]
struct Mutant {
    name: String,
    patch: PathBuf,
    /// What it breaks.
    what: String,
    place: Place,
    tests: Vec<Test>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Test {
    package: String,
    name: String,
}

/// What became of one test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Passed,
    Failed,
}

pub(crate) fn run(names: &[String]) -> Result<()> {
    tools::for_tests()?;
    tools::for_tests_in_machine()?;
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "most mutants' tests make containers and need root: sudo -E env PATH=\"$PATH\" cargo xtask mutants"
        );
    }
    let mutants = chosen(load(&workspace().join("tests/mutants"))?, names)?;
    let checkout = Checkout::make(target().join("mutants"))?;
    println!("without a mutant, all {} have to pass", count(&mutants, "test"));
    for place in [Place::Host, Place::Machine] {
        let tests: Vec<&Test> =
            mutants.iter().filter(|one| one.place == place).flat_map(|one| &one.tests).collect();
        if !tests.is_empty() && checkout.test(place, &tests)? == Verdict::Failed {
            bail!("a test fails without a mutant; its output is in {}", checkout.log().display());
        }
    }
    let (mut survivors, mut unjudged) = (Vec::new(), Vec::new());
    for mutant in &mutants {
        checkout.apply(mutant, &[])?;
        for test in &mutant.tests {
            let verdict = match checkout.test(mutant.place, &[test]) {
                Ok(Verdict::Failed) => "caught by",
                Ok(Verdict::Passed) => {
                    survivors.push(mutant.name.as_str());
                    "SURVIVED "
                }
                Err(error) => {
                    eprintln!("{}: {error:#}", mutant.name);
                    unjudged.push(mutant.name.as_str());
                    "NOT RUN: "
                }
            };
            println!("{verdict} {} {}: {}", test.package, test.name, mutant.name);
        }
        checkout.apply(mutant, &["--reverse"])?;
    }
    if survivors.is_empty() && unjudged.is_empty() {
        println!("all {} are caught", count(&mutants, "mutant"));
        return Ok(());
    }
    bail!("tests do not notice: [{}]; could not be judged: [{}]", survivors.join(", "), unjudged.join(", "))
}

fn count(mutants: &[Mutant], noun: &str) -> String {
    let number = if noun == "test" { mutants.iter().map(|one| one.tests.len()).sum() } else { mutants.len() };
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

fn chosen(all: Vec<Mutant>, names: &[String]) -> Result<Vec<Mutant>> {
    if let Some(unknown) = names.iter().find(|name| all.iter().all(|mutant| mutant.name != **name)) {
        bail!("there is no tests/mutants/{unknown}.patch");
    }
    Ok(all.into_iter().filter(|one| names.is_empty() || names.contains(&one.name)).collect())
}

/// All mutants, by name.
fn load(directory: &Path) -> Result<Vec<Mutant>> {
    let mut mutants = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| format!("failed to read {}", directory.display()))? {
        let patch = entry?.path();
        let text =
            fs::read_to_string(&patch).with_context(|| format!("failed to read {}", patch.display()))?;
        let name = patch.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let mutant = parse(&text).with_context(|| format!("{} is not as it should be", patch.display()))?;
        mutants.push(Mutant { name, patch, ..mutant });
    }
    mutants.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(mutants)
}

/// Without its name and place.
fn parse(text: &str) -> Result<Mutant> {
    let head: Vec<&str> = text.lines().take_while(|line| !line.starts_with("--- ")).collect();
    let (mut place, mut tests) = (None, Vec::new());
    for line in &head[1..] {
        match line.split_once(": ") {
            Some(("Where", "host")) => place = Some(Place::Host),
            Some(("Where", "machine")) => place = Some(Place::Machine),
            Some(("Test", test)) => {
                let (package, name) = test.split_once(' ').context("write Test: PACKAGE NAME")?;
                tests.push(Test { package: package.to_owned(), name: name.to_owned() });
            }
            None if line.is_empty() => {}
            _ => bail!("{line:?} is neither Where: host, Where: machine nor Test: PACKAGE NAME"),
        }
    }
    if tests.is_empty() {
        bail!("it names no test that has to fail");
    }
    let place = place.context("it does not say Where: host or Where: machine")?;
    let what = head.first().copied().unwrap_or_default().to_owned();
    Ok(Mutant { name: String::new(), patch: PathBuf::new(), what, place, tests })
}

/// nextest's expression for exactly these tests.
fn filterset(tests: &[&Test]) -> String {
    let one = |test: &&Test| format!("(package(={}) & test(={}))", test.package, test.name);
    tests.iter().map(one).collect::<Vec<_>>().join(" + ")
}

/// A copy to break.
struct Checkout {
    base: PathBuf,
    root: PathBuf,
}

impl Checkout {
    /// Makes it anew, but for its build output.
    fn make(base: PathBuf) -> Result<Self> {
        let root = base.join("checkout");
        fs::create_dir_all(&root).with_context(|| format!("failed to create {}", root.display()))?;
        for entry in fs::read_dir(&root)? {
            let path = entry?.path();
            if path.is_dir() && !path.ends_with("target") {
                fs::remove_dir_all(path)?;
            }
        }
        payload::checkout()?.write_to(&root)?;
        // A repository of its own: its files are listed there, and patches apply beneath it.
        let root_name = root.display().to_string();
        tasks::run("git", &["init", "--quiet", &root_name])?;
        Ok(Self { base, root })
    }

    /// What the last tests printed.
    fn log(&self) -> PathBuf {
        self.base.join("output.log")
    }

    fn apply(&self, mutant: &Mutant, arguments: &[&str]) -> Result<()> {
        let git = apply(&self.root, &mutant.patch, arguments)?;
        if !git.status.success() {
            let said = String::from_utf8_lossy(&git.stderr).into_owned();
            bail!("{} does not apply: {}", mutant.patch.display(), said.trim());
        }
        Ok(())
    }

    fn build(&self) -> Result<()> {
        let arguments = ["build", "--locked", "--quiet", "--package", "sock"];
        let mut command = Command::new(cargo());
        command.args(arguments).current_dir(&self.root).env("CARGO_TARGET_DIR", self.root.join("target"));
        let status = command.status().context("failed to start cargo")?;
        if !status.success() {
            bail!("cargo {} failed: {status}", arguments.join(" "));
        }
        Ok(())
    }

    /// Runs tests; that they cannot be built or run is an error.
    fn test(&self, place: Place, tests: &[&Test]) -> Result<Verdict> {
        let mut command = match place {
            Place::Host => {
                // Its tests start the binary.
                if tests.iter().any(|test| test.package == "sock-e2e") {
                    self.build()?;
                }
                let mut command = Command::new(cargo());
                command.args(["nextest", "run", "--locked", "--no-fail-fast", "--no-tests=fail"]);
                let mut packages: Vec<&str> = tests.iter().map(|test| test.package.as_str()).collect();
                packages.dedup();
                command.args(packages.iter().flat_map(|package| ["--package", package]));
                command
            }
            Place::Machine => {
                let mut command = Command::new(std::env::current_exe()?);
                command.arg("e2e").env("CARGO_MANIFEST_DIR", self.root.join("xtask"));
                command
            }
        };
        let log = self.log();
        let output = File::create(&log).with_context(|| format!("failed to create {}", log.display()))?;
        command.args(["--filterset", &filterset(tests)]);
        command.current_dir(&self.root).env("CARGO_TARGET_DIR", self.root.join("target"));
        command.stdout(output.try_clone()?).stderr(output);
        match command.status().context("failed to start the tests")?.code() {
            Some(0) => Ok(Verdict::Passed),
            Some(e2e::TESTS_FAILED) => Ok(Verdict::Failed),
            code => {
                let code = code.map_or_else(|| "killed".to_owned(), |code| format!("exit code {code}"));
                bail!("tests could not be run ({code}); see {}", log.display())
            }
        }
    }
}

fn apply(root: &Path, patch: &Path, arguments: &[&str]) -> Result<std::process::Output> {
    Command::new("git")
        .arg("apply")
        .args(arguments)
        .arg(patch)
        .current_dir(root)
        .output()
        .context("failed to start git")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mutant_applies() {
        let mutants = load(&workspace().join("tests/mutants")).unwrap();
        assert!(mutants.len() >= 10, "{}", count(&mutants, "mutant"));
        for mutant in &mutants {
            let git = apply(&workspace(), &mutant.patch, &["--check"]).unwrap();
            let said = String::from_utf8_lossy(&git.stderr);
            assert!(git.status.success(), "{} has to be adapted: {said}", mutant.patch.display());
            assert!(mutant.what.ends_with('.'), "{}: {:?} is no sentence", mutant.name, mutant.what);
        }
    }

    #[test]
    fn a_patch_says_what_where_and_which() {
        let mutant =
            parse("It breaks.\n\nWhere: machine\nTest: a b::c\nTest: a d\n\n--- a/x\n+++ b/x\n").unwrap();
        assert_eq!((mutant.what.as_str(), mutant.place), ("It breaks.", Place::Machine));
        let tests: Vec<&Test> = mutant.tests.iter().collect();
        assert_eq!(filterset(&tests), "(package(=a) & test(=b::c)) + (package(=a) & test(=d))");
        for bad in [
            "x\nTest: a b\n--- ",
            "x\nWhere: host\n--- ",
            "x\nWhere: there\nTest: a b",
            "x\nTest: a\n",
            "x\nhello",
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_unknown_name_is_an_error() {
        let error = chosen(Vec::new(), &["nothing".to_owned()]).unwrap_err();
        assert_eq!(error.to_string(), "there is no tests/mutants/nothing.patch");
    }
}
