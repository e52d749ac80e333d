//! Limits that only the kernel's controllers keep: in the test machine, which has them.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use libtest_mimic::Failed;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use sock_isolation::{ContainerSpec, Limits};

use crate::Test;
use crate::shop::{Shop, pipe, program, spec};

pub(crate) const TESTS: &[Test] =
    &[("limits::what_is_read_from_a_disk_is_held_back", disk), ("limits::every_number_arrives", numbers)];

/// Reads the largest library there is, not from memory; how long that took.
fn read_a_library(limits: Limits) -> Result<Duration, Failed> {
    let mut files: Vec<_> = std::fs::read_dir("/usr/lib/x86_64-linux-gnu")?.flatten().collect();
    files.retain(|file| file.file_type().is_ok_and(|kind| kind.is_file()));
    files.sort_by_key(|file| file.metadata().map_or(0, |metadata| metadata.len()));
    let path = files.pop().ok_or("there is no library")?.path();
    posix_fadvise(File::open(&path)?, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
    let shop = Shop::with(ContainerSpec { limits, ..spec() })?;
    let (read, write) = pipe()?;
    let null = File::open("/dev/null")?;
    let mut container = shop.workshop.create()?;
    let begin = Instant::now();
    let path = path.to_str().ok_or("its path is not text")?;
    container.start(&program(&["/bin/cat", path]), &[null.as_fd(), write.as_fd(), null.as_fd()])?;
    drop(write);
    std::io::copy(&mut File::from(read), &mut std::io::sink())?;
    let took = begin.elapsed();
    container.destroy()?;
    shop.close()?;
    Ok(took)
}

fn disk() -> Result<(), Failed> {
    let limits = Limits { io_bytes: Some(512 << 10), ..spec().limits };
    let (held_back, free) = (read_a_library(limits)?, read_a_library(spec().limits)?);
    assert!(held_back > 3 * free && held_back > Duration::from_secs(2), "{held_back:?}, freely {free:?}");
    Ok(())
}

fn numbers() -> Result<(), Failed> {
    let limits = Limits {
        memory: 64 << 20,
        memory_high: Some(48 << 20),
        processes: 40,
        cpu_millis: 500,
        cpu_weight: 50,
        ..Limits::default()
    };
    let shop = Shop::with(ContainerSpec { limits, ..spec() })?;
    let container = shop.workshop.create()?;
    let mut groups = std::fs::read_dir(&shop.group)?.flatten().map(|entry| entry.path());
    let group = groups.find(|path| path.is_dir()).ok_or("it has no group")?;
    for (file, expected) in [
        ("memory.max", "67108864"),
        ("memory.high", "50331648"),
        ("memory.swap.max", "0"),
        ("memory.oom.group", "1"),
        ("pids.max", "40"),
        ("cpu.max", "50000 100000"),
        ("cpu.weight", "50"),
    ] {
        let mut found = String::new();
        File::open(group.join(file))?.read_to_string(&mut found)?;
        assert_eq!(found.trim(), expected, "{file}");
    }
    let stats = container.stats()?;
    assert!(stats.memory > 0 && stats.memory_peak >= stats.memory && stats.processes == 2, "{stats:?}");
    assert!(stats.pressure.iter().all(Option::is_some), "{stats:?}");
    container.destroy()?;
    shop.close()
}
