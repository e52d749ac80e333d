//! The gateway's process: what the supervisor starts as an ordinary user.

use std::io::{BufWriter, Stderr, Write};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use nix::sys::signal::{SigSet, Signal};
use sock_isolation::process;
use sock_pkgcache::{Interpreter, Sources};
use tokio::signal::unix::{SignalKind, signal};
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};

use crate::config::{Auth, GatewayConfig};
use crate::doctor::DEFAULT_PYTHON;
use crate::engine::{Engine, EngineOptions, SPARE_SHARE, default_budget};
use crate::keys::{AccessKey, Keys};
use crate::logs;
use crate::runner::Runner;
use crate::supervisor::{LogFormat, ServeOptions};

/// Serves until SIGTERM. Called in a process that has given up root and has one thread yet.
/// `launcher` is the socket of requests to it; on the other pipe a byte says that the server serves.
pub(crate) fn run(
    options: &ServeOptions,
    listener: TcpListener,
    (launcher, serving): (OwnedFd, OwnedFd),
) -> Result<(), String> {
    let _written = log(options.log_format);
    // The supervisor waits for this signal by a descriptor and has blocked it; here it has to arrive.
    SigSet::from(Signal::SIGTERM).thread_unblock().map_err(|errno| errno.to_string())?;
    // One processor is left to the functions. A request that hops between two workers pays for waking the other: on a
    // machine with two processors a warm answer is a fifth quicker with one worker.
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let workers = processors.saturating_sub(1).max(1);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build();
    runtime.map_err(|error| format!("failed to start the runtime: {error}"))?.block_on(serve(
        options,
        listener,
        (launcher, serving),
    ))
}

/// Lines that may wait to be written. Beyond that they are dropped, rather than have requests wait for whoever reads them.
const LOG_QUEUE: usize = 16_384;

/// The most that is written at once, bytes.
const LOG_BUFFER: usize = 64 << 10;

/// What is written to it gathers until it is flushed, which its thread does when nothing waits any more; and then for a moment.
struct Gathered(BufWriter<Stderr>);

impl Write for Gathered {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()?;
        logs::rest();
        Ok(())
    }
}

/// Starts logging to standard error, by a thread of its own, until what it returns is dropped.
fn log(format: LogFormat) -> WorkerGuard {
    let (writer, guard) = NonBlockingBuilder::default()
        .buffered_lines_limit(LOG_QUEUE)
        .thread_name("log")
        .finish(Gathered(BufWriter::with_capacity(LOG_BUFFER, std::io::stderr())));
    let filter = tracing_subscriber::EnvFilter::try_from_env("SOCK_LOG")
        .unwrap_or_else(|_| "warn,sock_gateway=info".into());
    let subscriber = tracing_subscriber::fmt().with_writer(writer).with_env_filter(filter);
    match format {
        LogFormat::Text => subscriber.with_ansi(false).init(),
        LogFormat::Json => subscriber.json().flatten_event(true).init(),
    }
    guard
}

async fn serve(
    options: &ServeOptions,
    listener: TcpListener,
    (launcher, serving): (OwnedFd, OwnedFd),
) -> Result<(), String> {
    let mut stop = signal(SignalKind::terminate()).map_err(|error| error.to_string())?;
    let interpreters = interpreters(&options.pythons)?;
    let (index_url, find_links) = (options.index_url.clone(), options.find_links.clone());
    let given = Sources { index_url, find_links, ..Sources::default() };
    let sources = given.or(Sources::from_env());
    let mut config = GatewayConfig::open(&options.data_dir, interpreters.clone(), sources).map_err(chain)?;
    if let Some(key) = &options.access_key {
        let key = AccessKey::parse(key).map_err(chain)?;
        config.auth = match config.auth {
            Auth::Keys(keys) => Auth::Keys(keys.with(key)),
            Auth::Open => Auth::Keys(Keys::new(vec![key])),
        };
    }
    config.allow_paper = options.allow_paper;
    if options.no_auth {
        config.auth = Auth::Open;
    }
    let files = process::raise_file_limit().map_err(|error| error.to_string())?;
    config.limits.connections = config.limits.connections.min(connections(files));
    let zygote_bytes = options.zygote_memory_mb.map_or_else(default_budget, |mb| mb << 20);
    let spare_bytes = options.spare_memory_mb.map_or(zygote_bytes / SPARE_SHARE, |mb| mb << 20);
    let idle_bytes = options.idle_memory_mb.map_or_else(default_budget, |mb| mb << 20);
    let data_dir = options.data_dir.clone();
    let zygote_forks = options.zygote_forks.unwrap_or(sock_zygote::tree::Budget::default().forks);
    let engine_options =
        EngineOptions { data_dir, interpreters, zygote_bytes, spare_bytes, zygote_forks, idle_bytes };
    let engine = Engine::start(launcher, engine_options).await?;
    let address = listener.local_addr().map_err(|error| error.to_string())?;
    let shutdown = async move {
        // Asked for the first time once the data directory was found good and connections are taken.
        println!("serving http://{address}");
        // Whoever started the server may have closed its end by now.
        let _ = std::io::stdout().flush();
        // The supervisor is there: this process dies with it.
        let _ = std::fs::File::from(serving).write_all(b"1");
        stop.recv().await;
    };
    let served =
        crate::gateway::serve(listener, config, Arc::clone(&engine) as Arc<dyn Runner>, shutdown).await;
    engine.save().await;
    served.map_err(chain)
}

/// How many connections a process with so many open files may take on. The rest is for what requests need: a connection
/// that finds no descriptor could not even send another one away.
fn connections(files: u64) -> u32 {
    const OTHERS: u64 = 2048;
    u32::try_from(files.saturating_sub(OTHERS).max(files / 2)).unwrap_or(u32::MAX)
}

fn interpreters(paths: &[PathBuf]) -> Result<Vec<Interpreter>, String> {
    let default = [PathBuf::from(DEFAULT_PYTHON)];
    let paths = if paths.is_empty() { &default[..] } else { paths };
    paths.iter().map(|path| Interpreter::probe(path).map_err(chain)).collect()
}

fn chain(error: impl std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::connections;

    #[test]
    fn connections_leave_descriptors_for_the_rest() {
        // systemd's usual limits, and a shell's.
        for (files, most) in [(524_288, 522_240), (20_000, 17_952), (4096, 2048), (1024, 512)] {
            assert_eq!(connections(files), most);
        }
    }
}
