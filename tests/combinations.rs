//! What can go wrong with a piece of work × what becomes of its `Unfuture` × when it is cancelled, and
//! by whom: every combination has its outcome, drops what it has exactly once and in the right place,
//! wakes its waiter once, and lets no panic reach a caller that merely drops an `Unfuture`.
//!
//! Left out, because it has no meaning here:
//! - a call in a worker process: none of its parts is dropped in this process;
//! - a job whose run and whose capture both panic: a closure is dropped while its panic unwinds, and a
//!   second panic then ends any Rust program.

mod support;

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::Poll;
use std::time::Duration;

use support::{CountingWaker, Drops, Gate, Place, Token, blocked, blocked_task, fence, in_child};
use unsync::{Error, ErrorKind, Unfuture};

/// What kind of work it is.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Spawn,
    SpawnLocal,
    Thread,
}

/// Where the work panics, apart from the drop of its value.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Panics {
    Nowhere,
    OnRun,
    OnDrop,
    OnRunAndDrop,
}

/// When the `Unfuture` is dropped.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
enum Dropped {
    Immediately,
    AfterFirstPoll,
    AfterEndUnread,
    AfterConsumed,
}

/// When the work is cancelled.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
enum Cancelled {
    Immediately,
    AfterFirstPoll,
    AfterEnd,
    AfterConsumed,
    Never,
}

#[derive(Clone, Copy, Debug)]
struct Case {
    kind: Kind,
    panics: Panics,
    value_panics: bool,
    /// Whether a waker is registered with the `Unfuture` from the start.
    polled: bool,
    dropped: Dropped,
    cancelled: Cancelled,
    /// Whether a canceller cancels it, rather than the `Unfuture` itself.
    by_canceller: bool,
}

impl Case {
    /// The case of this number; `None` after the last.
    fn nth(mut number: usize) -> Option<Case> {
        fn pick<T: Copy>(number: &mut usize, from: &[T]) -> T {
            let picked = from[*number % from.len()];
            *number /= from.len();
            picked
        }
        let case = Case {
            kind: pick(&mut number, &[Kind::Spawn, Kind::SpawnLocal, Kind::Thread]),
            panics: pick(
                &mut number,
                &[
                    Panics::Nowhere,
                    Panics::OnRun,
                    Panics::OnDrop,
                    Panics::OnRunAndDrop,
                ],
            ),
            value_panics: pick(&mut number, &[false, true]),
            polled: pick(&mut number, &[false, true]),
            dropped: pick(
                &mut number,
                &[
                    Dropped::Immediately,
                    Dropped::AfterFirstPoll,
                    Dropped::AfterEndUnread,
                    Dropped::AfterConsumed,
                ],
            ),
            cancelled: pick(
                &mut number,
                &[
                    Cancelled::Immediately,
                    Cancelled::AfterFirstPoll,
                    Cancelled::AfterEnd,
                    Cancelled::AfterConsumed,
                    Cancelled::Never,
                ],
            ),
            by_canceller: pick(&mut number, &[false, true]),
        };
        (number == 0).then_some(case)
    }

    fn is_possible(&self) -> bool {
        let thread = self.kind == Kind::Thread;
        let gone = match self.cancelled {
            Cancelled::Immediately => false,
            Cancelled::AfterFirstPoll => self.dropped < Dropped::AfterFirstPoll,
            Cancelled::AfterEnd => self.dropped < Dropped::AfterEndUnread,
            Cancelled::AfterConsumed => self.dropped < Dropped::AfterConsumed,
            // Nobody cancels: one value of `by_canceller` is enough.
            Cancelled::Never => true,
        };
        (self.by_canceller || !gone) && !(thread && self.panics == Panics::OnRunAndDrop)
    }

    fn panics_on_run(&self) -> bool {
        matches!(self.panics, Panics::OnRun | Panics::OnRunAndDrop)
    }

    fn panics_on_drop(&self) -> bool {
        matches!(self.panics, Panics::OnDrop | Panics::OnRunAndDrop)
    }

    /// Whether the cancellation comes in time: a job that runs cannot be stopped.
    fn is_stopped(&self) -> bool {
        match self.cancelled {
            Cancelled::Immediately => true,
            Cancelled::AfterFirstPoll => self.kind != Kind::Thread,
            _ => false,
        }
    }

