//! The client that most callers use, unchanged: `boto3_client.py` talks to the server, checks every answer against the
//! service model that comes with the client, and prints what it found.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::server::{Server, key};
use crate::transcript::Transcript;

/// One version, so that the test says the same tomorrow.
const BOTO3: &str = "boto3==1.44.5";

/// A virtual environment with the client, made once per target directory.
fn python_with_boto3() -> PathBuf {
    let home = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (venv, made) = (home.join("boto3"), home.join("boto3.made"));
    let lock = File::create(home.join("boto3.lock")).unwrap();
    lock.lock().unwrap();
    let python = venv.join("bin/python");
    if fs::read_to_string(&made).is_ok_and(|text| text == BOTO3) && python.exists() {
        return python;
    }
    succeed(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv));
    succeed(Command::new(&python).args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        BOTO3,
    ]));
    fs::write(&made, BOTO3).unwrap();
    python
}

/// Runs a command to its end and gives what it printed.
fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("failed to start {command:?}: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{command:?} failed with {}:\n{out}\n{err}", output.status);
    out
}

#[test]
fn boto3_gets_along_with_the_server() {
    let python = python_with_boto3();
    let server = Server::start();
    let key = key();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/boto3_client.py");
    let printed = succeed(
        Command::new(python)
            .arg("-I")
            .arg(script)
            .env_clear()
            .env("AWS_ACCESS_KEY_ID", &key.id)
            .env("AWS_SECRET_ACCESS_KEY", &key.secret)
            .env("AWS_DEFAULT_REGION", "us-east-1")
            .env("AWS_ENDPOINT_URL_LAMBDA", format!("http://{}", server.address))
            .env("AWS_CONFIG_FILE", "/dev/null")
            .env("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
            .env("AWS_EC2_METADATA_DISABLED", "true"),
    );
    Transcript::of(&server, &printed).check("boto3");
}
