//! The 33 tests of Python's `unsync`, by their names and in its files, each with its meaning in Rust.
//!
//! Where Python has something that Rust does not, the nearest meaning stands in:
//!
//! - `test_custom_event_loop`: there is no policy that swaps the ambient loop. Users wanted it in order
//!   to stay on a loop of their own: here a hand-written loop drives our futures.
//! - `test_future_reuse`: a value is taken once, so the future that is awaited twice is a `shared` one.
//! - `test_from_concurrent_future`, `test_future_integration`: a foreign future becomes an `Unfuture` by
//!   a promise or a task.
//! - `test_passing_arguments`: Python ignores an unknown option. Here it does not compile (see
//!   `defects.rs`); valid attributes on a function are kept.
//! - `test_nested_decorator_…`: attributes and visibility are kept, seen by the lints that they cause.
//!
//! Tests of our own for the decorator follow.

mod support;

unsync::test_worker!();

use std::time::Duration;

/// How long a method of the tests takes, as in the original.
const TENTH: Duration = Duration::from_millis(100);

mod call_ordering {
    use super::TENTH;
    use super::support::{Log, quick};
    use std::time::Instant;
    use unsync::{Error, ErrorKind, Unfuture};

    #[test]
    fn test_simple_call() {
        unsync::unsync! {
            async fn method() -> bool { unsync::sleep(TENTH).await; true }
        }
        quick(|| {
            let started = Instant::now();
            assert!(method().result().unwrap());
            assert!(started.elapsed() >= TENTH);
        });
    }

    #[test]
    fn test_nested_blocking_on_result() {
        unsync::unsync! {
            async fn inner() -> u8 { unsync::sleep(TENTH).await; 1 }
            async fn outer(start: fn() -> Unfuture<u8>) -> Result<u8, Error> { start().result() }
        }
        quick(|| {
            let error = outer(inner).flatten().result().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::WouldBlock);
        });
    }

    #[test]
    fn test_nested_unsync() {
        unsync::unsync! {
            async fn outer() -> Result<u8, Error> {
                unsync::unsync! { async fn inner() -> u8 { 1 } }
                inner().result()
            }
        }
        quick(|| {
            let error = outer().flatten().result().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::WouldBlock);
        });
    }

    #[test]
    fn test_nested_blocking_on_result_after_await() {
        unsync::unsync! {
            async fn inner(log: Log<char>) -> u8 {
                log.push('b');
                unsync::yield_now().await;
                log.push('c');
                7
            }
            async fn outer(log: Log<char>) -> u8 {
                log.push('a');
                let value = inner(log.clone()).then(async |task| task.result()).await;
                log.push('d');
                value.unwrap().unwrap()
            }
        }
        quick(|| {
            let log = Log::new();
            assert_eq!(outer(log.clone()).result().unwrap(), 7);
            assert_eq!(log.entries(), ['a', 'b', 'c', 'd']);
        });
    }

    #[test]
    fn test_call_blocking() {
        unsync::unsync! {
            async fn first(log: Log<char>) {
                log.push('a');
                unsync::sleep(TENTH).await;
                log.push('c');
            }
            async fn second(log: Log<char>, other: Unfuture<()>) {
                log.push('b');
                other.await.unwrap();
                log.push('d');
            }
        }
        quick(|| {
            let log = Log::new();
            let other = first(log.clone());
            second(log.clone(), other).result().unwrap();
            assert_eq!(log.entries(), ['a', 'b', 'c', 'd']);
        });
    }

    #[test]
    fn test_nested_calling() {
        unsync::unsync! {
            async fn inner(log: Log<char>) {
                log.push('b');
                unsync::sleep(TENTH).await;
                log.push('c');
            }
            async fn outer(log: Log<char>) {
                log.push('a');
                inner(log.clone()).await.unwrap();
                log.push('d');
            }
        }
        quick(|| {
            let log = Log::new();
            outer(log.clone()).result().unwrap();
            assert_eq!(log.entries(), ['a', 'b', 'c', 'd']);
        });
    }
}

mod custom_event_loop {
    use super::TENTH;
    use super::support::quick;
    use std::collections::VecDeque;
    use std::future::Future;
    use std::pin::Pin;
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::sync::{Arc, Mutex};
    use std::task::{Context, Wake, Waker};
    use std::thread::{self, ThreadId};

    /// A loop as a user would write one: it knows nothing about ours.
    struct Loop {
        tasks: VecDeque<Pin<Box<dyn Future<Output = ()>>>>,
        woken: (Sender<usize>, Receiver<usize>),
    }

