//! Which of several wheels that fit is the best one.
//!
//! uv lists every wheel of the chosen version that fits the interpreter, and pip's rule picks among them: the most specific Python and ABI
//! first, then the newest platform baseline, then the higher build number.

/// Ranks a wheel's file name for an interpreter tag; `None` for one that cannot be installed on Linux with glibc.
pub(super) fn rank(filename: &str, tag: &str) -> Option<Rank> {
    let mut parts = filename.strip_suffix(".whl")?.rsplitn(4, '-');
    let (platforms, abis, pythons, rest) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    // name-version, or name-version-build
    let build = rest.splitn(3, '-').nth(2).unwrap_or_default();
    let digits = build.find(|c: char| !c.is_ascii_digit()).unwrap_or(build.len());
    Some(Rank {
        abi: abis.split('.').filter_map(|abi| rank_abi(abi, tag)).max()?,
        python: pythons.split('.').filter_map(|python| rank_python(python, tag)).max()?,
        platform: platforms.split('.').filter_map(rank_platform).max()?,
        build: (build[..digits].parse().unwrap_or(0), build[digits..].to_string()),
    })
}

/// Compared field by field.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    abi: u8,
    python: u32,
    platform: u32,
    build: (u64, String),
}

fn rank_abi(abi: &str, tag: &str) -> Option<u8> {
    match abi {
        abi if abi == tag => Some(2),
        "abi3" => Some(1),
        "none" => Some(0),
        _ => None,
    }
}

/// `cp311` before `cp310` (with abi3), before `py311`, before `py3`.
fn rank_python(python: &str, tag: &str) -> Option<u32> {
    let version = |text: &str| text.trim_end_matches('t').parse::<u32>().ok();
    // "39" is older than "310": the digit after the 3 is the minor version.
    let minor = |digits: &str| digits.strip_prefix('3').and_then(|rest| version(rest).or(Some(0)));
    let own = minor(tag.strip_prefix("cp")?)?;
    if let Some(digits) = python.strip_prefix("cp") {
        return minor(digits).filter(|minor| *minor <= own).map(|minor| 10_000 + minor);
    }
    minor(python.strip_prefix("py")?).filter(|minor| *minor <= own)
}

fn rank_platform(platform: &str) -> Option<u32> {
    if platform == "any" {
        return Some(0);
    }
    if let Some(rest) = platform.strip_prefix("manylinux_") {
        let mut parts = rest.splitn(3, '_');
        let (major, minor) = (parts.next()?.parse::<u32>().ok()?, parts.next()?.parse::<u32>().ok()?);
        return Some(2 + major * 1000 + minor);
    }
    // The old names for glibc 2.5, 2.12 and 2.17.
    for (old, minor) in [("manylinux1_", 5), ("manylinux2010_", 12), ("manylinux2014_", 17)] {
        if platform.starts_with(old) {
            return Some(2002 + minor);
        }
    }
    platform.starts_with("linux_").then_some(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_specific_wheel_wins() {
        let best_first = [
            "x-1-cp311-cp311-manylinux_2_34_x86_64.whl",
            "x-1-cp311-cp311-manylinux2014_x86_64.manylinux_2_17_x86_64.manylinux_2_28_x86_64.whl",
            "x-1-2-cp311-cp311-manylinux2014_x86_64.whl",
            "x-1-1a-cp311-cp311-manylinux2014_x86_64.whl",
            "x-1-cp311-cp311-manylinux2014_x86_64.whl",
            "x-1-cp311-cp311-linux_x86_64.whl",
            "x-1-cp311-abi3-manylinux_2_28_x86_64.whl",
            "x-1-cp39-abi3-manylinux_2_34_x86_64.whl",
            "x-1-py3-none-manylinux_2_28_x86_64.whl",
            "x-1-py2.py3-none-any.whl",
        ];
        let ranks: Vec<_> = best_first.iter().map(|name| rank(name, "cp311").unwrap()).collect();
        for (index, pair) in ranks.windows(2).enumerate() {
            assert!(pair[0] > pair[1], "{} must come before {}", best_first[index], best_first[index + 1]);
        }
    }

    #[test]
    fn what_does_not_fit_has_no_rank() {
        for name in [
            "x-1-cp312-cp312-manylinux_2_28_x86_64.whl",
            "x-1-cp312-abi3-manylinux_2_28_x86_64.whl",
            "x-1-cp311-cp311-musllinux_1_2_x86_64.whl",
            "x-1-cp311-cp311-win_amd64.whl",
            "x-1-py2-none-any.whl",
            "x-1.tar.gz",
            "x.whl",
        ] {
            assert_eq!(rank(name, "cp311"), None, "{name}");
        }
    }
}
