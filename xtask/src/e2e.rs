//! `cargo xtask e2e`: the privileged tests, inside the test machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::tools;
use crate::vm::build::{self, Built};
use crate::vm::image::{target, workspace};
use crate::vm::machine::{self, Machine, Network, Outcome, Screen, Turn};
use crate::vm::payload::{self, Manifest};
use crate::vm::tree::Tree;
use crate::vm::{KERNEL, accelerator, guest};

/// Whose tests run there.
const PACKAGES: [&str; 2] = ["sock-e2e", "sock-isolation"];
/// With tests that need what only that machine is sure to have.
const FEATURES: &str = "sock-e2e/machine,sock-isolation/machine";
/// The smallest set that goes all the way through: a deploy with packages, a forked start and a warm one, what a function may do,
/// limits, a crash.
const SMOKE: &str = "test(=packages::a_function_with_packages_is_forked_with_them_and_then_warm) \
     + test(=inside::a_function_is_nobody_and_can_do_nothing) + test(=endings::memory_and_processes_are_limited) \
     + test(=crash::kill_9_and_a_new_start_leave_nothing_and_lose_nothing)";
/// Our exit code when everything worked but tests failed, as nextest's own is; any other trouble is 1.
pub(crate) const TESTS_FAILED: i32 = 100;
/// For all tests; under emulation they take a third of it, and more where other work shares the processors.
const TIMEOUT: Duration = Duration::from_secs(30 * 60);

#[derive(Debug)]
struct Options {
    kernels: Vec<String>,
    repeat: usize,
    shell_on_failure: bool,
    /// Whether it is a failure that no test is called so.
    no_tests: &'static str,
    /// What nextest is told about which tests to run.
    filters: Vec<String>,
}

/// See [`TESTS_FAILED`].
#[derive(Debug)]
pub(crate) struct TestsFailed(String);

impl std::fmt::Display for TestsFailed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for TestsFailed {}

fn parse(arguments: &[String]) -> Result<Options> {
    let mut options = Options {
        kernels: Vec::new(),
        repeat: 1,
        shell_on_failure: false,
        no_tests: "fail",
        filters: Vec::new(),
    };
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match argument.as_str() {
            "--kernel" => options.kernels.push(rest.next().context("--kernel takes a version")?.clone()),
            "--repeat" => {
                let count = rest.next().and_then(|text| text.parse().ok()).filter(|count| *count > 0);
                options.repeat = count.context("--repeat takes a number")?;
            }
            "--smoke" => options.filters.extend(["--filterset".to_owned(), SMOKE.to_owned()]),
            "--filterset" | "-E" => {
                let expression = rest.next().context("--filterset takes an expression of nextest's")?;
                options.filters.extend(["--filterset".to_owned(), expression.clone()]);
            }
            // For `cargo xtask test FILTER`, whose tests may all be elsewhere.
            "--no-tests=warn" => options.no_tests = "warn",
            "--shell-on-failure" => options.shell_on_failure = true,
            flag if flag.starts_with('-') => bail!("cargo xtask e2e does not take {flag}"),
            filter => options.filters.push(filter.to_owned()),
        }
    }
    if options.kernels.is_empty() {
        options.kernels.push(KERNEL.to_owned());
    }
    Ok(options)
}

pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let options = parse(arguments)?;
    tools::for_tests_in_machine()?;
    let built = build::build_for_tests()?;
    options.kernels.iter().try_for_each(|kernel| built.require(kernel))?;
    let base = target().join("e2e");
    let _turn = Turn::take(&base)?;
    let payload = base.join("payload.erofs");
    let (tree, nextest) = tree(&built)?;
    payload::make(&built, &manifest(&options, nextest), &tree, &payload)?;
    for number in 1..=options.repeat {
        for kernel in &options.kernels {
            if options.repeat > 1 {
                println!("run {number} of {}", options.repeat);
            }
            once(&built, kernel, &options, (&payload, &base.join(kernel)))?;
        }
    }
    Ok(())
}

fn once(built: &Built, kernel: &str, options: &Options, (payload, directory): (&Path, &Path)) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("failed to create {}", directory.display()))?;
    let accelerator = accelerator::choose(built, kernel)?;
    let machine = Machine {
        built,
        kernel,
        payload,
        accelerator,
        network: Network::Restricted,
        screen: if options.shell_on_failure { Screen::Terminal } else { Screen::Output },
        timeout: if options.shell_on_failure { Duration::from_secs(86_400) } else { TIMEOUT },
        silence: machine::SILENCE,
        directory,
    };
    println!("kernel {kernel}, {accelerator:?}; JUnit and logs: {}", directory.display());
    let outcome = machine.run()?;
    if let Outcome::Exited(code) = outcome {
        let results = machine::results(directory)?;
        let junit = results.join("junit.xml");
        // Without a report nobody can say that a test ran, whatever the exit code.
        if !junit.is_file() {
            bail!("the machine left no {}; its output is in {}", junit.display(), directory.display());
        }
        if code == 0 {
            return Ok(());
        }
        if code == TESTS_FAILED {
            let logs = directory.display();
            return Err(TestsFailed(format!("tests failed in the machine; logs are in {logs}")).into());
        }
    }
    bail!("{}", outcome.describe(directory))
}