    struct Ring(usize, Mutex<Sender<usize>>);

    impl Wake for Ring {
        fn wake(self: Arc<Self>) {
            self.1.lock().unwrap().send(self.0).unwrap();
        }
    }

    impl Loop {
        fn run(&mut self) {
            let mut open = self.tasks.len();
            for index in 0..open {
                self.woken.0.send(index).unwrap();
            }
            while open > 0 {
                let index = self.woken.1.recv().unwrap();
                let ring = Ring(index, Mutex::new(self.woken.0.clone()));
                let waker = Waker::from(Arc::new(ring));
                let task = self.tasks[index].as_mut();
                if task.poll(&mut Context::from_waker(&waker)).is_ready() {
                    self.tasks[index] = Box::pin(std::future::pending());
                    open -= 1;
                }
            }
        }
    }

    #[test]
    fn test_custom_event_loop() {
        unsync::unsync! {
            async fn method() -> ThreadId { unsync::sleep(TENTH).await; thread::current().id() }
        }
        quick(|| {
            let (sender, receiver) = channel();
            let mut custom = Loop {
                tasks: VecDeque::new(),
                woken: channel(),
            };
            for _ in 0..3 {
                let sender = sender.clone();
                custom.tasks.push_back(Box::pin(async move {
                    let there = method().await.unwrap();
                    unsync::sleep(TENTH).await;
                    sender.send((there, thread::current().id())).unwrap();
                }));
            }
            custom.run();
            let places: Vec<_> = receiver.try_iter().collect();
            assert_eq!(places.len(), 3);
            for (there, here) in places {
                assert_eq!(here, thread::current().id());
                assert_ne!(there, here);
            }
        });
    }
}

mod future {
    use super::TENTH;
    use super::support::{Log, QUICK, quick};
    use std::thread;
    use std::time::{Duration, Instant};
    use unsync::{Error, Unfuture};

    #[test]
    fn test_future_reuse() {
        unsync::unsync! {
            async fn other(calls: Log<char>) -> &'static str {
                calls.push('b');
                unsync::sleep(TENTH).await;
                calls.push('c');
                "faff"
            }
            async fn long(
                start: fn(Log<char>) -> Unfuture<&'static str>,
                calls: Log<char>,
            ) -> Result<&'static str, Error> {
                calls.push('a');
                let mut task = start(calls.clone()).shared();
                (&mut task).await?;
                (&mut task).await?;
                // On the ambient thread, where `result` gives what is already there.
                let result = task.result()?;
                calls.push('d');
                Ok(result)
            }
        }
        quick(|| {
            let calls = Log::new();
            let result = long(other, calls.clone()).flatten().result();
            assert_eq!(result.unwrap(), "faff");
            assert_eq!(calls.entries(), ['a', 'b', 'c', 'd']);
        });
    }

    unsync::unsync! {
        async fn source() -> Vec<char> { unsync::sleep(TENTH).await; vec!['a'] }
        async fn appended(mut letters: Vec<char>, letter: char) -> Vec<char> {
            unsync::sleep(TENTH).await;
            letters.push(letter);
            letters
        }
    }

    #[test]
    fn test_async_continuation() {
        quick(|| {
            let started = Instant::now();
            let both = source()
                .and_then(|letters| appended(letters, 'b'))
                .map(Result::unwrap);
            assert_eq!(both.result().unwrap(), ['a', 'b']);
            assert!(started.elapsed() >= 2 * TENTH);
        });
    }

    #[test]
    fn test_sync_continuation() {
        quick(|| {
            let both = source().map(|mut letters| {
                letters.push('b');
                letters
            });
            assert_eq!(both.result().unwrap(), ['a', 'b']);
        });
    }

    #[test]
    fn test_chained_continuation() {
        async fn more(task: Unfuture<Vec<char>>, letter: char) -> Result<Vec<char>, Error> {
            appended(task.result()?, letter).await
        }
        quick(|| {
            let all = source()
                .then(|task| more(task, 'b'))
                .flatten()
                .then(|task| more(task, 'c'))
                .flatten()
                .then(|task| more(task, 'd'))
                .flatten();
            assert_eq!(all.result().unwrap(), ['a', 'b', 'c', 'd']);
        });
    }

    #[test]
    fn test_from_result() {
        quick(|| {
            assert_eq!(Unfuture::ready("faff").result().unwrap(), "faff");
        });
    }

    #[test]
    fn test_await_from_result() {
        quick(|| {
            let awaited = unsync::spawn(async { Unfuture::ready("faff").await });
            assert_eq!(awaited.flatten().result().unwrap(), "faff");
        });
    }

    /// The result of another library's thread, as an `Unfuture`.
    fn from_thread<T: Send + 'static>(job: impl FnOnce() -> T + Send + 'static) -> Unfuture<T> {
        let (promise, unfuture) = unsync::promise();
        thread::spawn(move || promise.set(job()));
        unfuture
    }

    fn foreign_job() -> &'static str {
        thread::sleep(TENTH);
        "faff"
    }

    #[test]
    fn test_from_concurrent_future() {
        quick(|| {
            let wrapped = from_thread(foreign_job);
            assert!(!wrapped.wait_timeout(Duration::ZERO));
            assert!(wrapped.wait_timeout(QUICK));
            assert_eq!(wrapped.result().unwrap(), "faff");
        });
    }

    #[test]
    fn test_await_from_concurrent_future() {
        quick(|| {
            let wrapped = from_thread(foreign_job);
            let awaited = unsync::spawn(wrapped).flatten();
            assert_eq!(awaited.result().unwrap(), "faff");
        });
    }
}

