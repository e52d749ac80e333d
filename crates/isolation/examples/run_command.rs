//! Runs a command in a lean container: `run_command /usr/bin/id`. Needs root.

use sock_isolation::{End, IdRange, Limits, Profile, RunOptions, run_command};

fn main() {
    let mut argv: Vec<String> = std::env::args().skip(1).collect();
    if argv.is_empty() {
        argv = vec!["id".into()];
    }
    let options = RunOptions {
        argv,
        limits: Limits::default(),
        tmp_bytes: 64 << 20,
        profile: Profile::Lean,
        ids: IdRange::default(),
    };
    match run_command(&options) {
        Ok(End::Exited(exit)) => std::process::exit(exit.code()),
        Ok(End::OutOfMemory) => eprintln!("it needed more memory than it may have"),
        Ok(End::Killed) => eprintln!("it was killed"),
        Err(error) => eprintln!("failed to run the command: {error}"),
    }
    std::process::exit(1);
}
