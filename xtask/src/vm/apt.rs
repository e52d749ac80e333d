//! What Debian's mirror has: apt's own resolver, in a directory of its own that knows nothing of the packages of this
//! machine. The mirror, the keys and the proxy are the machine's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::lock::Deb;

/// Debian's keys, where its package puts them. Without it, the keys that apt trusts for everything.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The base of the mirror that the machine's apt is configured for, without a slash at its end.
pub(crate) fn mirror() -> Result<String> {
    let output = Command::new("apt-get")
        .args(["indextargets", "--format", "$(REPO_URI) $(RELEASE)", "Created-By: Packages"])
        .output()
        .context("failed to start apt-get: the test machine is made of Debian's packages")?;
    let text = String::from_utf8_lossy(&output.stdout);
    choose_mirror(&text).map(str::to_owned).context(
        "apt's sources name no Debian mirror: give one with --mirror URL, the directory that has dists and pool",
    )
}

/// The first whose suite is a release of Debian's main archive.
fn choose_mirror(targets: &str) -> Option<&str> {
    const SUITES: [&str; 8] =
        ["bookworm", "trixie", "forky", "sid", "oldstable", "stable", "testing", "unstable"];
    targets.lines().find_map(|line| {
        let (base, suite) = line.split_once(' ')?;
        // A third party's may be called "stable" too.
        let debian = base.trim_end_matches('/').ends_with("/debian");
        (debian && SUITES.contains(&suite)).then(|| base.trim_end_matches('/'))
    })
}

/// The proxy of the machine's apt, if it has one.
pub(crate) fn proxy() -> Option<String> {
    let output = Command::new("apt-config").args(["shell", "PROXY", "Acquire::http::Proxy"]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let value = text.trim().strip_prefix("PROXY='")?.strip_suffix('\'')?;
    (!value.is_empty() && value != "DIRECT").then(|| value.to_owned())
}

/// What installing `packages` of `suite` on an empty machine takes, without what is only recommended.
pub(crate) fn resolve(suite: &str, packages: &[String]) -> Result<Vec<Deb>> {
    let base = mirror()?;
    let home = tempfile::tempdir()?;
    let configuration = configure(home.path(), &base, suite)?;
    apt(&configuration, &["update", "--quiet"])?;
    let mut arguments = vec!["install", "--print-uris", "--yes", "-qq"];
    arguments.extend(packages.iter().map(String::as_str));
    let uris = apt(&configuration, &arguments)?;
    uris.lines().map(|line| parse(line, &base)).collect()
}

fn configure(home: &Path, base: &str, suite: &str) -> Result<PathBuf> {
    for directory in ["lists/partial", "archives/partial"] {
        fs::create_dir_all(home.join(directory))?;
    }
    let keys = if Path::new(KEYRING).exists() { format!("[signed-by={KEYRING}] ") } else { String::new() };
    fs::write(home.join("sources"), format!("deb {keys}{base} {suite} main\n"))?;
    fs::write(home.join("status"), "")?;
    let home = home.display();
    let text = format!(
        "Dir::Etc::sourcelist \"{home}/sources\";\nDir::Etc::sourceparts \"-\";\nDir::Etc::preferences \"-\";\n\
         Dir::Etc::preferencesparts \"-\";\nDir::State \"{home}\";\nDir::State::status \"{home}/status\";\n\
         Dir::Cache \"{home}\";\nAPT::Install-Recommends \"false\";\nAPT::Sandbox::User \"root\";\n\
         Acquire::ForceHash \"SHA256\";\nAcquire::Languages \"none\";\nAPT::Architecture \"amd64\";\n\
         APT::Architectures \"amd64\";\n"
    );
    let path = PathBuf::from(format!("{home}/apt.conf"));
    fs::write(&path, text)?;
    Ok(path)
}

fn apt(configuration: &Path, arguments: &[&str]) -> Result<String> {
    let output = Command::new("apt-get")
        .env("APT_CONFIG", configuration)
        .args(arguments)
        .output()
        .context("failed to start apt-get")?;
    if !output.status.success() {
        bail!("apt-get {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// `'URL' FILE SIZE SHA256:HASH`, the URL and the file with some of their characters encoded.
fn parse(line: &str, base: &str) -> Result<Deb> {
    let broken = || format!("apt-get printed {line:?}, which is not a package");
    let mut fields = line.split(' ');
    let mut field = || fields.next().with_context(broken);
    let (url, file, size, hash) = (field()?, field()?, field()?, field()?);
    let url = decode(url.trim_matches('\''));
    let path = url.strip_prefix(base).and_then(|path| path.strip_prefix('/')).with_context(broken)?;
    let sha256 = hash.strip_prefix("SHA256:").with_context(broken)?;
    ensure!(sha256.len() == 64 && path.starts_with("pool/") && !path.contains(".."), broken());
    // apt's name for the file has the version's epoch, which the path has not.
    let file = decode(file);
    let mut parts = file.splitn(3, '_');
    let (name, version) = (parts.next().with_context(broken)?, parts.next().with_context(broken)?);
    Ok(Deb {
        name: name.to_owned(),
        version: version.to_owned(),
        groups: Vec::new(),
        path: path.to_owned(),
        size: size.parse().with_context(broken)?,
        sha256: sha256.to_owned(),
    })
}

fn decode(text: &str) -> String {
    percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_apt() {
        let line = "'http://mirror.example/debian/pool/main/a/attr/libattr1_2.5.2-3%2bb1_amd64.deb' \
                    libattr1_1%3a2.5.2-3+b1_amd64.deb 22876 \
                    SHA256:606b5ee12ea2786be607a17f40c1fb5e65c76ceaff66665bdf8f8c6c1b71d1fb";
        let deb = parse(line, "http://mirror.example/debian").unwrap();
        assert_eq!((deb.name.as_str(), deb.version.as_str()), ("libattr1", "1:2.5.2-3+b1"));
        assert_eq!(deb.path, "pool/main/a/attr/libattr1_2.5.2-3+b1_amd64.deb");
        assert_eq!(deb.size, 22876);
        assert!(parse(line, "http://other.example/debian").is_err());
        assert!(parse("Reading package lists...", "http://mirror.example/debian").is_err());
    }

    #[test]
    fn the_mirror_is_debians() {
        let targets = "https://third.example/repository/ stable\n\
                       http://mirror.example/debian-security/ bookworm-security\n\
                       http://mirror.example/debian/ bookworm-updates\n\
                       http://mirror.example/debian/ bookworm\n";
        assert_eq!(choose_mirror(targets), Some("http://mirror.example/debian"));
        assert_eq!(choose_mirror("http://mirror.example/ubuntu/ noble\n"), None);
    }
}
