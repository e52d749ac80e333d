//! Bundles: the zip files that functions are deployed from.
//!
//! Bytes: see [`crate::archive`].
//!
//! * Nothing is ever written outside the target, and nothing but files and directories into it, whether the bundle is accepted
//!   or not.
//! * No more bytes, files and directories than allowed are written, whatever the archive states.
//! * The file system has no objection: what could not be written is refused before.

use sock_gateway::fuzzing::unpack_bundle;
use sock_gateway::{BundleError, BundleLimits};

use crate::archive;
use crate::ground::{Bounds, Ground};

const LIMITS: BundleLimits =
    BundleLimits { zip_bytes: 1 << 20, unpacked_bytes: 8 << 10, entries: 32, path_bytes: 64 };

/// See the module.
pub fn run(bytes: &[u8]) {
    let ground = Ground::new();
    let unpacked = unpack_bundle(&archive::of(bytes), &ground.target(), &LIMITS);
    let files = ground.check(&Bounds {
        bytes: LIMITS.unpacked_bytes,
        entries: LIMITS.entries,
        path_bytes: LIMITS.path_bytes,
    });
    match unpacked {
        Ok(count) => assert!(count == files.len() && count > 0, "{count} of {} files", files.len()),
        Err(error @ BundleError::Write { .. }) => panic!("{error}: {:?}", std::error::Error::source(&error)),
        Err(error) => assert!(error.to_string().len() < 4096, "a refusal that nobody reads"),
    }
}
