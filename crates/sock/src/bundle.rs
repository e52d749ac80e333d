//! A Python file or a directory as the zip that a deploy sends. The same files give the same bytes.

use std::fs;
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use sock_gateway::BundleLimits;
use zip::write::SimpleFileOptions;

/// A bundle and what its files suggest.
#[derive(Debug)]
pub(crate) struct Bundle {
    pub(crate) zip: Vec<u8>,
    /// From the name of the file or directory.
    pub(crate) name: String,
    /// The handler, if one of the usual names is there.
    pub(crate) handler: Option<String>,
}

/// Directories and files that are no part of a function.
const LEFT_OUT: [&str; 4] = ["__pycache__", "node_modules", "venv", "cases.json"];

const SMALLER: &str = "take out what the function does not need";

/// Where a handler usually is.
const USUAL: [(&str, &str); 5] = [
    ("main.py", "handler"),
    ("lambda_function.py", "lambda_handler"),
    ("handler.py", "handler"),
    ("app.py", "handler"),
    ("index.py", "handler"),
];

/// Makes the bundle of `path`; `requirements` stands in for its own requirements.txt.
pub(crate) fn make(path: &Path, requirements: Option<&Path>) -> Result<Bundle> {
    let metadata = fs::metadata(path).with_context(|| format!("failed to read {}", path.display()))?;
    let (mut files, handler) = if metadata.is_dir() {
        let files = collect(path)?;
        let handler = USUAL.iter().find(|(file, function)| {
            let text = fs::read_to_string(path.join(file)).unwrap_or_default();
            text.contains(&format!("def {function}(")) || text.contains(&format!("{function} ="))
        });
        (files, handler.map(|(file, function)| format!("{}.{function}", file.trim_end_matches(".py"))))
    } else {
        let file = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let Some(stem) = file.strip_suffix(".py") else {
            bail!("{} is neither a directory nor a .py file", path.display());
        };
        let plain = |c: char| c.is_alphanumeric() || c == '_';
        if !stem.chars().all(plain) || stem.starts_with(|c: char| c.is_ascii_digit()) {
            bail!("{} cannot be imported: name it with letters, digits and _", path.display());
        }
        let handler = format!("{stem}.handler");
        (vec![(file, path.to_owned())], Some(handler))
    };
    if let Some(requirements) = requirements {
        files.retain(|(name, _)| name != "requirements.txt");
        files.push(("requirements.txt".into(), requirements.to_owned()));
    }
    if !files.iter().any(|(name, _)| name.ends_with(".py")) {
        bail!("{} has no Python file", path.display());
    }
    files.sort();
    let limits = BundleLimits::default();
    let shown = path.display();
    // Before anything is read: who names the wrong directory need not wait, nor read of a request that was cut off.
    if files.len() > limits.entries {
        bail!("{shown} has {} files, and {} are allowed: {SMALLER}", files.len(), limits.entries);
    }
    let bytes: u64 = files.iter().filter_map(|(_, path)| Some(fs::metadata(path).ok()?.len())).sum();
    if bytes > limits.unpacked_bytes {
        bail!("{shown} has {bytes} bytes, and {} are allowed: {SMALLER}", limits.unpacked_bytes);
    }
    let zip = pack(&files)?;
    if zip.len() > limits.zip_bytes {
        bail!("{shown} has {} bytes zipped, and {} are allowed: {SMALLER}", zip.len(), limits.zip_bytes);
    }
    Ok(Bundle { zip, name: name_of(path)?, handler })
}

fn name_of(path: &Path) -> Result<String> {
    let path = fs::canonicalize(path).with_context(|| format!("failed to read {}", path.display()))?;
    let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let name: String =
        stem.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' }).collect();
    // A name that begins so would be taken for an option.
    Ok(name.trim_start_matches('-').to_owned())
}

/// Every file beneath `root` by its name in the archive.
fn collect(root: &Path) -> Result<Vec<(String, PathBuf)>> {
    let (mut pending, mut files) = (vec![(root.to_owned(), String::new())], Vec::new());
    let top = fs::canonicalize(root).with_context(|| format!("failed to read {}", root.display()))?;
    while let Some((directory, prefix)) = pending.pop() {
        let entries =
            fs::read_dir(&directory).with_context(|| format!("failed to read {}", directory.display()))?;
        for entry in entries {
            let entry = entry.with_context(|| format!("failed to read {}", directory.display()))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with('.') || LEFT_OUT.contains(&name.as_str()) {
                continue;
            }
            let (path, inside) = (entry.path(), format!("{prefix}{name}"));
            let reading = || format!("failed to read {}", path.display());
            let kind = fs::symlink_metadata(&path).with_context(reading)?.file_type();
            if kind.is_dir() {
                pending.push((path, format!("{inside}/")));
                continue;
            }
            // Whoever deploys may read what the directory's author may not: a link must not lead there.
            let real = fs::canonicalize(&path).with_context(reading)?;
            let shown = path.display();
            if !real.starts_with(&top) {
                bail!("{shown} is a link that leads out of the directory: copy the file");
            }
            if !fs::metadata(&real).with_context(reading)?.is_file() {
                bail!("{shown} is neither a file nor a directory: take it out of the directory");
            }
            files.push((inside, path));
        }
    }
    Ok(files)
}

