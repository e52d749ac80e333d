//! The image's Python modules, compiled by the image's own interpreter: without it the first imports in an emulated
//! machine take seconds. Unchecked by time and hash (PEP 552), since nothing in the image ever changes.

use anyhow::{Context, Result};

use super::tools::{self, Tools};
use super::tree::Tree;

/// Where Debian keeps modules.
const PLACES: [&str; 2] = ["usr/lib/python3", "usr/lib/python3.13"];

/// Adds the bytecode of all modules of `tree`. `faked`: see [`super::build`].
pub(crate) fn compile(tree: &mut Tree, faked: &[(String, String)]) -> Result<()> {
    let work = tempfile::tempdir().context("failed to create a directory for the image's interpreter")?;
    // Always at a path of the same length and name: it ends up in nothing, but costs nothing either.
    let root = work.path().join("root");
    std::fs::create_dir(&root)?;
    let interpreter = Tools::of(tree, &root)?;
    let mut command = interpreter.command("usr/bin/python3.13");
    command.env("PYTHONHOME", root.join("usr")).env("PYTHONHASHSEED", "0").envs(faked.iter().cloned());
    command.args(["-S", "-s", "-B", "-m", "compileall", "-q", "-f", "--invalidation-mode", "unchecked-hash"]);
    command.arg("-s").arg(&root).args(["-p", "/"]);
    command.args(PLACES.map(|place| root.join(place)));
    tools::run(&mut command).context("failed to compile the image's modules")?;
    for place in PLACES {
        add_compiled(tree, &root.join(place), place)?;
    }
    Ok(())
}

fn add_compiled(tree: &mut Tree, directory: &std::path::Path, path: &str) -> Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let name = format!("{path}/{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() {
            add_compiled(tree, &entry.path(), &name)?;
        } else if name.ends_with(".pyc") {
            tree.file(&name, 0o644, std::fs::read(entry.path())?);
        }
    }
    Ok(())
}
