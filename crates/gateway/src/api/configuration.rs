//! `FunctionConfiguration`: a function as the API shows it.

use serde_json::{Map, Value, json};

use super::Call;
use crate::deploy::{interpreter, runtime_name};
use crate::names::LATEST;
use crate::registry::Entry;
use crate::registry::record::{Record, Status};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// The instruction set that functions run on, in the API's words.
pub(super) const ARCHITECTURE: &str = if cfg!(target_arch = "aarch64") { "arm64" } else { "x86_64" };

/// The configuration of a function, under its qualified ARN if the client named the version.
pub(super) fn of(call: &Call, entry: &Entry, qualifier: Option<&str>) -> Value {
    let record = &entry.record;
    let config = &record.wanted.config;
    let realm = call.gateway.registry.realm();
    let arn = realm.arn(&record.name);
    let mut shown = json!({
        "FunctionName": record.name,
        "FunctionArn": match qualifier { Some(qualifier) => format!("{arn}:{qualifier}"), None => arn },
        "Runtime": config.runtime,
        "Role": config.role,
        "Handler": config.handler,
        "CodeSize": record.wanted.code.size,
        "Description": config.description,
        "Timeout": config.timeout,
        "MemorySize": config.memory_mb,
        "LastModified": record.modified,
        "CodeSha256": STANDARD.encode(hex::decode(&record.wanted.code.sha256).unwrap_or_default()),
        "Version": LATEST,
        "TracingConfig": { "Mode": config.tracing },
        "RevisionId": record.wanted.revision,
        "PackageType": "Zip",
        "Architectures": [ARCHITECTURE],
        "EphemeralStorage": { "Size": config.ephemeral_mb },
        "SnapStart": { "ApplyOn": config.snap_start, "OptimizationStatus": "Off" },
        "LoggingConfig": { "LogFormat": "Text", "LogGroup": format!("/aws/lambda/{}", record.name) },
    });
    if let Some(shown) = shown.as_object_mut() {
        if !config.env.is_empty() {
            shown.insert("Environment".into(), json!({ "Variables": config.env }));
        }
        if let Some(python) = interpreter(&call.gateway.config.interpreters, &config.runtime) {
            let version = format!("{}.{}", runtime_name(python), python.version.2);
            let arn = format!("arn:aws:lambda:{}::runtime:{version}", realm.region);
            shown.insert("RuntimeVersionConfig".into(), json!({ "RuntimeVersionArn": arn }));
        }
        state(call, record, shown);
    }
    shown
}

/// What waiters poll. While the first deployment runs, its progress is the reason.
fn state(call: &Call, record: &Record, shown: &mut Map<String, Value>) {
    let mut put = |name: &str, value: &str| shown.insert(name.into(), Value::from(value));
    let progress = || call.gateway.progress(&record.name);
    let active = record.live.is_some();
    match &record.status {
        Status::Ready => {
            put("State", "Active");
            put("LastUpdateStatus", "Successful");
        }
        Status::Deploying => {
            put("State", if active { "Active" } else { "Pending" });
            put("LastUpdateStatus", "InProgress");
            if active {
                let reason = progress().unwrap_or_else(|| "The function is being updated.".into());
                put("LastUpdateStatusReason", &reason);
            } else {
                let reason = progress().unwrap_or_else(|| "The function is being created.".into());
                put("StateReason", &reason);
                put("StateReasonCode", "Creating");
            }
        }
        Status::Failed(failure) => {
            put("State", if active { "Active" } else { "Failed" });
            if !active {
                put("StateReason", &failure.reason);
                put("StateReasonCode", &failure.code);
            }
            put("LastUpdateStatus", "Failed");
            put("LastUpdateStatusReason", &failure.reason);
            put("LastUpdateStatusReasonCode", &failure.code);
        }
    }
}
