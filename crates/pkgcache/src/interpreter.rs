//! The interpreter that packages are locked, compiled and imported for: the one inside the containers, never "some python3".
//!
//! Markers and wheel tags differ between 3.11 and 3.12, and so does bytecode. Everything that depends on the interpreter takes
//! an [`Interpreter`], which is what the executable says about itself, asked once.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::clean;

/// Asked in isolated mode without `site`, so that nothing installed on the host can answer in its place.
const PROBE: &str = "\
import importlib.machinery, importlib.util, json, sys, sysconfig
print(json.dumps({
    'implementation': sys.implementation.name,
    'version': list(sys.version_info[:3]),
    'free_threaded': bool(sysconfig.get_config_var('Py_GIL_DISABLED')),
    'platform': sysconfig.get_platform(),
    'suffixes': importlib.machinery.EXTENSION_SUFFIXES,
    'magic': importlib.util.MAGIC_NUMBER.hex(),
}))";

/// The oldest version that the runtime in the containers supports.
const OLDEST: (u8, u8) = (3, 9);

/// A CPython, as it describes itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interpreter {
    /// Where it is, as given: a symbolic link into a virtual environment keeps its meaning.
    pub path: PathBuf,
    /// Major, minor, patch.
    pub version: (u8, u8, u8),
    /// What bytecode and extension modules are made for, such as `cp311` or `cp313t`.
    pub tag: String,
    /// The platform as `sysconfig` names it, such as `linux-x86_64`.
    pub platform: String,
    /// File name endings of extension modules, longest first.
    pub extension_suffixes: Vec<String>,
    /// The magic number of its bytecode files, in hex.
    pub magic: String,
}

/// Why an executable cannot be the interpreter of the containers.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// It could not be started.
    #[error("failed to start {path} as a Python interpreter", path = path.display())]
    Start {
        /// The executable.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It started and did not answer as a Python does.
    #[error("{path} does not answer like a Python interpreter: {reason}", path = path.display())]
    Answer {
        /// The executable.
        path: PathBuf,
        /// Its status and the end of its error output.
        reason: String,
    },
    /// It is a Python that is not supported.
    #[error("{path} is {found}: CPython 3.9 or newer is needed", path = path.display())]
    Unsupported {
        /// The executable.
        path: PathBuf,
        /// Implementation and version.
        found: String,
    },
}

#[derive(Deserialize)]
struct Answer {
    implementation: String,
    version: (u8, u8, u8),
    free_threaded: bool,
    platform: String,
    suffixes: Vec<String>,
    magic: String,
}

impl Interpreter {
    /// Starts the executable once and asks it what it is.
    pub fn probe(path: &Path) -> Result<Self, ProbeError> {
        let output = clean::command(path)
            .args(["-I", "-S", "-c", PROBE])
            .output()
            .map_err(|source| ProbeError::Start { path: path.into(), source })?;
        let answer = |reason| ProbeError::Answer { path: path.into(), reason };
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            let last = text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("no output").trim();
            return Err(answer(format!("{}, {last}", output.status)));
        }
        let said: Answer =
            serde_json::from_slice(&output.stdout).map_err(|error| answer(error.to_string()))?;
        let (major, minor, patch) = said.version;
        if said.implementation != "cpython" || (major, minor) < OLDEST {
            let found = format!("{} {major}.{minor}.{patch}", said.implementation);
            return Err(ProbeError::Unsupported { path: path.into(), found });
        }
        let mut extension_suffixes = said.suffixes;
        extension_suffixes.sort_by_key(|suffix| std::cmp::Reverse(suffix.len()));
        Ok(Self {
            path: path.into(),
            version: said.version,
            tag: format!("cp{major}{minor}{}", if said.free_threaded { "t" } else { "" }),
            platform: said.platform,
            extension_suffixes,
            magic: said.magic,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interpreter_describes_itself() {
        let python = Interpreter::probe(Path::new("/usr/bin/python3")).unwrap();
        let (major, minor, _) = python.version;
        assert_eq!(python.tag, format!("cp{major}{minor}"));
        assert!(python.platform.starts_with("linux-"), "{}", python.platform);
        assert_eq!(python.extension_suffixes.last().unwrap(), ".so");
        assert_eq!(python.magic.len(), 8);
    }

    #[test]
    fn what_is_no_python_is_named() {
        let missing = Interpreter::probe(Path::new("/nonexistent/python3")).unwrap_err();
        assert_eq!(missing.to_string(), "failed to start /nonexistent/python3 as a Python interpreter");
        let other = Interpreter::probe(Path::new("/bin/true")).unwrap_err();
        assert!(matches!(other, ProbeError::Answer { .. }), "{other}");
    }
}
