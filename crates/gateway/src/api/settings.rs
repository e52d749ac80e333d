//! What a client may set of a function, and what of it is accepted.
//!
//! What this server cannot do is refused with a reason, never taken and ignored. The texts for values out of range are
//! those of Lambda.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;
use sock_pkgcache::Interpreter;

use super::configuration::ARCHITECTURE;
use super::error::ApiError;
use crate::deploy::{interpreter, runtime_name};
use crate::names::FunctionName;
use crate::registry::record::Config;

const MAX_ENV: usize = 4096;
const RESERVED: [&str; 14] = [
    "_HANDLER",
    "_X_AMZN_TRACE_ID",
    "AWS_DEFAULT_REGION",
    "AWS_EXECUTION_ENV",
    "AWS_LAMBDA_FUNCTION_MEMORY_SIZE",
    "AWS_LAMBDA_FUNCTION_NAME",
    "AWS_LAMBDA_FUNCTION_VERSION",
    "AWS_LAMBDA_INITIALIZATION_TYPE",
    "AWS_LAMBDA_LOG_GROUP_NAME",
    "AWS_LAMBDA_LOG_STREAM_NAME",
    "AWS_LAMBDA_RUNTIME_API",
    "AWS_REGION",
    "LAMBDA_RUNTIME_DIR",
    "LAMBDA_TASK_ROOT",
];

