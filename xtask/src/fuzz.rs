//! `cargo xtask fuzz`: looks for inputs for which a parser breaks its promises, with libFuzzer. The targets and their promises
//! are in `tests/fuzz`.
//!
//! ```text
//! target/fuzz/<triple>/fuzz/<target>   the programs
//! target/fuzz/corpus/<target>/         inputs that reached something new; --merge takes the best of them into tests/fuzz/corpus
//! target/fuzz/artifacts/<target>/      inputs that broke something
//! target/fuzz/<target>.log             what libFuzzer said of the last run
//! ```
//!
//! The compiler is the workspace's own, a stable one: libFuzzer needs to be told which edges and comparisons were reached, and
//! the pass of LLVM that does so can be asked for. What needs a nightly compiler, the address sanitizer, would find little in
//! code without `unsafe`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use anyhow::{Context, Result, bail, ensure};

use crate::tasks::cargo;
use crate::tools;
use crate::vm::image::{target as build_output, workspace};

/// For each target, unless `--seconds` says otherwise.
const SECONDS: u32 = 60;
/// The longest input, bytes; the longest time and the most memory that one may take.
const BOUNDS: [&str; 3] = ["-max_len=4096", "-timeout=10", "-rss_limit_mb=1024"];

/// So many inputs of a target are committed; those that a person named come first.
const MAX_INPUTS: usize = 64;

/// Counters of edges and a table of their addresses, and a call at each comparison: libFuzzer's interface. Everything for the
/// target is built so, the libraries too: it is their branches that an input has to reach.
const COVERAGE: &str = "-Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares \
    --cfg fuzzing";

#[derive(Debug, PartialEq, Eq)]
enum Mode {
    /// For so many seconds.
    Fuzz(u32),
    /// Chooses the committed corpus anew, from it and from what was found.
    Merge,
}

pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let (mode, chosen) = parse(arguments)?;
    let all = targets()?;
    if let Some(unknown) = chosen.iter().find(|name| !all.contains(name)) {
        bail!("there is no target {unknown}: there are {}", all.join(", "));
    }
    tools::for_fuzzing()?;
    let programs = build()?;
    // Two of them unpack archives a few thousand times a second, which need not reach a disk.
    let memory = Path::new("/dev/shm");
    let temporary = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    let temporary = temporary.context("failed to make a temporary directory")?;

    let mut broken = Vec::new();
    for name in all.iter().filter(|name| chosen.is_empty() || chosen.contains(name)) {
        let target = Target::new(name, &programs)?;
        match mode {
            Mode::Merge => target.merge(temporary.path())?,
            Mode::Fuzz(seconds) => match target.fuzz(seconds, temporary.path())? {
                Ok(statistics) => println!("{name:14} {statistics}"),
                Err(found) => {
                    println!("{name:14} {}", target.explain(&found));
                    broken.push(name.as_str());
                }
            },
        }
    }
    ensure!(broken.is_empty(), "promises are broken: {}", broken.join(", "));
    Ok(())
}

fn parse(arguments: &[String]) -> Result<(Mode, Vec<String>)> {
    let (mut mode, mut chosen) = (Mode::Fuzz(SECONDS), Vec::new());
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--seconds" => {
                let seconds =
                    arguments.next().and_then(|value| value.parse().ok()).filter(|value| *value > 0);
                mode = Mode::Fuzz(seconds.context("--seconds takes a number of at least 1")?);
            }
            "--merge" => mode = Mode::Merge,
            other if other.starts_with('-') => {
                bail!("cargo xtask fuzz does not take {other}: it takes targets, --seconds N and --merge")
            }
            name => chosen.push(name.to_owned()),
        }
    }
    Ok((mode, chosen))
}

/// The names of all targets: of their programs.
fn targets() -> Result<Vec<String>> {
    let programs = files(&workspace().join("tests/fuzz/src/bin"))?;
    let stem = |path: &PathBuf| path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    Ok(programs.iter().map(stem).collect())
}

/// What is in a directory, by name.
fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries =
        fs::read_dir(directory).with_context(|| format!("failed to read {}", directory.display()))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

