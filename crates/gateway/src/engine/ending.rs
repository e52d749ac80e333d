//! How an instance's end is told: what it was, in Lambda's words.

use nix::libc;
use sock_isolation::Exit;

use super::process::PeerError;
use crate::runner::InvocationResult;

/// How a process came to its end.
pub(super) struct Ended {
    pub(super) exit: Option<Exit>,
    pub(super) out_of_memory: bool,
}

/// What `error` amounts to, with how the process had ended when it was destroyed.
pub(super) fn ended(error: &PeerError, how: &Ended) -> InvocationResult {
    if how.out_of_memory {
        return InvocationResult::OutOfMemory;
    }
    let reason = match (error, how.exit) {
        (PeerError::HungUp | PeerError::Frame(_) | PeerError::Unexpected(_), _) => {
            Some(format!("the process broke the runtime's protocol: {error}"))
        }
        (_, Some(Exit::Signal(signal))) => Some(format!("signal: {}", signal_words(signal))),
        (_, Some(Exit::Code(code))) if code != 0 => Some(format!("exit status {code}")),
        (PeerError::Gone | PeerError::Unread, _) => None,
    };
    InvocationResult::Exited { reason }
}

/// A signal as Lambda names it: in the words of Go's runtime, signal(7).
fn signal_words(signal: i32) -> String {
    let words = match signal {
        libc::SIGABRT => "aborted",
        libc::SIGALRM => "alarm clock",
        libc::SIGBUS => "bus error",
        libc::SIGFPE => "floating point exception",
        libc::SIGHUP => "hangup",
        libc::SIGILL => "illegal instruction",
        libc::SIGINT => "interrupt",
        libc::SIGKILL => "killed",
        libc::SIGPIPE => "broken pipe",
        libc::SIGQUIT => "quit",
        libc::SIGSEGV => "segmentation fault",
        libc::SIGSYS => "bad system call",
        libc::SIGTERM => "terminated",
        libc::SIGTRAP => "trace/breakpoint trap",
        libc::SIGUSR1 => "user defined signal 1",
        libc::SIGUSR2 => "user defined signal 2",
        other => return format!("signal {other}"),
    };
    words.into()
}

#[cfg(test)]
mod tests {
    use sock_zygote::frames::FrameError;

    use super::*;

    #[test]
    fn every_end_is_told_apart() {
        let told =
            |error: &PeerError, exit: Option<Exit>| match ended(error, &Ended { exit, out_of_memory: false })
            {
                InvocationResult::Exited { reason } => reason.unwrap_or_default(),
                other => panic!("{other:?}"),
            };
        for (exit, words) in [
            (None, ""),
            (Some(Exit::Code(0)), ""),
            (Some(Exit::Code(1)), "exit status 1"),
            (Some(Exit::Signal(libc::SIGSEGV)), "signal: segmentation fault"),
            (Some(Exit::Signal(libc::SIGKILL)), "signal: killed"),
            (Some(Exit::Signal(40)), "signal: signal 40"),
        ] {
            assert_eq!(told(&PeerError::Gone, exit), words);
        }
        // It ran until it was killed for this.
        let killed = Some(Exit::Signal(libc::SIGKILL));
        for (error, words) in [
            (PeerError::HungUp, "its socket was closed"),
            (PeerError::Frame(FrameError::Stale), "an answer to something else"),
        ] {
            assert_eq!(told(&error, killed), format!("the process broke the runtime's protocol: {words}"));
        }
        let most = Ended { exit: killed, out_of_memory: true };
        assert_eq!(ended(&PeerError::Gone, &most), InvocationResult::OutOfMemory);
    }
}