mod process_executor {
    use super::support::{HEAVY, limit};
    use std::time::{Duration, Instant};
    use unsync::{Error, Unfuture};

    unsync::unsync! {
        /// Computes for a while, and returns its process.
        #[cpu]
        fn spin(number: u64, millis: u64) -> (u64, u32) {
            let started = Instant::now();
            while started.elapsed() < Duration::from_millis(millis) {
                std::hint::spin_loop();
            }
            (number, std::process::id())
        }
    }

    #[test]
    fn test_raw_cpu_bound() {
        limit(HEAVY, || {
            let (number, process) = spin(4, 10).result().unwrap();
            assert_eq!(number, 4);
            assert_ne!(process, std::process::id());
        });
    }

    #[test]
    fn test_cpu_bound() {
        async fn aggregated(calls: Vec<Unfuture<(u64, u32)>>) -> Result<Vec<u64>, Error> {
            let mut numbers = Vec::new();
            for call in calls {
                numbers.push(call.await?.0);
            }
            Ok(numbers)
        }
        limit(HEAVY, || {
            for _ in 0..2 {
                let calls = (0..100).map(|number| spin(number, 10)).collect();
                let numbers = unsync::spawn(aggregated(calls)).flatten().result().unwrap();
                assert_eq!(numbers, Vec::from_iter(0..100));
            }
        });
    }
}

mod thread_executor {
    use super::TENTH;
    use super::support::{Place, quick};
    use std::thread;
    use unsync::Error;

    fn method() -> Place {
        thread::sleep(TENTH);
        Place::here()
    }

    #[test]
    fn test_unsync_threaded() {
        quick(|| {
            let place = unsync::thread(method).result().unwrap();
            assert!(place.is_pool(), "{place:?}");
        });
    }

    #[test]
    fn test_unsync_threaded_with_await() {
        quick(|| {
            let task = unsync::thread(method);
            task.wait();
            let awaited = unsync::spawn(async move { (task.await, Place::here()) });
            let (place, awaiter) = awaited.result().unwrap();
            assert!(place.unwrap().is_pool() && awaiter.is_ambient());
        });
    }

    #[test]
    fn test_unsync_threaded_multiple() {
        quick(|| {
            let tasks = Vec::from_iter((0..20).map(|_| unsync::thread(method)));
            let all = unsync::spawn(async move {
                let mut places = Vec::new();
                for task in tasks {
                    places.push(task.await?);
                }
                Ok::<_, Error>(places)
            });
            let places = all.flatten().result().unwrap();
            assert_eq!(places.len(), 20);
            assert!(places.iter().all(Place::is_pool), "{places:?}");
        });
    }

    #[test]
    fn test_unsync_threaded_decorator() {
        unsync::unsync! {
            fn decorated() -> Place { method() }
        }
        quick(|| {
            let tasks = Vec::from_iter((0..20).map(|_| decorated()));
            for task in tasks {
                let place = unsync::block_on(task).unwrap();
                assert!(place.is_pool(), "{place:?}");
            }
        });
    }

    #[test]
    fn test_unsync_threaded_decorator_args() {
        unsync::unsync! {
            fn decorated(positional: u8, mut changed: String, option: Option<&'static str>,) -> String {
                changed.push_str(option.unwrap_or("nothing"));
                format!("{positional}{changed}")
            }
        }
        quick(|| {
            let named = decorated(1, "two".into(), Some("three"));
            assert_eq!(named.result().unwrap(), "1twothree");
            assert_eq!(
                decorated(0, String::new(), None).result().unwrap(),
                "0nothing"
            );
        });
    }
}

