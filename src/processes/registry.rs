//! The entrypoints: which functions a worker process can be asked to run.
//!
//! [`register!`](crate::register) puts an [`Entry`] beside the function, and a constructor into the
//! platform's init section. The constructor links the entry into one list before `main` starts, and does
//! nothing else. So there is no list to keep by hand, and a function may be registered anywhere in the
//! program's crates.

use std::any::TypeId;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Mutex, OnceLock};

use super::buffers;
use super::wire::{Wire, encode_within};
use crate::error::{Error, ErrorKind, lock};

/// A function that a worker process can run: a function item, or a closure that captures nothing.
///
/// `A` is the tuple of its arguments. Implemented for every function of up to twelve arguments; nothing
/// else implements it. A function can be called in a worker process if its arguments and result are [`Wire`].
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot run in a worker process",
    label = "cannot run in a worker process",
    note = "it has to be a function of up to twelve arguments, or a closure that captures nothing",
    note = "pass the function itself, and its arguments as a tuple: `unsync::cpu(work, (n,))`"
)]
pub trait Entrypoint<A>: Copy + Send + Sync + 'static {
    /// What the function returns.
    type Output;
    /// Calls the function.
    #[doc(hidden)]
    fn call(&self, arguments: A) -> Self::Output;
}

macro_rules! entrypoints {
    (@ $($argument:ident)*) => {
        impl<F, R, $($argument),*> Entrypoint<($($argument,)*)> for F
        where
            F: Fn($($argument),*) -> R + Copy + Send + Sync + 'static,
        {
            type Output = R;
            #[allow(non_snake_case)]
            fn call(&self, ($($argument,)*): ($($argument,)*)) -> R {
                self($($argument),*)
            }
        }

        impl<F, R, $($argument: Wire),*> Serve<($($argument,)*)> for F
        where
            F: Fn($($argument),*) -> R + Copy + Send + Sync + 'static,
            R: Wire,
        {
        }
    };
    () => {
        entrypoints!(@);
    };
    ($first:ident $($rest:ident)*) => {
        entrypoints!(@ $first $($rest)*);
        entrypoints!($($rest)*);
    };
}

entrypoints!(A B C D E G H I J K L M);

/// The id of an entrypoint on the wire.
///
/// A hash of the function's `TypeId`: the same in every process of one executable, and distinct for
/// closures and for functions whose `type_name` is the same.
pub(crate) fn id_of<F: 'static>() -> u64 {
    let mut hasher = DefaultHasher::new();
    TypeId::of::<F>().hash(&mut hasher);
    hasher.finish()
}

/// The same, for `register!`.
pub fn id<F: 'static>(_: F) -> u64 {
    id_of::<F>()
}

/// Checks that an entrypoint captures nothing, so that its type is all that has to travel.
///
/// The public functions call this themselves, so that the compiler's last note shows the caller's line.
pub(crate) const fn assert_captures_nothing<F>() {
    assert!(
        size_of::<F>() == 0,
        "a worker process cannot receive captured values or function pointers: pass what the function \
         needs as arguments, as in `unsync::cpu!(|n: u64, factor: u64| -> u64 {{ n * factor }}, n, factor)`"
    );
}

/// An entrypoint whose arguments and result are [`Wire`]. Each argument has a bound of its own, so the
/// compiler names the argument that cannot cross, not the tuple, at the function that is registered.
#[doc(hidden)]
pub trait Serve<A>: Entrypoint<A> {
    /// Decodes the arguments, which follow the id of the function, calls the function and appends its result,
    /// which may take up to `limit` bytes.
    fn serve(self, mut payload: Vec<u8>, limit: usize, output: &mut Vec<u8>) -> Result<(), Error>
    where
        Self: Entrypoint<A, Output: Wire>,
        A: Wire,
    {
        const { assert_captures_nothing::<Self>() }
        // The program's own `decode` may have given the error any kind.
        let arguments = A::decode(&mut &payload[size_of::<u64>()..])
            .map_err(|error| Error::new(ErrorKind::Codec, error.to_string()))?;
        buffers::recycle(&mut payload);
        let value = self.call(arguments);
        buffers::enlarge(output);
        encode_within(limit, &value, output).map_err(|text| Error::new(ErrorKind::TooLarge, text))
    }
}

type ServeFn = fn(Vec<u8>, usize, &mut Vec<u8>) -> Result<(), Error>;

