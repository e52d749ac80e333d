//! A fork server without a gateway: starts a launcher and a zygote, another zygote that is forked from it, forks instances
//! from that, has each checked, and lets it answer. Needs root.
//!
//! `cargo run -p sock-zygote --example fork_server`

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;

use sock_isolation::launcher::wire::{Files, ForkZygote, Reply, Request, StartZygote};
use sock_isolation::launcher::{self, Client, server};
use sock_isolation::process::Child;
use sock_isolation::{Command, Host, HostOptions, IdRange, Limits, Role, Template};
use sock_zygote::frames::{self, Decoder, FunctionInfo, ImportList, Init, InvokeHeader, Kind};
use sock_zygote::runtime::{self, Entry};
use sock_zygote::{Facts, Import};

const HANDLER: &str = "
import decimal, os

def handler(event, context):
    print('working on', event)
    return {'uid': os.getuid(), 'pid': os.getpid(), 'half': str(decimal.Decimal(event) / 2)}
";

fn main() -> Result<(), Box<dyn Error>> {
    let data = tempfile::tempdir()?;
    for directory in ["mnt", "code", "code/half"] {
        fs::create_dir(data.path().join(directory))?;
    }
    fs::write(data.path().join("code/half/half.py"), HANDLER)?;
    let (ours, theirs) = launcher::socket_pair()?;
    let launcher = start_launcher(data.path(), &ours, theirs)?;
    let mut client = Client::new(ours);

    let command = Command {
        argv: [vec!["/usr/bin/python3".to_owned()], runtime::arguments(11, Entry::Zygote)].concat(),
        env: runtime::environment(Entry::Zygote),
        directory: "/".into(),
        role: Role::Zygote,
        limits: Limits { memory: 1 << 30, processes: 1024, ..Limits::default() },
        memory_by_kernel: false,
    };
    let request = Request::StartZygote(StartZygote { zygote: 1, files: Files::default(), command, slots: 4 });
    let mut zygote = Peer::new(client.call(request)?.1)?;
    println!("a zygote imported {:?}", import(&mut zygote, "decimal")?.imported);

    // Another one, that has what the first has imported.
    let (files, limits) = (Files::default(), Limits { memory: 1 << 30, ..Limits::default() });
    let request = Request::ForkZygote(ForkZygote { zygote: 2, parent: 1, files, limits, slots: 4 });
    let mut forked = Peer::new(client.call(request)?.1)?;
    forked.expect(Kind::Hello)?;
    client.call(Request::Admit { zygote: 2 })?;
    println!("one that was forked from it has {:?}", import(&mut forked, "fractions")?.imported);

    let mut times = Vec::new();
    for round in 0..20u8 {
        #[expect(clippy::disallowed_methods, reason = "requests that come apart are what is measured")]
        std::thread::sleep(std::time::Duration::from_millis(100));
        let start = Instant::now();
        let files = Files { task: Some("code/half".into()), ..Files::default() };
        let (reply, fds) = client.call(Request::Fork { zygote: 2, files, limits: Limits::default() })?;
        let Reply::Instance { instance, .. } = reply else { return Err("unexpected reply".into()) };
        let mut fds = fds.into_iter();
        // What follows, and is not used here, is for who wants to watch it, freeze it, and know its memory.
        let mut peer = Peer::new(fds.by_ref().take(2).collect())?;
        // Its hello was for the launcher, which has looked at it.
        peer.send(Kind::Init, &frames::init(&function(), &[]))?;
        peer.expect(Kind::Ready)?;
        let header = InvokeHeader {
            request_id: round.to_string(),
            deadline_ms: u64::MAX >> 12,
            arn: "half".into(),
            client_context: None,
            early: false,
        };
        // Whoever talks to functions that are not its own takes a random one.
        let nonce = [round; 16];
        peer.send(Kind::Invoke, &frames::invoke(&nonce, &header, b"21"))?;
        let answer = peer.expect(Kind::Result)?;
        let answer = frames::answer(&nonce, &answer)?.to_vec();
        times.push(start.elapsed());
        if round == 0 {
            println!("answer: {}", String::from_utf8(answer)?);
        }
        client.call(Request::Destroy { instance })?;
        if round == 0 {
            print!("log: {}", peer.log()?);
        }
    }
    times.sort();
    println!("fork to answer, median: {:?}", times[times.len() / 2]);
    drop(client);
    launcher.wait()?;
    Ok(())
}

fn import(zygote: &mut Peer, module: &str) -> Result<Facts, Box<dyn Error>> {
    let imports = vec![Import { module: module.into(), names: vec![] }];
    zygote.send(Kind::Import, &serde_json::to_vec(&ImportList { imports, env: Default::default() })?)?;
    Ok(serde_json::from_slice(&zygote.expect(Kind::Facts)?)?)
}

fn start_launcher(data: &Path, ours: &OwnedFd, theirs: OwnedFd) -> Result<Child, Box<dyn Error>> {
    let mut template = Template::of_base(Path::new("/"))?;
    template.files.extend(runtime::files());
    let work = data.join("mnt");
    let host = HostOptions { work, group: "sock-example".into(), template, ids: IdRange::default() };
    let options = server::Options { data: data.to_owned(), tmp_bytes: 64 << 20, paper: false };
    Ok(Child::fork_without(&[ours], move || {
        let host = Host::start(host).map_err(|error| error.to_string());
        match host.and_then(|host| server::serve(host, options, theirs).map_err(|error| error.to_string())) {
            Ok(()) => 0,
            Err(error) => {
                eprintln!("launcher: {error}");
                1
            }
        }
    })?)
}

fn function() -> Init {
    let function = FunctionInfo {
        name: "half".into(),
        version: "$LATEST".into(),
        memory_mb: 128,
        log_group: "/aws/lambda/half".into(),
        log_stream: "example".into(),
    };
    Init { handler: "half.handler".into(), env: BTreeMap::new(), function, tell: false, keep: false }
}

/// The other end of a process's socket and log.
struct Peer {
    socket: UnixStream,
    log: File,
    decoder: Decoder,
}

impl Peer {
    fn new(fds: Vec<OwnedFd>) -> Result<Self, Box<dyn Error>> {
        let [socket, log]: [OwnedFd; 2] = fds.try_into().map_err(|_| "two descriptors are expected")?;
        Ok(Self { socket: socket.into(), log: log.into(), decoder: Decoder::default() })
    }

    fn send(&mut self, kind: Kind, payload: &[u8]) -> Result<(), Box<dyn Error>> {
        Ok(self.socket.write_all(&frames::encode(kind, payload)?)?)
    }

    fn expect(&mut self, expected: Kind) -> Result<Vec<u8>, Box<dyn Error>> {
        let mut buffer = [0; 4096];
        loop {
            if let Some((kind, payload)) = self.decoder.next_frame()? {
                if kind == expected {
                    return Ok(payload);
                }
                return Err(format!("{kind:?}: {}", String::from_utf8_lossy(&payload)).into());
            }
            let length = self.socket.read(&mut buffer)?;
            if length == 0 {
                return Err(format!("the process is gone; it said: {}", self.log()?).into());
            }
            self.decoder.push(&buffer[..length]);
        }
    }

    fn log(&mut self) -> Result<String, Box<dyn Error>> {
        let mut text = String::new();
        self.log.read_to_string(&mut text)?;
        Ok(text)
    }
}
