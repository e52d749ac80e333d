//! Files by their hash: a cache that outlives checkouts, filled from the mirror, several at a time.
//!
//! ```text
//! ~/.cache/sock-vm/<sha256>         whole and verified: it got its name last
//!                  <sha256>.part    as far as it came; the next attempt goes on from there
//!                  .lock            while any comes
//! ```

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use sha2::{Digest, Sha256};

use super::apt;
use super::lock::Deb;

/// Downloads at a time: a mirror is a shared good, and more does not make a line faster.
const AT_A_TIME: usize = 4;
/// How often a broken connection is taken up again.
const ATTEMPTS: usize = 3;

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct Cache {
    directory: PathBuf,
}

/// Where files come from.
pub(crate) struct Mirrors {
    /// Bases, tried in turn.
    pub(crate) bases: Vec<String>,
    agent: ureq::Agent,
}

/// Packages that no mirror has any more.
#[derive(Debug, thiserror::Error)]
#[error("the mirror no longer has {}: lock anew with cargo xtask vm lock, or name a mirror that has them in SOCK_VM_MIRROR", .0.join(", "))]
pub(crate) struct Gone(pub(crate) Vec<String>);

/// The hash of a file, in hexadecimal.
pub(crate) fn sha256(path: &Path) -> Result<String> {
    let mut file = File::open(path).with_context(|| format!("failed to open {}", path.display()))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let length = file.read(&mut buffer)?;
        if length == 0 {
            return Ok(hex::encode(hasher.finalize()));
        }
        hasher.update(&buffer[..length]);
    }
}

impl Cache {
    /// `$SOCK_VM_CACHE`, or beneath the user's cache directory.
    pub(crate) fn open() -> Result<Self> {
        let of = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let home = || Some(of("HOME")?.join(".cache"));
        let directory = match of("SOCK_VM_CACHE") {
            Some(directory) => directory,
            None => of("XDG_CACHE_HOME")
                .or_else(home)
                .context("neither SOCK_VM_CACHE nor HOME is set")?
                .join("sock-vm"),
        };
        fs::create_dir_all(&directory)
            .with_context(|| format!("failed to create {}", directory.display()))?;
        Ok(Self { directory })
    }

    pub(crate) fn path(&self, sha256: &str) -> PathBuf {
        self.directory.join(sha256)
    }

    pub(crate) fn has(&self, sha256: &str) -> bool {
        self.path(sha256).is_file()
    }

    /// Takes a file in, if it has that hash.
    pub(crate) fn put(&self, file: &Path, expected: &str) -> Result<()> {
        let found = sha256(file)?;
        if found != expected {
            bail!("{} has sha256 {found}, not {expected}", file.display());
        }
        let place = tempfile::NamedTempFile::new_in(&self.directory)?;
        fs::copy(file, place.path())?;
        place.persist(self.path(expected))?;
        Ok(())
    }

    /// What of the cache is read as a whole.
    pub(crate) fn read(&self, sha256: &str) -> Result<Vec<u8>> {
        let path = self.path(sha256);
        fs::read(&path).with_context(|| format!("failed to read {}", path.display()))
    }

