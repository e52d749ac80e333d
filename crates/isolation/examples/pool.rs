//! A pool of workers: containers that are made ahead, each for one job. `pool [JOBS] [WORKERS]`. Needs root.

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Instant;

use sock_isolation::{ContainerSpec, End, Exit, Host, HostOptions, IdRange, Program, Template, Workshop};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut numbers = std::env::args().skip(1).map(|number| number.parse::<usize>());
    let jobs = numbers.next().transpose()?.unwrap_or(200);
    let workers = numbers.next().transpose()?.unwrap_or(4);
    let work = std::env::temp_dir().join(format!("sock-pool-{}", std::process::id()));
    std::fs::create_dir(&work)?;
    let host = Host::start(HostOptions {
        work: work.clone(),
        group: "sock-pool".into(),
        template: Template::of_base(Path::new("/"))?,
        ids: IdRange::default(),
    })?;
    let workshop = Workshop::new(host, ContainerSpec::default());
    workshop.keep_ready(workers);
    let null = File::options().read(true).write(true).open("/dev/null")?;
    let begin = Instant::now();
    let (mut running, mut done) = (VecDeque::new(), 0);
    for job in 0..jobs {
        let mut worker = workshop.create()?;
        let argv = ["/bin/sh", "-c", &format!("test {job} -lt {jobs}")].map(String::from).into();
        worker.start(&Program { argv, env: Vec::new(), directory: "/tmp".into() }, &[null.as_fd(); 3])?;
        running.push_back(worker);
        if running.len() == workers || job + 1 == jobs {
            while let Some(mut worker) = running.pop_front() {
                done += usize::from(worker.wait()? == End::Exited(Exit::Code(0)));
                worker.destroy()?;
                if job + 1 < jobs {
                    break;
                }
            }
        }
        // As many are made as were taken, while the others work.
        workshop.tend()?;
    }
    let rate = jobs as f64 / begin.elapsed().as_secs_f64();
    println!("{done} of {jobs} jobs were done, {rate:.0} a second, each in a container of its own");
    workshop.stop()?;
    // Our own namespace had a mount on it; in the host's it is an empty directory.
    nix::mount::umount2(&work, nix::mount::MntFlags::MNT_DETACH)?;
    std::fs::remove_dir(&work)?;
    Ok(())
}
