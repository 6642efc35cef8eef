//! As much of the process pool as `limit.rs` names. The pool has a simulation of its own in the library.

use std::sync::Arc;

use crate::error::Error;
use crate::stop::{Reason, Stopping};
use crate::unfuture::Unfuture;

pub(crate) mod registry {
    pub(crate) const fn assert_captures_nothing<F>() {}
}

pub trait Wire {}

pub trait Entrypoint<A>: Copy + Send + Sync + 'static {
    type Output;
}

pub(crate) struct Request;

pub(crate) struct Call;

pub(crate) type CallHandle = Arc<Call>;

impl Request {
    pub(crate) fn hold(&self, _: Box<dyn std::any::Any + Send>) {}
}

impl Call {
    pub(crate) fn request(&self) -> &Request {
        &Request
    }

    pub(crate) fn stop(self: Arc<Self>, _: Reason) -> Stopping {
        unreachable!("the models have no process pool")
    }
}

pub(crate) fn submit(_: Arc<Call>) {}

pub(crate) fn is_worker() -> bool {
    false
}

type Nested<T> = Box<dyn FnOnce() -> Result<T, Error> + Send>;

pub(crate) fn nested<F: Entrypoint<A>, A>(
    _: crate::error::Origin,
    _: F,
    _: A,
) -> Result<Nested<F::Output>, Error> {
    unreachable!("the models have no process pool")
}

pub(crate) fn prepare<F: Entrypoint<A>, A>(
    _: crate::error::Origin,
    _: F,
    _: A,
) -> Result<(Unfuture<F::Output>, Arc<Call>), Error> {
    unreachable!("the models have no process pool")
}
