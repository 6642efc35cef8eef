//! How a thread may wait: what blocking means on it, and whether its work was cancelled.
//!
//! The engines give their threads roles; the future asks for them. So it need not know any engine.
//!
//! Floor 0: imports nothing of the crate.

use std::cell::Cell;

/// What blocking means on this thread.
#[derive(Clone, Copy)]
pub(crate) enum Role {
    Ordinary,
    /// Must never block.
    Ambient,
    /// Reads from a worker process: every call depends on it, so it must never block either. It runs code
    /// of the program on the way, such as the decoding of a result.
    Reader,
    /// Tells its pool before it blocks and after, so that it does not count against the limit; knows
    /// whether its job was cancelled.
    Pool {
        blocks: fn(),
        resumes: fn(),
        is_cancelled: fn() -> bool,
    },
    /// Runs calls, in a worker process or for a pinned value, and knows whether the one that runs was
    /// cancelled.
    Call {
        is_cancelled: fn() -> bool,
    },
}

impl Role {
    /// What this thread is, if it must never block.
    pub(crate) fn must_not_block(self) -> Option<&'static str> {
        match self {
            Role::Ambient => Some("the ambient thread"),
            Role::Reader => Some("a thread that reads from a worker process"),
            Role::Ordinary | Role::Pool { .. } | Role::Call { .. } => None,
        }
    }
}

/// Panics on a thread that must never block. `complain` is told what that thread is.
#[track_caller]
pub(crate) fn assert_may_block(complain: impl FnOnce(&str) -> String) {
    if let Some(thread) = role().must_not_block() {
        panic!("{}", complain(thread));
    }
}

thread_local! {
    static ROLE: Cell<Role> = const { Cell::new(Role::Ordinary) };
}

pub(crate) fn role() -> Role {
    ROLE.get()
}

pub(crate) fn set_role(role: Role) {
    ROLE.set(role);
}

/// Whether the work that runs on this thread was cancelled, so that it can end by itself.
///
/// For the closure of a [`thread`](crate::thread()) job or of a call of a [`Pinned`](crate::Pinned)
/// value, and the function of a [`cpu`](crate::cpu()) call, on the thread that runs them. Elsewhere it
/// is `false`: an async task that is cancelled is not polled again.
///
/// # Examples
///
/// ```
/// let (started, running) = std::sync::mpsc::channel();
/// let job = unsync::thread(move || {
///     started.send(()).unwrap();
///     while !unsync::is_cancelled() {
///         std::thread::yield_now();
///     }
///     "tidied up"
/// });
/// running.recv().unwrap();
/// job.cancel();
/// assert_eq!(job.result().unwrap(), "tidied up");
/// ```
pub fn is_cancelled() -> bool {
    match role() {
        Role::Pool { is_cancelled, .. } | Role::Call { is_cancelled } => is_cancelled(),
        Role::Ordinary | Role::Ambient | Role::Reader => false,
    }
}

/// Runs something that parks the thread.
pub(crate) fn blocking<R>(park: impl FnOnce() -> R) -> R {
    struct Resume(fn());
    impl Drop for Resume {
        fn drop(&mut self) {
            (self.0)();
        }
    }
    let Role::Pool {
        blocks, resumes, ..
    } = role()
    else {
        return park();
    };
    blocks();
    let _resume = Resume(resumes);
    park()
}
