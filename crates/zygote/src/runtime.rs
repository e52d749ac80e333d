//! The Python side, embedded: a fork server and what an instance runs. Plain Python from 3.9, standard library only.
//!
//! The files appear in containers beneath [`DIRECTORY`]; their names begin with `_sock` so that no function's module is
//! shadowed by them.

use std::path::{Path, PathBuf};

use sock_isolation::{bpf, enter, seccomp};

/// Where the files are, inside.
pub const DIRECTORY: &str = "/sock/runtime";

/// All that a container's root has to have, by absolute path inside: the Python files, the native part of the fork
/// ([`sock_isolation::enter`]), and the filter that a forked child installs.
pub fn files() -> Vec<(PathBuf, Vec<u8>)> {
    let filter = bpf::to_bytes(seccomp::after_zygote());
    let native = [("_sock_fork.bin", enter::code().to_vec()), ("_sock_filter.bpf", filter)];
    let python = PYTHON.iter().map(|(name, text)| (*name, text.as_bytes().to_vec()));
    python.chain(native).map(|(name, contents)| (Path::new(DIRECTORY).join(name), contents)).collect()
}

const PYTHON: &[(&str, &str)] = &[
    ("_sock_after_fork.py", include_str!("../runtime/_sock_after_fork.py")),
    ("_sock_instance.py", include_str!("../runtime/_sock_instance.py")),
    ("_sock_memory.py", include_str!("../runtime/_sock_memory.py")),
    ("_sock_recorder.py", include_str!("../runtime/_sock_recorder.py")),
    ("_sock_zygote.py", include_str!("../runtime/_sock_zygote.py")),
];

/// The arguments after the interpreter that start a zygote (`fork_server`) or a single instance, for an interpreter of
/// version `(3, minor)`.
///
/// `-S` and `-s`: no site, which would run `.pth` files. `-P` (from 3.11): no directory of the script's on the path. Not
/// `-I` or `-E`, which would ignore PYTHONMALLOC.
pub fn arguments(minor: u8, what: Entry) -> Vec<String> {
    let mut arguments = vec!["-S".to_owned(), "-s".to_owned()];
    if minor >= 11 {
        arguments.push("-P".to_owned());
    }
    let file = match what {
        Entry::Zygote => "_sock_zygote.py",
        Entry::Instance => "_sock_instance.py",
    };
    arguments.push(format!("{DIRECTORY}/{file}"));
    arguments
}

/// What to start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// A fork server.
    Zygote,
    /// One instance.
    Instance,
}

/// The variables that every process has from its start, unless its function sets them otherwise: what a zygote's imports
/// read of them is what the function's own would have read.
///
/// No HOME: functions have none, and pandas and boto3 read it when they are imported; the home directory is the password
/// file's.
pub const COMMON: [(&str, &str); 6] = [
    ("AWS_LAMBDA_INITIALIZATION_TYPE", "on-demand"),
    ("LAMBDA_RUNTIME_DIR", "/var/runtime"),
    ("LAMBDA_TASK_ROOT", "/var/task"),
    ("LANG", "C.UTF-8"),
    ("PATH", "/usr/local/bin:/usr/bin:/bin:/opt/bin"),
    ("TZ", ":UTC"),
];

/// The environment that an interpreter is started with, all of it.
///
/// Memory from malloc with huge pages makes the fork of a large zygote about twice as fast (fewer page table entries to
/// copy). Native libraries that start threads when they are loaded are held to one.
pub fn environment(what: Entry) -> Vec<(String, String)> {
    let zygote = [
        ("PYTHONMALLOC", "malloc"),
        ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"),
        ("OPENBLAS_NUM_THREADS", "1"),
        ("OMP_NUM_THREADS", "1"),
        ("MKL_NUM_THREADS", "1"),
        ("NUMEXPR_NUM_THREADS", "1"),
    ];
    let own = if what == Entry::Zygote { &zygote[..] } else { &[] };
    COMMON.iter().chain(own).map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}
