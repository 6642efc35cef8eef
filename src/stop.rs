//! Ending work early: why, the answer to the request, and which of two ends came first.

use std::fmt::Display;
use std::time::Duration;

use crate::error::{Error, ErrorKind, unobserved};
use crate::sync::atomic::{AtomicU8, Ordering};

/// Why work is ended early.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Reason {
    Cancelled,
    /// It took longer than this.
    TimedOut(Duration),
    ShutDown,
}

impl Reason {
    pub(crate) fn kind(self) -> ErrorKind {
        match self {
            Reason::Cancelled => ErrorKind::Cancelled,
            Reason::TimedOut(_) => ErrorKind::TimedOut,
            Reason::ShutDown => ErrorKind::ShutDown,
        }
    }

    pub(crate) fn text(self, culprit: &str) -> String {
        match self {
            Reason::Cancelled => format!("{culprit} was cancelled"),
            Reason::TimedOut(limit) => {
                format!("{culprit} took longer than its limit of {limit:?}")
            }
            Reason::ShutDown => format!("{culprit} ended without a value: unsync was shut down"),
        }
    }

    pub(crate) fn error(self, culprit: &str) -> Error {
        Error::new(self.kind(), self.text(culprit))
    }
}

/// The answer to a request to stop work for some reason.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Stopping {
    /// The work ends, or has ended, for that reason.
    Yes,
    /// The work ends soon, for another reason or in a way of its own.
    Otherwise,
    /// The work continues, or has ended by itself.
    No,
}

/// What decides how a piece of work ends: its own end or the first request to stop it, whichever
/// comes first. So a caller that was told that the work ends as cancelled sees it end that way.
#[derive(Default)]
pub(crate) struct Fate(AtomicU8);

impl Fate {
    const OPEN: u8 = 0;
    const ENDED: u8 = 1;
    const CANCELLED: u8 = 2;
    const STOPPED: u8 = 3;

    fn decide(&self, fate: u8) -> Result<u8, u8> {
        self.0
            .compare_exchange(Fate::OPEN, fate, Ordering::AcqRel, Ordering::Acquire)
    }

    /// The work ends by itself; `false` if it was stopped before that.
    pub(crate) fn end(&self) -> bool {
        matches!(self.decide(Fate::ENDED), Ok(_) | Err(Fate::ENDED))
    }

    /// The work is to be stopped; the answer if that was decided before.
    pub(crate) fn stop(&self, reason: Reason) -> Result<(), Stopping> {
        let fate = match reason {
            Reason::Cancelled => Fate::CANCELLED,
            Reason::TimedOut(_) | Reason::ShutDown => Fate::STOPPED,
        };
        self.decide(fate)
            .map(drop)
            .map_err(|decided| match decided {
                Fate::ENDED => Stopping::No,
                decided if decided == fate => Stopping::Yes,
                _ => Stopping::Otherwise,
            })
    }

    pub(crate) fn is_stopped(&self) -> bool {
        matches!(
            self.0.load(Ordering::Acquire),
            Fate::CANCELLED | Fate::STOPPED
        )
    }

    /// The outcome of work that has ended. If a caller was told that it ends as cancelled, it does, and any other
    /// outcome is reported as unobserved.
    pub(crate) fn outcome<T>(
        &self,
        found: Result<T, Error>,
        culprit: impl Display,
    ) -> Result<T, Error> {
        match found {
            Err(error) if error.kind() == ErrorKind::Cancelled => Err(error),
            other if self.0.load(Ordering::Acquire) == Fate::CANCELLED => {
                unobserved(other);
                Err(Reason::Cancelled.error(&culprit.to_string()))
            }
            other => other,
        }
    }
}
