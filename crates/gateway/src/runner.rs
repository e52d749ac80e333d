//! temp
#![allow(missing_docs)]
use bytes::Bytes;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FunctionName(pub String);
impl std::fmt::Display for FunctionName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
#[derive(Debug, Clone)]
pub struct Function {
    pub name: FunctionName,
    pub arn: String,
    pub version: String,
    pub handler: String,
    pub runtime: String,
    pub memory_mb: u32,
    pub timeout: Duration,
    pub env: BTreeMap<String, String>,
    pub code_sha256: String,
    pub code_dir: PathBuf,
    pub view: Option<sock_pkgcache::View>,
    pub fresh: bool,
    pub revision: String,
}
#[derive(Debug)]
pub struct Invocation {
    pub request_id: String,
    pub event: Bytes,
    pub received: Instant,
    pub client_context: Option<String>,
}
#[derive(Debug)]
pub struct Outcome {
    pub result: InvocationResult,
    pub start: StartKind,
    pub phases: Phases,
    pub log: Vec<u8>,
    pub log_truncated: u64,
    pub max_memory_mb: u32,
}
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartKind {
    Warm,
    Zygote,
    Cold,
}
#[derive(Debug, Default, Clone, Copy)]
pub struct Phases {
    pub queue: Duration,
    pub provision: Duration,
    pub init: Duration,
    pub handler: Duration,
}
#[derive(Debug)]
pub enum InvocationResult {
    Ok(Bytes),
    HandlerError(Bytes),
    Timeout,
    Exited { reason: String },
    OutOfMemory,
    Platform(String),
}
pub type BoxFuture<'a, T> = std::pin::Pin<Box<dyn Future<Output = T> + Send + 'a>>;
use std::sync::Arc;
pub trait Runner: Send + Sync + 'static {
    fn prepare(&self, f: Arc<Function>) -> BoxFuture<'_, Result<(), String>>;
    fn invoke(&self, f: Arc<Function>, i: Invocation) -> BoxFuture<'_, Outcome>;
    fn retire(&self, name: &FunctionName);
}