mod unsync_ {
    use super::TENTH;
    use super::support::{Counter, Gate, Log, Place, quick};
    use std::sync::Arc;
    use std::thread;
    use std::time::{Duration, Instant};
    use unsync::{ErrorKind, Unfuture};

    #[derive(Debug, PartialEq)]
    struct TestException(&'static str);

    #[test]
    fn test_exception() {
        unsync::unsync! {
            async fn failing() -> Result<(), TestException> { Err(TestException("async")) }
            fn blocking() -> Result<(), TestException> { Err(TestException("thread")) }
            async fn panicking() { std::panic::panic_any(TestException("panic")) }
        }
        quick(|| {
            assert_eq!(failing().result().unwrap(), Err(TestException("async")));
            assert_eq!(blocking().result().unwrap(), Err(TestException("thread")));
            let error = panicking().result().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Panicked);
            let payload = error.into_panic().unwrap();
            assert_eq!(payload.downcast_ref(), Some(&TestException("panic")));
        });
    }

    #[test]
    fn test_parallelism() {
        unsync::unsync! {
            async fn method(log: Log<char>) {
                log.push('a');
                unsync::sleep(TENTH).await;
                log.push('b');
            }
        }
        quick(|| {
            let log = Log::new();
            // All are started within one step of the ambient thread, so none can end before the last
            // has begun, however slow the machine is.
            let here = log.clone();
            let all =
                unsync::spawn(
                    async move { Vec::from_iter((0..100).map(|_| method(here.clone()))) },
                );
            unsync::join_all(all.result().unwrap()).result().unwrap();
            let (begun, ended) = ([['a'; 100]], [['b'; 100]]);
            assert_eq!(log.entries(), [begun, ended].concat().concat());
        });
    }

    #[test]
    fn test_apply_to_function() {
        async fn existing(a: u32, b: u32) -> (u32, Place) {
            (a + b, Place::here())
        }
        quick(|| {
            let (sum, place) = unsync::spawn(existing(1, 2)).result().unwrap();
            assert!(sum == 3 && place.is_ambient(), "{place:?}");
        });
    }

    #[test]
    fn test_apply_to_built_in() {
        quick(|| {
            let started = Instant::now();
            unsync::thread(|| thread::sleep(TENTH)).result().unwrap();
            assert!(started.elapsed() >= TENTH);
            let cores = unsync::thread(thread::available_parallelism)
                .result()
                .unwrap();
            assert_eq!(cores.ok(), thread::available_parallelism().ok());
            let built_in = unsync::spawn(std::future::ready(5));
            assert_eq!(built_in.result().unwrap(), 5);
        });
    }

    #[test]
    fn test_future_integration() {
        unsync::unsync! {
            async fn method(raw: Gate) -> &'static str { raw.pass().await; "faff" }
        }
        quick(|| {
            let raw = Gate::new();
            let result = method(raw.clone());
            assert!(!result.wait_timeout(TENTH) && !result.is_done());
            thread::spawn(move || raw.open());
            assert_eq!(result.result().unwrap(), "faff");
        });
    }

