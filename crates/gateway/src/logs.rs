//! What functions wrote, and the START, END and REPORT lines around it, in one file per function, for as long as there is that
//! function: what the next one of that name wrote is no part of it.
//!
//! ```text
//! logs/<function>.log      the newest lines
//! logs/<function>.log.1    what came before, once the first has grown past its limit
//! ```
//!
//! One thread does all the writing, a few milliseconds' lines at a time, behind a bounded channel, so that no request waits for a disk
//! unless the disk cannot keep up. Reading goes the same way: who asks after an answer sees that answer's lines.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tracing::warn;

use crate::names::FunctionName;

/// A file's size at which the next one is begun.
const MAX_FILE: u64 = 16 << 20;
/// The most that one answer gives.
const MAX_READ: u64 = 1 << 20;
/// What is given to who does not say from where.
const TAIL: u64 = 64 << 10;
const QUEUE: usize = 1024;
/// What gathers before it is written at the latest: logs, and bytes of all.
const MAX_GATHERED: (usize, usize) = (64, 1 << 20);

/// How long the writer rests after it has written. Each line that comes meanwhile would wake a thread, which at thousands of
/// invocations a second took a tenth of two processors; so they gather, and those of one log are written at once.
const GATHER: Duration = Duration::from_millis(5);

/// A place in a function's log: in which file, and how far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cursor {
    inode: u64,
    offset: u64,
}

/// A part of a log.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) text: Vec<u8>,
    /// Where the next part begins.
    pub(crate) next: Cursor,
}

impl std::fmt::Display for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.inode, self.offset)
    }
}

impl FromStr for Cursor {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (inode, offset) = text.split_once('-').ok_or(())?;
        Ok(Self { inode: inode.parse().map_err(drop)?, offset: offset.parse().map_err(drop)? })
    }
}

enum Job {
    Append(Log, Bytes),
    Read(FunctionName, Option<Cursor>, oneshot::Sender<io::Result<Part>>),
    Remove(FunctionName),
}

/// How often the log of a name was removed: what a deleted function still has to say is not written into that of the next one.
type Removals = Arc<Mutex<HashMap<FunctionName, u64>>>;

/// The log of a function, as long as it is that function's.
#[derive(Debug, Clone)]
pub(crate) struct Log {
    name: FunctionName,
    removals: u64,
}

/// The logs of a data directory.
#[derive(Debug)]
pub(crate) struct Logs {
    /// Both are there until it is dropped.
    jobs: Option<mpsc::Sender<Job>>,
    writer: Option<JoinHandle<()>>,
    removals: Removals,
}

/// Nothing is lost at a stop.
impl Drop for Logs {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

impl Logs {
    /// Opens the directory, removes what is not of one of these functions, and starts the writer. To drop it waits until everything is written.
    pub(crate) fn open(dir: PathBuf, functions: &BTreeSet<FunctionName>) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        let wanted: BTreeSet<String> = functions.iter().flat_map(files).collect();
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            if entry.file_name().to_str().is_none_or(|name| !wanted.contains(name)) {
                fs::remove_file(entry.path())?;
            }
        }
        let (jobs, inbox) = mpsc::channel(QUEUE);
        let removals = Removals::default();
        let known = removals.clone();
        let writer = std::thread::Builder::new().name("logs".into());
        let writer = writer.spawn(move || work(&dir, inbox, &known))?;
        Ok(Self { jobs: Some(jobs), writer: Some(writer), removals })
    }

    /// The log of the function that has this name now.
    pub(crate) fn of(&self, name: &FunctionName) -> Log {
        Log { name: name.clone(), removals: count(&self.removals, name) }
    }

    /// Adds to a function's log.
    pub(crate) async fn append(&self, log: &Log, text: Bytes) {
        self.send(Job::Append(log.clone(), text)).await;
    }

    async fn send(&self, job: Job) {
        if let Some(jobs) = &self.jobs {
            // It only fails if the writer is gone; it has said why.
            let _ = jobs.send(job).await;
        }
    }

    /// Removes a function's log.
    pub(crate) async fn remove(&self, name: &FunctionName) {
        *lock(&self.removals).entry(name.clone()).or_default() += 1;
        self.send(Job::Remove(name.clone())).await;
    }

    /// Reads a function's log from a place on, or its end. Nothing was written yet: nothing is there.
    pub(crate) async fn read(&self, name: &FunctionName, after: Option<Cursor>) -> io::Result<Part> {
        let (reply, answer) = oneshot::channel();
        self.send(Job::Read(name.clone(), after, reply)).await;
        answer.await.unwrap_or_else(|_| Err(io::Error::other("the log writer has ended")))
    }
}

