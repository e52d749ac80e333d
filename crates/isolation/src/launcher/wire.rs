//! What the gateway may ask of the launcher, and what it gets back. One datagram each way, JSON, with descriptors.

use std::os::fd::{BorrowedFd, OwnedFd};

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use crate::cgroup::{Limits, Usage};
use crate::init::{Command, Exit};
use crate::plan::Profile;
use crate::sys;

/// The longest request or reply, bytes.
pub const MAX_MESSAGE: usize = 96 << 10;

/// The longest text of a refusal, bytes. It may quote what was asked for, and an answer has to fit into a message.
const MAX_REASON: usize = 4 << 10;

/// The most slots that are kept ready for one zygote.
pub(super) const MAX_SLOTS: u32 = 64;

/// The most spares that are kept of one zygote: as many as invocations that may wait for one burst's end. Each has two processes, and a
/// few descriptors here.
pub const MAX_SPARES: u32 = 1024;

/// Chosen by the gateway, unique as long as the zygote lives.
pub type ZygoteId = u32;

/// Chosen by the launcher, never used twice.
pub type InstanceId = u64;

/// A function's own files, as paths beneath the data directory and ids of views.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Files {
    /// Appears at `/var/task`.
    pub task: Option<String>,
    /// Appears at `/var/opt`.
    pub opt: Option<String>,
    /// The view that appears at `/var/packages`.
    pub view: Option<String>,
}

/// See [`Request::StartZygote`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartZygote {
    /// Its name from now on.
    pub zygote: ZygoteId,
    /// What it may import from.
    pub files: Files,
    /// What is executed.
    pub command: Command,
    /// How many slots are kept ready for it.
    pub slots: u32,
}

/// See [`Request::ForkZygote`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForkZygote {
    /// Its name from now on.
    pub zygote: ZygoteId,
    /// The one that forks itself.
    pub parent: ZygoteId,
    /// What it may import from: all that the parent may, at least.
    pub files: Files,
    /// What its own processes may use, beyond what they share with the parent.
    pub limits: Limits,
    /// How many slots are kept ready for it.
    pub slots: u32,
}

/// The closed set of requests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Stack the directories `layers`, paths beneath the data directory, into the view `view`. Once is enough.
    AddView {
        /// Its name: letters, digits, `-` and `_`.
        view: String,
        /// The first is on top.
        layers: Vec<String>,
    },
    /// Start a fork server. Replies [`Reply::Zygote`] with its control socket and its log (the read end of a pipe).
    ///
    /// Its command gets as descriptors: 0 /dev/null, 1 and 2 the log, 3 the fork channel, 4 the control socket.
    StartZygote(StartZygote),
    /// Start a fork server by having another one fork itself: it has imported what that one has. Replies as
    /// [`Request::StartZygote`] does, with the same descriptors. Nothing is forked from it before [`Request::Admit`].
    ForkZygote(ForkZygote),
    /// Look at a forked zygote from outside, after it said hello on its control socket, and let it have slots. Replies with
    /// [`Reply::Done`] and a pidfd of its process, whose end its container's PID 1 does not follow.
    Admit {
        /// Which one.
        zygote: ZygoteId,
    },
    /// End a zygote, with all its instances, and all zygotes that were forked from it.
    StopZygote {
        /// Which one.
        zygote: ZygoteId,
    },
    /// From now on keep so much of a zygote ready. It is made while nothing else is asked for; what is too many ends. No spares
    /// before the zygote has imported what it shall: each is a copy of it.
    Keep {
        /// Which one.
        zygote: ZygoteId,
        /// Processes that are forked, have dropped everything and wait for a function; at most what [`Reply::Zygote`] said.
        spares: u32,
        /// Slots that wait for a process; at most 64.
        slots: u32,
    },
    /// Get an instance of a zygote: a spare if there is one, else forked now. Replies [`Reply::Instance`] once it has dropped everything, has
    /// said so by five bytes, which nobody else gets, and was looked at; with its socket, its log, and the descriptors of [`Request::Check`].
    Fork {
        /// From which zygote.
        zygote: ZygoteId,
        /// What appears in its container.
        files: Files,
        /// What it may use.
        limits: Limits,
    },
    /// Start an instance without a zygote. Replies [`Reply::Instance`] with its socket and its log.
    ///
    /// Its command gets as descriptors: 0 /dev/null, 1 and 2 the log, 3 its socket.
    Execute {
        /// How much may be done in its container. [`Profile::Paper`] is refused where [`super::server::Options::paper`] does not allow it.
        profile: Profile,
        /// What appears in its container.
        files: Files,
        /// What is executed.
        command: Command,
    },
    /// Look from outside at an instance that was executed, after it said that it is ready. Nothing may be routed to it before. Replies
    /// [`Reply::Done`] with a pidfd of its process (that its socket is open tells nothing, since a child may hold it) its
    /// `cgroup.freeze` (who writes `1` there stops it, `0` has it go on), and a file that tells of its memory: `memory.peak` of its
    /// cgroup, or where there is none the process's status, see [`memory_used`].
    Check {
        /// Which one.
        instance: InstanceId,
    },
    /// Which memory a zygote or an instance has at this moment.
    Memory {
        /// Of which one.
        of: Part,
    },
    /// What the launcher has at this moment.
    Count,
    /// End an instance when there is time for it. Replies [`Reply::Done`] when that begins. Until then its process should keep its socket: it
    /// would end by itself.
    Release {
        /// Which one.
        instance: InstanceId,
    },
    /// End an instance. The reply comes when its last process is gone, and tells how its own process had ended.
    Destroy {
        /// Which one.
        instance: InstanceId,
    },
}

