//! Containers with holes, for tests that want to see what holds: only with the feature `weaken`, which nothing but tests
//! switches on, and only by [`during`].

use std::sync::Mutex;

/// What is left out.
#[derive(Debug, Clone, Default)]
pub struct Weakened {
    /// Steps of plans, by how their description begins.
    pub steps: Vec<&'static str>,
    /// CLONE_NEW… that a container gets none of.
    pub namespaces: u64,
}

static NOW: Mutex<Option<Weakened>> = Mutex::new(None);

/// Runs `action`; hosts that it starts make weakened containers for as long as they live.
pub fn during<T>(weakened: Weakened, action: impl FnOnce() -> T) -> T {
    set(Some(weakened));
    let result = action();
    set(None);
    result
}

fn set(weakened: Option<Weakened>) {
    if let Ok(mut now) = NOW.lock() {
        *now = weakened;
    }
}

pub(crate) fn skips(step: &str) -> bool {
    let now = NOW.lock();
    now.is_ok_and(|now| {
        now.as_ref().is_some_and(|now| now.steps.iter().any(|skipped| step.starts_with(skipped)))
    })
}

pub(crate) fn missing_namespaces() -> u64 {
    NOW.lock().ok().and_then(|now| now.as_ref().map(|now| now.namespaces)).unwrap_or(0)
}
