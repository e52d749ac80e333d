//! The crate from outside: its HTTP server on loopback, with a fake behind [`sock_gateway::Runner`], so that no test needs
//! privilege, containers or a network. Only `boto3` installs that client once, with pip.
#![allow(clippy::unwrap_used, reason = "a test's panic is its report")]

mod boto3;
mod concurrency;
mod connections;
mod deploying;
mod events;
mod fake;
mod functions;
mod http;
mod invoking;
mod refusals;
mod restarts;
mod server;
mod signing;
mod tags;
mod transcript;
