//! What the scheduler asks for.

use std::time::Duration;

use crate::stop::Reason;

/// What is to be done when the lock is free again, in the order of the fields: writes and starts come
/// before resolutions, so that workers run while the results of others are decoded; and a call begins before
/// it is resolved.
#[derive(Debug)]
pub(crate) struct Effects<C, W> {
    /// What concerns a worker. The actions on one follow one another, so that its frames go with one write.
    pub(crate) actions: Vec<(W, Action<C>)>,
    /// Start workers of these numbers at these places. Each ends up as [`State::ready`](super::State::ready) or
    /// [`State::spawn_failed`](super::State::spawn_failed).
    pub(crate) spawns: Vec<(u64, usize)>,
    /// These calls have begun.
    pub(crate) begun: Vec<C>,
    /// Resolve these calls.
    pub(crate) resolutions: Vec<(C, Outcome)>,
    /// The next deadline is earlier than the supervisor knows.
    pub(crate) wake_supervisor: bool,
}

#[derive(Debug)]
pub(crate) enum Action<C> {
    /// The worker has done all calls that it had: what it printed so far belongs to none of those that
    /// follow. Nothing is written.
    Fresh,
    /// Write this call.
    Call(C),
    /// Ask the worker to say when it reads.
    RequestToSend,
    /// Write this call while the worker reads. `Loaded` follows.
    LargeCall(C),
    /// Ask the running call to end by itself.
    Cancel(u64),
    /// Close the sending side of the link, which ends the worker.
    Retire,
    /// Nothing was heard for long of the worker, which runs this call: look whether it lives, and close the
    /// link if it does not.
    Probe(C),
    /// Kill the process. If this was asked for before, it is dead and something else holds its link open: close
    /// the link.
    Kill,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Outcome {
    /// `Done` has arrived. Its payload says how the call ended.
    Done,
    /// The call was stopped before it ran, or ended by itself when asked to, after having `ran` that long.
    Stopped {
        reason: Reason,
        ran: Option<Duration>,
    },
    /// The worker has ended, after the call `ran` that long. Without `ran` the call may have begun, or, if
    /// there are `deaths`, it was not started by that many workers.
    Lost {
        ran: Option<Duration>,
        deaths: u32,
        stop: Option<Reason>,
    },
    /// No worker can be started. The failure is the one of the event.
    Unstartable,
}

impl<C, W> Default for Effects<C, W> {
    fn default() -> Effects<C, W> {
        Effects {
            actions: Vec::new(),
            spawns: Vec::new(),
            begun: Vec::new(),
            resolutions: Vec::new(),
            wake_supervisor: false,
        }
    }
}

impl Outcome {
    /// That of a call that was stopped before it began.
    pub(super) fn unstarted(reason: Reason) -> Outcome {
        Outcome::Stopped { reason, ran: None }
    }
}
