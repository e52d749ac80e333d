//! Packages, functions and when those are started, made up from a seed.
//!
//! Popularity is as the SOCK paper (USENIX ATC 2018) found it: 36 % of imports go to 0.02 % of the packages, which is Zipf's
//! law with an exponent of 1.05. Functions import a few packages, those import others; most locks
//! have the newest version. Starts follow Zipf's law over functions, each of which has bursts.

use std::collections::BTreeSet;

use sock_zygote::Import;
use sock_zygote::tree::{Cost, Module, NodeSpec, Origin, Want, Wheel, Wheels};

pub(super) const RUNTIME: &str = "python3.12";

const PACKAGES: usize = 100_000;
const EXPONENT: f64 = 1.05;

/// Modules of the standard library that functions import and the runtime does not, and how many of them one imports at most.
const STANDARD: usize = 20;
const STANDARD_EACH: usize = 4;

/// Starts a second, of all functions, and seconds that a burst and a pause take in the mean.
const STARTS: f64 = 2.0;
const BURST: f64 = 120.0;
const PAUSE: f64 = 480.0;

#[derive(Debug, Clone, Copy)]
pub(super) struct Options {
    pub(super) functions: usize,
    pub(super) seconds: usize,
    /// Megabytes.
    pub(super) budget: u64,
    pub(super) seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { functions: 100, seconds: 3600, budget: 512, seed: 1 }
    }
}

pub(super) struct World {
    pub(super) options: Options,
    pub(super) functions: Vec<Function>,
    /// Seconds and functions, in order.
    pub(super) starts: Vec<(f64, usize)>,
}

pub(super) struct Function {
    /// With all that it really imports.
    pub(super) want: Want,
}

impl Function {
    pub(super) fn modules(&self) -> BTreeSet<Module> {
        self.want.imported()
    }

    /// What is known of it when it has not run yet: the names that its sources import.
    pub(super) fn as_deployed(&self) -> Want {
        let mut want = self.want.clone();
        let named: BTreeSet<&String> = self.want.imports.iter().map(|import| &import.module).collect();
        want.modules.retain(|module, _| named.contains(module));
        want.requires.clear();
        want
    }
}

impl World {
    pub(super) fn new(options: Options) -> Self {
        let mut random = Random(options.seed);
        let popularity = Zipf::new(PACKAGES, EXPONENT);
        let world = Self { options, functions: Vec::new(), starts: Vec::new() };
        let functions = (0..options.functions).map(|_| world.function(&popularity, &mut random)).collect();
        let starts = starts(options, &mut random);
        Self { functions, starts, ..world }
    }

    fn function(&self, popularity: &Zipf, random: &mut Random) -> Function {
        let mut want = Want { runtime: RUNTIME.to_owned(), ..Want::default() };
        let direct: BTreeSet<usize> = (0..random.below(5)).map(|_| popularity.draw(random)).collect();
        let standard: BTreeSet<usize> =
            (0..random.below(STANDARD_EACH + 1)).map(|_| random.below(STANDARD)).collect();
        let import = |module: String| Import { module, names: Vec::new() };
        want.imports.extend(standard.iter().map(|number| import(standard_module(*number))));
        want.imports.extend(direct.iter().map(|package| import(name(*package))));
        want.modules.extend(standard.iter().map(|number| (standard_module(*number), None)));
        let mut pending: Vec<usize> = direct.into_iter().collect();
        while let Some(package) = pending.pop() {
            let version = usize::from(random.unit() < 0.15);
            if want.lock.contains_key(&name(package)) {
                continue;
            }
            want.lock.insert(name(package), wheel(version));
            want.modules
                .extend(self.modules(package).into_iter().map(|module| (module, Some(name(package)))));
            let requirements = self.requirements(package);
            want.requires.insert(name(package), requirements.iter().map(|other| name(*other)).collect());
            pending.extend(requirements);
        }
        Function { want }
    }

    fn random(&self, package: usize, salt: u64) -> Random {
        let mut random = Random(self.options.seed ^ (package as u64) << 20 ^ salt << 50);
        random.next();
        random
    }

    /// More popular ones, so that there are no cycles.
    fn requirements(&self, package: usize) -> BTreeSet<usize> {
        let mut random = self.random(package, 1);
        let count = random.below(4);
        // As Zipf's law for an exponent of one: evenly by the logarithm.
        let draw = |_| ((package as f64 + 1.0).powf(random.unit()) as usize).saturating_sub(1);
        (0..count).map(draw).filter(|other| *other < package).collect()
    }

    /// The package's own modules, itself first.
    fn modules(&self, package: usize) -> Vec<String> {
        let submodules = self.random(package, 2).below(5);
        let submodule = |number| format!("{}.module{number}", name(package));
        [name(package)].into_iter().chain((0..submodules).map(submodule)).collect()
    }