fn manifest(options: &Options, nextest: Nextest) -> Manifest {
    let root = workspace();
    let inside = |path: &str| root.join(path).display().to_string();
    let mut command: Vec<String> = match nextest {
        Nextest::Static => Vec::new(),
        Nextest::Dynamic => vec![inside(".vm/lib/loader"), "--library-path".into(), inside(".vm/lib")],
    };
    command.extend([
        inside(".vm/cargo-nextest"),
        "nextest".into(),
        "run".into(),
        "--profile=vm".into(),
        "--color=never".into(),
        format!("--no-tests={}", options.no_tests),
        format!("--binaries-metadata={}", inside(".vm/binaries.json")),
        format!("--cargo-metadata={}", inside(".vm/cargo.json")),
    ]);
    if !options.filters.is_empty() {
        // Who asks for tests by name gets them.
        command.push("--ignore-default-filter".into());
    }
    command.extend(options.filters.iter().cloned());
    if options.shell_on_failure {
        let quoted: Vec<String> = command.iter().map(|word| format!("'{word}'")).collect();
        let script = format!(
            "{} || {{ code=$?; echo 'a shell in the machine; leave with exit'; bash; exit $code; }}",
            quoted.join(" ")
        );
        command = vec!["/bin/sh".into(), "-c".into(), script];
    }
    let mut environment = payload::environment();
    for (name, value) in [
        // Our loader runs it, so it cannot start itself again by its own path.
        ("NEXTEST_DOUBLE_SPAWN", "0"),
        ("INSTA_UPDATE", "no"),
        ("RUST_BACKTRACE", "0"),
    ] {
        environment.insert(name.to_owned(), value.to_owned());
    }
    environment.insert("INSTA_WORKSPACE_ROOT".to_owned(), root.display().to_string());
    Manifest {
        command,
        environment,
        results: Some(root.join("target/nextest/vm")),
        directory: root.clone(),
        workspace: root,
        interactive: options.shell_on_failure,
        network: false,
    }
}

/// The checkout, the tests' binaries at their paths, and what runs them.
fn tree(built: &Built) -> Result<(Tree, Nextest)> {
    let mut packages = Vec::new();
    for package in PACKAGES {
        packages.extend(["--package", package]);
    }
    let directory = guest::build(&["build", "--locked", "--package", "sock"])?;
    let list = ["nextest", "list", "--locked", "--list-type=binaries-only", "--message-format=json"];
    let binaries = output(guest::command(&[&list[..], &packages, &["--features", FEATURES]].concat()))?;
    let metadata = output(guest::metadata(&["metadata", "--locked", "--format-version=1"]))?;
    let mut tree = payload::sources(built)?;
    add(&mut tree, &directory.join("sock"), None)?;
    let listed: serde_json::Value = serde_json::from_slice(&binaries).context("nextest printed no JSON")?;
    let binary_paths = listed["rust-binaries"].as_object().context("nextest named no binaries")?;
    for binary in binary_paths.values() {
        let path = binary["binary-path"].as_str().context("nextest named no path of a binary")?;
        add(&mut tree, Path::new(path), None)?;
    }
    tree.file(".vm/binaries.json", 0o644, binaries);
    tree.file(".vm/cargo.json", 0o644, metadata);
    let nextest = add_nextest(&mut tree)?;
    Ok((tree, nextest))
}

fn output(mut command: Command) -> Result<Vec<u8>> {
    let output = command.stderr(std::process::Stdio::inherit()).output().context("failed to start cargo")?;
    if !output.status.success() {
        bail!("cargo failed: {}", output.status);
    }
    Ok(output.stdout)
}

/// A file of this machine; where it is beneath the workspace, unless told otherwise.
fn add(tree: &mut Tree, path: &Path, place: Option<&str>) -> Result<()> {
    let failed = || format!("failed to read {}", path.display());
    let contents = fs::read(path).with_context(failed)?;
    let below = path.strip_prefix(workspace()).map(|path| path.display().to_string());
    let place = match place {
        Some(place) => place.to_owned(),
        None => below.with_context(|| format!("{} is not beneath the workspace", path.display()))?,
    };
    tree.file(&place, payload::mode(path)?, contents);
    Ok(())
}

/// How nextest is linked here.
#[derive(Debug, Clone, Copy)]
enum Nextest {
    Static,
    Dynamic,
}

/// nextest, with the loader and libraries that it runs with here: those of the machine may be older.
fn add_nextest(tree: &mut Tree) -> Result<Nextest> {
    let nextest = which("cargo-nextest").context("cargo-nextest is not on PATH")?;
    add(tree, &nextest, Some(".vm/cargo-nextest"))?;
    // It fails for what needs no loader.
    let libraries = Command::new("ldd").arg(&nextest).output().context("failed to start ldd")?;
    if !libraries.status.success() {
        return Ok(Nextest::Static);
    }
    for line in String::from_utf8(libraries.stdout)?.lines() {
        // `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)`, and the loader by its path alone.
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            [name, "=>", path, ..] => add(tree, Path::new(path), Some(&format!(".vm/lib/{name}")))?,
            [path, _] if path.starts_with('/') => add(tree, Path::new(path), Some(".vm/lib/loader"))?,
            _ => {}
        }
    }
    let dynamic = tree.get(".vm/lib/loader").is_some();
    Ok(if dynamic { Nextest::Dynamic } else { Nextest::Static })
}

/// A program that is looked for on PATH, and where cargo installs.
fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(".cargo/bin"));
    std::env::split_paths(&path)
        .chain(home)
        .map(|directory| directory.join(program))
        .find(|path| path.is_file())
}
