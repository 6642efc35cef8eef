//! What the scheduler asks for.

use std::time::Duration;

use crate::stop::Reason;

/// What to do once the lock is released. The supervisor is woken first, the rest is in the order of the fields:
/// writes and starts come before resolutions, so that workers run while the results of others are decoded; and
/// a call begins before it is resolved. A large call is written last.
#[derive(Debug)]
pub(crate) struct Effects<C, W> {
    /// What to do to workers. The actions on one worker are adjacent, so that its frames go out in one write.
    pub(crate) actions: Vec<(W, Action<C>)>,
    /// Start workers with these numbers at these places. Each leads to [`State::ready`](super::State::ready)
    /// or [`State::spawn_failed`](super::State::spawn_failed).
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
    /// The worker has finished all its calls: what it printed so far belongs to none of the calls that
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
    /// The worker, which runs this call, has long been silent: check whether it lives, and close the link if
    /// it does not.
    Probe(C),
    /// Kill the process. If this was asked for before and the process is dead, something else holds its link
    /// open: close the link.
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
    /// The worker has ended, after the call `ran` that long. Without `ran`, the call may have begun; or, if
    /// there are `deaths`, that many workers died without starting it.
    Lost {
        ran: Option<Duration>,
        deaths: u32,
        stop: Option<Reason>,
    },
    /// No worker can be started. The event carries the error.
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
    /// The outcome of a call that was stopped before it began.
    pub(super) fn unstarted(reason: Reason) -> Outcome {
        Outcome::Stopped { reason, ran: None }
    }
}
