//! The `sock` command line: parses arguments, calls the gateway crate or a server's HTTP API, prints. Nothing else.

mod bundle;
mod client;
mod commands;
mod show;

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand, ValueEnum};
use sock_isolation::{IdRange, Profile};

/// Python functions on your own machine, each invocation in its own container.
#[derive(Debug, Parser)]
#[command(name = "sock", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server (as root; only its launcher keeps root)
    Serve(Serve),
    /// Deploy a function from a Python file or a directory
    Deploy(commands::deploy::Deploy),
    /// Invoke a function and print its answer
    Invoke(commands::invoke::Invoke),
    /// List functions
    List(Reading),
    /// Show one function
    Show(OfFunction),
    /// Delete a function
    Delete(OfFunction),
    /// Print a function's log
    Logs(commands::logs::Logs),
    /// Show which functions have idle instances, and what everything takes
    Stats(Reading),
    /// Draw the processes that functions are forked from
    Tree(Reading),
    /// Run one command in a lean container (as root)
    Run(Run),
    /// Look at this machine: what is missing, what is kept by which means
    Doctor(Local),
    /// Print the variables that point awscli and boto3 at the server
    Env(Reading),
}

/// Where the server is, and how output looks.
#[derive(Debug, Args)]
struct Reading {
    #[command(flatten)]
    server: client::Server,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Local {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct OfFunction {
    /// The function
    name: String,
    #[command(flatten)]
    reading: Reading,
}

#[derive(Debug, Args)]
struct Serve {
    /// Where everything is kept
    #[arg(long, value_name = "DIR", env = "SOCK_DATA_DIR", default_value = "/var/lib/sock")]
    data_dir: PathBuf,
    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1:7625")]
    listen: SocketAddr,
    /// A key, beside the one that is made at first start
    #[arg(long, value_name = "ID:SECRET", env = "SOCK_ACCESS_KEY", hide_env_values = true)]
    access_key: Option<String>,
    /// Let everybody in (loopback only)
    #[arg(long)]
    no_auth: bool,
    /// Index of Python packages (default: $UV_DEFAULT_INDEX, $UV_INDEX_URL, $PIP_INDEX_URL, else uv's own)
    #[arg(long, value_name = "URL")]
    index_url: Option<String>,
    /// Directory or page of wheels; may be repeated (with PIP_NO_INDEX=1 nothing else is asked)
    #[arg(long, value_name = "DIR")]
    find_links: Vec<String>,
    /// Refuse to start where cgroup controllers for memory, processes or processors are missing
    #[arg(long)]
    require_cgroup_limits: bool,
    /// Let functions have containers of the profile paper, which see the host's network (for comparison; not with --no-auth)
    #[arg(long)]
    allow_paper: bool,
    /// Interpreter of the base system; may be repeated, the first is the default
    #[arg(long, value_name = "PATH")]
    python: Vec<PathBuf>,
    /// Memory that processes with imported packages may take, MB (default: a quarter of the machine's)
    #[arg(long, value_name = "MB", value_parser = clap::value_parser!(u64).range(16..=1_048_576))]
    zygote_memory: Option<u64>,
    /// Memory that processes may take which are forked ahead of need, MB; 0: none are (default: a quarter of --zygote-memory)
    #[arg(long, value_name = "MB", value_parser = clap::value_parser!(u64).range(0..=1_048_576))]
    spare_memory: Option<u64>,
    /// New instances a second that one zygote is trusted with: a busier one has others beside it (default: 200)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    zygote_forks: Option<u32>,
    /// Memory that instances may take which wait for their next invocation, MB (default: a quarter of the machine's)
    #[arg(long, value_name = "MB", value_parser = clap::value_parser!(u64).range(16..=1_048_576))]
    idle_memory: Option<u64>,
    /// What lines of the log on standard error look like; $SOCK_LOG chooses which (default: warn,sock_gateway=info)
    #[arg(long, value_name = "FORMAT", env = "SOCK_LOG_FORMAT", default_value = "text")]
    log_format: LogFormat,
    /// User ids for containers that nobody else has (default: the first free one from 1879048192:256 on)
    #[arg(long, value_name = "FIRST:BLOCKS")]
    id_range: Option<IdRange>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogFormat {
    /// For people
    Text,
    /// An object a line
    Json,
}

#[derive(Debug, Args)]
struct Run {
    /// Memory limit, MB
    #[arg(long, value_name = "MB", default_value_t = 512, value_parser = clap::value_parser!(u32).range(16..=10_240))]
    memory: u32,
    /// How much it may do: lean; strict (no network, no IPC); paper (the container of the SOCK paper, for comparison)
    #[arg(long, value_name = "NAME", default_value = "lean")]
    profile: Profile,
    /// User ids for the container that nobody else has
    #[arg(long, value_name = "FIRST:BLOCKS", default_value = "1879048192:256")]
    id_range: IdRange,
    /// The command and its arguments. Its exit code is this one's; 125: no container, 126: it cannot be executed, 127: there is none,
    /// 128 and a signal's number, 137 also for too much memory
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<String>,
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // Help and version, which are asked for, and the overview for who gives no command.
        Err(error)
            if !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand =>
        {
            error.exit()
        }
        Err(error) => {
            eprintln!("sock: {}", in_one_line(&error.to_string()));
            return ExitCode::from(2);
        }
    };
    match run(cli) {
        Ok(code) => code,
        Err(error) => {
            // One line: what, then why.
            let chain: Vec<String> = error.chain().map(|cause| cause.to_string()).collect();
            eprintln!("sock: {}", chain.join(": ").replace('\n', " "));
            ExitCode::FAILURE
        }
    }
}

/// What clap says over several lines, without what it says of usage.
fn in_one_line(text: &str) -> String {
    let text = text.split("\nUsage:").next().unwrap_or_default();
    let text = text.split("\nFor more information").next().unwrap_or_default();
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    format!("{}; --help tells more", lines.join(" ").trim_start_matches("error: "))
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.command {
        Command::Serve(options) => commands::local::serve(options),
        Command::Run(options) => commands::local::run(options),
        Command::Doctor(options) => commands::local::doctor(&options),
        Command::Deploy(options) => commands::deploy::run(&options),
        Command::Invoke(options) => commands::invoke::run(&options),
        Command::Logs(options) => commands::logs::run(&options),
        Command::List(options) => commands::functions::list(&options),
        Command::Show(options) => commands::functions::show(&options),
        Command::Delete(options) => commands::functions::delete(&options),
        Command::Env(options) => commands::functions::env(&options),
        Command::Stats(options) => commands::report::stats(&options),
        Command::Tree(options) => commands::report::tree(&options),
    }
}

/// Whether somebody watches.
fn on_terminal() -> bool {
    std::io::stderr().is_terminal()
}
