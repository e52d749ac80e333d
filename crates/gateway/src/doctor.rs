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
    let pip = std::process::Command::new(DEFAULT_PYTHON).args(["-m", "pip", "--version"]).output();
    findings.push(match pip {
        Ok(output) if output.status.success() => {
            let version = String::from_utf8_lossy(&output.stdout);
            Finding::good("pip", version.split(" from ").next().unwrap_or_default().trim())
        }
        _ => Finding::wrong(
            "pip",
            Level::Warning,
            "missing: functions with a requirements.txt cannot be deployed, since pip fetches their resolver",
            "apt-get install python3-pip",
        ),
    });
    findings
}

/// The base's interpreter, unless the operator names others.
pub(crate) const DEFAULT_PYTHON: &str = "/usr/bin/python3";
