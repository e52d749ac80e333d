//! A server for one test: its own port, data directory and tokio runtime.

use std::io::{Cursor, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sock_gateway::{
    AccessKey, Auth, GatewayConfig, GatewayLimits, Keys, Realm, Runner, ServeError, serve, sigv4,
};
use sock_pkgcache::Interpreter;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::fake::{Fake, NoIndex, PATIENCE};
use crate::http::{Answer, Request};

pub(crate) const FUNCTIONS: &str = "/2015-03-31/functions";
pub(crate) const ROLE: &str = "arn:aws:iam::000000000000:role/any";

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) fake: Arc<Fake>,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<Result<(), ServeError>>,
    runtime: Runtime,
    /// If the directory is this server's alone.
    _dir: Option<TempDir>,
}

pub(crate) fn key() -> AccessKey {
    AccessKey::parse("SOCKTESTSTESTSTESTS1:a-secret-of-the-tests").unwrap()
}

/// An interpreter that no test starts.
pub(crate) fn python() -> Interpreter {
    Interpreter {
        path: PathBuf::from("/usr/bin/python3"),
        version: (3, 11, 2),
        tag: "cp311".into(),
        platform: "linux-x86_64".into(),
        extension_suffixes: vec![".so".into()],
        magic: "a70d0d0a".into(),
    }
}

pub(crate) fn config(dir: &Path) -> GatewayConfig {
    GatewayConfig {
        data_dir: dir.into(),
        auth: Auth::Keys(Keys::new(vec![key()])),
        realm: Realm::default(),
        interpreters: vec![python()],
        allow_paper: false,
        packages: Arc::new(NoIndex),
        limits: GatewayLimits::default(),
    }
}

impl Server {
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self::start_with(config(dir.path())).keeping(dir)
    }

    pub(crate) fn start_in(dir: &Path) -> Self {
        Self::start_with(config(dir))
    }

    pub(crate) fn start_with(config: GatewayConfig) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let fake = Fake::new();
        let runner: Arc<dyn Runner> = fake.clone();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (stop, stopped) = oneshot::channel();
        let serving = runtime.spawn(async move {
            let shutdown = async {
                let _ = stopped.await;
            };
            serve(listener, config, runner, shutdown).await
        });
        Self { address, fake, stop, serving, runtime, _dir: None }
    }

    fn keeping(self, dir: TempDir) -> Self {
        Self { _dir: Some(dir), ..self }
    }

    /// Asks it to stop, calls `meanwhile`, and gives what the server ended with.
    pub(crate) fn stop(self, meanwhile: impl FnOnce()) -> Result<(), ServeError> {
        self.stop.send(()).unwrap();
        meanwhile();
        self.runtime.block_on(async { tokio::time::timeout(PATIENCE, self.serving).await }).unwrap().unwrap()
    }

    /// Ends it as a crash would: whatever runs is gone.
    pub(crate) fn crash(self) {
        drop(self.runtime);
    }

    /// What the server ended with by itself.
    pub(crate) fn ended(self) -> ServeError {
        let ended = self.runtime.block_on(async { tokio::time::timeout(PATIENCE, self.serving).await });
        ended.unwrap().unwrap().unwrap_err()
    }

    /// Signs a request as a client with a key does.
    pub(crate) fn signed(&self, mut request: Request) -> Request {
        request.headers.push(("host".into(), self.address.to_string()));
        let Request { method, target, headers, body } = &mut request;
        sigv4::sign(method, target, headers, body, &key(), SystemTime::now());
        request
    }

    pub(crate) fn ask(&self, request: Request) -> Answer {
        self.signed(request).send(self.address)
    }

    pub(crate) fn get(&self, target: &str) -> Answer {
        self.ask(Request::new("GET", target, ""))
    }

    pub(crate) fn invoke(&self, name: &str, event: &str) -> Answer {
        self.ask(Request::new("POST", &format!("{FUNCTIONS}/{name}/invocations"), event))
    }

    /// Creates a function with a handler of the fake, and waits until it is active.
    pub(crate) fn deploy(&self, name: &str, handler: &str) {
        let answer = self.ask(Request::new("POST", FUNCTIONS, creation(name, handler).to_string()));
        assert_eq!(answer.status, 201, "{}", String::from_utf8_lossy(&answer.body));
        let settled = self.settled(name);
        assert_eq!(settled["State"], "Active", "{settled}");
    }

    /// The configuration once no deployment runs any more: asks for it as the waiters of clients do.
    pub(crate) fn settled(&self, name: &str) -> Value {
        let begun = Instant::now();
        loop {
            let answer = self.get(&format!("{FUNCTIONS}/{name}/configuration"));
            assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
            let configuration = answer.json();
            if configuration["LastUpdateStatus"] != "InProgress" {
                return configuration;
            }
            assert!(begun.elapsed() < PATIENCE, "{configuration}");
            std::thread::yield_now();
        }
    }
}

/// The body of CreateFunction.
pub(crate) fn creation(name: &str, handler: &str) -> Value {
    json!({
        "FunctionName": name, "Runtime": "python3.11", "Role": ROLE, "Handler": handler,
        "Code": { "ZipFile": bundle(&[("app.py", "def echo(event, context):\n    return event\n")]) },
    })
}

/// A zip file in base64.
pub(crate) fn bundle(files: &[(&str, &str)]) -> String {
    let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (name, content) in files {
        zip.start_file(*name, stored).unwrap();
        zip.write_all(content.as_bytes()).unwrap();
    }
    STANDARD.encode(zip.finish().unwrap().into_inner())
}
