//! `sock deploy`: zip, create or update, wait until the function is active.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use base64::Engine;
use clap::Args;
use serde_json::{Map, Value, json};
use sock_isolation::Profile;

use crate::bundle::{self, Bundle};
use crate::client::{Client, segment};
use crate::{Reading, show};

/// See the commands' own help.
#[derive(Debug, Args)]
pub(crate) struct Deploy {
    /// A Python file, or a directory of them with an optional requirements.txt
    path: PathBuf,
    /// Its name (default: the file's or directory's)
    #[arg(long)]
    name: Option<String>,
    /// module.function (default: handler of main.py, app.py, …, or of the file)
    #[arg(long, value_name = "MOD.FN")]
    handler: Option<String>,
    /// Memory limit, MB
    #[arg(long, value_name = "MB")]
    memory: Option<u32>,
    /// How long an invocation may take, seconds
    #[arg(long, value_name = "S")]
    timeout: Option<u32>,
    /// A variable of its environment; may be repeated
    #[arg(long, value_name = "K=V")]
    env: Vec<String>,
    /// A requirements file to use instead of the bundle's own
    #[arg(long, value_name = "FILE")]
    requirements: Option<PathBuf>,
    /// Anybody may call it at /run/NAME
    #[arg(long)]
    public: bool,
    /// A new interpreter for each new instance, never a zygote
    #[arg(long)]
    fresh: bool,
    /// Its containers' profile: lean, strict or paper; other than lean, none is forked from a zygote (default: lean)
    #[arg(long, value_name = "NAME")]
    profile: Option<Profile>,
    /// An instance of its own for each invocation; the next one imports the function before it is asked for
    #[arg(long)]
    single_use: bool,
    /// Whose it is: third-party code that was imported for one tenant never serves another
    #[arg(long, value_name = "T")]
    tenant: Option<String>,
    #[command(flatten)]
    reading: Reading,
}

// Longer than the installation of the largest packages over a slow line.
const ROUNDS: usize = 12_000;
const ROUND: Duration = Duration::from_millis(50);

pub(crate) fn run(options: &Deploy) -> Result<ExitCode> {
    let bundle = bundle::make(&options.path, options.requirements.as_deref())?;
    let name = options.name.as_deref().unwrap_or(&bundle.name).to_owned();
    if name.is_empty() {
        bail!("{} makes no function's name: give one with --name", options.path.display());
    }
    let Some(handler) = options.handler.as_ref().or(bundle.handler.as_ref()) else {
        bail!(
            "{} has no handler in main.py, app.py, handler.py or lambda_function.py: name it with --handler",
            options.path.display()
        );
    };
    let settings = settings(options, handler)?;
    let client = options.reading.server.connect()?;
    let existing =
        client.call("GET", &format!("/2015-03-31/functions/{}/configuration", segment(&name)), &[], &[])?;
    match existing.status {
        200 => update(&client, &name, options, &bundle, settings)?,
        404 => create(&client, &name, options, &bundle, settings)?,
        _ => return Err(existing.error()),
    }
    let configuration = wait(&client, &name)?;
    if options.reading.json {
        show::json(&configuration);
    } else {
        crate::say!("{name} is active: sock invoke {name}");
    }
    Ok(ExitCode::SUCCESS)
}

fn settings(options: &Deploy, handler: &str) -> Result<Map<String, Value>> {
    let mut settings = Map::new();
    settings.insert("Handler".into(), handler.into());
    if let Some(memory) = options.memory {
        settings.insert("MemorySize".into(), memory.into());
    }
    if let Some(timeout) = options.timeout {
        settings.insert("Timeout".into(), timeout.into());
    }
    if !options.env.is_empty() {
        let pairs = options.env.iter().map(|pair| {
            let (name, value) =
                pair.split_once('=').with_context(|| format!("--env {pair} is not NAME=VALUE"))?;
            Ok((name.to_owned(), Value::from(value)))
        });
        settings.insert("Environment".into(), json!({ "Variables": pairs.collect::<Result<Map<_, _>>>()? }));
    }
    Ok(settings)
}

