//! The interpreter that instances run, as it is called inside a container.

use sock_zygote::runtime::{self, Entry};

/// Path inside (the base's, which is the host's) and version.
#[derive(Debug, Clone)]
pub(crate) struct Python {
    path: String,
    minor: u8,
}

impl Python {
    pub(crate) fn new(interpreter: &sock_pkgcache::Interpreter) -> Self {
        Self { path: interpreter.path.to_string_lossy().into_owned(), minor: interpreter.version.1 }
    }

    /// The command line that starts a zygote or a single instance.
    pub(crate) fn argv(&self, entry: Entry) -> Vec<String> {
        let mut argv = vec![self.path.clone()];
        argv.extend(runtime::arguments(self.minor, entry));
        argv
    }
}