fn pack(files: &[(String, PathBuf)]) -> Result<Vec<u8>> {
    let mut writer = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default()
        .compression_method(zip::CompressionMethod::Deflated)
        .last_modified_time(zip::DateTime::default())
        .unix_permissions(0o644);
    for (name, path) in files {
        let contents = fs::read(path).with_context(|| format!("failed to read {}", path.display()))?;
        writer.start_file(name.as_str(), options)?;
        writer.write_all(&contents)?;
    }
    Ok(writer.finish()?.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_packed_without_what_is_not_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("my.app");
        for path in ["pkg/__pycache__", ".git"] {
            fs::create_dir_all(root.join(path)).unwrap();
        }
        for (path, text) in [
            ("app.py", "def handler(e): pass"),
            ("pkg/__init__.py", ""),
            ("pkg/__pycache__/x.pyc", ""),
            (".git/config", ""),
            ("requirements.txt", "six"),
        ] {
            fs::write(root.join(path), text).unwrap();
        }
        let bundle = make(&root, None).unwrap();
        assert_eq!((bundle.name.as_str(), bundle.handler.as_deref()), ("my", Some("app.handler")));
        let archive = zip::ZipArchive::new(Cursor::new(&bundle.zip)).unwrap();
        let names: Vec<String> = archive.file_names().map(|name| name.unwrap().into_owned()).collect();
        assert_eq!(names, ["app.py", "pkg/__init__.py", "requirements.txt"]);
        assert_eq!(make(&root, None).unwrap().zip, bundle.zip);
    }

    #[test]
    fn nothing_from_outside_gets_in() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("app");
        fs::create_dir(&root).unwrap();
        fs::write(root.join("app.py"), "").unwrap();
        std::os::unix::fs::symlink("app.py", root.join("same.py")).unwrap();
        make(&root, None).unwrap();
        let error = |name: &str| {
            let text = make(&root, None).unwrap_err().to_string();
            fs::remove_file(root.join(name)).unwrap();
            text.replace(directory.path().to_str().unwrap(), "DIR")
        };
        std::os::unix::fs::symlink("/etc/passwd", root.join("data")).unwrap();
        assert_eq!(error("data"), "DIR/app/data is a link that leads out of the directory: copy the file");
        std::os::unix::fs::symlink(".", root.join("loop")).unwrap();
        let odd = "is neither a file nor a directory: take it out of the directory";
        assert_eq!(error("loop"), format!("DIR/app/loop {odd}"));
        let made = std::process::Command::new("mkfifo").arg(root.join("pipe")).status().unwrap();
        assert!(made.success());
        assert_eq!(error("pipe"), format!("DIR/app/pipe {odd}"));
    }

    #[test]
    fn what_no_server_takes_is_not_sent() {
        let directory = tempfile::tempdir().unwrap();
        let large = directory.path().join("large");
        fs::create_dir(&large).unwrap();
        fs::write(large.join("app.py"), "").unwrap();
        // Takes no room, and no time: nothing of it is read.
        fs::File::create(large.join("data")).unwrap().set_len(262_144_001).unwrap();
        let error = make(&large, None).unwrap_err().to_string();
        let said = error.replace(directory.path().to_str().unwrap(), "DIR");
        assert_eq!(
            said,
            "DIR/large has 262144001 bytes, and 262144000 are allowed: take out what the function does not need"
        );
    }

    #[test]
    fn what_is_no_function_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let error = |path: &Path| {
            make(path, None).unwrap_err().to_string().replace(directory.path().to_str().unwrap(), "DIR")
        };
        assert_eq!(error(directory.path()), "DIR has no Python file");
        let file = directory.path().join("notes.txt");
        assert_eq!(error(&file), "failed to read DIR/notes.txt");
        fs::write(&file, "").unwrap();
        assert_eq!(error(&file), "DIR/notes.txt is neither a directory nor a .py file");
    }
}
