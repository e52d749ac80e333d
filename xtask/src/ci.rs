//! `cargo xtask ci`: what has to pass before a change lands.

use anyhow::Result;

pub(crate) fn run() -> Result<()> {
    crate::check::run()?;
    crate::test::run(&[])
}
