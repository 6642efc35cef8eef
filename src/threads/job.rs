//! The job: a closure, and the slot of its value.

use std::sync::Arc;

use super::{begin_stop, end_stop, is_closed};
use crate::current;
use crate::error::{Error, Origin, lock, wall};
use crate::slot::{Output, Slot, Work};
use crate::stop::{Fate, Reason, Stopping};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, Ordering};

/// A closure and the slot of its value, in one allocation.
pub(crate) struct Closure<F, T> {
    slot: Slot<Option<T>>,
    /// Taken out by whoever resolves the slot: the thread that runs the job, or the first to stop it.
    closure: Mutex<Option<F>>,
    /// Decides which of them. A job counts as ended by itself as soon as it runs.
    fate: Fate,
    /// Set when the job is stopped; a running job may look at it.
    cancelled: AtomicBool,
    culprit: Culprit,
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

impl<F, T: Send + 'static> Closure<F, T> {
    pub(crate) fn new(closure: F, culprit: Culprit, origin: Origin) -> Closure<F, T> {
        Closure {
            slot: Slot::new(origin),
            closure: Mutex::new(Some(closure)),
            fate: Fate::default(),
            cancelled: AtomicBool::new(false),
            culprit,
        }
    }

    fn take(&self) -> Option<F> {
        lock(&self.closure).take()
    }

    /// Whether the pool counts it.
    fn is_job(&self) -> bool {
        matches!(self.culprit, Culprit::Job)
    }

    /// Calls the closure, unless the job was stopped.
    pub(crate) fn run_with(&self, call: impl FnOnce(F) -> Result<T, Error>) {
        let closure = self.fate.end().then(|| self.take()).flatten();
        if let Some(closure) = closure {
            Slot::begin(&self.slot);
            let outcome = wall(|| call(closure)).unwrap_or_else(|payload| {
                Err(Error::panicked(self.culprit.name(), payload).started_at(self.slot.origin))
            });
            self.slot.finish(outcome);
        }
    }

    /// Resolves a queued job without running it.
    fn stop_for(&self, reason: Reason, error: Error) -> Result<(), Stopping> {
        self.fate.stop(reason)?;
        let culprit = self.culprit.name();
        let error = match wall(|| drop(self.take())) {
            Ok(()) => error,
            Err(payload) => Error::panicked(culprit, payload),
        };
        Slot::abort(&self.slot, &self.fate, error, culprit);
        Ok(())
    }
}

impl<F: Send, T: Send + 'static> current::Job for Closure<F, T> {
    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed) || (self.is_job() && is_closed())
    }
}

pub(super) trait Job: current::Job {
    fn run(self: Arc<Self>);
    /// Resolves the job without running it, if it is still queued.
    fn refuse(&self, error: Error);
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
        let _ = self.stop_for(Reason::ShutDown, error);
    }
}

impl<F: Send + 'static, T: Send + 'static> Work for Closure<F, T> {
    fn slot(&self) -> &Slot {
        &self.slot
    }

    /// Only a queued job can be stopped: a running thread cannot be killed.
    fn stop(self: Arc<Self>, reason: Reason) -> Stopping {
        if self.is_job() {
            begin_stop();
        }
        self.cancelled.store(true, Ordering::Relaxed);
        let error = reason.error(self.culprit.name());
        let stopped = self.stop_for(reason, error);
        if self.is_job() {
            end_stop(stopped.is_ok());
        }
        stopped.err().unwrap_or(Stopping::Yes)
    }

    fn running(&self) -> Option<(&'static str, Origin)> {
        (!self.slot.is_done()).then_some((self.culprit.name(), self.slot.origin))
    }
}

impl<F: Send + 'static, T: Send + 'static> Output<T> for Closure<F, T> {
    fn take(&self) -> Option<Result<T, Error>> {
        self.slot.take()
    }

    fn untyped(self: Arc<Self>) -> Arc<dyn Work> {
        self
    }
}
