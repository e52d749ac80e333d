//! The protocol between the gateway and the Python processes: frames over a stream socket, as a codec that does no I/O.
//!
//! A frame is one byte of kind, the payload's length as 32 bits little-endian, and the payload. The other side is hostile:
//! an unknown kind or a length beyond [`MAX_PAYLOAD`] is refused when the header is read, before anything is buffered.
//!
//! An instance answers one invocation after another, and a thread or process that one of them left behind may write to the socket
//! at any time. So each invocation carries a [`Nonce`], and what does not begin with it is no answer to that invocation.

use serde::{Deserialize, Serialize};

/// The longest payload, bytes: Lambda's 6 MiB for a request or an answer, and room for what goes with it.
pub const MAX_PAYLOAD: usize = (6 << 20) + (128 << 10);

const HEADER: usize = 5;

/// What a decoder keeps for the next frame, bytes.
const KEPT: usize = 64 << 10;

/// A number that was never used before and cannot be guessed: it ties an answer to its invocation. Handlers are not told.
/// Not the request's id, which handlers know and which a retry has again.
pub type Nonce = [u8; 16];

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// To an instance: what it becomes. See [`init`].
    Init,
    /// To an instance: an invocation. See [`invoke`].
    Invoke,
    /// To a zygote: [`ImportList`].
    Import,
    /// From an instance: it has dropped everything and waits. Empty. That of a zygote's child is read by the launcher.
    Hello,
    /// From an instance: the handler is imported. [`Ready`], and code for other instances of the same function. See [`with_code`].
    Ready,
    /// From an instance: the handler could not be imported. [`Failure`].
    InitError,
    /// From an instance: the handler's answer, JSON. See [`answer`].
    Result,
    /// From an instance: the handler raised. [`Failure`]. See [`answer`].
    Error,
    /// From a zygote: what its imports did. [`crate::Facts`].
    Facts,
}

const KINDS: [(Kind, u8); 9] = [
    (Kind::Init, b'I'),
    (Kind::Invoke, b'V'),
    (Kind::Import, b'M'),
    (Kind::Hello, b'H'),
    (Kind::Ready, b'R'),
    (Kind::InitError, b'E'),
    (Kind::Result, b'r'),
    (Kind::Error, b'e'),
    (Kind::Facts, b'F'),
];

impl Kind {
    fn byte(self) -> u8 {
        KINDS.iter().find(|(kind, _)| *kind == self).map_or(0, |(_, byte)| *byte)
    }
}

/// The other side does not keep to the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// No frame is of this kind.
    #[error("a frame of unknown kind {0:#04x}")]
    UnknownKind(u8),
    /// Longer than allowed.
    #[error("a frame of {0} bytes, {MAX_PAYLOAD} at most")]
    TooLong(usize),
    /// An answer without the invocation's nonce: to an earlier one, or made up.
    #[error("an answer to something else")]
    Stale,
}

/// A frame's bytes.
pub fn encode(kind: Kind, payload: &[u8]) -> Result<Vec<u8>, FrameError> {
    if payload.len() > MAX_PAYLOAD {
        return Err(FrameError::TooLong(payload.len()));
    }
    let mut frame = Vec::with_capacity(HEADER + payload.len());
    frame.push(kind.byte());
    frame.extend((payload.len() as u32).to_le_bytes());
    frame.extend(payload);
    Ok(frame)
}

/// The payload of a [`Kind::Init`]: [`Init`], and the code that came with [`Kind::Ready`] of an earlier instance of the same function, or
/// none. See [`with_code`].
pub fn init(init: &Init, code: &[u8]) -> Vec<u8> {
    let header = serde_json::to_vec(init).unwrap_or_default();
    let mut payload = Vec::with_capacity(4 + header.len() + code.len());
    payload.extend((header.len() as u32).to_le_bytes());
    payload.extend(header);
    payload.extend(code);
    payload
}

/// What a payload with code holds: text, and code. It begins with the length of the text as 32 bits little-endian. The code is the function's own
/// modules that were imported, compiled; opaque to everybody but the interpreter. `None` if it ends before the text does.
pub fn with_code(payload: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = payload.split_first_chunk()?;
    rest.split_at_checked(u32::from_le_bytes(*length) as usize)
}

/// The payload of an invocation: the nonce, the header's length as 32 bits little-endian, the header as JSON, the event as it
/// came.
pub fn invoke(nonce: &Nonce, header: &InvokeHeader, event: &[u8]) -> Vec<u8> {
    let header = serde_json::to_vec(header).unwrap_or_default();
    let mut payload = Vec::with_capacity(nonce.len() + 4 + header.len() + event.len());
    payload.extend(nonce);
    payload.extend((header.len() as u32).to_le_bytes());
    payload.extend(header);
    payload.extend(event);
    payload
}

/// What the payload of a [`Kind::Result`] or [`Kind::Error`] holds after the nonce, if it is that of the invocation under way.
pub fn answer<'a>(nonce: &Nonce, payload: &'a [u8]) -> Result<&'a [u8], FrameError> {
    payload.strip_prefix(nonce).ok_or(FrameError::Stale)
}

/// Takes bytes as they come and gives whole frames.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
}

