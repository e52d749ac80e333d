//! Where packages come from: an index and directories of wheels, named by the operator.
//!
//! A function's author never chooses a source: a requirements file that names one is refused. Without an
//! index here, the resolver's own default is used, so this crate names no server.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::url::redacted;

/// A server that is well sends something every few seconds even over a poor line.
const SILENCE: Duration = Duration::from_secs(30);
/// Longer than this nobody waits for a server that says nothing, whatever is set.
const MAX_SILENCE: Duration = Duration::from_secs(120);

/// The operator's choice of package sources.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sources {
    /// The simple-API URL of the one index, or the resolver's default. It may hold credentials: `Debug`
    /// leaves them out.
    pub index_url: Option<String>,
    /// Directories or pages with wheels, looked at besides the index.
    pub find_links: Vec<String>,
    /// Nothing but `find_links`: for machines without a network, where asking an index only takes time.
    #[serde(default)]
    pub no_index: bool,
    /// How long a server may say nothing before it counts as down; nothing: half a minute.
    #[serde(default)]
    pub silence: Option<Duration>,
}

impl Sources {
    /// Reads the variables that pip and uv users have already set.
    ///
    /// The index is the first of `UV_DEFAULT_INDEX`, `UV_INDEX_URL` and `PIP_INDEX_URL`; find-links is the
    /// first of `UV_FIND_LINKS` and `PIP_FIND_LINKS`, split at white space and commas. `UV_NO_INDEX` or `PIP_NO_INDEX`
    /// leaves the index out, unless it is set to a word for no. How long a server may be silent is `UV_HTTP_TIMEOUT`
    /// or `PIP_DEFAULT_TIMEOUT`, in seconds.
    pub fn from_env() -> Self {
        Self::from_lookup(|name| std::env::var(name).ok())
    }

    fn from_lookup(get: impl Fn(&str) -> Option<String>) -> Self {
        let first = |names: &[&str]| names.iter().find_map(|name| get(name).filter(|v| !v.trim().is_empty()));
        let index_url = first(&["UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL"]);
        let links = first(&["UV_FIND_LINKS", "PIP_FIND_LINKS"]).unwrap_or_default();
        let find_links =
            links.split([' ', '\t', '\n', ',']).filter(|link| !link.is_empty()).map(String::from).collect();
        let no = ["0", "false", "no", "off"];
        let no_index = first(&["UV_NO_INDEX", "PIP_NO_INDEX"])
            .is_some_and(|value| !no.contains(&value.trim().to_lowercase().as_str()));
        let silence = first(&["UV_HTTP_TIMEOUT", "PIP_DEFAULT_TIMEOUT"])
            .and_then(|seconds| Duration::try_from_secs_f64(seconds.trim().parse().ok()?).ok());
        Self { index_url, find_links, no_index, silence }
    }

    /// What is set in `self`, and what is not from `fallback`: a flag before the environment.
    pub fn or(self, fallback: Self) -> Self {
        let find_links = if self.find_links.is_empty() { fallback.find_links } else { self.find_links };
        // An index that is named by a flag is asked.
        let no_index = self.no_index || (self.index_url.is_none() && fallback.no_index);
        let silence = self.silence.or(fallback.silence);
        Self { index_url: self.index_url.or(fallback.index_url), find_links, no_index, silence }
    }

    /// How long a server may say nothing.
    pub(crate) fn silence(&self) -> Duration {
        self.silence.unwrap_or(SILENCE).clamp(Duration::from_secs(1), MAX_SILENCE)
    }

    /// The find-links that can be read now, made absolute: the resolver runs in a directory of its own. A
    /// directory that does not exist would make it refuse every request, although nothing asks for what it
    /// might hold.
    pub(crate) fn usable_links(&self) -> impl Iterator<Item = String> {
        self.find_links.iter().filter_map(|link| match std::path::absolute(link) {
            _ if link.contains("://") => Some(link.clone()),
            Ok(path) if path.exists() => Some(path.to_string_lossy().into_owned()),
            _ => None,
        })
    }
}

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let links: Vec<_> = self.find_links.iter().map(|link| redacted(link)).collect();
        let index = self.index_url.as_deref().map(redacted);
        f.debug_struct("Sources")
            .field("index_url", &index)
            .field("find_links", &links)
            .field("no_index", &self.no_index)
            .field("silence", &self.silence)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_of_pip_and_uv_are_read() {
        let sources = Sources::from_lookup(|name| match name {
            "UV_INDEX_URL" => Some("https://index.example/simple".into()),
            "PIP_INDEX_URL" => Some("https://other.example/simple".into()),
            "PIP_FIND_LINKS" => Some("/opt/a, /opt/b".into()),
            "UV_DEFAULT_INDEX" => Some(" ".into()),
            "PIP_NO_INDEX" => Some("off".into()),
            "PIP_DEFAULT_TIMEOUT" => Some("7.5".into()),
            _ => None,
        });
        assert_eq!(sources.silence(), Duration::from_millis(7500));
        assert!(!sources.no_index);
        assert_eq!(sources.index_url.as_deref(), Some("https://index.example/simple"));
        assert_eq!(sources.find_links, ["/opt/a", "/opt/b"]);
    }

    #[test]
    fn a_flag_comes_before_the_environment() {
        let flag = Sources { find_links: vec!["/flag".into()], ..Sources::default() };
        let index_url = Some("https://index.example".into());
        let silence = Some(Duration::from_secs(5));
        let env = Sources { index_url, find_links: vec!["/env".into()], no_index: true, silence };
        let both = flag.or(env.clone());
        assert!(both.no_index);
        assert_eq!(both.silence(), Duration::from_secs(5));
        let named = Sources { index_url: Some("https://flag.example".into()), ..Sources::default() };
        assert!(!named.or(env).no_index);
        assert_eq!(both.index_url.as_deref(), Some("https://index.example"));
        assert_eq!(both.find_links, ["/flag"]);
    }

    #[test]
    fn nobody_waits_for_ever() {
        let silence = |text: &str| Sources::from_lookup(|_| Some(text.into())).silence().as_secs();
        let given = ["", "soon", "-1", "0", "45", "86400", "1e300"];
        assert_eq!(given.map(silence), [30, 30, 30, 1, 45, 120, 30]);
    }

    #[test]
    fn links_are_absolute_and_there() {
        let find_links = ["src", "/nonexistent", "https://index.example/wheels"].map(String::from).into();
        let links: Vec<_> = Sources { find_links, ..Sources::default() }.usable_links().collect();
        assert_eq!(links.len(), 2, "{links:?}");
        assert!(links[0].starts_with('/') && links[0].ends_with("/src"), "{links:?}");
    }
}
