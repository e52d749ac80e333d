//! The `sock` command line.
fn main() {}
