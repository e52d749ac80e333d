//! A requirements file as a function's author writes it: names, versions, markers, hashes, and nothing that
//! reaches elsewhere.
//!
//! The file comes from outside and is handed to a program that would follow it anywhere: `-r /etc/shadow` is
//! read and quoted in an error, `-e .` runs a setup script, `--index-url` sends the operator's credentials to
//! a stranger, a path installs what lies on the host. So the file is parsed here, by the narrow grammar that
//! a function needs, and what reaches the resolver is written anew from the parsed form. Anything else is
//! refused with its line and the reason.

use std::fmt;

use crate::url::redacted;
use crate::{DistName, HashError, NameError, Sha256};

/// Real files have a few hundred lines; this is for those who send a gigabyte.
const MAX_BYTES: usize = 256 * 1024;

/// A requirements file, parsed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Requirements(Vec<Requirement>);

/// One requirement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requirement {
    /// The distribution.
    pub name: DistName,
    /// Extras, in the order of the file.
    pub extras: Vec<DistName>,
    /// Version clauses such as `>=2,<3`, without spaces, or nothing.
    pub specifier: String,
    /// An environment marker, as written.
    pub marker: Option<String>,
    /// The wheels that are allowed, if the file says so.
    pub hashes: Vec<Sha256>,
}

/// Why a requirements file is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequirementsError {
    /// Too long to be one.
    #[error("the requirements are {0} bytes long: at most {MAX_BYTES} are accepted")]
    TooLong(usize),
    /// An option that chooses files or sources.
    #[error("line {line}: option {option} is not accepted: {reason}")]
    Option {
        /// Its line.
        line: usize,
        /// The option.
        option: String,
        /// Why not, or what to do.
        reason: &'static str,
    },
    /// A file, a directory or a URL instead of a name.
    #[error(
        "line {line}: {text:?} is a path or URL: name a package of the index, or put the code beside the handler"
    )]
    Direct {
        /// Its line.
        line: usize,
        /// The text.
        text: String,
    },
    /// Not a requirement.
    #[error("line {line}: {text:?} is not a requirement: {reason}")]
    Syntax {
        /// Its line.
        line: usize,
        /// The text.
        text: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A name that is none.
    #[error("line {line}: {source}")]
    Name {
        /// Its line.
        line: usize,
        /// What is wrong with it.
        source: NameError,
    },
    /// A `--hash` that is none.
    #[error("line {line}: {source}")]
    Hash {
        /// Its line.
        line: usize,
        /// What is wrong with it.
        source: HashError,
    },
}

impl Requirements {
    /// Parses the text of a requirements file.
    pub fn parse(text: &str) -> Result<Self, RequirementsError> {
        if text.len() > MAX_BYTES {
            return Err(RequirementsError::TooLong(text.len()));
        }
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let lines = logical_lines(text);
        lines.into_iter().map(|(line, text)| parse_line(line, &text)).collect::<Result<_, _>>().map(Self)
    }

    /// Whether nothing is required.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The requirements, in the order of the file.
    pub fn iter(&self) -> impl Iterator<Item = &Requirement> {
        self.0.iter()
    }
}

/// The text that the resolver gets. Hashes are not part of it: they are compared with the lock.
impl fmt::Display for Requirements {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|requirement| writeln!(f, "{requirement}"))
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name.as_str())?;
        if !self.extras.is_empty() {
            let extras: Vec<_> = self.extras.iter().map(DistName::as_str).collect();
            write!(f, "[{}]", extras.join(","))?;
        }
        f.write_str(&self.specifier)?;
        self.marker.as_ref().map_or(Ok(()), |marker| write!(f, " ; {marker}"))
    }
}

/// Lines without comments and blank ones, continued lines joined, each with the number of its first line.
fn logical_lines(text: &str) -> Vec<(usize, String)> {
    let mut lines = Vec::new();
    let mut open: Option<(usize, String)> = None;
    for (index, raw) in text.lines().enumerate() {
        let (number, mut line) = open.take().unwrap_or((index + 1, String::new()));
        // As pip does it: a comment starts the line or follows white space, and `\` at a line's end continues
        // it.
        let comment = raw
            .char_indices()
            .find(|&(at, c)| c == '#' && raw[..at].chars().next_back().is_none_or(char::is_whitespace));
        let body = comment.map_or(raw, |(at, _)| &raw[..at]);
        match body.strip_suffix('\\') {
            Some(part) => {
                line.push_str(part);
                line.push(' ');
                open = Some((number, line));
            }
            None => {
                line.push_str(body);
                lines.push((number, line.trim().to_string()));
            }
        }
    }
    lines.extend(open.map(|(number, line)| (number, line.trim().to_string())));
    lines.retain(|(_, line)| !line.is_empty());
    lines
}