/// What flags of a deployment become: Lambda has no settings for them.
fn tags(options: &Deploy) -> Map<String, Value> {
    let yes = |set: bool| set.then_some("true");
    let marks = [
        ("sock:fresh", yes(options.fresh)),
        ("sock:profile", options.profile.map(Profile::name)),
        ("sock:public", yes(options.public)),
        ("sock:single-use", yes(options.single_use)),
        ("sock:tenant", options.tenant.as_deref()),
    ];
    marks.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?.into()))).collect()
}

fn create(
    client: &Client,
    name: &str,
    options: &Deploy,
    bundle: &Bundle,
    mut body: Map<String, Value>,
) -> Result<()> {
    let zip = base64::engine::general_purpose::STANDARD.encode(&bundle.zip);
    body.insert("FunctionName".into(), name.into());
    body.insert("Runtime".into(), runtime(client)?.into());
    body.insert("Role".into(), "arn:aws:iam::000000000000:role/sock".into());
    body.insert("Code".into(), json!({ "ZipFile": zip }));
    body.insert("Tags".into(), tags(options).into());
    client.json("POST", "/2015-03-31/functions", &body.into()).context("failed to create the function")?;
    Ok(())
}

/// The runtime that the server runs functions with unless told otherwise.
fn runtime(client: &Client) -> Result<String> {
    let health = client.get("/healthz")?;
    Ok(health["runtimes"][0].as_str().unwrap_or("python3.11").to_owned())
}

/// All at once: should it fail, what was there before goes on as it was.
fn update(
    client: &Client,
    name: &str,
    options: &Deploy,
    bundle: &Bundle,
    mut body: Map<String, Value>,
) -> Result<()> {
    settled(client, name, |_| {})?;
    let zip = base64::engine::general_purpose::STANDARD.encode(&bundle.zip);
    body.insert("Code".into(), json!({ "ZipFile": zip }));
    body.insert("Marks".into(), tags(options).into());
    client.json("PUT", &format!("/deploy/{}", segment(name)), &body.into()).context("failed to deploy")?;
    Ok(())
}

/// Waits until the function is neither pending nor being updated; returns its configuration.
fn settled(client: &Client, name: &str, told: impl Fn(&str)) -> Result<Value> {
    let path = format!("/2015-03-31/functions/{}/configuration", segment(name));
    for _ in 0..ROUNDS {
        let configuration = client.get(&path)?;
        if configuration["State"] != "Pending" && configuration["LastUpdateStatus"] != "InProgress" {
            return Ok(configuration);
        }
        let reasons = ["LastUpdateStatusReason", "StateReason"].map(|key| configuration[key].as_str());
        told(reasons.into_iter().flatten().next().unwrap_or_default());
        #[allow(
            clippy::disallowed_methods,
            reason = "Lambda's API has nothing to wait on; all its clients poll"
        )]
        std::thread::sleep(ROUND);
    }
    bail!(
        "it is still pending after {} s; sock show tells more",
        ROUNDS as u64 * ROUND.as_millis() as u64 / 1000
    )
}

fn wait(client: &Client, name: &str) -> Result<Value> {
    let spinner = crate::on_terminal().then(|| {
        let spinner = indicatif::ProgressBar::new_spinner().with_message(format!("deploying {name}"));
        spinner.enable_steady_tick(Duration::from_millis(100));
        spinner
    });
    let configuration = settled(client, name, |doing| {
        if let Some(spinner) = &spinner {
            spinner.set_message(format!("deploying {name}: {doing}"));
        }
    });
    if let Some(spinner) = spinner {
        spinner.finish_and_clear();
    }
    let configuration = configuration?;
    for (state, reason) in [("State", "StateReason"), ("LastUpdateStatus", "LastUpdateStatusReason")] {
        if configuration[state] == "Failed" {
            bail!("failed to deploy {name}: {}", configuration[reason].as_str().unwrap_or("no reason given"));
        }
    }
    Ok(configuration)
}