/// A function named in a `register!`, without its types.
#[doc(hidden)]
#[derive(Debug)]
pub struct Entry {
    pub name: &'static str,
    pub id: fn() -> u64,
    /// See [`Serve::serve`].
    pub serve: ServeFn,
    pub next: OnceLock<Option<&'static Entry>>,
}

impl Entry {
    /// For the constructor that `register!` makes: runs once, before `main`.
    pub fn link(&'static self) {
        self.next.get_or_init(|| lock(&FIRST).replace(self));
    }
}

static FIRST: Mutex<Option<&'static Entry>> = Mutex::new(None);

/// The registered function with this id. One that was registered twice counts once.
pub(crate) fn find(id: u64) -> Option<&'static Entry> {
    static TABLE: OnceLock<Vec<(u64, &'static Entry)>> = OnceLock::new();
    let table = TABLE.get_or_init(|| {
        let mut table = Vec::new();
        let mut next = *lock(&FIRST);
        while let Some(entry) = next {
            let id = (entry.id)();
            let at = table.partition_point(|(known, _)| *known < id);
            table.insert(at, (id, entry));
            next = entry.next.get().copied().flatten();
        }
        table
    });
    let at = table.binary_search_by_key(&id, |(known, _)| *known);
    at.ok().map(|at| table[at].1)
}

/// Makes functions callable in a worker process.
///
/// Put it anywhere in any crate of the program, normally beside the function. It takes functions by path,
/// generic ones with their types, and closures that capture nothing. Arguments and result have to be
/// [`Wire`](crate::Wire). A closure has no name to call it by: [`cpu!`](crate::cpu!) registers and calls it.
///
/// A constructor in the executable's init section links each function into a list before `main`. For that,
/// the macro writes an `#[unsafe(link_section)]` attribute into your crate. This attribute is the only thing
/// in the library outside safe Rust, and it compiles in a crate that forbids unsafe code.
///
/// A function in a library crate is registered only if the linker keeps the part of the library that contains
/// it, which it does if the program uses anything else in that part.
///
/// # Examples
///
/// ```
/// fn primes(below: u64) -> u64 {
///     (2..below).filter(|n| (2..*n).all(|d| n % d != 0)).count() as u64
/// }
/// fn sorted<T: Ord>(mut items: Vec<T>) -> Vec<T> {
///     items.sort();
///     items
/// }
/// unsync::register!(primes, sorted::<u64>);
///
/// # fn main() -> Result<(), unsync::Error> {
/// unsync::init();
/// assert_eq!(unsync::cpu(primes, (100,)).result()?, 25);
/// # Ok(())
/// # }
/// ```
///
/// Closures that capture are refused when the program is built:
///
/// ```compile_fail
/// let factor = 2;
/// unsync::init();
/// unsync::cpu(move |n: u64| -> u64 { n * factor }, (1,));
/// ```
#[macro_export]
macro_rules! register {
    ($($function:expr),* $(,)?) => {
        $($crate::__register! { $function, ::core::stringify!($function) })*
    };
}

/// One function and the name it is reported by. The items' names are in the scope of the user's
/// expression, so they are names that no user has.
#[doc(hidden)]
#[macro_export]
macro_rules! __register {
    ($function:expr, $name:expr) => {
        const _: () = {
            static __UNSYNC_ENTRY: $crate::__private::Entry = $crate::__private::Entry {
                name: $name,
                id: || $crate::__private::id($function),
                serve: |payload, limit, output| {
                    $crate::__private::Serve::serve($function, payload, limit, output)
                },
                next: ::std::sync::OnceLock::new(),
            };
            $crate::__before_main! { __UNSYNC_ENTRY.link() }
        };
    };
}

/// Runs an expression before `main`.
#[doc(hidden)]
#[macro_export]
macro_rules! __before_main {
    ($action:expr) => {
        #[used]
        #[cfg_attr(windows, unsafe(link_section = ".CRT$XCU"))]
        #[cfg_attr(
            target_vendor = "apple",
            unsafe(link_section = "__DATA,__mod_init_func,mod_init_funcs")
        )]
        #[cfg_attr(
            not(any(windows, target_vendor = "apple")),
            unsafe(link_section = ".init_array")
        )]
        static __UNSYNC_BEFORE_MAIN: extern "C" fn() = {
            extern "C" fn __unsync_before_main() {
                $action
            }
            __unsync_before_main
        };
    };
}
