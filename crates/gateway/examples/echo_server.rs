//! A server without containers: functions are "run" by answering their event. Starts, deploys a function, invokes it once
//! over HTTP, prints the answer and stops.
//!
//! ```sh
//! cargo run -p sock-gateway --example echo_server
//! ```

use std::error::Error;
use std::io::{Cursor, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use sock_gateway::{
    AccessKey, Auth, BoxFuture, Function, FunctionName, GatewayConfig, Invocation, InvocationResult, Outcome,
    Phases, Runner, StartKind, serve, sigv4,
};
use sock_pkgcache::{Interpreter, Sources};
use tokio::sync::oneshot;

/// Answers every event with itself.
struct Echo;

impl Runner for Echo {
    fn prepare(&self, _: Arc<Function>) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async { Ok(()) })
    }

    fn invoke(&self, function: Arc<Function>, invocation: Invocation) -> BoxFuture<'_, Outcome> {
        Box::pin(async move {
            Outcome {
                result: InvocationResult::Ok(invocation.event),
                start: StartKind::Warm,
                phases: Phases { queue: invocation.received.elapsed(), ..Phases::default() },
                log_before: Vec::new(),
                log: format!("{} was called\n", function.name).into_bytes(),
                log_truncated: 0,
                max_memory_mb: 0,
            }
        })
    }

    fn retire(&self, _: &FunctionName) {}
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let python = Interpreter::probe("/usr/bin/python3".as_ref())?;
    let runtime = format!("python{}.{}", python.version.0, python.version.1);
    let config = GatewayConfig::open(dir.path().join("data"), vec![python], Sources::default())?;
    let Auth::Keys(keys) = &config.auth else { return Err("a server has keys unless told otherwise".into()) };
    let key = keys.first().ok_or("the first start makes a key")?.clone();

    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let (stop, stopped) = oneshot::channel::<()>();
    let shutdown = async {
        let _ = stopped.await;
    };
    let server = tokio::spawn(serve(listener, config, Arc::new(Echo), shutdown));
    let client = tokio::task::spawn_blocking(move || {
        deploy_and_invoke(address, &key, &runtime).map_err(|e| e.to_string())
    });
    println!("{}", client.await??);
    let _ = stop.send(());
    server.await??;
    Ok(())
}

/// What a client does. Any client of the Lambda API does the same.
fn deploy_and_invoke(server: SocketAddr, key: &AccessKey, runtime: &str) -> Result<String, Box<dyn Error>> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    zip.start_file("app.py", zip::write::SimpleFileOptions::default())?;
    zip.write_all(b"def handler(event, context):\n    return event\n")?;
    let function = json!({
        "FunctionName": "echo", "Runtime": runtime, "Handler": "app.handler",
        "Role": "arn:aws:iam::000000000000:role/any",
        "Code": { "ZipFile": STANDARD.encode(zip.finish()?.into_inner()) },
    });
    let functions = "/2015-03-31/functions";
    ask(server, key, "POST", functions, &function.to_string())?;
    while ask(server, key, "GET", &format!("{functions}/echo"), "")?.contains(r#""State":"Pending""#) {}
    ask(server, key, "POST", &format!("{functions}/echo/invocations"), r#"{"hello": "world"}"#)
}

/// One request, signed with the key, on a connection of its own.
fn ask(
    server: SocketAddr,
    key: &AccessKey,
    method: &str,
    path: &str,
    body: &str,
) -> Result<String, Box<dyn Error>> {
    let mut headers = vec![("host".to_string(), server.to_string())];
    sigv4::sign(method, path, &mut headers, body.as_bytes(), key, SystemTime::now());
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let length = body.len();
    let mut stream = TcpStream::connect(server)?;
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\n{headers}content-length: {length}\r\nconnection: close\r\n\r\n{body}"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    if answer.starts_with("HTTP/1.1 2") { Ok(answer) } else { Err(answer.into()) }
}