impl Decoder {
    /// Takes what was received.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next frame, `None` when more bytes are needed.
    pub fn next_frame(&mut self) -> Result<Option<(Kind, Vec<u8>)>, FrameError> {
        let Some((header, rest)) = self.buffer.split_first_chunk::<HEADER>() else { return Ok(None) };
        let [byte, length @ ..] = *header;
        let kind = KINDS.iter().find(|(_, known)| *known == byte).ok_or(FrameError::UnknownKind(byte))?.0;
        let length = u32::from_le_bytes(length) as usize;
        if length > MAX_PAYLOAD {
            return Err(FrameError::TooLong(length));
        }
        if rest.len() < length {
            return Ok(None);
        }
        let payload = rest[..length].to_vec();
        self.buffer.drain(..HEADER + length);
        // One long frame must not cost its length for ever.
        self.buffer.shrink_to(KEPT);
        Ok(Some((kind, payload)))
    }

    /// Whether no byte of an unfinished frame is held.
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }
}

/// What an instance becomes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Init {
    /// `module.function`, or `directory/module.function`.
    pub handler: String,
    /// The whole environment.
    pub env: std::collections::BTreeMap<String, String>,
    /// Of the function.
    pub function: FunctionInfo,
    /// Whether [`Ready::imported`] is wanted.
    #[serde(default)]
    pub tell: bool,
    /// Whether code is to come with [`Kind::Ready`].
    #[serde(default)]
    pub keep: bool,
}

/// What a handler's context object tells about its function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionInfo {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its memory, MB.
    pub memory_mb: u32,
    /// Where its log would be.
    pub log_group: String,
    /// Where its log would be.
    pub log_stream: String,
}

/// What a handler's context object tells about an invocation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InvokeHeader {
    /// Its id.
    pub request_id: String,
    /// When it will be killed, milliseconds since 1970.
    pub deadline_ms: u64,
    /// The function, as it was called.
    pub arn: String,
    /// The client context, JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_context: Option<String>,
    /// Whether it was sent along with [`Kind::Init`]: then the time that the handler's import takes is added to the deadline.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub early: bool,
}

/// What a zygote is to import.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportList {
    /// In this order.
    pub imports: Vec<crate::Import>,
    /// Variables that it shall have besides those it has.
    pub env: std::collections::BTreeMap<String, String>,
}

/// The handler is imported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// How long that took, microseconds.
    pub init_us: u64,
    /// If [`Init::tell`] asked: the modules that the handler's import has imported, but for the function's own.
    #[serde(default)]
    pub imported: Vec<String>,
}

/// An error as Lambda's clients see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// Text of the exception.
    pub error_message: String,
    /// Its class.
    pub error_type: String,
    /// Empty for an error while importing.
    #[serde(default)]
    pub request_id: String,
    /// The handler's own frames.
    #[serde(default)]
    pub stack_trace: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn frames_survive_any_cutting(
            payloads in prop::collection::vec((0..KINDS.len(), prop::collection::vec(any::<u8>(), 0..300)), 0..8),
            cut in 1..64usize,
        ) {
            let frames: Vec<(Kind, Vec<u8>)> = payloads.into_iter().map(|(kind, bytes)| (KINDS[kind].0, bytes)).collect();
            let bytes: Vec<u8> = frames.iter().flat_map(|(kind, payload)| encode(*kind, payload).unwrap()).collect();
            let (mut decoder, mut got) = (Decoder::default(), Vec::new());
            for piece in bytes.chunks(cut) {
                decoder.push(piece);
                while let Some(frame) = decoder.next_frame().unwrap() {
                    got.push(frame);
                }
            }
            prop_assert_eq!(got, frames);
            prop_assert!(decoder.is_empty());
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let mut decoder = Decoder::default();
            decoder.push(&bytes);
            while let Ok(Some(_)) = decoder.next_frame() {}
        }
    }

    #[test]
    fn an_answer_belongs_to_one_invocation() {
        let (now, before) = ([7; 16], [6; 16]);
        let header = InvokeHeader {
            request_id: "1".into(),
            deadline_ms: 2,
            arn: "a".into(),
            client_context: None,
            early: false,
        };
        assert_eq!(invoke(&now, &header, b"{}")[..16], now);
        assert_eq!(answer(&now, &[&now[..], b"{}"].concat()), Ok(&b"{}"[..]));
        assert_eq!(answer(&now, &now), Ok(&b""[..]));
        for stale in [&[&before[..], b"{}"].concat()[..], &now[1..], b"{}", b""] {
            assert_eq!(answer(&now, stale), Err(FrameError::Stale), "{stale:?}");
        }
    }

    #[test]
    fn a_length_beyond_the_bound_is_refused_at_the_header() {
        let mut decoder = Decoder::default();
        decoder.push(&[b'r', 0xff, 0xff, 0xff, 0x7f]);
        assert_eq!(decoder.next_frame(), Err(FrameError::TooLong(0x7fff_ffff)));
        let mut decoder = Decoder::default();
        decoder.push(&[b'?', 0, 0, 0, 0]);
        assert_eq!(decoder.next_frame(), Err(FrameError::UnknownKind(b'?')));
    }
}
