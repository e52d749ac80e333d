//! `sock list`, `show`, `delete` and `env`.

use std::process::ExitCode;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::client::segment;
use crate::{OfFunction, Reading, show};

pub(crate) fn list(options: &Reading) -> Result<ExitCode> {
    let client = options.server.connect()?;
    let (mut functions, mut marker) = (Vec::new(), None::<String>);
    loop {
        let query = marker.map(|marker| format!("?Marker={}", segment(&marker))).unwrap_or_default();
        let page = client.get(&format!("/2015-03-31/functions{query}"))?;
        functions.extend(page["Functions"].as_array().cloned().unwrap_or_default());
        marker = page["NextMarker"].as_str().filter(|marker| !marker.is_empty()).map(str::to_owned);
        if marker.is_none() {
            break;
        }
    }
    if options.json {
        show::json(&Value::from(functions));
        return Ok(ExitCode::SUCCESS);
    }
    let rows = functions.iter().map(|function| {
        ["FunctionName", "State", "Runtime", "Handler", "MemorySize", "Timeout", "LastModified"]
            .map(|key| show::plain(&function[key]))
    });
    show::table(["NAME", "STATE", "RUNTIME", "HANDLER", "MB", "S", "MODIFIED"], rows);
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn show(options: &OfFunction) -> Result<ExitCode> {
    let client = options.reading.server.connect()?;
    let function = client.get(&format!("/2015-03-31/functions/{}", segment(&options.name)))?;
    if options.reading.json {
        show::json(&function);
        return Ok(ExitCode::SUCCESS);
    }
    let configuration = function["Configuration"].as_object().cloned().unwrap_or_default();
    let width = configuration.keys().map(String::len).max().unwrap_or(0);
    for (name, value) in &configuration {
        if name == "Environment" {
            // Values may be secrets: --json prints them to whoever asks for that.
            let names =
                value["Variables"].as_object().map(|variables| variables.keys().cloned().collect::<Vec<_>>());
            crate::say!("{name:width$}  {}", names.unwrap_or_default().join(", "));
        } else {
            crate::say!("{name:width$}  {}", show::plain(value));
        }
    }
    // What `sock deploy` was told beside what Lambda has settings for: sock:profile, sock:tenant and the like.
    for (name, value) in function["Tags"].as_object().into_iter().flatten() {
        crate::say!("{name:width$}  {}", show::plain(value));
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn delete(options: &OfFunction) -> Result<ExitCode> {
    let client = options.reading.server.connect()?;
    let target = format!("/2015-03-31/functions/{}", segment(&options.name));
    client.call("DELETE", &target, &[], &[])?.success()?;
    if options.reading.json {
        show::json(&json!({ "deleted": options.name }));
    } else {
        crate::say!("{} is deleted", options.name);
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn env(options: &Reading) -> Result<ExitCode> {
    let key =
        options.server.key()?.context("there is no key yet: start sock serve, or name its --data-dir")?;
    let endpoint = options.server.endpoint();
    let variables = [
        ("AWS_ENDPOINT_URL_LAMBDA", &*endpoint),
        ("AWS_ACCESS_KEY_ID", &key.id),
        ("AWS_SECRET_ACCESS_KEY", &key.secret),
        ("AWS_REGION", "us-east-1"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
        ("SOCK_ENDPOINT", &*endpoint),
    ];
    if options.json {
        show::json(
            &variables.iter().map(|(name, value)| ((*name).to_owned(), Value::from(*value))).collect(),
        );
    } else {
        for (name, value) in variables {
            // For a shell, whatever is in it.
            crate::say!("export {name}='{}'", value.replace('\'', r"'\''"));
        }
    }
    Ok(ExitCode::SUCCESS)
}
