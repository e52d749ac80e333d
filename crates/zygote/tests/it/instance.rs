//! One instance without a container: the gateway's end of its socket and log.

use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, PipeReader, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use serde_json::Value;
use sock_zygote::frames::{self, Decoder, FunctionInfo, Init, InvokeHeader, Kind, Nonce};
use sock_zygote::{Facts, Import};
use tempfile::TempDir;

/// As a zygote does it, short of entering a container: imports, forks, and the child becomes the instance.
const ZYGOTE: &str = "
import _socket, json, os, sys
os.dup2(0, 5)
os.dup2(os.open('/dev/null', os.O_RDWR), 0)
for number, end in zip((3, 4), _socket.socketpair()):
    if end.fileno() != number:
        os.dup2(end.fileno(), number)
    end.detach()
sys.path.append(os.getcwd() + '/runtime')
import _sock_instance as instance
instance.TASK, instance.LAYERS, instance.PACKAGES = os.getcwd() + '/task', (), os.getcwd() + '/packages'
instance.REHEARSAL = os.getcwd() + '/rehearsal'
import _sock_zygote as zygote
with open('imports.json') as file:
    facts = zygote.import_all(json.load(file))
with open('facts.json', 'w') as file:
    json.dump(facts, file)
log = os.dup(1)
if os.fork() == 0:
    fds = {'log': log, 'socket': 5}
    for name, *arguments in zygote.after_fork.arrangement(('log', 'log', 'socket')) + zygote.after_fork.reseeding():
        arguments = [zygote.ctypes.c_long(zygote.address(fds[argument] if argument in zygote.FORK else argument)) for argument in arguments]
        zygote.check(zygote.syscall(zygote.SYS[name], *arguments), name)
    zygote.watch_children(False)
    zygote.channel.detach()
    zygote.after_fork.mend()
    os._exit(instance.main(3, zygote.standard, True))
# The kernel reaps its children, and it waits until there are none.
zygote.signal.signal(zygote.signal.SIGCHLD, zygote.signal.SIG_IGN)
for number in range(5, 20):
    if number not in zygote.after_fork.taken and number != log:
        try:
            os.close(number)
        except OSError:
            pass
try:
    os.wait()
except ChildProcessError:
    os._exit(0)
";

/// Puts the descriptors where an instance expects them, and its directories where this test has them.
const DRIVER: &str = "
import os, sys
os.dup2(0, 3)
null = os.open('/dev/null', os.O_RDWR)
os.dup2(null, 0)
os.close(null)
sys.path.append(os.getcwd() + '/runtime')
import _sock_instance as instance
instance.TASK, instance.LAYERS, instance.PACKAGES = os.getcwd() + '/task', (), os.getcwd() + '/packages'
os.set_inheritable(3, False)
instance.settle()
os._exit(instance.main(3, instance.standard_path()))
";

/// Only a process that hangs takes this long.
const LIMIT: Duration = Duration::from_secs(60);

pub(crate) struct Instance {
    child: Child,
    pub(crate) socket: UnixStream,
    log: PipeReader,
    decoder: Decoder,
    /// Of the last invocation.
    pub(crate) nonce: Nonce,
    pub(crate) directory: TempDir,
}

impl Instance {
    /// One that has said hello, with `files` as its function's.
    pub(crate) fn start(files: &[(&str, &str)]) -> Self {
        let files: Vec<_> = files.iter().map(|(name, text)| (format!("task/{name}"), *text)).collect();
        Self::launch(tempfile::tempdir().unwrap(), DRIVER, &files)
    }

    /// One with `files` in the place of those of another one, which has ended.
    pub(crate) fn after(directory: TempDir, files: &[(&str, &str)]) -> Self {
        for name in ["packages", "runtime", "task"] {
            drop(fs::remove_dir_all(directory.path().join(name)));
        }
        let files: Vec<_> = files.iter().map(|(name, text)| (format!("task/{name}"), *text)).collect();
        Self::launch(directory, DRIVER, &files)
    }

    /// One that a zygote forked that has imported `modules` of `files`, each in `task` or `packages`; and the report.
    pub(crate) fn forked(modules: &[&str], files: &[(&str, &str)]) -> (Self, Facts) {
        let imports: Vec<_> =
            modules.iter().map(|module| Import { module: module.to_string(), names: vec![] }).collect();
        let imports = serde_json::to_string(&imports).unwrap();
        let mut files: Vec<_> = files.iter().map(|(name, text)| (name.to_string(), *text)).collect();
        files.push(("imports.json".into(), &imports));
        let instance = Self::launch(tempfile::tempdir().unwrap(), ZYGOTE, &files);
        let facts = fs::read(instance.directory.path().join("facts.json")).unwrap();
        (instance, serde_json::from_slice(&facts).unwrap())
    }

