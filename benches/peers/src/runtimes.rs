//! The peers' runtimes, set up as their documentation recommends.

use std::future::Future;
use std::sync::Arc;
use std::thread;

/// tokio's multi-thread runtime with this many workers.
pub(crate) fn tokio(workers: usize) -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .enable_time()
        .build()
        .expect("tokio's runtime starts")
}

/// tokio's current-thread runtime, driven by a thread of its own: the closest thing to an ambient
/// thread.
pub(crate) struct TokioThread {
    handle: tokio::runtime::Handle,
    _stop: tokio::sync::oneshot::Sender<()>,
}

impl TokioThread {
    pub(crate) fn start() -> TokioThread {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("tokio's runtime starts");
        let handle = runtime.handle().clone();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        thread::spawn(move || runtime.block_on(stopped));
        TokioThread {
            handle,
            _stop: stop,
        }
    }

    pub(crate) fn handle(&self) -> &tokio::runtime::Handle {
        &self.handle
    }
}

/// smol's executor on a thread of its own, as its documentation advises in place of the global one.
pub(crate) fn smol_executor() -> Arc<smol::Executor<'static>> {
    let executor = Arc::new(smol::Executor::new());
    let driven = Arc::clone(&executor);
    thread::spawn(move || smol::future::block_on(driven.run(std::future::pending::<()>())));
    executor
}

pub(crate) fn futures_pool() -> futures::executor::ThreadPool {
    futures::executor::ThreadPool::new().expect("the pool of futures starts")
}

/// Something that runs futures beside the caller and gives their values back: each workload is written
/// once for all runtimes.
pub(crate) trait Runtime: Clone + Send + Sync + 'static {
    type Handle<T: Send + 'static>: Future + Send;

    fn spawn<T: Send + 'static>(
        &self,
        future: impl Future<Output = T> + Send + 'static,
    ) -> Self::Handle<T>;

    /// The value in the output of an awaited handle.
    fn value<T: Send + 'static>(output: <Self::Handle<T> as Future>::Output) -> T;

    /// Waits from synchronous code.
    fn wait<T: Send + 'static>(&self, handle: Self::Handle<T>) -> T;

    /// Waits for many from synchronous code, in the way that is best for the runtime.
    fn wait_all<T: Send + 'static>(&self, handles: Vec<Self::Handle<T>>, each: impl FnMut(T));

    fn yield_now() -> impl Future<Output = ()> + Send;
}

#[derive(Clone)]
pub(crate) struct Unsync;

impl Runtime for Unsync {
    type Handle<T: Send + 'static> = unsync::Unfuture<T>;

    fn spawn<T: Send + 'static>(
        &self,
        future: impl Future<Output = T> + Send + 'static,
    ) -> unsync::Unfuture<T> {
        unsync::spawn(future)
    }
    fn value<T: Send + 'static>(output: Result<T, unsync::Error>) -> T {
        output.expect("the task gives a value")
    }
    fn wait<T: Send + 'static>(&self, handle: unsync::Unfuture<T>) -> T {
        handle.result().expect("the task gives a value")
    }
    fn wait_all<T: Send + 'static>(
        &self,
        handles: Vec<unsync::Unfuture<T>>,
        mut each: impl FnMut(T),
    ) {
        for handle in handles {
            each(self.wait(handle));
        }
    }
    fn yield_now() -> impl Future<Output = ()> + Send {
        unsync::yield_now()
    }
}

impl Runtime for tokio::runtime::Handle {
    type Handle<T: Send + 'static> = tokio::task::JoinHandle<T>;

    fn spawn<T: Send + 'static>(
        &self,
        future: impl Future<Output = T> + Send + 'static,
    ) -> tokio::task::JoinHandle<T> {
        tokio::runtime::Handle::spawn(self, future)
    }
    fn value<T: Send + 'static>(output: Result<T, tokio::task::JoinError>) -> T {
        output.expect("the task gives a value")
    }
    fn wait<T: Send + 'static>(&self, handle: tokio::task::JoinHandle<T>) -> T {
        self.block_on(handle).expect("the task gives a value")
    }
    fn wait_all<T: Send + 'static>(
        &self,
        handles: Vec<tokio::task::JoinHandle<T>>,
        mut each: impl FnMut(T),
    ) {
        self.block_on(async {
            for handle in handles {
                each(handle.await.expect("the task gives a value"));
            }
        });
    }
    fn yield_now() -> impl Future<Output = ()> + Send {
        tokio::task::yield_now()
    }
}

/// smol's global executor: `smol::spawn`.
#[derive(Clone)]
pub(crate) struct SmolGlobal;

impl Runtime for SmolGlobal {
    type Handle<T: Send + 'static> = smol::Task<T>;

    fn spawn<T: Send + 'static>(
        &self,
        future: impl Future<Output = T> + Send + 'static,
    ) -> smol::Task<T> {
        smol::spawn(future)
    }
    fn value<T: Send + 'static>(output: T) -> T {
        output
    }
    fn wait<T: Send + 'static>(&self, handle: smol::Task<T>) -> T {
        smol::block_on(handle)
    }
    fn wait_all<T: Send + 'static>(&self, handles: Vec<smol::Task<T>>, mut each: impl FnMut(T)) {
        smol::block_on(async {
            for handle in handles {
                each(handle.await);
            }
        });
    }
    fn yield_now() -> impl Future<Output = ()> + Send {
        smol::future::yield_now()
    }
}

impl Runtime for Arc<smol::Executor<'static>> {
    type Handle<T: Send + 'static> = smol::Task<T>;

    fn spawn<T: Send + 'static>(
        &self,
        future: impl Future<Output = T> + Send + 'static,
    ) -> smol::Task<T> {
        smol::Executor::spawn(self, future)
    }
    fn value<T: Send + 'static>(output: T) -> T {
        output
    }
    fn wait<T: Send + 'static>(&self, handle: smol::Task<T>) -> T {
        smol::future::block_on(handle)
    }
    fn wait_all<T: Send + 'static>(&self, handles: Vec<smol::Task<T>>, mut each: impl FnMut(T)) {
        smol::future::block_on(async {
            for handle in handles {
                each(handle.await);
            }
        });
    }
    fn yield_now() -> impl Future<Output = ()> + Send {
        smol::future::yield_now()
    }
}

impl Runtime for futures::executor::ThreadPool {
    type Handle<T: Send + 'static> = futures::future::RemoteHandle<T>;

    fn spawn<T: Send + 'static>(
        &self,
        future: impl Future<Output = T> + Send + 'static,
    ) -> futures::future::RemoteHandle<T> {
        use futures::task::SpawnExt;
        self.spawn_with_handle(future).expect("the pool is open")
    }
    fn value<T: Send + 'static>(output: T) -> T {
        output
    }
    fn wait<T: Send + 'static>(&self, handle: futures::future::RemoteHandle<T>) -> T {
        futures::executor::block_on(handle)
    }
    fn wait_all<T: Send + 'static>(
        &self,
        handles: Vec<futures::future::RemoteHandle<T>>,
        mut each: impl FnMut(T),
    ) {
        futures::executor::block_on(async {
            for handle in handles {
                each(handle.await);
            }
        });
    }
    /// The futures crate has none of its own.
    fn yield_now() -> impl Future<Output = ()> + Send {
        smol::future::yield_now()
    }
}