/// The members that CreateFunction and UpdateFunctionConfiguration have in common.
#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Settings {
    runtime: Option<String>,
    role: Option<String>,
    handler: Option<String>,
    description: Option<String>,
    timeout: Option<i64>,
    memory_size: Option<i64>,
    environment: Option<Environment>,
    ephemeral_storage: Option<EphemeralStorage>,
    tracing_config: Option<TracingConfig>,
    snap_start: Option<SnapStart>,
    logging_config: Option<LoggingConfig>,
    package_type: Option<String>,
    architectures: Option<Vec<String>>,
    vpc_config: Value,
    dead_letter_config: Value,
    layers: Value,
    file_system_configs: Value,
    image_config: Value,
    code_signing_config_arn: Value,
    #[serde(rename = "KMSKeyArn")]
    kms_key_arn: Value,
    tenancy_config: Value,
    capacity_provider_config: Value,
    durable_config: Value,
    accelerator_config: Value,
    runtime_config: Value,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Environment {
    #[serde(default)]
    variables: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct EphemeralStorage {
    size: i64,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct TracingConfig {
    mode: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SnapStart {
    apply_on: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct LoggingConfig {
    log_format: Option<String>,
    log_group: Option<String>,
}

impl Settings {
    /// Puts what is set into a configuration, checked.
    pub(super) fn apply(
        self,
        name: &FunctionName,
        config: &mut Config,
        interpreters: &[Interpreter],
    ) -> Result<(), ApiError> {
        self.refuse_unsupported(name)?;
        if let Some(runtime) = self.runtime {
            config.runtime = known_runtime(runtime, interpreters)?;
        }
        if let Some(role) = self.role {
            if !is_role(&role) {
                return Err(constraint(
                    &role,
                    "role",
                    r"Member must satisfy regular expression pattern: arn:(aws[a-zA-Z-]*)?:iam::\d{12}:role/?[a-zA-Z_0-9+=,.@\-_/]+",
                ));
            }
            config.role = role;
        }
        if let Some(handler) = self.handler {
            config.handler = well_formed_handler(handler)?;
        }
        if let Some(description) = self.description {
            if description.chars().count() > 256 {
                return Err(constraint(
                    &description,
                    "description",
                    "Member must have length less than or equal to 256",
                ));
            }
            config.description = description;
        }
        if let Some(timeout) = self.timeout {
            config.timeout = within(timeout, "timeout", 1, 900)?;
        }
        if let Some(memory) = self.memory_size {
            config.memory_mb = within(memory, "memorySize", 128, 10_240)?;
        }
        if let Some(storage) = self.ephemeral_storage {
            config.ephemeral_mb = within(storage.size, "ephemeralStorage.size", 512, 10_240)?;
            if config.ephemeral_mb != 512 {
                return Err(ApiError::invalid(
                    "EphemeralStorage is not supported by this server beyond 512 MB",
                ));
            }
        }
        if let Some(environment) = self.environment {
            config.env = checked_env(environment.variables)?;
        }
        if let Some(mode) = self.tracing_config.and_then(|tracing| tracing.mode) {
            config.tracing = one_of(mode, "tracingConfig.mode", &["Active", "PassThrough"])?;
            if config.tracing == "Active" {
                return Err(ApiError::invalid("TracingConfig Active is not supported by this server"));
            }
        }
        if let Some(apply_on) = self.snap_start.and_then(|snap_start| snap_start.apply_on) {
            config.snap_start = one_of(apply_on, "snapStart.applyOn", &["PublishedVersions", "None"])?;
            if config.snap_start != "None" {
                return Err(ApiError::invalid("SnapStart is not supported by this server"));
            }
        }
        Ok(())
    }

    fn refuse_unsupported(&self, name: &FunctionName) -> Result<(), ApiError> {
        let members = [
            ("VpcConfig", &self.vpc_config),
            ("DeadLetterConfig", &self.dead_letter_config),
            ("Layers", &self.layers),
            ("FileSystemConfigs", &self.file_system_configs),
            ("ImageConfig", &self.image_config),
            ("CodeSigningConfigArn", &self.code_signing_config_arn),
            ("KMSKeyArn", &self.kms_key_arn),
            ("TenancyConfig", &self.tenancy_config),
            ("CapacityProviderConfig", &self.capacity_provider_config),
            ("DurableConfig", &self.durable_config),
            ("AcceleratorConfig", &self.accelerator_config),
            ("RuntimeConfig", &self.runtime_config),
        ];
        refuse(&members)?;
        if self.package_type.as_deref().is_some_and(|kind| kind != "Zip") {
            return Err(ApiError::invalid(
                "PackageType Image is not supported by this server: deploy a zip file",
            ));
        }
        check_architectures(self.architectures.as_deref())?;
        let logging = self.logging_config.as_ref();
        if logging.and_then(|logging| logging.log_format.as_deref()).is_some_and(|format| format != "Text") {
            return Err(ApiError::invalid(
                "LoggingConfig.LogFormat JSON is not supported by this server: use Text",
            ));
        }
        let own = format!("/aws/lambda/{name}");
        match logging.and_then(|logging| logging.log_group.as_deref()) {
            Some(group) if group != own => Err(ApiError::invalid(format!(
                "LoggingConfig.LogGroup is not supported by this server: it is always {own}"
            ))),
            _ => Ok(()),
        }
    }
}

/// Refuses the first of these members that is set.
pub(super) fn refuse(members: &[(&str, &Value)]) -> Result<(), ApiError> {
    match members.iter().find(|(_, value)| says_something(value)) {
        Some((member, _)) => Err(unsupported(member)),
        None => Ok(()),
    }
}

/// An operation's switch, or a member, that this server does not have.
pub(super) fn unsupported(member: &str) -> ApiError {
    ApiError::invalid(format!("{member} is not supported by this server: leave it out"))
}

/// Checks the one architecture that a function may ask for.
pub(super) fn check_architectures(wanted: Option<&[String]>) -> Result<(), ApiError> {
    match wanted {
        None => Ok(()),
        Some([only]) if only == ARCHITECTURE => Ok(()),
        Some(_) => Err(ApiError::invalid(format!(
            "this server runs functions on {ARCHITECTURE} alone: leave Architectures out"
        ))),
    }
}

/// An empty list or object is the way in which some clients say nothing.
pub(super) fn says_something(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(values) => values.iter().any(says_something),
        Value::Object(members) => members.values().any(says_something),
        _ => true,
    }
}

fn known_runtime(runtime: String, interpreters: &[Interpreter]) -> Result<String, ApiError> {
    if interpreter(interpreters, &runtime).is_some() {
        return Ok(runtime);
    }
    let known: Vec<_> = interpreters.iter().map(runtime_name).collect();
    let shown: String = runtime.chars().take(80).collect();
    Err(ApiError::invalid(format!(
        "Value {shown} at 'runtime' failed to satisfy constraint: this server has [{}]; start it with --python to add an interpreter",
        known.join(", ")
    )))
}

fn well_formed_handler(handler: String) -> Result<String, ApiError> {
    let (module, function) = handler.rsplit_once('.').unwrap_or_default();
    let plain = handler.len() <= 128 && !handler.chars().any(|c| c.is_whitespace() || c.is_control());
    let inside = module.split(['/', '.']).all(|part| !part.is_empty());
    if plain && inside && !function.is_empty() && !function.contains('/') {
        return Ok(handler);
    }
    let shown: String = handler.chars().take(128).collect();
    Err(ApiError::invalid(format!(
        "Value '{shown}' at 'handler' failed to satisfy constraint: write module.function, at most 128 characters without spaces"
    )))
}

fn checked_env(variables: BTreeMap<String, String>) -> Result<BTreeMap<String, String>, ApiError> {
    let reserved: Vec<_> =
        variables.keys().map(String::as_str).filter(|name| RESERVED.contains(name)).collect();
    if !reserved.is_empty() {
        return Err(ApiError::invalid(format!(
            "Lambda was unable to configure your environment variables because the environment variables you have provided contains reserved keys that are currently not supported for modification. Reserved keys used in this request: {}",
            reserved.join(", ")
        )));
    }
    let letter_first = |name: &str| name.starts_with(|c: char| c.is_ascii_alphabetic()) && name.len() > 1;
    let word = |name: &str| name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if let Some(name) = variables.keys().find(|name| !letter_first(name) || !word(name)) {
        let shown: String = name.chars().take(80).collect();
        return Err(constraint(
            &shown,
            "environment.variables",
            "Map keys must satisfy constraint: [Member must satisfy regular expression pattern: [a-zA-Z]([a-zA-Z0-9_])+]",
        ));
    }
    if let Some((name, _)) = variables.iter().find(|(_, value)| value.contains('\0')) {
        return Err(ApiError::invalid(format!(
            "the value of the environment variable {name} contains a NUL"
        )));
    }
    let size: usize = variables.iter().map(|(name, value)| name.len() + value.len()).sum();
    if size > MAX_ENV {
        return Err(ApiError::invalid(
            "Lambda was unable to configure your environment variables because the environment variables you have provided exceeded the 4KB limit.",
        ));
    }
    Ok(variables)
}

fn is_role(role: &str) -> bool {
    let parts: Vec<&str> = role.splitn(6, ':').collect();
    let ["arn", partition, "iam", "", account, resource] = parts.as_slice() else { return false };
    let name = resource.strip_prefix("role").unwrap_or_default();
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_+=,.@-/".contains(c);
    (partition.is_empty() || partition.starts_with("aws"))
        && account.len() == 12
        && account.bytes().all(|b| b.is_ascii_digit())
        && role.len() <= 10_000
        && !name.is_empty()
        && name.chars().all(allowed)
}

fn within(value: i64, member: &str, least: u32, most: u32) -> Result<u32, ApiError> {
    match u32::try_from(value) {
        Ok(fits) if (least..=most).contains(&fits) => Ok(fits),
        _ if value < i64::from(least) => Err(constraint(
            &value.to_string(),
            member,
            &format!("Member must have value greater than or equal to {least}"),
        )),
        _ => Err(constraint(
            &value.to_string(),
            member,
            &format!("Member must have value less than or equal to {most}"),
        )),
    }
}

fn one_of(value: String, member: &str, allowed: &[&str]) -> Result<String, ApiError> {
    if allowed.contains(&value.as_str()) {
        return Ok(value);
    }
    let set = format!("Member must satisfy enum value set: [{}]", allowed.join(", "));
    Err(constraint(&value.chars().take(80).collect::<String>(), member, &set))
}

fn constraint(value: &str, member: &str, constraint: &str) -> ApiError {
    let value: String = value.chars().take(300).collect();
    ApiError::invalid(format!(
        "1 validation error detected: Value '{value}' at '{member}' failed to satisfy constraint: {constraint}"
    ))
}