/// Whether libFuzzer named it, by its SHA-1.
fn is_hash(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.len() == 40 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Builds all programs, and gives the directory that they are in.
fn build() -> Result<PathBuf> {
    // Named, so that programs that run while building, which have no libFuzzer, are built without these flags.
    let triple = host()?;
    let arguments = ["build", "--locked", "--package", "sock-fuzz", "--bins", "--features", "fuzzing"];
    let output = build_output().join("fuzz");
    eprintln!("+ cargo {} --profile fuzz --target {triple}", arguments.join(" "));
    let mut command = Command::new(cargo());
    command.args(arguments).args(["--profile", "fuzz", "--target", &triple]).current_dir(workspace());
    command.env("RUSTFLAGS", COVERAGE).env("CARGO_TARGET_DIR", &output);
    let status = command.status().context("failed to start cargo")?;
    ensure!(status.success(), "the fuzz targets could not be built: {status}");
    Ok(output.join(triple).join("fuzz"))
}

fn host() -> Result<String> {
    let output = Command::new("rustc").arg("-vV").output().context("failed to start rustc")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("rustc -vV names no host")
}

/// One target's program and places.
struct Target {
    name: String,
    program: PathBuf,
    /// As committed.
    corpus: PathBuf,
    found: PathBuf,
    artifacts: PathBuf,
    log: PathBuf,
}

impl Target {
    fn new(name: &str, programs: &Path) -> Result<Self> {
        let place = build_output().join("fuzz");
        let target = Self {
            name: name.to_owned(),
            program: programs.join(name),
            corpus: workspace().join("tests/fuzz/corpus").join(name),
            found: place.join("corpus").join(name),
            artifacts: place.join("artifacts").join(name),
            log: place.join(format!("{name}.log")),
        };
        for directory in [&target.corpus, &target.found, &target.artifacts] {
            fs::create_dir_all(directory)
                .with_context(|| format!("failed to create {}", directory.display()))?;
        }
        Ok(target)
    }

    /// Fuzzes; gives its statistics, or what it found.
    fn fuzz(&self, seconds: u32, temporary: &Path) -> Result<Result<String, Found>> {
        let time = format!("-max_total_time={seconds}");
        let prefix = format!("-artifact_prefix={}/", self.artifacts.display());
        let mut command = Command::new(&self.program);
        command.args(BOUNDS).args([&time, &prefix, "-print_final_stats=1"]);
        let (status, log) = self.execute(command.arg(&self.found).arg(&self.corpus), temporary)?;
        Ok(if status.success() { Ok(statistics(&log)) } else { Err(Found::of(&log, status)) })
    }

    /// Chooses anew what the committed corpus has beside the inputs that a person named.
    fn merge(&self, temporary: &Path) -> Result<()> {
        let chosen = temporary.join(&self.name);
        fs::create_dir_all(&chosen).with_context(|| format!("failed to create {}", chosen.display()))?;
        let mut command = Command::new(&self.program);
        // Which edges are reached, not how often: thousands of inputs differ in that.
        command.args(BOUNDS).args(["-set_cover_merge=1", "-use_counters=0"]);
        let (status, _) = self.execute(command.args([&chosen, &self.corpus, &self.found]), temporary)?;
        ensure!(status.success(), "{} could not be merged ({status}): see {}", self.name, self.log.display());

        let mut kept = Vec::new();
        for path in files(&self.corpus)? {
            if is_hash(&path) { fs::remove_file(&path)? } else { kept.push(fs::read(&path)?) }
        }
        let mut best = files(&chosen)?;
        // They were written in the order in which they were chosen: what reaches most of what is left comes first.
        best.sort_by_key(|path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok());
        for path in best {
            let bytes = fs::read(&path)?;
            if kept.len() < MAX_INPUTS && !kept.contains(&bytes) {
                fs::write(self.corpus.join(path.file_name().unwrap_or_default()), &bytes)?;
                kept.push(bytes);
            }
        }
        println!("{:14} {} inputs", self.name, kept.len());
        Ok(())
    }

    fn execute(&self, command: &mut Command, temporary: &Path) -> Result<(ExitStatus, String)> {
        let log =
            File::create(&self.log).with_context(|| format!("failed to create {}", self.log.display()))?;
        command.env("TMPDIR", temporary).stdout(log.try_clone()?).stderr(log);
        let status =
            command.status().with_context(|| format!("failed to start {}", self.program.display()))?;
        Ok((status, String::from_utf8_lossy(&fs::read(&self.log)?).into_owned()))
    }

    fn explain(&self, found: &Found) -> String {
        let Some(input) = &found.input else {
            return format!("BROKEN: {}\n  see {}", found.reason, self.log.display());
        };
        let (name, program, corpus) = (&self.name, self.program.display(), self.corpus.display());
        format!(
            "BROKEN: {}\n  \
             input:   {input}\n  \
             replay:  {program} {input}\n  \
             keep it: cp {input} {corpus}/WHAT-BROKE && cargo nextest run --package sock-fuzz {name}",
            found.reason
        )
    }
}

/// An input that broke a promise.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    reason: String,
    input: Option<String>,
}