    /// What importing `module` really costs, by itself.
    pub(super) fn cost(&self, module: &Module) -> Cost {
        let package = module.origin.as_ref().and_then(|origin| number(&origin.distribution));
        let Some(package) = package else { return Cost { micros: 2_000.0, bytes: 200_000.0 } };
        let mut random = self.random(package, 3);
        // Half of them take less than 10 ms, one of a hundred more than 150 ms; numpy and pandas have 200 bytes for each µs.
        let micros = (10_000.0 * (1.2 * random.normal()).exp()).min(600_000.0);
        let bytes = micros * 150.0 * (0.5 * random.normal()).exp();
        let share = self.modules(package).len() as f64;
        Cost { micros: micros / share, bytes: bytes / share }
    }

    /// As a recorder on a busy machine measures it.
    pub(super) fn measured(&self, module: &Module) -> Cost {
        let mut random = Random(self.options.seed);
        for byte in module.name.bytes() {
            random.0 = random.next() ^ u64::from(byte);
        }
        let Cost { micros, bytes } = self.cost(module);
        Cost { micros: micros * (0.8 + 0.4 * random.unit()), bytes: bytes * (0.8 + 0.4 * random.unit()) }
    }

    /// What a zygote imports that is told to import `spec`'s list, and the distributions that it looks for in vain. A package whose
    /// requirements are not all there fails.
    pub(super) fn import(&self, spec: &NodeSpec) -> (BTreeSet<Module>, BTreeSet<String>) {
        let (mut modules, mut missed) = (BTreeSet::new(), BTreeSet::new());
        for Import { module, .. } in &spec.imports {
            match number(module) {
                Some(package) => {
                    self.import_package(package, &spec.lock, (&mut modules, &mut missed));
                }
                None => {
                    modules.insert(Module { origin: None, name: module.clone() });
                }
            }
        }
        (modules, missed)
    }

    fn import_package(
        &self,
        package: usize,
        lock: &Wheels,
        (modules, missed): (&mut BTreeSet<Module>, &mut BTreeSet<String>),
    ) -> bool {
        let Some(wheel) = lock.get(&name(package)) else {
            missed.insert(name(package));
            return false;
        };
        for requirement in self.requirements(package) {
            if !self.import_package(requirement, lock, (&mut *modules, &mut *missed)) {
                return false;
            }
        }
        let origin = Origin { distribution: name(package), sha256: wheel.sha256.clone() };
        let module = |name| Module { origin: Some(origin.clone()), name };
        modules.extend(self.modules(package).into_iter().map(module));
        true
    }
}

/// Each function starts in bursts, and more often in the mean the lower its number.
fn starts(options: Options, random: &mut Random) -> Vec<(f64, usize)> {
    let weight = |function: usize| 1.0 / (function as f64 + 1.0);
    let all: f64 = (0..options.functions).map(weight).sum();
    let end = options.seconds as f64;
    let mut starts = Vec::new();
    for function in 0..options.functions {
        let rate = STARTS * weight(function) / all * (BURST + PAUSE) / BURST;
        let mut now = random.exponential(PAUSE) - random.exponential(BURST);
        while now < end {
            let pause = now + random.exponential(BURST);
            now += random.exponential(1.0 / rate);
            while now < pause.min(end) {
                if now >= 0.0 {
                    starts.push((now, function));
                }
                now += random.exponential(1.0 / rate);
            }
            now = pause + random.exponential(PAUSE);
        }
    }
    starts.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    starts
}

fn name(package: usize) -> String {
    format!("package{package}")
}

fn standard_module(number: usize) -> String {
    format!("standard{number}")
}

/// Of a package, by its name.
fn number(name: &str) -> Option<usize> {
    name.strip_prefix("package")?.parse().ok()
}

fn wheel(version: usize) -> Wheel {
    Wheel { version: version.to_string(), sha256: format!("{version:064}") }
}

struct Zipf(Vec<f64>);

impl Zipf {
    fn new(count: usize, exponent: f64) -> Self {
        let weights = (1..=count).map(|rank| (rank as f64).powf(-exponent));
        let sums = weights.scan(0.0, |sum, weight| {
            *sum += weight;
            Some(*sum)
        });
        Self(sums.collect())
    }

    fn draw(&self, random: &mut Random) -> usize {
        let at = random.unit() * self.0.last().copied().unwrap_or_default();
        self.0.partition_point(|sum| *sum <= at)
    }
}

/// SplitMix64: the same on every machine, which the generators of libraries do not promise from version to version.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From `[0, 1)`.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.unit() * bound as f64) as usize
    }

    fn exponential(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.unit()).ln()
    }

    /// Box and Muller's.
    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_third_of_all_imports_go_to_twenty_packages() {
        let Zipf(sums) = Zipf::new(PACKAGES, EXPONENT);
        let share = sums[19] / sums[PACKAGES - 1];
        assert!((0.35..0.38).contains(&share), "{share}");
    }
}
