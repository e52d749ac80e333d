//! A Landlock domain around everything that runs in a container: a second wall behind the mount namespace.
//!
//! The domain is one rule, "whatever is beneath the root that containers share". Within the container it changes nothing: what
//! may be written is the mounts' and the owners' business. But a file that is reached past them, by a descriptor of a
//! directory that should never have got in, say, is beneath no such root, and is refused. A domain cannot be left, and a
//! process that is forked inherits it: a zygote's children have it whether they are honest or not.
//!
//! From Linux 6.12 on it also keeps signals and abstract sockets within the domain. Kernels without Landlock go without; see
//! landlock(7) and the kernel's Documentation/userspace-api/landlock.rst.

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

use crate::error::{Context, SysResult};
use crate::sys;

/// LANDLOCK_ACCESS_FS_*: what a rule may allow, by the version of the interface that knows it first.
const FILES: [(i32, u64); 4] = [(1, (1 << 13) - 1), (2, 1 << 13), (3, 1 << 14), (5, 1 << 15)];

/// LANDLOCK_ACCESS_FS_MAKE_CHAR and LANDLOCK_ACCESS_FS_MAKE_BLOCK: nobody inside has a use for a new device.
const DEVICES: u64 = 1 << 6 | 1 << 11;

/// LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET and LANDLOCK_SCOPE_SIGNAL, from version 6 on.
const SCOPES: (i32, u64) = (6, 0b11);

/// The version of the running kernel's interface; `None` where there is none, or it is switched off.
pub fn version() -> Option<i32> {
    sys::landlock_version().ok().filter(|version| *version > 0)
}

/// What a kernel with this version of the interface can be told: `(file accesses, of them allowed, scopes)`.
fn access(version: i32) -> (u64, u64, u64) {
    let known = |(first, bits): (i32, u64)| if version >= first { bits } else { 0 };
    let files = FILES.into_iter().map(known).sum();
    (files, files & !DEVICES, known(SCOPES))
}

/// Puts the calling process, and all that it will fork, into a new domain around its root.
pub(crate) fn enter() -> SysResult<()> {
    let Some(version) = version() else { return Ok(()) };
    let (files, allowed, scopes) = access(version);
    let ruleset = sys::landlock_ruleset(files, scopes).call("landlock_create_ruleset")?;
    let root = open("/", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).call_on("open", "/")?;
    sys::landlock_allow_beneath(&ruleset, &root, allowed).call("landlock_add_rule")?;
    sys::landlock_restrict(&ruleset).call("landlock_restrict_self")
}

#[cfg(test)]
mod tests {
    use super::access;

    /// What the kernel is not told it knows, it refuses.
    #[test]
    fn a_kernel_is_asked_for_what_it_knows() {
        assert_eq!(access(1), (0x1fff, 0x1fff & !super::DEVICES, 0));
        assert_eq!(access(2).0, 0x3fff);
        assert_eq!((access(4).0, access(4).2), (0x7fff, 0));
        assert_eq!((access(7).0, access(7).2), (0xffff, 0b11));
    }
}