/// What a request got.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// It is done.
    Done,
    /// The zygote runs.
    Zygote {
        /// Spares that it may have: half of those that it has user ids for, and no more than [`MAX_SPARES`]. The others are for what is asked for.
        most_spares: u32,
        /// Zygotes that may be forked from it: those that it has user ids for.
        most_children: u32,
    },
    /// The instance was started.
    Instance {
        /// Its name from now on.
        instance: InstanceId,
        /// Whether it had been forked ahead of the request.
        spare: bool,
    },
    /// The zygote did not fork within 10 s, or its child said nothing.
    Silent,
    /// See [`Request::Memory`].
    Memory(Memory),
    /// See [`Request::Count`].
    Counts(Counts),
    /// See [`Request::Destroy`].
    Destroyed {
        /// How its process had ended, by SIGKILL if it was running; `None` where the kernel does not tell (before 6.15, of a
        /// zygote's child).
        exit: Option<Exit>,
        /// It was killed because it used more memory than it may.
        out_of_memory: bool,
        /// Of its memory.
        usage: Usage,
    },
}

/// The most memory that an instance has used, or what it uses now, bytes; out of the file that came with [`Request::Check`].
pub fn memory_used(text: &str) -> Option<u64> {
    text.trim().parse().ok().or_else(|| Some(crate::verify::resident_in(text)).filter(|bytes| *bytes > 0))
}

/// What takes memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Part {
    /// A zygote.
    Zygote(ZygoteId),
    /// An instance.
    Instance(InstanceId),
    /// All spares of a zygote. Of more than 16, which are alike, 16 are looked at.
    Spares(ZygoteId),
    /// PID 1 of all containers, of which 16 are looked at too.
    Inits,
}

/// Of all processes in a container but its PID 1, bytes. proc_pid_smaps(5)
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// What would be free without it: pages that nobody else maps.
    pub private: u64,
    /// With its share of what others map too.
    pub proportional: u64,
    /// Pages that are no file's, shared ones counted in full.
    pub anonymous: u64,
}

impl Memory {
    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            private: self.private + other.private,
            proportional: self.proportional + other.proportional,
            anonymous: self.anonymous + other.anonymous,
        }
    }
}

/// What a launcher has, in containers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Zygotes.
    pub zygotes: usize,
    /// Slots that wait for a process.
    pub slots: usize,
    /// Zygotes' children that have not said yet that they dropped everything.
    pub forking: usize,
    /// Spares that wait for a function.
    pub spares: usize,
    /// Instances.
    pub instances: usize,
    /// What was destroyed and is not gone yet.
    pub dying: usize,
    /// Cgroups of an earlier launcher that the start removed.
    pub leaks: usize,
}

/// A request with its number.
#[derive(Debug, Serialize, Deserialize)]
struct Asked {
    id: u64,
    request: Request,
}

/// A reply with the number of its request.
#[derive(Debug, Serialize, Deserialize)]
pub struct Answer {
    /// As the request had it.
    pub id: u64,
    /// The reply, or why there is none.
    pub result: Result<Reply, String>,
}

/// The message that asks for `request` as number `id`.
pub fn encode_request(id: u64, request: Request) -> Result<Vec<u8>, Errno> {
    let message = serde_json::to_vec(&Asked { id, request }).map_err(|_| Errno::EINVAL)?;
    if message.len() > MAX_MESSAGE { Err(Errno::EMSGSIZE) } else { Ok(message) }
}

/// A message that is no request, or none that this launcher knows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a message of {length} bytes is no request: {reason}")]
pub struct Malformed {
    /// The number of the request that it meant to be, where it has one.
    pub id: Option<u64>,
    length: usize,
    reason: String,
}

/// The number and the request in a message. Whether it may be granted is [`Request::validate`]'s to say.
pub fn decode_request(message: &[u8]) -> Result<(u64, Request), Malformed> {
    #[derive(Deserialize)]
    struct Numbered {
        id: u64,
    }
    serde_json::from_slice(message).map(|Asked { id, request }| (id, request)).map_err(|error| Malformed {
        id: serde_json::from_slice(message).ok().map(|Numbered { id }| id),
        length: message.len(),
        reason: error.to_string(),
    })
}

/// The message that answers request `id`; always short enough to be sent.
pub fn encode_answer(id: u64, mut result: Result<Reply, String>) -> Result<Vec<u8>, Errno> {
    if let Err(reason) = &mut result {
        reason.truncate(reason.floor_char_boundary(MAX_REASON));
    }
    serde_json::to_vec(&Answer { id, result }).map_err(|_| Errno::EINVAL)
}

/// Sends `request` as number `id`.
pub fn send_request(socket: BorrowedFd<'_>, id: u64, request: Request) -> Result<(), Errno> {
    sys::send(socket, &encode_request(id, request)?, &[])
}

/// Receives the next answer with its descriptors; `None` when the launcher is gone.
pub fn receive_reply(socket: BorrowedFd<'_>) -> Result<Option<(Answer, Vec<OwnedFd>)>, Errno> {
    let mut buffer = vec![0; MAX_MESSAGE];
    let (length, fds) = sys::receive(socket, &mut buffer)?;
    if length == 0 {
        return Ok(None);
    }
    let answer = serde_json::from_slice(&buffer[..length]).map_err(|_| Errno::EBADMSG)?;
    Ok(Some((answer, fds)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It did not, and sending it ended the launcher.
    #[test]
    fn an_answer_that_quotes_a_long_request_fits() {
        let view = "\u{1}é".repeat(10_000);
        let request = Request::AddView { view, layers: Vec::new() };
        assert!(encode_request(7, request.clone()).is_ok());
        let refusal = request.validate().unwrap_err();
        let answer = encode_answer(7, Err(refusal)).unwrap();
        assert!(answer.len() <= MAX_MESSAGE, "{}", answer.len());
    }
}
