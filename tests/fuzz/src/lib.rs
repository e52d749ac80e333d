//! Fuzz targets: what every parser of outside input promises, as functions of arbitrary bytes.
//!
//! A target takes bytes and panics where a promise does not hold: "does not panic" is the least of them. Each has
//! a module, which says what its bytes mean; a program in `src/bin` with which `cargo xtask fuzz` looks for bytes that break
//! it; and a corpus in `corpus/<target>`, bytes of every kind that made a difference, which `cargo nextest run` replays
//! on every build. What once broke something is kept there under a name that says what.
//!
//! No target reads or writes outside a directory of its own that is gone afterwards, and none needs a privilege.

pub mod archive;
mod ground;

pub mod bundle;
pub mod frames;
pub mod launcher;
pub mod record;
pub mod requirements;
pub mod signature;
pub mod wheel;

/// A target.
pub type Target = fn(&[u8]);

/// All targets, by the names of their corpora and programs.
pub const TARGETS: [(&str, Target); 7] = [
    ("bundle", bundle::run),
    ("frames", frames::run),
    ("launcher", launcher::run),
    ("record", record::run),
    ("requirements", requirements::run),
    ("signature", signature::run),
    ("wheel", wheel::run),
];

/// The program of a target. Built with libFuzzer it fuzzes; built without, it does nothing.
#[macro_export]
macro_rules! target {
    ($name:ident) => {
        #[cfg(fuzzing)]
        libfuzzer_sys::fuzz_target!(|bytes: &[u8]| $crate::$name::run(bytes));

        #[cfg(not(fuzzing))]
        fn main() {}
    };
}
