//! The codec: values to bytes and back.
//!
//! Pure: it knows no process, frame or file. Bytes are not trusted: a length is checked before it is used,
//! nesting has a limit, and anything that is not a value is an error.

use std::any::type_name;
use std::cell::Cell;
use std::collections::TryReserveError;
use std::fmt::Display;
use std::ptr;
use std::thread;

use crate::error::{Error, ErrorKind};

mod impls;

/// A value that can cross to a worker process and back.
///
/// The plain data types of the standard library implement it, [`std::io::Error`] too; [`wire!`](crate::wire)
/// implements it for your own structs and enums. References do not implement it, nor do types that belong to
/// one process, such as files and locks.
///
/// # Format
///
/// - Numbers are little endian and as wide as their type; `usize` and `isize` take 64 bits, and are
///   refused where they do not fit.
/// - A struct, a tuple or an array is its fields, one after the other.
/// - An enum is the index of its variant as a `u32`, then the fields of that variant; but an
///   `Option` is a `bool`, then the value if there is one.
/// - A collection is its length as a `u64`, then its elements. Where these take less than a byte
///   each (as `()` does), zeros follow until there are as many bytes as elements.
/// - Text is a collection: of the bytes of its UTF-8, or of the units that the platform keeps in an `OsString`.
///
/// The format is an agreement among processes of one executable. It is not self-describing and may change
/// with any version, so it does not belong in files or between programs.
///
/// # What does not arrive
///
/// Clones of an `Arc` or `Rc` arrive as separate values, a map or set gets a new hasher, and spare capacity
/// stays behind. An [`std::io::Error`] arrives with its code, or with its kind and its text. A
/// [`RangeInclusive`](std::ops::RangeInclusive) that was iterated to its end is refused by `decode`: the
/// standard library offers no way to make one.
///
/// # Foreign bytes
///
/// Decoding bytes that `encode` did not write gives an error or a value, never a panic. A length is
/// not trusted: beyond a few KiB, memory is allocated only for what was decoded, in proportion to the size of
/// the input (the types decide the proportion). Pointers and collections that are nested deeper than 256
/// levels are refused, so that no input overflows the stack. This limits valid values too: `encode` panics if
/// they nest deeper, and the call fails with that panic. Send a long chain as a `Vec`, not as a list of
/// boxes. An array is on the stack while it is decoded, even on its way into a box: send a large one as a
/// `Vec`.
///
/// # Values that are too large
///
/// In a call, a collection that cannot fit into a frame is not written: the call fails as
/// [`ErrorKind::TooLarge`] at once. Elsewhere `encode` panics if there is no memory for a collection.
///
/// # Examples
///
/// ```
/// use unsync::Wire;
///
/// let mut bytes = Vec::new();
/// (7_u16, Some('x')).encode(&mut bytes);
/// assert_eq!(bytes, [7, 0, 1, b'x', 0, 0, 0]);
///
/// let mut input = bytes.as_slice();
/// assert_eq!(<(u16, Option<char>)>::decode(&mut input)?, (7, Some('x')));
/// assert!(input.is_empty());
/// # Ok::<(), unsync::Error>(())
/// ```
///
/// A type that `wire!` cannot describe can travel as another type:
///
/// ```
/// use unsync::{Error, Wire};
/// use std::sync::Mutex;
///
/// struct Counter(Mutex<u64>);
///
/// impl Wire for Counter {
///     fn encode(&self, out: &mut Vec<u8>) {
///         self.0.lock().unwrap().encode(out);
///     }
///     fn decode(input: &mut &[u8]) -> Result<Counter, Error> {
///         u64::decode(input).map(|count| Counter(Mutex::new(count)))
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot cross to a worker process",
    label = "cannot cross to a worker process",
    note = "`unsync::wire!` implements `Wire` for your own structs and enums",
    note = "a reference cannot cross: take a `String` for `&str`, a `Vec<T>` for `&[T]`",
    note = "of the error types `std::io::Error` can cross; for others, send the text or an enum of your own",
    note = "nothing that belongs to one process can cross, such as a file, a socket, a lock or an `Instant`",
    note = "an `async fn` returns a future, which cannot cross: run it with `unsync::spawn(f(x))`"
)]
pub trait Wire: Sized {
    /// Appends the bytes of this value to `out`, and leaves what is there unchanged.
    fn encode(&self, out: &mut Vec<u8>);