impl Found {
    fn of(log: &str, status: ExitStatus) -> Self {
        // A panic says more than the signal that follows it.
        let lines: Vec<&str> = log.lines().collect();
        let panic = lines.windows(2).find_map(|pair| {
            let (_, place) = pair[0].split_once(" panicked at ")?;
            Some(format!("{} ({})", pair[1], place.trim_end_matches(':')))
        });
        let said = || lines.iter().find_map(|line| Some(line.split_once("ERROR: libFuzzer: ")?.1.to_owned()));
        let input =
            lines.iter().find_map(|line| Some(line.split_once("Test unit written to ")?.1.to_owned()));
        Self { reason: panic.or_else(said).unwrap_or_else(|| status.to_string()), input }
    }
}

/// Of libFuzzer's last words, those that say how well it went.
fn statistics(log: &str) -> String {
    let stat = |name: &str| {
        let line = log.lines().find_map(|line| line.strip_prefix(&format!("stat::{name}:")));
        line.map_or("?", str::trim).to_owned()
    };
    let progress = log.lines().rev().find_map(|line| line.split_once(" cov: "));
    let mut words = progress.map_or("", |(_, rest)| rest).split_whitespace();
    let edges = words.next().unwrap_or("?");
    let corpus = words.skip_while(|word| *word != "corp:").nth(1).unwrap_or("?");
    format!(
        "{:>9} runs, {:>6} a second, {edges:>5} edges reached by {corpus} inputs, {} MB",
        stat("number_of_executed_units"),
        stat("average_exec_per_sec"),
        stat("peak_rss_mb"),
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    #[test]
    fn arguments_are_understood_or_refused() {
        let check = |line: &str| {
            let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            parse(&words).map_or_else(|error| error.to_string(), |parsed| format!("{parsed:?}"))
        };
        insta::assert_snapshot!(["", "frames --seconds 5 wheel", "--merge", "--seconds 0", "--fast"].map(check).join("\n"), @r#"
        (Fuzz(60), [])
        (Fuzz(5), ["frames", "wheel"])
        (Merge, [])
        --seconds takes a number of at least 1
        cargo xtask fuzz does not take --fast: it takes targets, --seconds N and --merge
        "#);
    }

    #[test]
    fn what_libfuzzer_says_is_understood() {
        let panic = "thread '<unnamed>' (7) panicked at tests/fuzz/src/frames.rs:31:5:\nthe frames differ\n\
                     ==7== ERROR: libFuzzer: deadly signal\nartifact_prefix='a/'; Test unit written to a/crash-1\n";
        let status = ExitStatus::from_raw(77 << 8);
        let found = Found::of(panic, status);
        assert_eq!(found.reason, "the frames differ (tests/fuzz/src/frames.rs:31:5)");
        assert_eq!(found.input.as_deref(), Some("a/crash-1"));
        let slow = Found::of("==7== ERROR: libFuzzer: timeout after 10 seconds\n", status);
        assert_eq!((slow.reason.as_str(), slow.input), ("timeout after 10 seconds", None));
        assert_eq!(Found::of("", status).reason, "exit status: 77");

        let log = "#2\tINITED cov: 12 ft: 13 corp: 1/1b exec/s: 0 rss: 30Mb\n\
                   #99\tDONE   cov: 212 ft: 300 corp: 57/1024b lim: 4 exec/s: 33 rss: 31Mb\n\
                   stat::number_of_executed_units: 99\nstat::average_exec_per_sec:     33\nstat::peak_rss_mb: 31\n";
        insta::assert_snapshot!(statistics(log), @"       99 runs,     33 a second,   212 edges reached by 57/1024b inputs, 31 MB");
    }
}
