//! Which names an import could find in a directory of packages, read off its file names.
//!
//! Sharing a zygote is sound only if no import that failed in it would succeed for the function, so this errs on one side: a name that an
//! import could possibly find is listed. A directory without `__init__.py` is a namespace package, whatever lies in it; a name
//! need not be an identifier, since `importlib.import_module("a-b")` is an import too. What contains a dot cannot be found, because
//! the import system splits there: `numpy.libs` and `x-1.0.dist-info` are no modules. `__pycache__` is left out: every directory
//! with code has one in every view.

use std::collections::BTreeSet;

/// All importable dotted names, from the paths of all files, relative to the directory on the import path.
pub(crate) fn index<'a>(files: impl IntoIterator<Item = &'a str>, extensions: &[String]) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for file in files {
        let (dirs, leaf) = file.rsplit_once('/').map_or(("", file), |(dirs, leaf)| (dirs, leaf));
        let mut prefix = String::new();
        let mut importable = true;
        for dir in dirs.split('/').filter(|dir| !dir.is_empty()) {
            if dir.contains('.') || dir == "__pycache__" {
                importable = false;
                break;
            }
            push(&mut prefix, dir);
            if !names.contains(&prefix) {
                names.insert(prefix.clone());
            }
        }
        if let Some(stem) = importable.then(|| stem(leaf, extensions)).flatten() {
            push(&mut prefix, stem);
            names.insert(prefix);
        }
    }
    names
}

/// Whether a file is an extension module or a library that one loads.
pub(crate) fn is_native(file: &str) -> bool {
    let leaf = file.rsplit('/').next().unwrap_or(file);
    leaf.ends_with(".so") || leaf.contains(".so.")
}

fn push(prefix: &mut String, name: &str) {
    if !prefix.is_empty() {
        prefix.push('.');
    }
    prefix.push_str(name);
}

/// The module's name in a file name; `None` for what is no module, and for the package's own file.
fn stem<'a>(leaf: &'a str, extensions: &[String]) -> Option<&'a str> {
    let suffixes = extensions.iter().map(String::as_str).chain([".py", ".pyc"]);
    let mut stems = suffixes.filter_map(|suffix| leaf.strip_suffix(suffix));
    stems.find(|stem| !stem.is_empty() && !stem.contains('.')).filter(|stem| *stem != "__init__")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn suffixes() -> Vec<String> {
        [".cpython-311-x86_64-linux-gnu.so", ".abi3.so", ".so"].map(String::from).into()
    }

    #[test]
    fn every_kind_of_module_is_found() {
        let files = [
            "six.py",
            "pkg/__init__.py",
            "pkg/mod.py",
            "pkg/_fast.cpython-311-x86_64-linux-gnu.so",
            "pkg/_stable.abi3.so",
            "pkg/plain.so",
            "pkg/_other.cpython-312-x86_64-linux-gnu.so",
            "pkg/sourceless.pyc",
            "pkg/__pycache__/mod.cpython-311.pyc",
            "pkg/data/table.csv",
            "ns/deep/leaf.py",
            "odd-name/x.py",
            "pkg.libs/libgomp.so.1",
            "pkg-1.0.dist-info/RECORD",
            "distutils-precedence.pth",
            ".hidden.py",
        ];
        let found: Vec<_> = index(files, &suffixes()).into_iter().collect();
        insta::assert_snapshot!(found.join("\n"), @"");
    }

    #[test]
    fn libraries_are_native() {
        assert!(is_native("a/b.cpython-311-x86_64-linux-gnu.so") && is_native("a.libs/libz.so.1.2"));
        assert!(!is_native("a/b.py") && !is_native("a/sound.py"));
    }

    proptest! {
        #[test]
        fn every_parent_of_a_name_is_a_name(files in proptest::collection::vec("([a-z_.]{1,4}/){0,3}[a-z_]{1,4}(\\.py|\\.so|\\.txt)", 0..12)) {
            let names = index(files.iter().map(String::as_str), &suffixes());
            for name in &names {
                if let Some((parent, _)) = name.rsplit_once('.') {
                    prop_assert!(names.contains(parent), "{} without {}", name, parent);
                }
            }
        }
    }
}
