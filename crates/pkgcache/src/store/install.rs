//! From a lock to a view: whatever is missing is fetched, verified, compiled, sealed and renamed into place.
//!
//! A few threads take wheels from a queue; one slow server or one huge package does not hold up the rest. The
//! caller's progress function runs on the calling thread only. After the first failure nothing new is begun;
//! what is under way is finished and kept, so that the next try has less to do.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;

use super::facts::Facts;
use super::{Key, LAYOUT, Store, StoreError, TMP, WHEELS, tree};
use crate::fetch::Fetcher;
use crate::{
    CompileError, FetchError, Interpreter, Lock, LockedWheel, Progress, UnpackError, View, compile, fetch,
    modules, unpack,
};

#[cfg(test)]
mod tests;

/// A place where tests have the process killed: between two steps of an install or a removal.
#[cfg(test)]
pub(super) use tests::step;
/// Nothing but in tests.
#[cfg(not(test))]
pub(super) fn step() {}

/// Why a lock could not be installed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The lock was made for another interpreter.
    #[error("the lock is for {lock} and the interpreter is {python}: lock again for this interpreter")]
    Interpreter {
        /// The lock's tag.
        lock: String,
        /// The interpreter's tag.
        python: String,
    },
    /// One wheel failed.
    #[error("failed to install {wheel}")]
    Wheel {
        /// Its file name.
        wheel: String,
        /// How.
        source: WheelError,
    },
    /// A wheel was removed while others were installed.
    #[error("the store changed during the install: a wheel of the lock was removed; try again")]
    Removed,
}

/// Why a wheel could not be installed.
#[derive(Debug, thiserror::Error)]
pub enum WheelError {
    /// It could not be had.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// It is not what a wheel may be.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    /// Its bytecode could not be made.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// The file system refused.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What the threads tell the caller's.
enum Event {
    Progress(Progress),
    Failed(InstallError),
}

impl Store {
    /// Installs what the store does not have yet; blocks until the view is complete or something failed.
    pub fn install(
        &self,
        lock: &Lock,
        py: &Interpreter,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<View, InstallError> {
        if lock.tag != py.tag {
            return Err(InstallError::Interpreter { lock: lock.tag.clone(), python: py.tag.clone() });
        }
        let missing = self.missing(lock);
        progress(Progress::Planned {
            wheels: lock.packages.len(),
            present: lock.packages.len() - missing.len(),
            bytes: missing.iter().filter_map(|wheel| wheel.size).sum(),
        });
        self.install_all(missing, py, progress)?;
        self.view(lock).ok_or(InstallError::Removed)
    }

    /// The wheels that are not in the store, the largest first: the last one to finish should be a small one.
    fn missing<'a>(&self, lock: &'a Lock) -> VecDeque<&'a LockedWheel> {
        let absent = |wheel: &&LockedWheel| {
            let key = Key::of(wheel, &lock.tag);
            let present = self.facts(&key, wheel).is_some();
            if present {
                self.touch(&key);
            }
            !present
        };
        let mut missing: Vec<_> = lock.packages.iter().filter(absent).collect();
        missing.sort_by_key(|wheel| std::cmp::Reverse(wheel.size));
        missing.into()
    }