    #[test]
    fn test_unfuture_integration() {
        unsync::unsync! {
            async fn method(raw: Unfuture<&'static str>) -> &'static str { raw.await.unwrap() }
        }
        quick(|| {
            let (promise, raw) = unsync::promise();
            let result = method(raw);
            assert!(!result.wait_timeout(TENTH) && !result.is_done());
            thread::spawn(move || promise.set("faff"));
            assert_eq!(result.result().unwrap(), "faff");
        });
    }

    #[test]
    fn test_instance_methods() {
        struct Class(&'static str, Counter);
        impl Class {
            fn method(self: &Arc<Self>) -> Unfuture<&'static str> {
                let this = Arc::clone(self);
                unsync::spawn(async move {
                    unsync::sleep(TENTH).await;
                    this.1.add();
                    this.0
                })
            }
        }
        quick(|| {
            let instance = Arc::new(Class("faff", Counter::new()));
            let calls = [instance.method(), instance.method()];
            let results = unsync::join_all(calls).result().unwrap();
            assert_eq!((results, instance.1.count()), (vec!["faff", "faff"], 2));
        });
    }

    #[test]
    fn test_passing_arguments() {
        unsync::unsync! {
            /// Docs, lints and conditions may be written on a function.
            #[allow(clippy::needless_return)]
            #[inline]
            async fn method(value: &'static str) -> &'static str { return value; }
            #[cfg(any())]
            async fn absent() -> NoSuchType {}
        }
        quick(|| {
            assert_eq!(method("faff").result().unwrap(), "faff");
        });
    }

    #[test]
    fn test_implementation_without_decorator() {
        fn method(delay: Duration) -> Unfuture<String> {
            unsync::spawn(async move {
                unsync::sleep(delay).await;
                String::from("faff")
            })
        }
        quick(|| {
            assert_eq!(method(TENTH).result().unwrap(), "faff");
        });
    }

    /// A decorator of the user's own around ours.
    macro_rules! logged {
        ($($function:tt)*) => { unsync::unsync! { #[doc = "Logged."] $($function)* } };
    }

    /// Each attribute must cause its lint at the call: one that got lost is an error here.
    #[deny(unfulfilled_lint_expectations)]
    #[test]
    fn test_nested_decorator_retains_wrapped_function_attributes() {
        mod inner {
            logged! {
                #[deprecated]
                #[must_use]
                pub(in super::super) async fn method(value: u8) -> u8 { value }
            }
        }
        quick(|| {
            #[expect(deprecated)]
            let value = inner::method(1);
            assert_eq!(value.result().unwrap(), 1);
            #[expect(deprecated, unused_must_use)]
            {
                inner::method(2);
            }
        });
    }

    #[deny(unfulfilled_lint_expectations)]
    #[test]
    fn test_nested_decorator_retains_wrapped_class_method_attributes() {
        struct Class;
        impl Class {
            logged! {
                #[deprecated]
                pub async fn method(value: u8) -> u8 { value }
                #[must_use]
                fn blocking(value: u8) -> u8 { value }
                #[must_use]
                #[cpu] fn computing(value: u8) -> u8 { value }
            }
        }
        quick(|| {
            #[expect(deprecated)]
            let value = Class::method(1);
            assert_eq!(value.result().unwrap(), 1);
            #[expect(unused_must_use)]
            {
                Class::blocking(2);
            }
            #[expect(unused_must_use)]
            {
                Class::computing(3);
            }
            assert_eq!(Class::computing(4).result().unwrap(), 4);
        });
    }
}

/// What a block of functions may look like.
mod decorated {
    use super::support::quick;

    macro_rules! documented {
        ($($polled:ident $blocking:ident $computed:ident)*) => { unsync::unsync! {
            $(
                /// Line one.
                /// Line two.
                /// Line three.
                /// Line four.
                /// Line five.
                /// Line six.
                async fn $polled() -> u8 { 1 }
                /// Line one.
                /// Line two.
                /// Line three.
                /// Line four.
                /// Line five.
                /// Line six.
                fn $blocking() -> u8 { 2 }
                /// Line one.
                /// Line two.
                /// Line three.
                /// Line four.
                /// Line five.
                /// Line six.
                #[cpu] fn $computed() -> u8 { 3 }
            )*
        } };
    }

    /// The recursion depth of a macro is limited, and each line of docs is a step.
    #[test]
    fn a_block_of_many_functions_with_long_docs() {
        documented! {
            polled0 blocking0 computed0
            polled1 blocking1 computed1
            polled2 blocking2 computed2
            polled3 blocking3 computed3
            polled4 blocking4 computed4
            polled5 blocking5 computed5
            polled6 blocking6 computed6
            polled7 blocking7 computed7
            polled8 blocking8 computed8
            polled9 blocking9 computed9
        }
        quick(|| {
            let of_each_kind = [polled9(), blocking9(), computed9()];
            assert_eq!(unsync::join_all(of_each_kind).result().unwrap(), [1, 2, 3]);
            let others = [polled0(), blocking4(), computed8()];
            assert_eq!(unsync::join_all(others).result().unwrap(), [1, 2, 3]);
        });
    }

    #[test]
    fn an_argument_with_the_name_of_its_function() {
        unsync::unsync! {
            async fn polled(polled: u8) -> u8 { polled + 1 }
            fn blocking(mut blocking: u8) -> u8 { blocking += 1; blocking }
            #[cpu] fn seed(seed: u64) -> u64 { seed + 1 }
            #[cpu] fn depth(mut depth: u64, of: u64) -> (u64, bool) {
                depth += of;
                (depth, unsync::is_worker())
            }
            #[cpu] fn quiet(quiet: ()) { quiet }
        }
        quick(|| {
            assert_eq!(polled(1).result().unwrap(), 2);
            assert_eq!(blocking(2).result().unwrap(), 3);
            assert_eq!(seed(3).result().unwrap(), 4);
            assert_eq!(depth(4, 1).result().unwrap(), (5, true));
            quiet(()).result().unwrap();
        });
    }
}
