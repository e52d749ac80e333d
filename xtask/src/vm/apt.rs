//! What Debian's mirror has: apt's own resolver, in a directory of its own that knows nothing of the packages of this
//! machine. The mirror, the keys and the proxy are the machine's.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::lock::Deb;

/// Debian's keys, where its package puts them: for a source that names none.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Where this machine's packages come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mirror {
    /// Without a slash at its end.
    pub(crate) base: String,
    /// A file with the keys that it is signed with.
    keyring: Option<String>,
}

/// The mirror that the machine's apt is configured for.
pub(crate) fn mirror() -> Result<Mirror> {
    let output = Command::new("apt-get")
        .args(["indextargets", "--format", "$(REPO_URI) $(RELEASE) $(SIGNED_BY)", "Created-By: Packages"])
        .output()
        .context("failed to start apt-get: the test machine is made of Debian's packages")?;
    let text = String::from_utf8_lossy(&output.stdout);
    choose_mirror(&text).context(
        "apt's sources name no Debian mirror: give one, the directory that has dists and pool, in SOCK_VM_MIRROR",
    )
}

/// The first whose suite is a release of Debian's main archive.
fn choose_mirror(targets: &str) -> Option<Mirror> {
    const SUITES: [&str; 8] =
        ["bookworm", "trixie", "forky", "sid", "oldstable", "stable", "testing", "unstable"];
    targets.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (base, suite) = (fields.next()?, fields.next()?);
        // A third party's may be called "stable" too.
        let debian = base.trim_end_matches('/').ends_with("/debian");
        (debian && SUITES.contains(&suite)).then(|| Mirror {
            base: base.trim_end_matches('/').to_owned(),
            // Keys that a source holds itself, rather than a file of them, are long texts: apt's own are used then.
            keyring: fields.next().filter(|path| path.starts_with('/')).map(str::to_owned),
        })
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
    let Mirror { base, keyring } = mirror()?;
    let home = tempfile::tempdir()?;
    let keyring = keyring.or_else(|| Path::new(KEYRING).exists().then(|| KEYRING.to_owned()));
    let options = configure(home.path(), &base, keyring.as_deref(), suite)?;
    apt(&options, &["update", "--quiet"])?;
    let mut arguments = vec!["install", "--print-uris", "--yes", "-qq"];
    arguments.extend(packages.iter().map(String::as_str));
    let uris = apt(&options, &arguments)?;
    uris.lines().map(|line| parse(line, &base)).collect()
}

/// Options, which win over every file of configuration that this machine may have.
fn configure(home: &Path, base: &str, keyring: Option<&str>, suite: &str) -> Result<Vec<String>> {
    for directory in ["lists/partial", "archives/partial"] {
        fs::create_dir_all(home.join(directory))?;
    }
    let keys = keyring.map(|path| format!("[signed-by={path}] ")).unwrap_or_default();
    fs::write(home.join("sources"), format!("deb {keys}{base} {suite} main\n"))?;
    fs::write(home.join("status"), "")?;
    let home = home.display();
    Ok([
        ("Dir::Etc::sourcelist", format!("{home}/sources")),
        ("Dir::Etc::sourceparts", "-".to_owned()),
        ("Dir::Etc::preferences", "-".to_owned()),
        ("Dir::Etc::preferencesparts", "-".to_owned()),
        ("Dir::State", home.to_string()),
        ("Dir::State::status", format!("{home}/status")),
        ("Dir::Cache", home.to_string()),
        ("APT::Install-Recommends", "false".to_owned()),
        ("APT::Install-Suggests", "false".to_owned()),
        ("APT::Sandbox::User", "root".to_owned()),
        ("Acquire::ForceHash", "SHA256".to_owned()),
        ("Acquire::Languages", "none".to_owned()),
        ("APT::Architecture", "amd64".to_owned()),
        ("APT::Architectures", "amd64".to_owned()),
    ]
    .into_iter()
    .map(|(name, value)| format!("-o{name}={value}"))
    .collect())
}

fn apt(options: &[String], arguments: &[&str]) -> Result<String> {
    let output =
        Command::new("apt-get").args(options).args(arguments).output().context("failed to start apt-get")?;
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
        let targets = "https://third.example/repository/ stable /etc/apt/third.gpg\n\
                       http://mirror.example/debian-security/ bookworm-security \n\
                       http://mirror.example/debian/ bookworm-updates \n\
                       http://mirror.example/debian/ bookworm /usr/share/keyrings/keys.gpg\n";
        let mirror = |keyring: Option<&str>| Mirror {
            base: "http://mirror.example/debian".to_owned(),
            keyring: keyring.map(str::to_owned),
        };
        assert_eq!(choose_mirror(targets), Some(mirror(Some("/usr/share/keyrings/keys.gpg"))));
        assert_eq!(choose_mirror("http://mirror.example/debian/ trixie \n"), Some(mirror(None)));
        assert_eq!(choose_mirror("http://mirror.example/ubuntu/ noble \n"), None);
    }
}
