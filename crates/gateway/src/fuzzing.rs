//! What fuzz targets reach that nobody else may. Not part of the crate's interface.

use std::path::Path;

use crate::bundle::{self, BundleError, BundleLimits};

/// Unpacks a bundle into an empty directory, as a deploy does; gives the number of files.
pub fn unpack_bundle(zip: &[u8], into: &Path, limits: &BundleLimits) -> Result<usize, BundleError> {
    bundle::unpack(zip, into, limits)
}
