//! The interpreters that instances run, as they are called inside a container.

use sock_zygote::runtime::{self, Entry};

/// Path inside (the base's, which is the host's) and version.
#[derive(Debug, Clone)]
pub(crate) struct Python {
    path: String,
    minor: u8,
    /// As functions name it: `python3.11`.
    pub(crate) runtime: String,
}

impl Python {
    pub(crate) fn new(interpreter: &sock_pkgcache::Interpreter) -> Self {
        let (major, minor, _) = interpreter.version;
        let path = interpreter.path.to_string_lossy().into_owned();
        Self { path, minor, runtime: format!("python{major}.{minor}") }
    }

    /// The command line that starts a zygote or a single instance.
    pub(crate) fn argv(&self, entry: Entry) -> Vec<String> {
        let mut argv = vec![self.path.clone()];
        argv.extend(runtime::arguments(self.minor, entry));
        argv
    }
}