    /// Gets what is missing of `debs`.
    pub(crate) fn fetch<'a>(
        &self,
        debs: impl Iterator<Item = &'a Deb>,
        mirrors: impl FnOnce() -> Result<Mirrors>,
    ) -> Result<()> {
        let mut missing: Vec<&Deb> = debs.filter(|deb| !self.has(&deb.sha256)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let mirrors = &mirrors()?;
        // Two checkouts may want the same: one fetches, the other finds it.
        let turn = File::create(self.directory.join(".lock")).context("failed to create the cache's lock")?;
        turn.lock().context("failed to wait for another download")?;
        missing.retain(|deb| !self.has(&deb.sha256));
        let style =
            ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {wide_msg}")?;
        let bar = ProgressBar::new(missing.iter().map(|deb| deb.size).sum()).with_style(style);
        let (queue, gone) = (Mutex::new(missing.into_iter()), Mutex::new(Vec::new()));
        let next = || queue.lock().ok().and_then(|mut queue| queue.next());
        let work = || -> Result<()> {
            while let Some(deb) = next() {
                bar.set_message(deb.name.clone());
                if !self.fetch_one(deb, mirrors, &bar)?
                    && let Ok(mut gone) = gone.lock()
                {
                    gone.push(format!("{} {}", deb.name, deb.version));
                }
            }
            Ok(())
        };
        let results: Vec<Result<()>> = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..AT_A_TIME).map(|_| scope.spawn(work)).collect();
            workers
                .into_iter()
                .map(|worker| worker.join().unwrap_or_else(|_| bail!("a download panicked")))
                .collect()
        });
        bar.finish_and_clear();
        results.into_iter().collect::<Result<()>>()?;
        let gone = gone.into_inner().unwrap_or_default();
        if gone.is_empty() { Ok(()) } else { Err(Gone(gone).into()) }
    }

    /// Whether a mirror had it.
    fn fetch_one(&self, deb: &Deb, mirrors: &Mirrors, bar: &ProgressBar) -> Result<bool> {
        let part = self.directory.join(format!("{}.part", deb.sha256));
        for base in &mirrors.bases {
            let url = format!("{base}/{}", encode(&deb.path));
            for attempt in 1..=ATTEMPTS {
                match mirrors.download(&url, &part, bar) {
                    Ok(false) => break,
                    Ok(true) => {
                        let found = sha256(&part)?;
                        if found == deb.sha256 {
                            fs::rename(&part, self.path(&deb.sha256))?;
                            return Ok(true);
                        }
                        fs::remove_file(&part)?;
                        bail!("{url} has sha256 {found}, not {}: it was changed", deb.sha256);
                    }
                    Err(error) if attempt == ATTEMPTS => {
                        return Err(error).with_context(|| format!("failed to fetch {url}"));
                    }
                    Err(_) => {}
                }
            }
        }
        Ok(false)
    }
}

impl Mirrors {
    /// The machine's own, and before it those that were given, as an argument or in `SOCK_VM_MIRROR`.
    pub(crate) fn new(given: &[String]) -> Result<Self> {
        let variable = std::env::var("SOCK_VM_MIRROR").unwrap_or_default();
        let given = given.iter().map(String::as_str).chain(variable.split_whitespace());
        let mut bases: Vec<String> = given.map(|base| base.trim_end_matches('/').to_owned()).collect();
        match apt::mirror() {
            Ok(own) => bases.push(own.base),
            Err(error) if bases.is_empty() => return Err(error),
            Err(_) => {}
        }
        Self::of(bases, apt::proxy())
    }

    fn of(bases: Vec<String>, proxy: Option<String>) -> Result<Self> {
        let mut builder = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(Duration::from_secs(30)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            // Of one attempt; the next goes on from there.
            .timeout_recv_body(Some(Duration::from_secs(300)));
        // Those that apt is configured for, and no others.
        builder = builder.proxy(proxy.map(|proxy| ureq::Proxy::new(&proxy)).transpose()?);
        Ok(Self { bases, agent: builder.build().into() })
    }

    /// Appends to `part` what is missing of it. `false`: there is no such file.
    fn download(&self, url: &str, part: &Path, bar: &ProgressBar) -> Result<bool> {
        let have = fs::metadata(part).map_or(0, |metadata| metadata.len());
        let mut request = self.agent.get(url);
        if have > 0 {
            request = request.header("range", format!("bytes={have}-"));
        }
        let mut response = request.call()?;
        let mut file = File::options();
        file.create(true).write(true);
        match response.status().as_u16() {
            206 => file.append(true),
            200 => file.truncate(true),
            // Everything is there already, or more than there should be: the hash tells.
            416 => return Ok(true),
            404 | 410 => return Ok(false),
            status => bail!("{status}"),
        };
        let mut file = file.open(part)?;
        let mut reader = bar.wrap_read(response.body_mut().as_reader());
        io::copy(&mut reader, &mut file)?;
        file.flush()?;
        Ok(true)
    }
}

/// A plus sign in a path is a plus sign, but some servers take it for a blank.
fn encode(path: &str) -> String {
    path.replace('+', "%2B").replace('~', "%7E")
}

#[cfg(test)]
mod tests;
