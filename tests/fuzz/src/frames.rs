//! Frames from a hostile Python process.
//!
//! Bytes: first how long the pieces are in which the rest arrives (0: all at once), then the stream.
//!
//! * However a stream is cut, it gives the same frames and ends in the same way.
//! * A frame has one encoding: what was decoded, encoded again, is what was read.
//! * No more is held than an unfinished frame within the bound, and none that is beyond it.
//! * After an error there is nothing but that error.
//! * An answer belongs to an invocation if and only if it begins with that one's nonce.
//! * What a payload was understood as survives being written and read again.

use serde::Serialize;
use serde::de::DeserializeOwned;
use sock_zygote::Facts;
use sock_zygote::frames::{
    self, Decoder, Failure, FrameError, ImportList, Init, Kind, MAX_PAYLOAD, Nonce, Ready,
};

/// Kind and length.
const HEADER: usize = 5;

/// Of the invocation under way. Letters, which are in the committed inputs.
const NONCE: Nonce = *b"nonce of the now";

type Frame = (Kind, Vec<u8>);

/// See the module.
pub fn run(bytes: &[u8]) {
    let Some((&cut, stream)) = bytes.split_first() else { return };
    let whole = read(stream, stream.len().max(1));
    assert_eq!(whole, read(stream, usize::from(cut).max(1)), "the frames depend on how the stream is cut");

    let (frames, end) = whole;
    let mut again = Vec::new();
    for (kind, payload) in &frames {
        again.extend(frames::encode(*kind, payload).expect("what was decoded can be encoded"));
        understand(*kind, payload);
    }
    let rest = stream.strip_prefix(&again[..]).expect("a frame has one encoding");
    match end {
        Ok(()) => assert!(!is_finished(rest), "a whole frame, or one beyond the bound, was left"),
        Err(FrameError::TooLong(length)) => assert!(length > MAX_PAYLOAD && rest.len() >= HEADER),
        Err(FrameError::Stale) => panic!("a stream knows nothing of invocations"),
        Err(FrameError::UnknownKind(kind)) => assert!(rest[0] == kind && rest.len() >= HEADER),
    }
}

/// Decodes a stream that arrives in pieces.
fn read(stream: &[u8], cut: usize) -> (Vec<Frame>, Result<(), FrameError>) {
    let (mut decoder, mut frames) = (Decoder::default(), Vec::new());
    for piece in stream.chunks(cut) {
        decoder.push(piece);
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => {
                    assert_eq!(decoder.next_frame(), Err(error), "an error is not forgotten");
                    return (frames, Err(error));
                }
            }
        }
    }
    let read: usize = frames.iter().map(|(_, payload)| HEADER + payload.len()).sum();
    assert_eq!(decoder.is_empty(), read == stream.len(), "what is held is what was not decoded");
    (frames, Ok(()))
}

/// Whether nothing that may follow changes what these bytes are.
fn is_finished(bytes: &[u8]) -> bool {
    let Some(([_, length @ ..], rest)) = bytes.split_first_chunk::<HEADER>() else { return false };
    let length = u32::from_le_bytes(*length) as usize;
    length > MAX_PAYLOAD || rest.len() >= length
}

/// Reads a payload as its receiver does.
fn understand(kind: Kind, payload: &[u8]) {
    match kind {
        Kind::Init => drop(with_code(payload).map(init)),
        Kind::Import => same::<ImportList>(payload),
        Kind::Ready => drop(with_code(payload).map(|(text, _)| same::<Ready>(text))),
        Kind::InitError => same::<Failure>(payload),
        Kind::Error => own_answer(payload).map_or((), same::<Failure>),
        Kind::Facts => same::<Facts>(payload),
        Kind::Result => drop(own_answer(payload)),
        Kind::Invoke | Kind::Hello => {}
    }
}

/// Text and code: all of the payload but its length.
fn with_code(payload: &[u8]) -> Option<(&[u8], &[u8])> {
    let parts = frames::with_code(payload);
    if let Some((text, code)) = parts {
        assert_eq!([text, code].concat(), payload[4..]);
    }
    parts
}

fn init((text, code): (&[u8], &[u8])) {
    let Ok(value) = serde_json::from_slice::<Init>(text) else { return };
    let payload = frames::init(&value, code);
    let (again, same) = frames::with_code(&payload).expect("what was made can be taken apart");
    assert_eq!((serde_json::from_slice(again).ok(), same), (Some(value), code));
}

/// What a payload answers to the invocation under way.
fn own_answer(payload: &[u8]) -> Option<&[u8]> {
    let answer = frames::answer(&NONCE, payload).ok();
    assert_eq!(answer, (payload.get(..NONCE.len()) == Some(&NONCE)).then(|| &payload[NONCE.len()..]));
    answer
}

fn same<T: DeserializeOwned + Serialize + PartialEq + std::fmt::Debug>(payload: &[u8]) {
    let Ok(value) = serde_json::from_slice::<T>(payload) else { return };
    let text = serde_json::to_vec(&value).expect("what was read can be written");
    assert_eq!(serde_json::from_slice::<T>(&text).expect("what was written can be read"), value);
}
