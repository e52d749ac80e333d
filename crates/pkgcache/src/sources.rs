//! Where packages come from: an index and directories of wheels, named by the operator.
//!
//! A function's author never chooses a source: a requirements file that names one is refused. Without an index here, the resolver's
//! own default is used, so this crate names no server.

use std::path::Path;

use serde::{Deserialize, Serialize};

/// The operator's choice of package sources.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sources {
    /// The simple-API URL of the one index, or the resolver's default.
    pub index_url: Option<String>,
    /// Directories or pages with wheels, looked at besides the index.
    pub find_links: Vec<String>,
}

impl Sources {
    /// Reads the variables that pip and uv users have already set.
    ///
    /// The index is the first of `UV_DEFAULT_INDEX`, `UV_INDEX_URL` and `PIP_INDEX_URL`; find-links is the first of
    /// `UV_FIND_LINKS` and `PIP_FIND_LINKS`, split at white space and commas.
    pub fn from_env() -> Self {
        Self::from_lookup(|name| std::env::var(name).ok())
    }

    fn from_lookup(get: impl Fn(&str) -> Option<String>) -> Self {
        let first = |names: &[&str]| names.iter().find_map(|name| get(name).filter(|v| !v.trim().is_empty()));
        let index_url = first(&["UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL"]);
        let links = first(&["UV_FIND_LINKS", "PIP_FIND_LINKS"]).unwrap_or_default();
        let find_links =
            links.split([' ', '\t', '\n', ',']).filter(|link| !link.is_empty()).map(String::from).collect();
        Self { index_url, find_links }
    }

    /// What is set in `self`, and what is not from `fallback`: a flag before the environment.
    pub fn or(self, fallback: Self) -> Self {
        let find_links = if self.find_links.is_empty() { fallback.find_links } else { self.find_links };
        Self { index_url: self.index_url.or(fallback.index_url), find_links }
    }

    /// The find-links that can be read now. A directory that does not exist would make the resolver refuse every
    /// request, although nothing asks for what it might hold.
    pub(crate) fn usable_links(&self) -> impl Iterator<Item = &str> {
        let remote = |link: &str| link.contains("://");
        self.find_links
            .iter()
            .map(String::as_str)
            .filter(move |link| remote(link) || Path::new(link).exists())
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
            _ => None,
        });
        assert_eq!(sources.index_url.as_deref(), Some("https://index.example/simple"));
        assert_eq!(sources.find_links, ["/opt/a", "/opt/b"]);
    }

    #[test]
    fn a_flag_comes_before_the_environment() {
        let flag = Sources { index_url: None, find_links: vec!["/flag".into()] };
        let env =
            Sources { index_url: Some("https://index.example".into()), find_links: vec!["/env".into()] };
        let both = flag.or(env);
        assert_eq!(both.index_url.as_deref(), Some("https://index.example"));
        assert_eq!(both.find_links, ["/flag"]);
    }
}
