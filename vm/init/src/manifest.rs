//! What the machine outside asks for.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

/// `manifest.json` of the payload.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    /// Where the payload's tree appears.
    pub(crate) workspace: PathBuf,
    /// A program and its arguments.
    pub(crate) command: Vec<String>,
    /// Added to an environment that has little else.
    pub(crate) environment: BTreeMap<String, String>,
    /// Where it runs.
    pub(crate) directory: PathBuf,
    /// The directory whose contents go to the results' disk.
    pub(crate) results: Option<PathBuf>,
    /// Somebody sits at the console.
    pub(crate) interactive: bool,
    /// Configures the network card, if there is one.
    pub(crate) network: bool,
}
