//! What the engine learns by running functions, and remembers over restarts: what modules cost, how often functions start.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use sock_zygote::tree::{Costs, Rate};

use crate::names::FunctionName;

/// In the data directory.
const FILE: &str = "learnt.json";

/// The longest such file that is read, bytes: a thousand functions and some hundred wheels make a tenth of it.
const MOST: u64 = 64 << 20;

/// See the module.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Learnt {
    /// Shared with whoever reads them meanwhile: there are thousands.
    pub(crate) costs: Arc<Costs>,
    pub(crate) functions: BTreeMap<FunctionName, OfFunction>,
}

/// Of one function.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct OfFunction {
    /// What the rest is about.
    pub(crate) revision: String,
    /// New instances.
    pub(crate) starts: Rate,
    /// Invocations.
    pub(crate) invocations: Rate,
    /// What a start takes without an idle instance, microseconds: the last.
    pub(crate) start_us: f64,
    /// All that it imports; nothing while it is not known.
    pub(crate) imported: Option<Arc<BTreeSet<String>>>,
    /// Whether that is what a zygote imported that was made for it, so that what an instance has imported besides is beyond that.
    #[serde(default)]
    pub(crate) ahead: bool,
    /// What the handler's import imported beyond what the zygote had that was made for it; nothing until one told.
    pub(crate) beyond: Option<BTreeSet<String>>,
}

/// Seconds since the epoch, which rates go by.
pub(crate) fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

impl Learnt {
    /// What an earlier server wrote down. A file that cannot be read is as good as none: all of it can be learnt again.
    pub(crate) fn load(data: &Path) -> Self {
        let path = data.join(FILE);
        let read = || -> io::Result<Option<Self>> {
            match path.metadata() {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Ok(file) if file.len() > MOST => Err(io::Error::other("it is too long")),
                _ => Ok(Some(serde_json::from_slice(&std::fs::read(&path)?)?)),
            }
        };
        read().unwrap_or_else(|error| {
            tracing::warn!(path = %path.display(), %error, "what was learnt is not to be read, and is learnt again");
            None
        })
        .unwrap_or_default()
    }

    /// Writes it down; whole, or not at all.
    pub(crate) fn save(text: &[u8], data: &Path) -> io::Result<()> {
        let unfinished = data.join("learnt.json.new");
        std::fs::write(&unfinished, text)?;
        std::fs::rename(unfinished, data.join(FILE))
    }

    /// Of a function's revision; what was known of an earlier one is forgotten but for how often it is invoked.
    pub(crate) fn of(&mut self, name: &FunctionName, revision: &str) -> &mut OfFunction {
        let known = self.functions.entry(name.clone()).or_default();
        if known.revision != revision {
            *known = OfFunction {
                revision: revision.to_owned(),
                starts: known.starts,
                invocations: known.invocations,
                ..OfFunction::default()
            };
        }
        known
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_learnt_is_read_again_and_what_is_no_file_of_it_is_not() {
        let data = tempfile::tempdir().unwrap();
        assert!(Learnt::load(data.path()).functions.is_empty());
        let mut learnt = Learnt::default();
        let name: FunctionName = FunctionName::parse("f").unwrap();
        learnt.of(&name, "1").starts.observe(now(), 1);
        learnt.of(&name, "1").beyond = Some(["json".to_owned()].into());
        Learnt::save(&serde_json::to_vec(&learnt).unwrap(), data.path()).unwrap();
        let mut again = Learnt::load(data.path());
        assert!(again.of(&name, "1").starts.at(now()) > 0.0 && again.of(&name, "1").beyond.is_some());
        assert!(again.of(&name, "2").beyond.is_none() && again.of(&name, "2").starts.at(now()) > 0.0);
        Learnt::save(b"{\"costs\": [", data.path()).unwrap();
        assert!(Learnt::load(data.path()).functions.is_empty());
    }
}
