//! Who can do something about a failed deploy: its author, nobody but time, or the operator.

use crate::{
    BootstrapError, FetchError, InstallError, RequirementsError, ResolveError, UnpackError, WheelError,
};

/// Where the cause of an error lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// In what is required: other versions or packages may do.
    Requirements,
    /// In the package index, or on the way there: the same may succeed later.
    Index,
    /// On this host.
    Host,
}

impl RequirementsError {
    /// Where the cause lies.
    pub fn fault(&self) -> Fault {
        Fault::Requirements
    }
}

impl ResolveError {
    /// Where the cause lies.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Unsatisfiable(_) | Self::NoWheel(_) | Self::NoHash(_) | Self::HashNotAllowed(_) => {
                Fault::Requirements
            }
            Self::Index(_)
            | Self::Deadline { .. }
            | Self::Bootstrap(BootstrapError::Pip(_) | BootstrapError::Deadline(_)) => Fault::Index,
            _ => Fault::Host,
        }
    }
}

impl InstallError {
    /// Where the cause lies.
    pub fn fault(&self) -> Fault {
        let Self::Wheel { source, .. } = self else { return Fault::Host };
        match source {
            WheelError::Unpack(UnpackError::Write { .. }) => Fault::Host,
            WheelError::Fetch(FetchError::Request { .. } | FetchError::Read { .. }) => Fault::Index,
            WheelError::Fetch(FetchError::Open { .. } | FetchError::Write { .. }) => Fault::Host,
            WheelError::Unpack(_) | WheelError::Fetch(_) => Fault::Requirements,
            WheelError::Compile(_) | WheelError::Store(_) => Fault::Host,
        }
    }
}