    /// How it ends, with the text of the panic if there is one.
    fn end(&self) -> Result<(), (ErrorKind, &'static str)> {
        match self.is_stopped() {
            true => Err((ErrorKind::Cancelled, "")),
            // The first of two panics is reported.
            false if self.panics_on_run() => Err((ErrorKind::Panicked, "in the run")),
            false if self.panics_on_drop() => Err((ErrorKind::Panicked, "in the drop of a body")),
            false => Ok(()),
        }
    }

    fn makes_a_value(&self) -> bool {
        // A job drops what it holds before it makes its value; a task makes its value first.
        let in_time = self.kind != Kind::Thread || !self.panics_on_drop();
        !self.is_stopped() && !self.panics_on_run() && in_time
    }
}

/// A part of the work whose drop is counted and may panic.
struct Part {
    panics: Option<&'static str>,
    _token: Token,
}

impl Part {
    fn of(drops: &Drops, panics: bool, text: &'static str) -> Part {
        Part {
            panics: panics.then_some(text),
            _token: drops.token(),
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if let Some(text) = self.panics {
            panic!("{text}");
        }
    }
}

/// What the test sees of the work.
#[derive(Clone, Default)]
struct Traces {
    begun: Gate,
    gate: Gate,
    bodies: Drops,
    values: Drops,
}

fn start(case: Case, traces: &Traces) -> Unfuture<Part> {
    let body = Part::of(
        &traces.bodies,
        case.panics_on_drop(),
        "in the drop of a body",
    );
    let (begun, gate) = (traces.begun.clone(), traces.gate.clone());
    let run = {
        let values = traces.values.clone();
        move || {
            assert!(!case.panics_on_run(), "in the run");
            Part::of(&values, case.value_panics, "in the drop of a value")
        }
    };
    if case.kind == Kind::Thread {
        return unsync::thread(move || {
            let body = body;
            begun.open();
            gate.wait();
            if !case.panics_on_run() {
                drop(body);
            }
            run()
        });
    }
    let make = move || {
        let mut pass = Box::pin(async move {
            begun.open();
            gate.pass().await;
        });
        poll_fn(move |cx| {
            let _ = &body;
            pass.as_mut().poll(cx).map(|()| run())
        })
    };
    match case.kind {
        Kind::SpawnLocal => unsync::spawn_local(make),
        _ => unsync::spawn(make()),
    }
}

/// Waits until all that had begun on the one thread for this kind of work is over.
fn settle(kind: Kind) {
    match kind {
        Kind::Thread => unsync::thread(|| ()).result().unwrap(),
        _ => fence(),
    }
}

fn check(case: Case) {
    let traces = Traces::default();
    let waker = CountingWaker::new();
    // Keeps the work from beginning.
    let (release, holder) = match case.kind {
        Kind::Thread => blocked(unsync::thread),
        _ => blocked_task(),
    };
    let mut work = start(case, &traces);
    if case.polled {
        assert!(waker.poll(&mut work).is_pending(), "{case:?}");
    }
    let canceller = work.canceller();
    let mut work = Some(work);
    // In this order, so that a cancellation by the `Unfuture` comes before its drop.
    let cancel_and_drop = |work: &mut Option<Unfuture<Part>>, cancelled, dropped| {
        let cancel = |work: &Option<Unfuture<Part>>| {
            let said = match work {
                Some(work) if !case.by_canceller => work.cancel(),
                _ => canceller.cancel(),
            };
            assert_eq!(said, case.is_stopped(), "{case:?}: `cancel` says so");
        };
        if case.cancelled == cancelled && !case.by_canceller {
            cancel(work);
        }
        if case.dropped == dropped {
            // This must not panic, whatever is dropped with it.
            let silent = catch_unwind(AssertUnwindSafe(|| drop(work.take())));
            assert!(silent.is_ok(), "{case:?}: dropping an `Unfuture` panicked");
        }
        if case.cancelled == cancelled && case.by_canceller {
            cancel(work);
        }
    };
    cancel_and_drop(&mut work, Cancelled::Immediately, Dropped::Immediately);
    release.open();
    holder.result().unwrap();
    if case.cancelled == Cancelled::Immediately {
        settle(case.kind);
        assert!(!traces.begun.is_open(), "{case:?}: it never begins");
    } else {
        traces.begun.wait();
        if case.kind != Kind::Thread {
            // Its first poll is over.
            fence();
        }
        assert_eq!(traces.bodies.count(), 0, "{case:?}: it waits");
    }
    cancel_and_drop(
        &mut work,
        Cancelled::AfterFirstPoll,
        Dropped::AfterFirstPoll,
    );
    if case.is_stopped() {
        // Only work that was not stopped could make a value now.
        settle(case.kind);
    }
    traces.gate.open();
    if let Some(work) = &work {
        work.wait();
        assert_eq!(traces.bodies.count(), 1, "{case:?}: gone before it is seen");
    }
    traces.bodies.wait_for(1);
    settle(case.kind);
    cancel_and_drop(&mut work, Cancelled::AfterEnd, Dropped::AfterEndUnread);
    if let Some(work) = &mut work {
        assert_eq!(waker.wakes(), usize::from(case.polled), "{case:?}: wakes");
        let Poll::Ready(outcome) = waker.poll(work) else {
            panic!("{case:?}: not ready");
        };
        consume(case, outcome, &traces);
    } else {
        assert!(waker.wakes() <= usize::from(case.polled), "{case:?}: wakes");
    }
    cancel_and_drop(&mut work, Cancelled::AfterConsumed, Dropped::AfterConsumed);
    let again = [canceller.cancel(), canceller.cancel()];
    assert_eq!(
        again,
        [case.is_stopped(); 2],
        "{case:?}: `cancel` after all"
    );
    assert_eq!(waker.held(), 0, "{case:?}: a waker is kept");
    let made = usize::from(case.makes_a_value());
    let counts = (traces.bodies.count(), traces.values.count());
    assert_eq!(counts, (1, made), "{case:?}: bodies and values dropped");
    assert_places(case, &traces);
}

fn consume(case: Case, outcome: Result<Part, Error>, traces: &Traces) {
    match (outcome, case.end()) {
        (Ok(value), Ok(())) => {
            assert_eq!(traces.values.count(), 0, "{case:?}: it is still there");
            // The owner of the value gets its panic.
            let dropped = catch_unwind(AssertUnwindSafe(|| drop(value)));
            assert_eq!(dropped.is_err(), case.value_panics, "{case:?}");
        }
        (Err(error), Err((kind, text))) => {
            assert_eq!(error.kind(), kind, "{case:?}: {error}");
            assert!(error.to_string().contains(text), "{case:?}: {error}");
        }
        (Ok(_), Err(expected)) => panic!("{case:?}: a value instead of {expected:?}"),
        (Err(error), Ok(())) => panic!("{case:?}: {error} instead of a value"),
    }
}

/// Each part is dropped where it belongs.
fn assert_places(case: Case, traces: &Traces) {
    let body = &traces.bodies.places()[0];
    let queued_job = case.cancelled == Cancelled::Immediately;
    match case.kind {
        Kind::Thread if queued_job => assert_eq!(*body, Place::here(), "{case:?}: by who cancels"),
        Kind::Thread => assert!(body.is_pool(), "{case:?}: {body:?}"),
        _ => assert!(body.is_ambient(), "{case:?}: {body:?}"),
    }
    for value in traces.values.places() {
        let unwanted = case.dropped < Dropped::AfterEndUnread || case.end().is_err();
        match case.kind {
            _ if !unwanted => assert_eq!(value, Place::here(), "{case:?}"),
            Kind::Thread => assert!(value.is_pool(), "{case:?}: {value:?}"),
            _ => assert!(value.is_ambient(), "{case:?}: {value:?}"),
        }
    }
}

#[test]
fn test_combinations() {
    const LIMIT: Duration = Duration::from_secs(180);
    // One thread: a job queued behind another has not begun.
    let one_thread = [("UNSYNC_THREADS", "1")];
    in_child("test_combinations", LIMIT, &one_thread, || {
        quiet_about("in the ");
        let ambient = || unsync::spawn(async { Place::here() }).result().unwrap();
        let before = ambient();
        let cases = (0..).map_while(Case::nth).filter(Case::is_possible);
        let mut count = 0;
        for case in cases {
            check(case);
            count += 1;
        }
        println!("{count} combinations");
        assert!(count > 1000, "{count}");
        assert_eq!(ambient(), before, "the ambient thread is another one");
        assert_eq!(unsync::thread(|| 1).result().unwrap(), 1);
    });
}

/// Thousands of deliberate panics would hide an accidental one.
fn quiet_about(text: &'static str) {
    let loud = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let said = info.payload();
        let said = said
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| said.downcast_ref::<String>().map(String::as_str));
        if !said.is_some_and(|said| said.starts_with(text)) {
            loud(info);
        }
    }));
}