fn parse_line(line: usize, text: &str) -> Result<Requirement, RequirementsError> {
    let syntax = |reason| RequirementsError::Syntax { line, text: shown(text), reason };
    if text.starts_with('-') {
        return Err(refused_option(line, text));
    }
    if text.chars().any(|c| c.is_control() && c != '\t') {
        return Err(syntax("it has a control character"));
    }
    let option = text.match_indices("--").find(|(at, _)| text[..*at].ends_with([' ', '\t']));
    let (requirement, options) = match option {
        Some((at, _)) => (text[..at].trim(), text[at..].trim()),
        None => (text, ""),
    };
    let name_len = requirement.find(|c: char| !(c.is_ascii_alphanumeric() || "-_.".contains(c)));
    let (name, rest) = requirement.split_at(name_len.unwrap_or(requirement.len()));
    let path_like = requirement.starts_with(['.', '/', '~'])
        || rest.starts_with(['/', ':', '\\'])
        || name.ends_with(".whl")
        || name.ends_with(".tar.gz");
    if path_like || rest.trim_start().starts_with('@') || requirement.contains("://") {
        return Err(RequirementsError::Direct { line, text: shown(requirement) });
    }
    if name.is_empty() {
        return Err(syntax("it does not begin with a name"));
    }
    let name = DistName::parse(name).map_err(|source| RequirementsError::Name { line, source })?;
    let rest = rest.trim_start();
    let (extras, rest) = match rest.strip_prefix('[') {
        Some(inner) => inner.split_once(']').ok_or_else(|| syntax("`[` without `]`"))?,
        None => ("", rest),
    };
    let extras = extras.split(',').map(str::trim).filter(|extra| !extra.is_empty());
    let extras = extras.map(DistName::parse).collect::<Result<_, _>>();
    let extras = extras.map_err(|source| RequirementsError::Name { line, source })?;
    let (versions, marker) = match rest.split_once(';') {
        Some((versions, marker)) => (versions.trim(), Some(marker.trim().to_string())),
        None => (rest.trim(), None),
    };
    // In the text for the resolver it must not become a comment or an option, or go on in the next line.
    let begins = |marker: &str| marker.starts_with(|c: char| c.is_ascii_alphabetic() || "'\"(".contains(c));
    let is_marker = |marker: &str| marker.is_ascii() && begins(marker) && !marker.contains([';', '\\']);
    if marker.as_deref().is_some_and(|marker| !is_marker(marker)) {
        return Err(syntax("the marker after `;` is not one"));
    }
    let specifier = specifier(versions).map_err(syntax)?;
    let hashes =
        options.split_whitespace().map(|option| hash_option(line, option)).collect::<Result<_, _>>()?;
    Ok(Requirement { name, extras, specifier, marker, hashes })
}

/// `(>=1, <2)`, `>=1,<2` and `== 1.*`, each clause an operator and a version, joined without spaces.
fn specifier(text: &str) -> Result<String, &'static str> {
    let text = text.strip_prefix('(').and_then(|inner| inner.strip_suffix(')')).unwrap_or(text).trim();
    if text.is_empty() {
        return Ok(String::new());
    }
    let mut clauses = Vec::new();
    for clause in text.split(',').map(str::trim).filter(|clause| !clause.is_empty()) {
        let operators = ["===", "~=", "==", "!=", "<=", ">=", "<", ">"];
        let operator = operators.into_iter().find(|operator| clause.starts_with(operator));
        let operator = operator.ok_or("a version clause starts with one of ~= == != <= >= < > ===")?;
        let version = clause[operator.len()..].trim();
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b".*+!-_".contains(&b);
        if version.is_empty() || !version.bytes().all(allowed) {
            return Err("the version after the operator is not one");
        }
        clauses.push(format!("{operator}{version}"));
    }
    Ok(clauses.join(","))
}

fn hash_option(line: usize, option: &str) -> Result<Sha256, RequirementsError> {
    match option.strip_prefix("--hash=sha256:") {
        Some(hex) => hex.parse().map_err(|source| RequirementsError::Hash { line, source }),
        None => Err(RequirementsError::Option {
            line,
            option: shown(option.split(['=', ':']).next().unwrap_or(option)),
            reason: "of a requirement's options only --hash=sha256:… is",
        }),
    }
}

fn refused_option(line: usize, text: &str) -> RequirementsError {
    let option = text.split(|c: char| c.is_whitespace() || c == '=').next().unwrap_or(text);
    // `-rother.txt` is one word for pip.
    let short = |letter: &str| option.starts_with(letter) && !option.starts_with("--");
    let reason = if short("-e") || option == "--editable" {
        "it would run a setup script; put the code beside the handler"
    } else if short("-r") || short("-c") || option == "--requirement" || option == "--constraint" {
        "it would read another file; copy its lines here"
    } else if short("-i") || short("-f") || option.contains("index") || option == "--find-links" {
        "the server's operator chooses where packages come from"
    } else {
        "a function's requirements are names and versions"
    };
    RequirementsError::Option { line, option: shown(option), reason }
}

