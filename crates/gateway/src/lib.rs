//! gateway
mod engine;
mod gateway;
pub mod runner;
mod supervisor;