    fn launch(directory: TempDir, driver: &str, files: &[(String, &str)]) -> Self {
        for name in ["packages", "task"] {
            fs::create_dir(directory.path().join(name)).unwrap();
        }
        for (name, text) in files {
            let path = directory.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let (socket, theirs) = UnixStream::pair().unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        let (log, writer) = std::io::pipe().unwrap();
        fcntl(&log, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        let mut command = crate::command(directory.path());
        command.args(["-c", driver]).env("LEFT_OVER", "of the zygote");
        command.stdin(OwnedFd::from(theirs)).stdout(writer.try_clone().unwrap()).stderr(writer);
        let child = command.spawn().unwrap();
        // It holds the other ends.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut instance =
            Self { child, socket, log, decoder: Decoder::default(), nonce: [0; 16], directory };
        assert_eq!(instance.receive(), (Kind::Hello, Vec::new()));
        instance
    }

    /// One that has the module `app` with this source, and has loaded `app.handler`.
    pub(crate) fn of(source: &str) -> Self {
        let mut instance = Self::start(&[("app.py", source)]);
        let (kind, payload) = instance.init("app.handler", &[]);
        assert_eq!(kind, Kind::Ready, "{payload}");
        instance
    }

    pub(crate) fn init(&mut self, handler: &str, env: &[(&str, &str)]) -> (Kind, Value) {
        self.begin(handler, env, None);
        self.answer()
    }

    /// Has it load a handler of which an earlier instance had sent this; gives what it sends.
    pub(crate) fn init_known(&mut self, handler: &str, code: &[u8]) -> Vec<u8> {
        self.begin(handler, &[], Some(code));
        let (kind, payload) = self.receive();
        assert_eq!(kind, Kind::Ready, "{}", String::from_utf8_lossy(&payload));
        frames::with_code(&payload).unwrap().1.to_vec()
    }

    pub(crate) fn begin(&mut self, handler: &str, env: &[(&str, &str)], code: Option<&[u8]>) {
        let env: BTreeMap<_, _> =
            env.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        let function = FunctionInfo {
            name: "fn".into(),
            version: "7".into(),
            memory_mb: 256,
            log_group: "/aws/lambda/fn".into(),
            log_stream: "2024/[7]x".into(),
        };
        let init = Init { handler: handler.into(), env, function, tell: true, keep: code == Some(&[]) };
        self.send(Kind::Init, &frames::init(&init, code.unwrap_or_default()));
    }

    /// Sends an invocation with a minute to go.
    pub(crate) fn invoke(&mut self, event: &[u8]) {
        self.invoke_when(event, false);
    }

    /// The same, before the handler is there.
    pub(crate) fn invoke_early(&mut self, event: &[u8]) {
        self.invoke_when(event, true);
    }

    fn invoke_when(&mut self, event: &[u8], early: bool) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let deadline_ms = (now + Duration::from_secs(60)).as_millis() as u64;
        let header = InvokeHeader {
            request_id: "id-1".into(),
            deadline_ms,
            arn: "arn:fn".into(),
            client_context: None,
            early,
        };
        self.invoke_with(&header, event);
    }

    pub(crate) fn invoke_with(&mut self, header: &InvokeHeader, event: &[u8]) {
        self.nonce[0] += 1;
        self.send(Kind::Invoke, &frames::invoke(&self.nonce, header, event));
    }

    pub(crate) fn call(&mut self, event: &str) -> (Kind, Value) {
        self.invoke(event.as_bytes());
        self.answer()
    }

    pub(crate) fn send(&mut self, kind: Kind, payload: &[u8]) {
        self.socket.write_all(&frames::encode(kind, payload).unwrap()).unwrap();
    }

    /// The next frame, with this test's directory called `/var`; of an answer what follows the nonce.
    pub(crate) fn answer(&mut self) -> (Kind, Value) {
        let (kind, mut payload) = self.receive();
        if matches!(kind, Kind::Result | Kind::Error) {
            payload = frames::answer(&self.nonce, &payload).unwrap().to_vec();
        }
        if kind == Kind::Ready {
            payload = frames::with_code(&payload).unwrap().0.to_vec();
        }
        let text = String::from_utf8(payload).unwrap();
        let text = text.replace(self.directory.path().to_str().unwrap(), "/var");
        (kind, serde_json::from_str(&text).unwrap())
    }

    pub(crate) fn receive(&mut self) -> (Kind, Vec<u8>) {
        self.try_receive().unwrap_or_else(|| {
            let status = self.child.wait().unwrap();
            panic!("the process is gone: {status}; it said: {}", self.log())
        })
    }

    /// The next frame; `None` when the process has hung up.
    pub(crate) fn try_receive(&mut self) -> Option<(Kind, Vec<u8>)> {
        let mut buffer = vec![0; 1 << 16];
        loop {
            if let Some(frame) = self.decoder.next_frame().unwrap() {
                return Some(frame);
            }
            match self.socket.read(&mut buffer) {
                Ok(0) => return None,
                Ok(count) => self.decoder.push(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("{error}; it said: {}", self.log()),
            }
        }
    }

    /// What is in the log by now.
    pub(crate) fn log(&mut self) -> String {
        let (mut text, mut buffer) = (Vec::new(), [0; 4096]);
        loop {
            match self.log.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => text.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
        String::from_utf8(text).unwrap()
    }

    /// Hangs up and waits for the end: the exit code, and what the log held.
    pub(crate) fn end(mut self) -> (Option<i32>, String) {
        self.socket.shutdown(Shutdown::Both).unwrap();
        self.wait()
    }

    /// Ends it; gives its directory.
    pub(crate) fn leave(mut self) -> TempDir {
        std::mem::replace(&mut self.directory, tempfile::tempdir().unwrap())
    }

    /// Waits for the end.
    pub(crate) fn wait(&mut self) -> (Option<i32>, String) {
        let status = self.child.wait().unwrap();
        (status.code(), self.log())
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        // Ended already, unless a test failed.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// What one invocation of `app.handler` with `{}` answers.
pub(crate) fn once(source: &str) -> (Kind, Value) {
    Instance::of(source).call("{}")
}

#[test]
fn what_the_handlers_import_imported_is_told_but_for_its_own() {
    let files = [
        ("app.py", "import colorsys, own\ndef handler(event): return event\n"),
        ("own.py", "import more_of_its_own\n"),
        ("more_of_its_own.py", ""),
    ];
    let mut instance = Instance::start(&files);
    let (kind, payload) = instance.init("app.handler", &[]);
    assert_eq!((kind, &payload["imported"]), (Kind::Ready, &serde_json::json!(["colorsys"])));
}