/// Enough of a line to find it, never all of a line that is a megabyte long, and no password that it may hold.
fn shown(text: &str) -> String {
    redacted(text).chars().take(120).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn canonical(text: &str) -> String {
        Requirements::parse(text).unwrap().to_string()
    }

    fn refusal(text: &str) -> String {
        Requirements::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn what_people_write_is_understood() {
        let text = "\u{feff}# a comment\n\nJinja2\npandas >= 2, <4  # why\nuvicorn[standard, Foo_Bar]==0.30.*\r\n\
                    requests (>=2)\nimportlib_metadata~=8.0 ; python_version < '3.10'\nlong\\\n  ==1.0\n";
        insta::assert_snapshot!(canonical(text), @"
        jinja2
        pandas>=2,<4
        uvicorn[standard,foo-bar]==0.30.*
        requests>=2
        importlib-metadata~=8.0 ; python_version < '3.10'
        long==1.0
        ");
    }

    #[test]
    fn hashes_are_kept_for_the_lock() {
        let hash = Sha256::of(b"wheel");
        let parsed = Requirements::parse(&format!("a==1 \\\n  --hash=sha256:{hash}\nb")).unwrap();
        let hashes: Vec<_> = parsed.iter().map(|r| r.hashes.clone()).collect();
        assert_eq!(hashes, [vec![hash], vec![]]);
        assert_eq!(parsed.to_string(), "a==1\nb\n");
    }

    #[test]
    fn what_reaches_elsewhere_is_refused() {
        let lines = [
            "-e .",
            "-r other.txt",
            "-rother.txt",
            "--requirement=/etc/passwd",
            "-c limits.txt",
            "--index-url https://index.example/simple",
            "--extra-index-url=https://index.example",
            "-i https://index.example",
            "-f /srv",
            "--no-binary :all:",
            ".",
            "./local",
            "../up",
            "/etc/passwd",
            "~/x",
            "wheels/a-1-py3-none-any.whl",
            "a-1-py3-none-any.whl",
            "a @ https://index.example/a.whl",
            "git+https://index.example/a",
            "file:///etc/passwd",
            "a --global-option=x",
            "a --hash=md5:00",
            "a --hash=sha256:00",
            "a [b",
            "a b",
            "a ==",
            "a = 1",
            "a ==1 ;",
            "a ==1 ;# os_name == 'x'",
            "a ;--find-links=/srv",
            "a ; os_name == 'x'\\ ",
            "a ; os_name\t--index-url x --hash=sha256:00",
            "a == 1 $(id)",
            "ä==1",
            "a\u{0}",
        ];
        let refusals: Vec<_> = lines.iter().map(|line| refusal(&format!("ok\n{line}"))).collect();
        insta::assert_snapshot!(refusals.join("\n"));
    }

    #[test]
    fn a_gigabyte_is_not_parsed() {
        assert_eq!(
            refusal(&"a\n".repeat(200_000)),
            "the requirements are 400000 bytes long: at most 262144 are accepted"
        );
    }

    proptest! {
        #[test]
        fn any_text_parses_or_is_refused_with_a_reason(text in "(\\PC|\n|\\\\|#|-){0,80}") {
            if let Err(error) = Requirements::parse(&text) {
                prop_assert!(error.to_string().starts_with("line "), "{}", error);
            }
        }

        #[test]
        fn what_was_understood_is_understood_again(
            name in "[a-z]{1,8}(\\[[a-z]{1,4}\\])?",
            version in "((==|>=|<)[0-9]{1,2}(\\.[0-9])?)?",
            marker in "( ?; python_version > '3')?",
        ) {
            let once = Requirements::parse(&format!("{name}{version}{marker}")).unwrap();
            prop_assert_eq!(Requirements::parse(&once.to_string()).unwrap(), once);
        }

        #[test]
        fn no_line_that_reaches_the_resolver_is_an_option_or_a_path(text in "(\\PC|\n|\\\\| |-|\t){0,60}") {
            if let Ok(parsed) = Requirements::parse(&text) {
                for line in parsed.to_string().lines() {
                    prop_assert!(line.starts_with(|c: char| c.is_ascii_alphanumeric()), "{:?}", line);
                    let before_marker = line.split(';').next().unwrap_or(line);
                    prop_assert!(!before_marker.contains(['/', '@', ':']), "{:?}", line);
                }
            }
        }
    }
}