    fn install_all(
        &self,
        missing: VecDeque<&LockedWheel>,
        py: &Interpreter,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(), InstallError> {
        let threads = missing.len().min(self.limits.parallel.max(1));
        let queue = Mutex::new(missing);
        let (send, receive) = mpsc::channel();
        thread::scope(|scope| {
            for _ in 0..threads {
                let (queue, send) = (&queue, send.clone());
                scope.spawn(move || self.work(queue, py, &send));
            }
            drop(send);
            let mut first = Ok(());
            for event in receive {
                match event {
                    Event::Progress(step) => progress(step),
                    Event::Failed(error) if first.is_ok() => first = Err(error),
                    Event::Failed(_) => {}
                }
            }
            first
        })
    }

    fn work(&self, queue: &Mutex<VecDeque<&LockedWheel>>, py: &Interpreter, events: &mpsc::Sender<Event>) {
        let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        // The receiver outlives the threads; a send cannot fail, and would lose nothing but a progress bar.
        let tell = |step| drop(events.send(Event::Progress(step)));
        while let Some(wheel) = next() {
            if let Err(source) = self.install_wheel(wheel, py, &tell) {
                queue.lock().unwrap_or_else(PoisonError::into_inner).clear();
                let wheel = wheel.filename.clone();
                drop(events.send(Event::Failed(InstallError::Wheel { wheel, source })));
            }
        }
    }

    fn install_wheel(
        &self,
        wheel: &LockedWheel,
        py: &Interpreter,
        tell: &dyn Fn(Progress),
    ) -> Result<(), WheelError> {
        let key = Key::of(wheel, &py.tag);
        let _held = self.lock_key(&key)?;
        if self.facts(&key, wheel).is_none() {
            // Without readable facts it is nobody's view: damaged from outside, and in the way.
            tree::remove(&self.wheel_dir(&key))?;
            step();
            let made = self.make(&key, wheel, py, tell);
            let cleared = tree::remove(&self.tmp_dir(&key));
            made?;
            cleared?;
            step();
        }
        tell(Progress::Installed {
            name: wheel.name.clone(),
            version: wheel.version.clone(),
            sha256: wheel.sha256,
        });
        Ok(())
    }

    /// Makes a wheel's directory in `tmp` and renames it into place as the last step.
    fn make(
        &self,
        key: &Key,
        wheel: &LockedWheel,
        py: &Interpreter,
        tell: &dyn Fn(Progress),
    ) -> Result<(), WheelError> {
        let tmp = self.tmp_dir(key);
        tree::remove(&tmp)?;
        let (file, out) = (tmp.join("wheel"), tmp.join("out"));
        let site = out.join("site");
        make_dir(&tmp)?;
        step();
        make_dir(&out)?;
        make_dir(&site)?;
        step();

        let agent = self.agent.get_or_init(|| fetch::agent(self.silence));
        let fetcher = Fetcher::new(agent, &self.credentials, self.limits.wheel_bytes);
        fetcher.fetch(wheel, &file, &mut |bytes| {
            step();
            tell(Progress::Received { bytes });
        })?;
        step();

        let archive = File::open(&file).map_err(StoreError::at("open", &file))?;
        let files = unpack::unpack(archive, &wheel.name, &out, &self.limits)?;
        step();
        fs::remove_file(&file).map_err(StoreError::at("remove", &file))?;

        tell(Progress::Compiling { name: wheel.name.clone() });
        let uncompiled = compile::compile(py, &site, &files)?;
        step();

        let size = tree::seal(&out)?;
        step();
        tree::set_mode(&out, 0o755)?;
        facts(wheel, py, &files, uncompiled, size).write(&out)?;
        step();
        tree::set_mode(&out.join(super::facts::FILE), 0o444)?;

        // Everything is on disk before the name is: after a crash the name means the whole.
        tree::sync_filesystem(&self.root.join(TMP))?;
        step();
        let target = self.wheel_dir(key);
        fs::rename(&out, &target).map_err(StoreError::at("rename into place", &target))?;
        step();
        tree::sync_dir(&self.root.join(WHEELS))?;
        Ok(())
    }
}

fn make_dir(path: &Path) -> Result<(), StoreError> {
    fs::DirBuilder::new().mode(0o700).create(path).map_err(StoreError::at("create", path))
}

fn facts(
    wheel: &LockedWheel,
    py: &Interpreter,
    site: &[String],
    uncompiled: usize,
    size: tree::Size,
) -> Facts {
    let files = || site.iter().map(String::as_str);
    Facts {
        layout: LAYOUT,
        name: wheel.name.clone(),
        version: wheel.version.clone(),
        filename: wheel.filename.clone(),
        sha256: wheel.sha256,
        tag: py.tag.clone(),
        magic: py.magic.clone(),
        files: size.files,
        bytes: size.bytes,
        native: files().any(modules::is_native),
        uncompiled,
        pth: files().filter(|file| !file.contains('/') && file.ends_with(".pth")).map(String::from).collect(),
        modules: modules::index(files(), &py.extension_suffixes),
    }
}
