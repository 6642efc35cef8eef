//! The macros that say where a function runs.

/// Decorates functions, so that a call starts them elsewhere.
///
/// An `async fn` runs on the ambient thread, a plain `fn` on the thread pool, and a `#[cpu] fn`, which is
/// registered where it stands, in a worker process. Each returns an [`Unfuture`](crate::Unfuture) of its return
/// type, and keeps its visibility, attributes, docs and arguments.
///
/// Arguments move to another thread, so they are owned: no references except `&'static`, and no `self`. Each
/// is a name with a type, and the functions have no generics.
///
/// Errors and reports name the line that calls the function; through a function pointer, which does not know
/// its caller, they name the line of `unsync!`.
///
/// Inside a body the function's own name means the decorated function, which starts more work; inside a
/// `#[cpu]` body it means the plain one, since that runs in a worker already.
///
/// # Examples
///
/// ```
/// unsync::unsync! {
///     /// Twice the number, a little later.
///     pub async fn double(n: u64) -> u64 { unsync::yield_now().await; n * 2 }
///     fn read(path: &'static str) -> std::io::Result<String> { std::fs::read_to_string(path) }
///     #[cpu] fn triple(n: u64) -> u64 { n * 3 }
/// }
///
/// # fn main() -> Result<(), unsync::Error> {
/// unsync::init();
/// assert_eq!(double(2).result()?, 4);
/// assert!(read("Cargo.toml").result()?.is_ok());
/// assert_eq!(triple(2).result()?, 6);
/// # Ok(())
/// # }
/// ```
#[macro_export]
macro_rules! unsync {
    () => {};
    // Attributes are taken one by one, so that `#[cpu]` is found among them.
    (@fn [$($kept:tt)*] #[cpu] $($rest:tt)*) => {
        $crate::unsync! { @cpu [$($kept)*] $($rest)* }
    };
    (@$kind:ident [$($kept:tt)*] #[$($attribute:tt)*] $($rest:tt)*) => {
        $crate::unsync! { @$kind [$($kept)* #[$($attribute)*]] $($rest)* }
    };
    (@fn [$($kept:tt)*] $visibility:vis async fn $name:ident
        ($($first:ident $($second:ident)? : $type:ty),* $(,)?) $(-> $output:ty)? $body:block
    ) => {
        $($kept)*
        #[track_caller]
        $visibility fn $name($($crate::__argument!($first $($second)?): $type),*)
            -> $crate::Unfuture<$crate::__output!($($output)?)>
        {
            async fn __unsync_body($($first $($second)? : $type),*) $(-> $output)? $body
            $crate::spawn(__unsync_body($($crate::__argument!($first $($second)?)),*))
        }
    };
    (@fn [$($kept:tt)*] $visibility:vis fn $name:ident
        ($($first:ident $($second:ident)? : $type:ty),* $(,)?) $(-> $output:ty)? $body:block
    ) => {
        $($kept)*
        #[track_caller]
        $visibility fn $name($($crate::__argument!($first $($second)?): $type),*)
            -> $crate::Unfuture<$crate::__output!($($output)?)>
        {
            fn __unsync_body($($first $($second)? : $type),*) $(-> $output)? $body
            $crate::thread(move || __unsync_body($($crate::__argument!($first $($second)?)),*))
        }
    };
    (@cpu [$($kept:tt)*] $visibility:vis fn $name:ident
        ($($first:ident $($second:ident)? : $type:ty),* $(,)?) $(-> $output:ty)? $body:block
    ) => {
        $($kept)*
        #[track_caller]
        $visibility fn $name($($crate::__argument!($first $($second)?): $type),*)
            -> $crate::Unfuture<$crate::__output!($($output)?)>
        {
            // Out of scope of the arguments, one of which may have the name of the function.
            fn __unsync_entry()
                -> impl $crate::Entrypoint<($($type,)*), Output = $crate::__output!($($output)?)>
            {
                fn $name($($first $($second)? : $type),*) $(-> $output)? $body
                $crate::register!($name);
                $name
            }
            $crate::cpu(__unsync_entry(), ($($crate::__argument!($first $($second)?),)*))
        }
    };
    // What did not match above: without these two arms, the last arm would match it forever.
    (@$kind:ident $kept:tt $visibility:vis $(async)? fn $name:ident $($rest:tt)*) => {
        ::core::compile_error!(::core::concat!(
            "`unsync!` takes no function like `",
            ::core::stringify!($name),
            "`: it has to have a body and arguments of the form `name: Type`, no generics and no \
             `self`, and a `#[cpu] fn` is not `async`"
        ));
    };
    (@$kind:ident $kept:tt $($rest:tt)*) => {
        ::core::compile_error!("`unsync!` takes only `async fn`, `fn` and `#[cpu] fn`");
    };
    // The first of several functions comes off whole, so the next is only one step deeper, not one step for
    // each attribute of the first. Every line of its docs is an attribute.
    ($(#[$($attribute:tt)*])* $visibility:vis $($head:ident)+ ($($arguments:tt)*)
        $(-> $output:ty)? $body:block $($rest:tt)+
    ) => {
        $crate::unsync! {
            @fn [] $(#[$($attribute)*])* $visibility $($head)+ ($($arguments)*) $(-> $output)? $body
        }
        $crate::unsync! { $($rest)+ }
    };
    ($($item:tt)+) => {
        $crate::unsync! { @fn [] $($item)+ }
    };
}

/// Calls a function in a worker process and registers it where it stands: `cpu!(function, args…)` or
/// `cpu!(function(args…))`, or a closure with written types that captures nothing.
///
/// See [`cpu`](crate::cpu()) for what it returns. A closure cannot use the variables around it: pass their values as
/// arguments.
///
/// # Examples
///
/// ```
/// fn add(a: u64, b: u64) -> u64 {
///     a + b
/// }
///
/// # fn main() -> Result<(), unsync::Error> {
/// unsync::init();
/// assert_eq!(unsync::cpu!(add, 20, 22).result()?, 42);
/// assert_eq!(unsync::cpu!(add(20, 22)).result()?, 42);
/// let factor = 2; // passed as an argument, below
/// let double = unsync::cpu!(|n: u64, factor: u64| -> u64 { n * factor }, 21, factor);
/// assert_eq!(double.result()?, 42);
/// # Ok(())
/// # }
/// ```
#[macro_export]
macro_rules! cpu {
    (|| $(-> $output:ty)? $body:block $(,)?) => {
        $crate::__cpu! { [] [$(-> $output)?] $body [] }
    };
    (|$($first:ident $($second:ident)? : $type:ty),* $(,)?| $(-> $output:ty)? $body:block
        $(, $value:expr)* $(,)?
    ) => {
        $crate::__cpu! {
            [$($first $($second)? : $type),*] [$(-> $output)?] $body [$($value,)*]
        }
    };
    (| $($rest:tt)*) => {
        ::core::compile_error!(
            "a closure for a worker process writes its types: `cpu!(|n: u64| -> u64 { n * 2 }, 21)`"
        )
    };
    // The closure captures nothing, so `move` changes nothing.
    (move $($closure:tt)*) => {
        $crate::cpu!($($closure)*)
    };
    (async $($rest:tt)*) => {
        ::core::compile_error!("a worker process does not run futures: use `unsync::spawn(async { … })`")
    };
    // Written as a call. This arm comes before the next because a `path` would match it as a type like
    // `Fn(A)`.
    ($($function:ident)::+ $(::<$($T:ty),* $(,)?>)? ($($value:expr),* $(,)?) $(,)?) => {
        $crate::cpu!($($function)::+ $(::<$($T),*>)?, $($value),*)
    };
    ($function:path $(, $value:expr)* $(,)?) => {{
        $crate::register!($function);
        $crate::cpu($function, ($($value,)*))
    }};
    ($($rest:tt)*) => {
        ::core::compile_error!(
            "`cpu!` takes a function and its arguments, `cpu!(work, 21)`, or a closure that writes its \
             types, `cpu!(|n: u64| -> u64 { n * 2 }, 21)`"
        )
    };
}

/// A closure of `cpu!` as a function: only a function can be named twice, to be registered and to be called.
#[doc(hidden)]
#[macro_export]
macro_rules! __cpu {
    ([$($arguments:tt)*] [$($output:tt)*] $body:block [$($value:expr,)*]) => {{
        fn __unsync_closure($($arguments)*) $($output)* $body
        $crate::__register! {
            __unsync_closure,
            ::core::concat!("closure at ", ::core::file!(), ":", ::core::line!())
        }
        $crate::cpu(__unsync_closure, ($($value,)*))
    }};
}

/// The name of an argument: `mut name` or `name`.
#[doc(hidden)]
#[macro_export]
macro_rules! __argument {
    ($mut:ident $name:ident) => {
        $name
    };
    ($name:ident) => {
        $name
    };
}

/// The return type of a function, which may be left out.
#[doc(hidden)]
#[macro_export]
macro_rules! __output {
    () => {
        ()
    };
    ($output:ty) => {
        $output
    };
}
