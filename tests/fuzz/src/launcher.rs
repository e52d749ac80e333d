//! Requests to the launcher, from a gateway that somebody took over.
//!
//! Bytes: one message.
//!
//! * A request that was decoded, encoded again, is the same request.
//! * What is granted keeps within every bound, by a second reading of the bounds.
//! * Every refusal can be sent, however much of the request it quotes.

use sock_isolation::launcher::wire::{self, Answer, Files, ForkZygote, MAX_MESSAGE, Request, StartZygote};
use sock_isolation::{Command, Limits, Role};

/// See the module.
pub fn run(bytes: &[u8]) {
    let Ok((id, request)) = wire::decode_request(bytes) else { return };
    if let Ok(message) = wire::encode_request(id, request.clone()) {
        assert_eq!(wire::decode_request(&message), Ok((id, request.clone())));
    }
    match request.validate() {
        Ok(()) => assert!(is_within_bounds(&request), "granted: {request:?}"),
        Err(reason) => assert_can_be_sent(id, reason),
    }
    if let Request::AddView { view, layers } = request {
        // The longest that fits into a message, out of an input that need not be long.
        let view = view.repeat(MAX_MESSAGE / 8 / view.len().max(1));
        let long = Request::AddView { view, layers };
        if let (Ok(_), Err(reason)) = (wire::encode_request(id, long.clone()), long.validate()) {
            assert_can_be_sent(id, reason);
        }
    }
}

fn assert_can_be_sent(id: u64, reason: String) {
    let answer = wire::encode_answer(id, Err(reason.clone())).expect("a refusal can be encoded");
    assert!(answer.len() <= MAX_MESSAGE, "an answer of {} bytes", answer.len());
    let Answer { id: other, result } = serde_json::from_slice(&answer).expect("an answer can be read");
    assert!(other == id && result.is_err_and(|text| !text.is_empty() && reason.starts_with(&text)));
}

fn is_within_bounds(request: &Request) -> bool {
    match request {
        Request::AddView { view, layers } => is_name(view) && layers.len() <= 500,
        Request::StartZygote(StartZygote { files, command, .. }) => {
            have_name(files) && is_command(command, Role::Zygote)
        }
        Request::Execute { profile, files, command } => {
            have_name(files) && is_command(command, profile.role())
        }
        Request::Fork { files, limits, .. } => have_name(files) && are_limits(limits),
        Request::Keep { spares, slots, .. } => *spares <= 1024 && *slots <= 64,
        Request::ForkZygote(ForkZygote { files, limits, .. }) => have_name(files) && are_limits(limits),
        Request::StopZygote { .. }
        | Request::Admit { .. }
        | Request::Memory { .. }
        | Request::Check { .. }
        | Request::Count
        | Request::Release { .. }
        | Request::Destroy { .. } => true,
    }
}

/// The launcher makes a directory of this name.
fn is_name(name: &str) -> bool {
    name.len() <= 100 && !name.is_empty() && !name.contains(|c: char| !c.is_ascii() || "/.\0".contains(c))
}

fn have_name(files: &Files) -> bool {
    files.view.as_deref().is_none_or(is_name)
}

fn is_command(command: &Command, role: Role) -> bool {
    let program = command.argv.first().is_some_and(|program| program.starts_with('/'));
    program && command.role == role && are_limits(&command.limits)
}

fn are_limits(limits: &Limits) -> bool {
    let &Limits { memory, processes, cpu_millis, cpu_weight, files, memory_high, io_bytes } = limits;
    matches!(memory, 0x10_0000..=0x2_8000_0000)
        && matches!(processes, 1..=0x1_0000)
        && matches!(cpu_millis, 1..=1_000_000)
        && matches!(cpu_weight, 1..=10_000)
        && matches!(files, 16..=0x10_0000)
        && matches!(memory_high, None | Some(0x10_0000..=0x2_8000_0000))
        && matches!(io_bytes, None | Some(0x400..=0x100_0000_0000))
}
