//! temp
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use crate::supervisor::ServeOptions;
pub(crate) fn run(options: &ServeOptions, listener: TcpListener, socket: OwnedFd) -> Result<(), String> { Ok(()) }