fn lock(removals: &Removals) -> MutexGuard<'_, HashMap<FunctionName, u64>> {
    removals.lock().unwrap_or_else(PoisonError::into_inner)
}

fn count(removals: &Removals, name: &FunctionName) -> u64 {
    lock(removals).get(name).copied().unwrap_or_default()
}

fn work(dir: &Path, mut inbox: mpsc::Receiver<Job>, removals: &Removals) {
    let mut gathered: Vec<(FunctionName, Vec<u8>)> = Vec::new();
    while let Some(first) = inbox.blocking_recv() {
        let mut next = Some(first);
        while let Some(job) = next {
            match job {
                Job::Append(Log { name, removals: then }, _) if then != count(removals, &name) => {}
                Job::Append(Log { name, .. }, text) => gather(dir, &mut gathered, name, &text),
                Job::Read(name, after, reply) => {
                    write(dir, &mut gathered);
                    // Whoever asked may have left.
                    drop(reply.send(read(dir, &name, after)));
                }
                Job::Remove(name) => {
                    write(dir, &mut gathered);
                    remove(dir, &name);
                }
            }
            next = inbox.try_recv().ok();
        }
        write(dir, &mut gathered);
        rest();
    }
}

/// Lets what is to be written gather.
#[expect(clippy::disallowed_methods, reason = "to be woken is what is to be avoided")]
pub(crate) fn rest() {
    std::thread::sleep(GATHER);
}

/// Adds to what is to be written at once.
fn gather(dir: &Path, gathered: &mut Vec<(FunctionName, Vec<u8>)>, name: FunctionName, text: &[u8]) {
    match gathered.iter_mut().find(|(of, _)| *of == name) {
        Some((_, before)) => before.extend_from_slice(text),
        None => gathered.push((name, text.to_vec())),
    }
    let bytes: usize = gathered.iter().map(|(_, text)| text.len()).sum();
    if gathered.len() >= MAX_GATHERED.0 || bytes >= MAX_GATHERED.1 {
        write(dir, gathered);
    }
}

fn write(dir: &Path, gathered: &mut Vec<(FunctionName, Vec<u8>)>) {
    for (name, text) in gathered.drain(..) {
        if let Err(error) = append(dir, &name, &text) {
            warn!(function = %name, %error, "failed to write a function's log");
        }
    }
}

fn remove(dir: &Path, name: &FunctionName) {
    for file in files(name) {
        match fs::remove_file(dir.join(&file)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                warn!(file, %error, "failed to remove the log of a deleted function");
            }
            _ => {}
        }
    }
}

fn files(name: &FunctionName) -> [String; 2] {
    [format!("{name}.log"), format!("{name}.log.1")]
}

fn append(dir: &Path, name: &FunctionName, text: &[u8]) -> io::Result<()> {
    let path = dir.join(format!("{name}.log"));
    let mut file = File::options().create(true).append(true).mode(0o600).open(&path)?;
    let before = file.metadata()?.len();
    if let Err(error) = file.write_all(text) {
        // The disk is full: half a line would be taken for a whole one, and the next would be its end.
        file.set_len(before)?;
        return Err(error);
    }
    if before + text.len() as u64 > MAX_FILE {
        fs::rename(&path, dir.join(format!("{name}.log.1")))?;
    }
    Ok(())
}

