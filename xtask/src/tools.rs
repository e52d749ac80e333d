//! What has to be installed beside Rust: by apt where we are root, otherwise the one command is printed.

use anyhow::{Result, bail};

use crate::tasks::{cargo, run, run_with, succeeds};

/// A Debian package, and the command that shows that it is there.
struct Package {
    name: &'static str,
    probe: (&'static str, &'static [&'static str]),
}

const PACKAGES: [Package; 4] = [
    // Bundled C sources: SQLite and the Python grammar.
    Package { name: "gcc", probe: ("cc", &["--version"]) },
    Package { name: "libc6-dev", probe: ("test", &["-e", "/usr/include/stdlib.h"]) },
    // The base's interpreter, and what fetches the pinned uv once.
    Package { name: "python3", probe: ("/usr/bin/python3", &["--version"]) },
    Package { name: "python3-pip", probe: ("/usr/bin/python3", &["-m", "pip", "--version"]) },
];

/// For tests only: they drive the server through boto3, in a virtual environment of their own.
const TEST_PACKAGES: [Package; 1] =
    [Package { name: "python3-venv", probe: ("/usr/bin/python3", &["-c", "import ensurepip"]) }];

/// For the test machine: the mirror's resolver is there wherever Debian is; the checkout is listed by git.
const MACHINE_PACKAGES: [Package; 1] = [Package { name: "git", probe: ("git", &["--version"]) }];

/// For fuzzing: libFuzzer is C++.
const FUZZING_PACKAGES: [Package; 1] = [Package { name: "g++", probe: ("c++", &["--version"]) }];

const NEXTEST: &str = "cargo-nextest@0.9.143";

/// What building and running takes.
pub(crate) fn for_running() -> Result<()> {
    install(&PACKAGES)
}

/// What the tests take besides.
pub(crate) fn for_tests() -> Result<()> {
    install(&PACKAGES)?;
    install(&TEST_PACKAGES)?;
    nextest()
}

/// What building and running the test machine takes; QEMU comes with the image.
pub(crate) fn for_machine() -> Result<()> {
    install(&PACKAGES)?;
    install(&MACHINE_PACKAGES)
}

/// What the tests in it take besides.
pub(crate) fn for_tests_in_machine() -> Result<()> {
    for_machine()?;
    nextest()
}

/// What benchmarks take besides: a program for a container to hold that takes no memory to speak of.
const BENCHMARK_PACKAGES: [Package; 1] =
    [Package { name: "busybox-static", probe: ("/bin/busybox", &["true"]) }];

/// What building and running benchmarks takes; those to compare with are fetched by themselves.
pub(crate) fn for_benchmarks() -> Result<()> {
    install(&PACKAGES)?;
    install(&BENCHMARK_PACKAGES)
}

/// What building and running the fuzz targets takes.
pub(crate) fn for_fuzzing() -> Result<()> {
    install(&PACKAGES)?;
    install(&FUZZING_PACKAGES)
}

fn nextest() -> Result<()> {
    if succeeds(&cargo(), &["nextest", "--version"]) {
        return Ok(());
    }
    run(&cargo(), &["install", "--locked", "--quiet", NEXTEST])
}

fn install(packages: &[Package]) -> Result<()> {
    let missing: Vec<&str> = packages
        .iter()
        .filter(|package| !succeeds(package.probe.0, package.probe.1))
        .map(|package| package.name)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    if !succeeds("apt-get", &["--version"]) {
        bail!("missing: {names} (names of Debian's packages); install them and run this again");
    }
    let install = ["install", "--yes", "--quiet", "--no-install-recommends"];
    if nix::unistd::geteuid().is_root() {
        run("apt-get", &["update", "--quiet"])?;
        let arguments = [&install[..], &missing].concat();
        return run_with("apt-get", &arguments, &[("DEBIAN_FRONTEND", "noninteractive")]);
    }
    if !succeeds("sudo", &["-v"]) {
        bail!("missing packages; as root, run: apt-get install -y --no-install-recommends {names}");
    }
    run("sudo", &["apt-get", "update", "--quiet"])?;
    let arguments = [&["env", "DEBIAN_FRONTEND=noninteractive", "apt-get"], &install[..], &missing].concat();
    run("sudo", &arguments)
}

const DENY: &str = "cargo-deny@0.20.2";

/// cargo-deny is built from source once; nothing else tells licenses and sources as well.
pub(crate) fn deny() -> Result<()> {
    if succeeds(&cargo(), &["deny", "--version"]) {
        return Ok(());
    }
    run(&cargo(), &["install", "--locked", "--quiet", DENY])
}