    /// Takes one value off the front of `input`, and leaves the rest.
    ///
    /// The result of a call is decoded on the thread that reads from its worker process. That thread has the
    /// stack of a call, and must not wait for other work: see [`Unfuture::result`](crate::Unfuture::result).
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Codec`] if there are too few bytes, if they are not a value of this type, or if there is no
    /// memory for a `Vec` or a `String`. Where another type gets no memory, the process aborts, as is usual in
    /// Rust. How much of `input` is left after an error is unspecified.
    fn decode(input: &mut &[u8]) -> Result<Self, Error>;

    /// The least number of bytes that a value of the type takes, as far as that is known.
    #[doc(hidden)]
    const BYTES_MIN: usize = 0;

    /// Encodes the items without their count. Numbers are encoded at the speed of memory.
    #[doc(hidden)]
    fn encode_all(items: &[Self], out: &mut Vec<u8>) {
        for item in items {
            item.encode(out);
        }
    }

    /// Decodes `count` items. Numbers are decoded at the speed of memory.
    #[doc(hidden)]
    fn decode_all(count: usize, input: &mut &[u8]) -> Result<Vec<Self>, Error> {
        let trusted = RESERVE_BYTES_MAX / size_of::<Self>().max(1);
        let mut items = room_for(count.min(trusted))?;
        for _ in 0..count {
            if items.len() == items.capacity() {
                items.try_reserve(1).map_err(no_memory)?;
            }
            items.push(Self::decode(input)?);
        }
        Ok(items)
    }

    /// Decodes an array. Numbers are decoded without a detour through the heap.
    #[doc(hidden)]
    fn decode_array<const N: usize>(input: &mut &[u8]) -> Result<[Self; N], Error> {
        let items = Self::decode_all(N, input)?;
        items
            .try_into()
            .map_err(|items: Vec<Self>| expected(N, items.len()))
    }

    /// For `wire!`: no variant of this enum has that index.
    #[doc(hidden)]
    #[cold]
    fn unknown_variant(index: u32) -> Error {
        expected(
            format_args!("a variant of `{}`", type_name::<Self>()),
            format_args!("index {index}"),
        )
    }
}

// ------------------------------------------------------------------ what the implementations share

#[cold]
fn expected(what: impl Display, found: impl Display) -> Error {
    Error::new(ErrorKind::Codec, format!("expected {what}, found {found}"))
}

/// The bytes of the next `count` numbers.
#[inline]
fn take<'a, T: Wire>(count: usize, input: &mut &'a [u8]) -> Result<&'a [u8], Error> {
    let bytes = count.saturating_mul(T::BYTES_MIN);
    let Some((taken, rest)) = input.split_at_checked(bytes) else {
        let missing = format!("{bytes} bytes of `{}`", type_name::<T>());
        return Err(expected(missing, input.len()));
    };
    *input = rest;
    Ok(taken)
}

/// An empty `Vec` for this many elements.
#[inline]
fn room_for<T>(count: usize) -> Result<Vec<T>, Error> {
    let mut room = Vec::new();
    room.try_reserve_exact(count).map_err(no_memory)?;
    Ok(room)
}

/// Where there is memory for the encoded elements, there may be none for the elements. That must not abort the
/// process.
#[cold]
fn no_memory(_: TryReserveError) -> Error {
    Error::new(ErrorKind::Codec, "no memory for the decoded elements")
}

/// Panics unless these are `N` bytes.
#[inline]
fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(bytes);
    array
}

/// How many bytes a collection reserves before it is decoded; it grows from there. Its length may lie, and so
/// may those of all the collections around it, so each reserves little.
const RESERVE_BYTES_MAX: usize = 4096;

/// Bytes of the length of a collection.
const LENGTH: usize = size_of::<u64>();

/// A collection: its length, its elements, and zeros up to one byte for each element.
fn encode_collection<T: Wire>(
    length: usize,
    out: &mut Vec<u8>,
    elements: impl FnOnce(&mut Vec<u8>),
) {
    let _level = Level::enter_or_panic();
    length.encode(out);
    let bytes_min = length.saturating_mul(T::BYTES_MIN.max(1));
    let end_min = out.len().saturating_add(bytes_min);
    if !Budget::allows(out, end_min) {
        return;
    }
    // There may be more zero-sized elements than memory has bytes. That must not abort the process.
    let reserved = out.try_reserve(bytes_min);
    assert!(reserved.is_ok(), "no memory for {length} encoded elements");
    elements(out);
    if out.len() < end_min {
        out.resize(end_min, 0);
    }
}

/// The elements that [`encode_collection`] wrote.
fn decode_collection<T: Wire>(input: &mut &[u8]) -> Result<Vec<T>, Error> {
    let _level = Level::enter()?;
    // Every element has at least one byte, so a length beyond the bytes that are there is a lie.
    let length = usize::decode(input)?;
    if length > input.len() {
        let most = format!("a length of at most {}", input.len());
        return Err(expected(most, length));
    }
    let rest_max = input.len() - length;
    let elements = T::decode_all(length, input)?;
    take::<u8>(input.len().saturating_sub(rest_max), input)?;
    Ok(elements)
}

fn encode_slice<T: Wire>(items: &[T], out: &mut Vec<u8>) {
    encode_collection::<T>(items.len(), out, |out| T::encode_all(items, out));
}

/// Appends a value that may take up to `limit` bytes.
///
/// # Errors
///
/// The size of the value, as text, if it is larger. A collection that cannot fit is not written, so `out`
/// then does not hold the whole value.
///
/// # Panics
///
/// If what was in `out` before is changed: the program's own code encodes values, and can change the whole
/// buffer.
pub(crate) fn encode_within<T: Wire>(
    limit: usize,
    value: &T,
    out: &mut Vec<u8>,
) -> Result<(), String> {
    let before = out.clone();
    let start = before.len();
    let outer = Outer(BUDGET.replace(Budget {
        buffer: ptr::from_ref(out).addr(),
        end_max: start.saturating_add(limit),
        end_min: 0,
    }));
    value.encode(out);
    assert!(
        out.starts_with(&before),
        "`encode` must append to what is there, and has changed it"
    );
    let (end, at_least) = match BUDGET.get().end_min {
        0 => (out.len(), ""),
        end_min => (end_min, "at least "),
    };
    drop(outer);
    match end.saturating_sub(start) {
        bytes if bytes > limit => Err(format!(
            "{at_least}{bytes} bytes, more than the {limit} of a frame"
        )),
        _ => Ok(()),
    }
}

/// How long a buffer may become.
#[derive(Clone, Copy)]
struct Budget {
    /// The address of the buffer; zero for none. A value may encode a part of itself into another buffer
    /// and compress that.
    buffer: usize,
    end_max: usize,
    /// The least length that the buffer would get; zero until that is too long.
    end_min: usize,
}

thread_local! {
    /// Set while this thread is in [`encode_within`].
    static BUDGET: Cell<Budget> = const {
        Cell::new(Budget { buffer: 0, end_max: 0, end_min: 0 })
    };
}

impl Budget {
    /// Whether a buffer may become this long. Once it may not, it need not grow any further.
    fn allows(buffer: &Vec<u8>, end_min: usize) -> bool {
        let mut budget = BUDGET.get();
        if budget.buffer != ptr::from_ref(buffer).addr() {
            return true;
        }
        if budget.end_min == 0 && end_min > budget.end_max {
            budget.end_min = end_min;
            BUDGET.set(budget);
        }
        budget.end_min == 0
    }
}

/// The budget of the encoding around this one, restored even after a panic.
struct Outer(Budget);

impl Drop for Outer {
    fn drop(&mut self) {
        BUDGET.set(self.0);
    }
}

/// How deep pointers and collections may nest. A type contains itself only through these, so this bounds the
/// stack. It leaves each level 8 KiB of a thread's usual 2 MiB, which is a lot even in a debug build.
const NESTING_MAX: u32 = 256;

thread_local! {
    /// How many levels deep this thread is: no argument could carry the number.
    static NESTING: Cell<u32> = const { Cell::new(0) };
}

/// One level of nesting, left when dropped.
struct Level;

impl Level {
    fn enter() -> Result<Level, Error> {
        let nesting = NESTING.get();
        // A panic hook may encode what it knows of a panic, even of one at the limit.
        if nesting >= NESTING_MAX * (1 + u32::from(thread::panicking())) {
            let message = format!("nested deeper than {NESTING_MAX}");
            return Err(Error::new(ErrorKind::Codec, message));
        }
        NESTING.set(nesting + 1);
        Ok(Level)
    }

    /// The same for `encode`, which has no other way to fail.
    fn enter_or_panic() -> Level {
        Level::enter().unwrap_or_else(|error| panic!("{error}"))
    }
}

impl Drop for Level {
    fn drop(&mut self) {
        NESTING.set(NESTING.get() - 1);
    }
}

/// Implements [`Wire`](crate::Wire) for a struct or enum of yours, so that it can cross to a worker process.
///
/// Repeat the definition without the types of the fields, in a place where the fields are visible. The fields
/// of a tuple get a name here, any name. A field or variant that is forgotten, misspelt or superfluous does
/// not compile, and neither does a field whose type cannot cross. The order in the macro is the order on the
/// wire.
///
/// Type parameters are written without bounds, and each has to be `Wire`. For a type with other bounds,
/// lifetimes or constants, implement [`Wire`](crate::Wire) by hand.
///
/// # Examples
///
/// ```
/// # use unsync::Wire;
/// #[derive(Debug, PartialEq)]
/// struct Tile { x: u32, name: String }
/// unsync::wire!(struct Tile { x, name });
///
/// struct Metres(f64);
/// unsync::wire!(struct Metres(value));
///
/// enum Shape { Empty, Circle(f64), Rectangle { w: f64, h: f64 } }
/// unsync::wire!(enum Shape { Empty, Circle(radius), Rectangle { w, h } });
///
/// enum Tree<T> { Leaf, Node(T, Box<(Tree<T>, Tree<T>)>) }
/// unsync::wire!(enum Tree<T> { Leaf, Node(value, children) });
///
/// let mut bytes = Vec::new();
/// Tile { x: 7, name: "corner".into() }.encode(&mut bytes);
/// assert_eq!(Tile::decode(&mut bytes.as_slice())?, Tile { x: 7, name: "corner".into() });
/// # Ok::<(), unsync::Error>(())
/// ```
///
/// A forgotten field:
///
/// ```compile_fail,E0063
/// struct Tile { x: u32, name: String }
/// unsync::wire!(struct Tile { x });
/// ```
#[macro_export]
macro_rules! wire {
    // No name of the user clashes with one of the macro: locals are hygienic, types are `Self` or absolute
    // paths, and the one item has a name that nobody uses.
    (
        struct $Name:ident $(<$($T:ident),+ $(,)?>)?
        $(($($place:ident),* $(,)?))? $({$($field:ident),* $(,)?})?
    ) => {
        impl $(<$($T: $crate::Wire),+>)? $crate::Wire for $Name $(<$($T),+>)? {
            #[allow(unused_variables)]
            fn encode(&self, out: &mut ::std::vec::Vec<::core::primitive::u8>) {
                let Self $(($($place),*))? $({$($field),*})? = self;
                $($($crate::Wire::encode($place, out);)*)?
                $($($crate::Wire::encode($field, out);)*)?
            }

            #[allow(unused_variables)]
            fn decode(
                input: &mut &[::core::primitive::u8],
            ) -> ::core::result::Result<Self, $crate::Error> {
                $($(let $place = $crate::Wire::decode(input)?;)*)?
                ::core::result::Result::Ok(
                    Self $(($($place),*))? $({$($field: $crate::Wire::decode(input)?),*})?
                )
            }
        }
    };
    (
        enum $Name:ident $(<$($T:ident),+ $(,)?>)? {$(
            $Variant:ident $(($($place:ident),* $(,)?))? $({$($field:ident),* $(,)?})?
        ),+ $(,)?}
    ) => {
        const _: () = {
            // The compiler counts the variants.
            #[allow(non_camel_case_types)]
            enum __UnsyncIndex {$($Variant),+}

            impl $(<$($T: $crate::Wire),+>)? $crate::Wire for $Name $(<$($T),+>)? {
                fn encode(&self, out: &mut ::std::vec::Vec<::core::primitive::u8>) {
                    match self {$(
                        Self::$Variant $(($($place),*))? $({$($field),*})? => {
                            let index = __UnsyncIndex::$Variant as ::core::primitive::u32;
                            $crate::Wire::encode(&index, out);
                            $($($crate::Wire::encode($place, out);)*)?
                            $($($crate::Wire::encode($field, out);)*)?
                        }
                    )+}
                }

                #[allow(clippy::redundant_closure_call)]
                fn decode(
                    input: &mut &[::core::primitive::u8],
                ) -> ::core::result::Result<Self, $crate::Error> {
                    let index = <::core::primitive::u32 as $crate::Wire>::decode(input)?;
                    // Closures, so that in a debug build a level of nesting takes the stack of
                    // one variant, not of all.
                    $(if index == __UnsyncIndex::$Variant as ::core::primitive::u32 {
                        return (|| {
                            $($(let $place = $crate::Wire::decode(input)?;)*)?
                            ::core::result::Result::Ok(Self::$Variant
                                $(($($place),*))?
                                $({$($field: $crate::Wire::decode(input)?),*})?
                            )
                        })();
                    })+
                    ::core::result::Result::Err(<Self as $crate::Wire>::unknown_variant(index))
                }
            }
        };
    };
    ($($rest:tt)*) => {
        ::core::compile_error!(
            "`wire!` describes a type that is defined beside it, by the names of its fields alone: \
             no `pub`, no attributes, no types, no lifetimes or bounds, as in \
             `unsync::wire!(struct Name { first, second });` or \
             `unsync::wire!(enum Name { Empty, Pair(first, second) });`"
        );
    };
}
