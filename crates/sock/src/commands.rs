//! One file a command, or a few small ones of a kind.

pub(crate) mod deploy;
pub(crate) mod functions;
pub(crate) mod invoke;
pub(crate) mod local;
pub(crate) mod logs;
pub(crate) mod report;