fn read(dir: &Path, name: &FunctionName, after: Option<Cursor>) -> io::Result<Part> {
    let mut files = Vec::new();
    for ending in ["log.1", "log"] {
        match File::open(dir.join(format!("{name}.{ending}"))) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            opened => files.push(opened?),
        }
    }
    let metadata = files.iter().map(File::metadata).collect::<io::Result<Vec<_>>>()?;
    let (first, from) = match (after, metadata.last()) {
        (_, None) => return Ok(Part { text: Vec::new(), next: Cursor { inode: 0, offset: 0 } }),
        (None, Some(newest)) => (files.len() - 1, newest.len().saturating_sub(TAIL)),
        (Some(after), Some(_)) => match metadata.iter().position(|file| file.ino() == after.inode) {
            Some(known) => (known, after.offset.min(metadata[known].len())),
            // Neither was there last time: all of both is new.
            None => (0, 0),
        },
    };
    let mut text = Vec::new();
    let mut next = Cursor { inode: metadata[first].ino(), offset: from };
    for (file, metadata) in files.iter_mut().zip(&metadata).skip(first) {
        let left = MAX_READ - text.len() as u64;
        if left == 0 {
            break;
        }
        let offset = if metadata.ino() == next.inode { next.offset } else { 0 };
        file.seek(SeekFrom::Start(offset))?;
        let read = file.take(left).read_to_end(&mut text)?;
        next = Cursor { inode: metadata.ino(), offset: offset + read as u64 };
    }
    if after.is_none() && from > 0 {
        let begin = text.iter().position(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        text.drain(..begin);
    }
    Ok(Part { text, next })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_follows_a_log_sees_each_line_once() {
        let dir = tempfile::tempdir().unwrap();
        let logs = Logs::open(dir.path().join("logs"), &BTreeSet::new()).unwrap();
        let name = FunctionName::parse("echo").unwrap();
        let nothing = logs.read(&name, None).await.unwrap();
        assert!(nothing.text.is_empty());
        logs.append(&logs.of(&name), Bytes::from_static(b"one\n")).await;
        let one = logs.read(&name, Some(nothing.next)).await.unwrap();
        assert_eq!(one.text, b"one\n");
        logs.append(&logs.of(&name), Bytes::from(vec![b'x'; MAX_FILE as usize])).await;
        let full = logs.read(&name, None).await.unwrap();
        assert_eq!(full.text.len() as u64, TAIL, "the file that has just grown full");
        logs.append(&logs.of(&name), Bytes::from_static(b"two\n")).await;
        let (mut seen, mut next) = (Vec::new(), one.next);
        while !seen.ends_with(b"two\n") {
            let part = logs.read(&name, Some(next)).await.unwrap();
            assert!(!part.text.is_empty(), "the end of one file is followed by the next");
            seen.extend(part.text);
            next = part.next;
        }
        assert_eq!(seen.len(), MAX_FILE as usize + 4);
        let last = logs.read(&name, None).await.unwrap();
        assert_eq!(last.text, b"two\n", "the newest file alone");
        let cursor: Cursor = next.to_string().parse().unwrap();
        assert!(logs.read(&name, Some(cursor)).await.unwrap().text.is_empty());
        assert!("x-1".parse::<Cursor>().is_err());
    }

    #[tokio::test]
    async fn a_log_goes_with_its_function() {
        let dir = tempfile::tempdir().unwrap();
        let [kept, deleted, forgotten] =
            ["kept", "deleted", "forgotten"].map(|name| FunctionName::parse(name).unwrap());
        let logs = Logs::open(dir.path().into(), &BTreeSet::new()).unwrap();
        for name in [&kept, &deleted, &forgotten] {
            logs.append(&logs.of(name), "a line\n".into()).await;
        }
        let before = logs.of(&deleted);
        logs.remove(&deleted).await;
        logs.append(&before, "of an invocation that was under way\n".into()).await;
        assert!(logs.read(&deleted, None).await.unwrap().text.is_empty());
        let names = || {
            let mut names: Vec<_> =
                fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        assert_eq!(names(), ["forgotten.log", "kept.log"]);
        drop(logs);
        // A server that ended before it had removed it.
        let logs = Logs::open(dir.path().into(), &[kept.clone()].into()).unwrap();
        assert_eq!(names(), ["kept.log"]);
        assert_eq!(logs.read(&kept, None).await.unwrap().text, b"a line\n");
    }

    #[tokio::test]
    async fn who_closes_the_logs_has_all_written() {
        let dir = tempfile::tempdir().unwrap();
        let logs = Logs::open(dir.path().into(), &BTreeSet::new()).unwrap();
        let name = FunctionName::parse("echo").unwrap();
        for line in 0..100 {
            logs.append(&logs.of(&name), format!("{line}\n").into()).await;
        }
        drop(logs);
        let text = fs::read_to_string(dir.path().join("echo.log")).unwrap();
        assert_eq!(text.lines().count(), 100);
    }

    #[test]
    fn lines_of_one_log_are_written_at_once_and_none_waits_behind_many() {
        let dir = tempfile::tempdir().unwrap();
        let [one, two] = ["one", "two"].map(|name| FunctionName::parse(name).unwrap());
        let log = |name: &FunctionName| fs::read(dir.path().join(format!("{name}.log"))).unwrap_or_default();
        let mut gathered = Vec::new();
        for (name, text) in [(&one, "a"), (&two, "b"), (&one, "c")] {
            gather(dir.path(), &mut gathered, name.clone(), text.as_bytes());
        }
        assert!(log(&one).is_empty() && gathered.len() == 2);
        write(dir.path(), &mut gathered);
        assert_eq!((log(&one), log(&two)), (b"ac".to_vec(), b"b".to_vec()));
        gather(dir.path(), &mut gathered, one.clone(), &vec![b'x'; MAX_GATHERED.1]);
        assert_eq!((log(&one).len(), gathered.len()), (2 + MAX_GATHERED.1, 0));
        for number in 0..MAX_GATHERED.0 {
            let name = FunctionName::parse(&format!("many-{number}")).unwrap();
            gather(dir.path(), &mut gathered, name, b"x");
        }
        assert!(gathered.is_empty());
    }
}
