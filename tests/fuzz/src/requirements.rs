//! A function's requirements file, of which the resolver gets what was understood.
//!
//! Bytes: the file.
//!
//! * What was understood, written and read again, is the same.
//! * What the resolver gets is one line a requirement, in ASCII, that begins with a name: no option, path or URL, no comment,
//!   and no line that goes on in the next.
//! * A refusal is short, and says where.

use sock_pkgcache::{Requirements, RequirementsError};

/// See the module.
pub fn run(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match Requirements::parse(text) {
        Ok(requirements) => check(&requirements),
        Err(error) => {
            let said = error.to_string();
            // A character may take four bytes, and eight when it is escaped.
            assert!(said.len() < 2048, "a refusal of {} bytes", said.len());
            assert!(said.starts_with("line ") || matches!(error, RequirementsError::TooLong(_)), "{said}");
        }
    }
}

fn check(requirements: &Requirements) {
    let text = requirements.to_string();
    let again = Requirements::parse(&text).expect("what was understood is understood again");
    assert_eq!(again.to_string(), text);
    let without_hashes = requirements.iter().cloned().map(|mut requirement| {
        requirement.hashes.clear();
        requirement
    });
    assert!(again.iter().cloned().eq(without_hashes), "{text:?} is understood in another way");
    for line in text.lines() {
        assert!(line.starts_with(|c: char| c.is_ascii_alphanumeric()), "{line:?}");
        assert!(line.bytes().all(|byte| byte == b'\t' || (b' '..=b'~').contains(&byte)), "{line:?}");
        assert!(!line.ends_with('\\') && !line.contains(" #") && !line.contains(" --"), "{line:?}");
        let head = line.split(';').next().unwrap_or(line);
        assert!(!head.contains(['/', '@', ':', '\\']), "{line:?}");
    }
}
