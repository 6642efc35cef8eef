//! The job: a closure, and the slot of its value.

use std::mem;
use std::sync::Arc;

use super::POOL;
use crate::current;
use crate::error::{Error, ErrorKind, Origin, lock, wall};
use crate::slot::{Output, Slot, Work};
use crate::stop::{Reason, Stopping, cancelled};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, Ordering};

/// A closure and the slot of its value, in one allocation.
pub(crate) struct Closure<F, T> {
    slot: Slot<Option<T>>,
    /// Whoever takes the closure resolves the slot.
    stage: Mutex<Stage<F>>,
    /// Set when it is stopped; one that runs may look at it.
    cancelled: AtomicBool,
    culprit: Culprit,
}

enum Stage<F> {
    Queued(F),
    /// Running, or has run.
    Running,
    /// It never runs, and ends as this.
    Refused(ErrorKind),
}

/// What an error calls a job.
#[derive(Clone, Copy)]
pub(crate) enum Culprit {
    Job,
    PinnedCall,
}

impl Culprit {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Culprit::Job => "thread job",
            Culprit::PinnedCall => "call of a pinned value",
        }
    }
}

impl<F, T> Closure<F, T> {
    pub(crate) fn new(closure: F, culprit: Culprit, origin: Origin) -> Closure<F, T> {
        Closure {
            slot: Slot::new(origin),
            stage: Mutex::new(Stage::Queued(closure)),
            cancelled: AtomicBool::new(false),
            culprit,
        }
    }

    /// Takes the closure of a queued job, which is at the next stage then. Fails if the job was not
    /// queued: with the kind of error that it was refused with, if it was.
    fn take(&self, next: Stage<F>) -> Result<F, Option<ErrorKind>> {
        let mut stage = lock(&self.stage);
        match mem::replace(&mut *stage, next) {
            Stage::Queued(closure) => Ok(closure),
            Stage::Running => {
                *stage = Stage::Running;
                Err(None)
            }
            Stage::Refused(kind) => {
                *stage = Stage::Refused(kind);
                Err(Some(kind))
            }
        }
    }

    /// Calls the closure, unless the job was refused.
    pub(crate) fn run_with(&self, call: impl FnOnce(F) -> Result<T, Error>) {
        if let Ok(closure) = self.take(Stage::Running) {
            self.slot.begin();
            let outcome = wall(|| call(closure)).unwrap_or_else(|payload| {
                Err(Error::panicked(self.culprit.name(), payload).started_at(self.slot.origin))
            });
            self.slot.finish(outcome);
        }
    }

    /// Resolves the job without running it. Fails if it runs or has run, or was refused before: then
    /// with the kind of that error.
    fn refuse_with(&self, error: Error) -> Result<(), Option<ErrorKind>> {
        let (kind, culprit) = (error.kind(), self.culprit.name());
        let closure = self.take(Stage::Refused(kind))?;
        let started_at = |error: Error| error.started_at(self.slot.origin);
        let outcome = match wall(|| drop(closure)) {
            Ok(()) => Err(error),
            Err(payload) => Err(started_at(Error::panicked(culprit, payload))),
        };
        let outcome = match kind {
            ErrorKind::Cancelled => cancelled(outcome, culprit),
            _ => outcome,
        };
        self.slot.finish(outcome.map_err(started_at));
        Ok(())
    }
}

impl<F, T> current::Job for Closure<F, T>
where
    F: Send,
    T: Send,
{
    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
}

pub(super) trait Job: current::Job {
    fn run(self: Arc<Self>);
    /// Resolves the job without running it, if it is still queued.
    fn refuse(&self, error: Error);
    fn origin(&self) -> Origin;
}

impl<F, T> Job for Closure<F, T>
where
    F: FnOnce() -> Result<T, Error> + Send + 'static,
    T: Send + 'static,
{
    fn run(self: Arc<Self>) {
        let job = Arc::clone(&self);
        current::run(job, move || self.run_with(|closure| closure()));
    }

    fn refuse(&self, error: Error) {
        let _ = self.refuse_with(error);
    }

    fn origin(&self) -> Origin {
        self.slot.origin
    }
}

impl<F, T> Work for Closure<F, T>
where
    F: Send + 'static,
    T: Send + 'static,
{
    fn slot(&self) -> &Slot {
        &self.slot
    }

    /// Only a queued job can be stopped: a running thread cannot be killed.
    fn stop(self: Arc<Self>, reason: Reason) -> Stopping {
        self.cancelled.store(true, Ordering::Relaxed);
        match self.refuse_with(reason.error(self.culprit.name())) {
            Ok(()) => {
                POOL.clear_cancelled();
                Stopping::Yes
            }
            Err(None) => Stopping::No,
            Err(Some(before)) if before == reason.kind() => Stopping::Yes,
            Err(Some(_)) => Stopping::Otherwise,
        }
    }

    fn running(&self) -> Option<(&'static str, Origin)> {
        (!self.slot.is_done()).then_some((self.culprit.name(), self.slot.origin))
    }
}

impl<F, T> Output<T> for Closure<F, T>
where
    F: Send + 'static,
    T: Send + 'static,
{
    fn take(&self) -> Option<Result<T, Error>> {
        self.slot.take()
    }

    fn untyped(self: Arc<Self>) -> Arc<dyn Work> {
        self
    }
}
