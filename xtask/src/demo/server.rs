//! A server for the demo: its own data directory, a free port, a key of its own.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::functions::Function;
use super::table::{Measured, PHASES};

pub(crate) struct Server {
    child: Child,
    pub(crate) endpoint: String,
    pub(crate) data: PathBuf,
    binary: PathBuf,
    key: (String, String),
    agent: ureq::Agent,
}

fn as_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// A command that runs as root: through sudo if need be.
fn rooted(program: &Path) -> Command {
    if as_root() {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    command
        .arg("--preserve-env=SOCK_ACCESS_KEY,SOCK_LOG,SSL_CERT_FILE,PIP_FIND_LINKS,PIP_INDEX_URL,PYTHONPATH")
        .arg(program);
    command
}

/// Letters and digits that nobody guesses.
fn random() -> Result<String> {
    let text =
        std::fs::read_to_string("/proc/sys/kernel/random/uuid").context("failed to get a random number")?;
    Ok(text.trim().replace('-', ""))
}

impl Server {
    pub(crate) fn start() -> Result<Self> {
        let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
        let target = target.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"));
        let binary = target.join("release/sock");
        if !as_root() && !crate::tasks::succeeds("sudo", &["-v"]) {
            bail!(
                "the server needs root, and sudo does not give it; as root, run: env PATH=\"$PATH\" cargo xtask demo"
            );
        }
        let data = tempfile::Builder::new().prefix("sock-demo-").tempdir()?.keep();
        // Free a moment ago; nobody else on this machine is likely to take it before the server does.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let key = (format!("SOCKDEMO{}", &random()?[..12].to_uppercase()), random()?);
        let mut child = rooted(&binary)
            .args(["serve", "--listen", &address.to_string(), "--data-dir"])
            .arg(&data)
            .env("SOCK_ACCESS_KEY", format!("{}:{}", key.0, key.1))
            .env("SOCK_LOG", std::env::var("SOCK_LOG").unwrap_or_else(|_| "warn".to_owned()))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("failed to start {}", binary.display()))?;
        // One line says that it serves; without it, it is dead.
        let mut line = String::new();
        let output = child.stdout.take().context("the server has no output")?;
        BufReader::new(output).read_line(&mut line)?;
        if line.is_empty() {
            bail!("the server did not start: {}", child.wait()?);
        }
        let agent = ureq::Agent::config_builder().http_status_as_error(false).proxy(None).build().into();
        Ok(Self { child, endpoint: format!("http://{address}"), data, binary, key, agent })
    }

    fn sock(&self, arguments: &[&str]) -> Result<()> {
        let output = Command::new(&self.binary)
            .args(arguments)
            .args(["--endpoint", &self.endpoint])
            .env("AWS_ACCESS_KEY_ID", &self.key.0)
            .env("AWS_SECRET_ACCESS_KEY", &self.key.1)
            .output()
            .context("failed to run sock")?;
        if !output.status.success() {
            bail!("sock {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }

    pub(crate) fn deploy(&self, function: &Function, name: &str, flags: &[&str]) -> Result<()> {
        let path = function.path.to_string_lossy();
        let fixed = [
            "deploy",
            &path,
            "--name",
            name,
            "--handler",
            &function.handler,
            "--memory",
            "512",
            "--timeout",
            "30",
        ];
        self.sock(&[&fixed[..], flags].concat())
    }

    pub(crate) fn invoke(&self, name: &str, event: &Value) -> Result<Measured> {
        let body = serde_json::to_vec(event)?;
        let url = format!("{}/run/{name}", self.endpoint);
        let bearer = format!("Bearer {}", self.key.1);
        let begin = Instant::now();
        let mut response = self.agent.post(&url).header("authorization", &bearer).send(&body[..])?;
        let text = response.body_mut().read_to_string()?;
        let client_ms = begin.elapsed().as_secs_f64() * 1e3;
        let header = |name: &str| {
            response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
        };
        if response.status() != 200 || !header("x-amz-function-error").is_empty() {
            bail!("{name}: {} {text}", response.status());
        }
        let timing = header("server-timing");
        let phase = |name: &str| {
            let parts = timing.split(',').map(str::trim);
            let duration = parts.filter_map(|part| part.strip_prefix(name)?.strip_prefix(";dur=")).next();
            duration.and_then(|duration| duration.parse().ok()).unwrap_or(0.0)
        };
        let answer = serde_json::from_str(&text).with_context(|| format!("{name} answered {text}"))?;
        Ok(Measured {
            answer,
            right: true,
            start: header("x-sock-start"),
            client_ms,
            phases: PHASES.map(phase),
        })
    }

    /// A copy of what `stats` has in its view, from the server's store, as one directory that an interpreter may import from:
    /// compiled as there. The caller removes it by [`remove`].
    pub(crate) fn copy_of_view(&self) -> Result<PathBuf> {
        let view = tempfile::Builder::new().prefix("sock-demo-view-").tempdir()?.keep();
        for top in ["pandas", "numpy", "numpy.libs", "dateutil", "six.py", "pytz", "tzdata"] {
            let found = rooted(Path::new("/usr/bin/find"))
                .arg(self.data.join("packages"))
                .args(["-mindepth", "4", "-maxdepth", "4", "-path", &format!("*/site/{top}")])
                .output()?;
            let found = String::from_utf8_lossy(&found.stdout).trim().to_owned();
            if let Some(site) = Path::new(&found).parent().filter(|_| !found.is_empty()) {
                let copied = rooted(Path::new("/bin/cp"))
                    .args(["-r", "--"])
                    .arg(site.join("."))
                    .arg(&view)
                    .status()?;
                if !copied.success() {
                    bail!("failed to copy {}: {copied}", site.display());
                }
            }
        }
        Ok(view)
    }

    /// Leaves the server running and says how to call it.
    pub(crate) fn keep(self) -> Result<()> {
        let (id, secret) = &self.key;
        let endpoint = &self.endpoint;
        println!(
            "\nthe server goes on as process {}; end it with: {}kill {}\n\n\
             export AWS_ACCESS_KEY_ID={id} AWS_SECRET_ACCESS_KEY={secret} AWS_DEFAULT_REGION=us-east-1\n\
             export AWS_ENDPOINT_URL_LAMBDA={endpoint} SOCK_ENDPOINT={endpoint}\n\n\
             curl -H 'authorization: Bearer {secret}' -d '{{\"hello\": 1}}' {endpoint}/run/echo\n\
             aws lambda invoke --function-name echo --cli-binary-format raw-in-base64-out --payload '{{\"hello\": 1}}' /dev/stdout\n\
             python3 -c 'import boto3; print(boto3.client(\"lambda\").invoke(FunctionName=\"echo\", Payload=\"1\")[\"Payload\"].read())'\n\
             {} invoke echo --data '{{\"hello\": 1}}'\n\n\
             its data directory: {}\n",
            self.child.id(),
            if as_root() { "" } else { "sudo " },
            self.child.id(),
            self.binary.display(),
            self.data.display()
        );
        Ok(())
    }

    pub(crate) fn stop(mut self) -> Result<()> {
        let pid = self.child.id().to_string();
        // Our own child, not reaped yet: the number is its own.
        let killed = rooted(Path::new("/bin/kill")).args(["-TERM", &pid]).status()?;
        let status = self.child.wait()?;
        if !killed.success() || !status.success() {
            bail!("the server did not end well: {status}");
        }
        remove(&self.data)
    }
}

/// How long a new interpreter takes that imports pandas from `view`, milliseconds.
pub(crate) fn import_pandas(view: &Path) -> Result<f64> {
    let mut command = Command::new("/usr/bin/python3");
    command.args(["-S", "-s", "-c", "import pandas"]).env("PYTHONPATH", view);
    let begin = Instant::now();
    let status = command.status()?;
    let took = begin.elapsed().as_secs_f64() * 1e3;
    if !status.success() {
        bail!("python3 -c 'import pandas' failed: {status}");
    }
    Ok(took)
}

/// Removes a directory that may be root's.
pub(crate) fn remove(directory: &Path) -> Result<()> {
    let removed = rooted(Path::new("/bin/rm")).arg("-rf").arg(directory).status()?;
    if !removed.success() {
        bail!("failed to remove {}: {removed}", directory.display());
    }
    Ok(())
}
