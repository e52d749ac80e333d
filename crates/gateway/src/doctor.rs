//! `sock doctor`: what of this machine a server would use.

use std::path::Path;

use sock_isolation::IdRange;
use sock_isolation::doctor::{Finding, Level, examine};
use sock_pkgcache::Interpreter;

/// Looks at the machine. Changes nothing.
pub fn doctor() -> Vec<Finding> {
    let mut findings = examine(&IdRange::default());
    let path = Path::new(DEFAULT_PYTHON);
    findings.push(match Interpreter::probe(path) {
        Ok(interpreter) => {
            let (major, minor, patch) = interpreter.version;
            Finding::good("interpreter", format!("{DEFAULT_PYTHON} {major}.{minor}.{patch}"))
        }
        Err(error) => Finding::wrong(
            "interpreter",
            Level::Bad,
            error.to_string(),
            "apt-get install python3, or serve with --python",
        ),
    });
    findings
}

/// The base's interpreter, unless the operator names others.
pub(crate) const DEFAULT_PYTHON: &str = "/usr/bin/python3";
