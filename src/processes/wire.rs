//! The codec: values to bytes and back.
//!
//! Pure: it knows neither process nor frame nor file. Bytes are believed only as far as they go: a
//! length is checked before it is used, nesting has a limit, and whatever is no value is an error.

use std::any::type_name;
use std::borrow::Cow;
use std::cell::Cell;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, HashSet, LinkedList, VecDeque};
use std::ffi::OsString;
use std::fmt::Display;
use std::hash::{BuildHasher, Hash};
use std::io;
use std::marker::PhantomData;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::num::{NonZero, Wrapping};
use std::ops::{
    Bound, Range, RangeBounds, RangeFrom, RangeFull, RangeInclusive, RangeTo, RangeToInclusive,
};
use std::path::PathBuf;
use std::ptr;
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::transport;
use crate::error::{Error, ErrorKind};

/// A value that can cross to a worker process and back.
///
/// The plain data of the standard library has it, [`std::io::Error`] too; [`wire!`](crate::wire) gives it
/// to your own structs and enums. References do not implement it, nor do types that belong to one process,
/// such as files and locks.
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
/// - Text is a collection of bytes: UTF-8, or what the platform keeps in an `OsString`.
///
/// The format is an agreement among processes of one executable. It says nothing about itself and
/// may change with any version, so it does not belong in files or between programs.
///
/// # What does not arrive
///
/// Clones of an `Arc` or `Rc` arrive as values of their own, a map or set gets a new hasher, and
/// spare capacity stays behind. An [`std::io::Error`] arrives with its code, or with its kind and its text.
/// A [`RangeInclusive`] that was iterated to its end is refused by
/// `decode`: the standard library offers no way to make one.
///
/// # Foreign bytes
///
/// Decoding bytes that `encode` did not write gives an error or a value, never a panic. A length is
/// not believed: beyond a few KiB, memory is taken only for what was decoded, in proportion to the
/// size of the input (the types decide the proportion). Pointers and collections that are nested
/// deeper than 256 levels are refused, so that no input overflows the stack. That is a limit on
/// honest values too, which `encode` refuses with a panic, the error of its call: send a long chain as
/// a `Vec`, not as a list of boxes. An array lies on the
/// stack while it is decoded, even if it is on its way into a box: a large one is better a `Vec`.
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
/// A type that `wire!` cannot describe travels as another one:
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
    /// Appends this value's bytes to `out`, and leaves alone what is there.
    fn encode(&self, out: &mut Vec<u8>);

    /// Takes one value off the front of `input` and leaves there what follows it.
    ///
    /// The result of a call is decoded on the thread that reads from its worker process. It has the stack
    /// of a call, and must not wait for other work: see [`Unfuture::result`](crate::Unfuture::result).
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Codec`] if the bytes are too few or are no value of this type. How much of
    /// `input` is left then is not specified.
    fn decode(input: &mut &[u8]) -> Result<Self, Error>;

    /// Bytes that every value of the type takes at least, as far as that is known.
    #[doc(hidden)]
    const BYTES_MIN: usize = 0;

    /// Encodes the items without their number. Numbers do it at the speed of memory.
    #[doc(hidden)]
    fn encode_all(items: &[Self], out: &mut Vec<u8>) {
        for item in items {
            item.encode(out);
        }
    }

    /// Decodes `count` items. Numbers do it at the speed of memory.
    #[doc(hidden)]
    fn decode_all(count: usize, input: &mut &[u8]) -> Result<Vec<Self>, Error> {
        let mut items = Vec::with_capacity(count.min(RESERVE_BYTES_MAX / size_of::<Self>().max(1)));
        for _ in 0..count {
            items.push(Self::decode(input)?);
        }
        Ok(items)
    }

    /// Decodes an array. Numbers do it without the detour over the heap.
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
        let missing = format_args!("{bytes} bytes of `{}`", type_name::<T>());
        return Err(expected(missing, input.len()));
    };
    *input = rest;
    Ok(taken)
}

/// Panics unless these are `N` bytes.
#[inline]
fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(bytes);
    array
}

/// What a collection reserves before it is decoded; from there it grows. Its length may lie, and so
/// may those of all the collections around it: each reserves little.
const RESERVE_BYTES_MAX: usize = 4096;

/// Bytes of the length of a collection.
const LENGTH: usize = size_of::<u64>();

/// The length of a collection. Every element has a byte at least, so a length beyond the bytes that
/// are there is a lie.
fn decode_length(input: &mut &[u8]) -> Result<usize, Error> {
    let length = u64::decode(input)?;
    usize::try_from(length)
        .ok()
        .filter(|length| *length <= input.len())
        .ok_or_else(|| expected(format_args!("a length of at most {}", input.len()), length))
}

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
    // There may be more elements without a size than memory has bytes. That must not abort the process.
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
    let length = decode_length(input)?;
    let rest_max = input.len() - length;
    let elements = T::decode_all(length, input)?;
    take::<u8>(input.len().saturating_sub(rest_max), input)?;
    Ok(elements)
}

fn encode_slice<T: Wire>(items: &[T], out: &mut Vec<u8>) {
    encode_collection::<T>(items.len(), out, |out| T::encode_all(items, out));
}

/// Appends a value that may take `limit` bytes.
///
/// # Errors
///
/// The size of the value, in words, if it is larger. A collection that cannot fit is not written, so `out`
/// does not hold the whole value then.
pub(crate) fn encode_within<T: Wire>(
    limit: usize,
    value: &T,
    out: &mut Vec<u8>,
) -> Result<(), String> {
    let start = out.len();
    let outer = Outer(BUDGET.replace(Budget {
        buffer: ptr::from_ref(out).addr(),
        end_max: start.saturating_add(limit),
        end_min: 0,
    }));
    value.encode(out);
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
    /// How long the buffer would become at least; zero until that is too long.
    end_min: usize,
}

thread_local! {
    /// Set while this thread is in [`encode_within`].
    static BUDGET: Cell<Budget> = const {
        Cell::new(Budget { buffer: 0, end_max: 0, end_min: 0 })
    };
}

impl Budget {
    /// Whether a buffer may become so long. Once it may not, it need not become any longer.
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

/// The budget of an encoding around this one, which gets it back even after a panic.
struct Outer(Budget);

impl Drop for Outer {
    fn drop(&mut self) {
        BUDGET.set(self.0);
    }
}

/// How many pointers and collections inside each other are followed. A type contains itself
/// only through these, so this bounds the stack. It leaves each level 8 KiB of a thread's usual
/// 2 MiB, which is much even in a debug build.
const NESTING_MAX: u32 = 256;

thread_local! {
    /// The levels this thread is in: no argument could carry the number.
    static NESTING: Cell<u32> = const { Cell::new(0) };
}

/// One level of nesting, left when dropped.
struct Level;

impl Level {
    fn enter() -> Result<Level, Error> {
        let nesting = NESTING.get();
        // A panic hook may encode what it knows of a panic, of one at the limit too.
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

// ----------------------------------------------------------------------------------------- numbers

/// Bytes are copied as they are: at the speed of memory in debug builds too.
impl Wire for u8 {
    const BYTES_MIN: usize = 1;

    #[inline]
    fn encode(&self, out: &mut Vec<u8>) {
        out.push(*self);
    }

    #[inline]
    fn decode(input: &mut &[u8]) -> Result<u8, Error> {
        take::<u8>(1, input).map(|byte| byte[0])
    }

    fn encode_all(items: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(items);
    }

    fn decode_all(count: usize, input: &mut &[u8]) -> Result<Vec<u8>, Error> {
        take::<u8>(count, input).map(<[u8]>::to_vec)
    }

    #[inline]
    fn decode_array<const N: usize>(input: &mut &[u8]) -> Result<[u8; N], Error> {
        take::<u8>(N, input).map(array)
    }
}

/// Many numbers are encoded in blocks of this many bytes. A block starts as zeros, which are still in the
/// cache when the numbers overwrite them.
const BLOCK: usize = 4096;

/// A single number is `#[inline]`, for generic code in the caller's crate that asks for one after the
/// other. Many at once are written so that the compiler makes a plain copy of them.
macro_rules! numbers {
    ($($number:ident)*) => {$(
        impl Wire for $number {
            const BYTES_MIN: usize = size_of::<$number>();

            #[inline]
            fn encode(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }

            #[inline]
            fn decode(input: &mut &[u8]) -> Result<$number, Error> {
                take::<Self>(1, input).map(|bytes| $number::from_le_bytes(array(bytes)))
            }

            fn encode_all(items: &[$number], out: &mut Vec<u8>) {
                out.reserve(size_of_val(items));
                for items in items.chunks(BLOCK / Self::BYTES_MIN) {
                    let start = out.len();
                    out.resize(start + size_of_val(items), 0);
                    let places = out[start..].chunks_exact_mut(Self::BYTES_MIN);
                    for (place, item) in places.zip(items) {
                        place.copy_from_slice(&item.to_le_bytes());
                    }
                }
            }

            fn decode_all(count: usize, input: &mut &[u8]) -> Result<Vec<$number>, Error> {
                let bytes = take::<Self>(count, input)?.chunks_exact(Self::BYTES_MIN);
                Ok(bytes.map(|bytes| $number::from_le_bytes(array(bytes))).collect())
            }

            #[inline]
            fn decode_array<const N: usize>(input: &mut &[u8]) -> Result<[$number; N], Error> {
                let mut bytes = take::<Self>(N, input)?;
                let mut items = [$number::default(); N];
                for item in &mut items {
                    *item = $number::decode(&mut bytes)?;
                }
                Ok(items)
            }
        }
    )*};
}

numbers!(u16 u32 u64 u128 i8 i16 i32 i64 i128 f32 f64);

// ---------------------------------------------------------------- types that travel as another one

/// `Type as Other: value => other, other => value`, where `None` refuses the other.
macro_rules! travel {
    ($($type:ty as $other:ty: $value:pat => $to:expr, $arrived:pat => $back:expr;)*) => {$(
        impl Wire for $type {
            const BYTES_MIN: usize = <$other>::BYTES_MIN;

            #[inline]
            fn encode(&self, out: &mut Vec<u8>) {
                let $value = *self;
                <$other>::encode(&$to, out);
            }

            #[inline]
            fn decode(input: &mut &[u8]) -> Result<$type, Error> {
                let other = <$other>::decode(input)?;
                let $arrived = other;
                let name = concat!("`", stringify!($type), "`");
                $back.ok_or_else(|| expected(name, format_args!("{other:?}")))
            }
        }
    )*};
}

travel! {
    usize as u64: size => size as u64, number => usize::try_from(number).ok();
    isize as i64: size => size as i64, number => isize::try_from(number).ok();
    bool as u8: truth => u8::from(truth), byte => [false, true].get(usize::from(byte)).copied();
    char as u32: letter => u32::from(letter), number => char::from_u32(number);
    Duration as (u64, u32):
        time => (time.as_secs(), time.subsec_nanos()),
        (seconds, nanos) => (nanos < 1_000_000_000).then(|| Duration::new(seconds, nanos));
    SystemTime as (bool, Duration):
        time => match time.duration_since(UNIX_EPOCH) {
            Ok(after) => (false, after),
            Err(error) => (true, error.duration()),
        },
        (is_before, distance) => match is_before {
            false => UNIX_EPOCH.checked_add(distance),
            true => UNIX_EPOCH.checked_sub(distance),
        };
    Ipv4Addr as [u8; 4]: address => address.octets(), octets => Some(Ipv4Addr::from(octets));
    Ipv6Addr as [u8; 16]: address => address.octets(), octets => Some(Ipv6Addr::from(octets));
    SocketAddrV4 as (Ipv4Addr, u16):
        address => (*address.ip(), address.port()),
        (ip, port) => Some(SocketAddrV4::new(ip, port));
    SocketAddrV6 as (Ipv6Addr, u16, u32, u32):
        address => (*address.ip(), address.port(), address.flowinfo(), address.scope_id()),
        (ip, port, flow, scope) => Some(SocketAddrV6::new(ip, port, flow, scope));
}

macro_rules! non_zero {
    ($($number:ident)*) => {
        travel! {$(
            NonZero<$number> as $number: value => value.get(), number => NonZero::new(number);
        )*}
    };
}

non_zero!(u8 u16 u32 u64 u128 usize i8 i16 i32 i64 i128 isize);

// -------------------------------------------------------------------------------------------- text

/// `[types] value => units, units => value`
macro_rules! strings {
    ($([$($string:ty)*] $value:ident => $units:expr, $arrived:ident => $back:expr;)*) => {$($(
        impl Wire for $string {
            const BYTES_MIN: usize = LENGTH;

            fn encode(&self, out: &mut Vec<u8>) {
                let $value = self;
                encode_slice($units, out);
            }

            fn decode(input: &mut &[u8]) -> Result<Self, Error> {
                let $arrived = Vec::decode(input)?;
                $back.map(Self::from)
            }
        }
    )*)*};
}

strings! {
    [String Box<str> Rc<str> Arc<str> Cow<'static, str>]
        text => text.as_bytes(),
        bytes => String::from_utf8(bytes).map_err(|error| expected("UTF-8", error));
    [OsString PathBuf]
        text => &transport::os_units(text.as_ref()),
        units => Ok(transport::os_string(units));
}

// ------------------------------------------------------------------------ pointers and collections

macro_rules! pointers {
    ($($pointer:ident)*) => {$(
        impl<T: Wire> Wire for $pointer<T> {
            fn encode(&self, out: &mut Vec<u8>) {
                let _level = Level::enter_or_panic();
                T::encode(self, out);
            }

            fn decode(input: &mut &[u8]) -> Result<Self, Error> {
                let _level = Level::enter()?;
                T::decode(input).map($pointer::new)
            }
        }
    )*};
}

pointers!(Box Rc Arc);

/// `Slice[bounds]`
macro_rules! slices {
    ($($slice:ty[$($bounds:tt)*])*) => {$(
        impl<$($bounds)*> Wire for $slice {
            const BYTES_MIN: usize = LENGTH;

            fn encode(&self, out: &mut Vec<u8>) {
                encode_slice(self, out);
            }

            fn decode(input: &mut &[u8]) -> Result<Self, Error> {
                decode_collection(input).map(Self::from)
            }
        }
    )*};
}

slices! {
    Vec<T>[T: Wire] Box<[T]>[T: Wire] Rc<[T]>[T: Wire] Arc<[T]>[T: Wire]
    Cow<'static, [T]>[T: Wire + Clone]
}

/// `Collection[bounds](parts of an element)`
macro_rules! collections {
    ($($collection:ty[$($bounds:tt)*]($($element:ident: $Element:ident),+);)*) => {$(
        #[allow(unused_parens)] // around a single element
        impl<$($bounds)*> Wire for $collection {
            const BYTES_MIN: usize = LENGTH;

            fn encode(&self, out: &mut Vec<u8>) {
                encode_collection::<($($Element),+)>(self.len(), out, |out| {
                    for ($($element),+) in self {
                        $($element.encode(out);)+
                    }
                });
            }

            fn decode(input: &mut &[u8]) -> Result<Self, Error> {
                let elements: Vec<($($Element),+)> = decode_collection(input)?;
                Ok(elements.into_iter().collect())
            }
        }
    )*};
}

collections! {
    VecDeque<T>[T: Wire](item: T);
    LinkedList<T>[T: Wire](item: T);
    BinaryHeap<T>[T: Wire + Ord](item: T);
    BTreeSet<T>[T: Wire + Ord](item: T);
    BTreeMap<K, V>[K: Wire + Ord, V: Wire](key: K, value: V);
    HashSet<T, S>[T: Wire + Eq + Hash, S: BuildHasher + Default](item: T);
    HashMap<K, V, S>[K: Wire + Eq + Hash, V: Wire, S: BuildHasher + Default](key: K, value: V);
}

// ----------------------------------------------------------------------------- values side by side

/// `Type[bounds]: value`
macro_rules! units {
    ($($unit:ty[$($bounds:tt)*]: $value:expr;)*) => {$(
        impl<$($bounds)*> Wire for $unit {
            fn encode(&self, _: &mut Vec<u8>) {}

            fn decode(_: &mut &[u8]) -> Result<Self, Error> {
                Ok($value)
            }

            fn encode_all(_: &[Self], _: &mut Vec<u8>) {}

            fn decode_array<const N: usize>(_: &mut &[u8]) -> Result<[Self; N], Error> {
                Ok([$value; N])
            }
        }
    )*};
}

units! {
    ()[]: ();
    PhantomData<T>[T: ?Sized]: PhantomData;
}

impl<T: Wire, const N: usize> Wire for [T; N] {
    const BYTES_MIN: usize = N.saturating_mul(T::BYTES_MIN);

    fn encode(&self, out: &mut Vec<u8>) {
        T::encode_all(self, out);
    }

    fn decode(input: &mut &[u8]) -> Result<Self, Error> {
        T::decode_array(input)
    }

    fn encode_all(items: &[Self], out: &mut Vec<u8>) {
        match size_of::<T>() {
            // A flat slice of them could be longer than `usize::MAX`.
            0 => items.iter().for_each(|array| array.encode(out)),
            _ => T::encode_all(items.as_flattened(), out),
        }
    }
}

macro_rules! tuples {
    () => {};
    ($First:ident $($Rest:ident)*) => {
        // Without this, tuples fill the compiler's list of types that can cross.
        #[diagnostic::do_not_recommend]
        #[allow(non_snake_case)]
        impl<$First: Wire, $($Rest: Wire),*> Wire for ($First, $($Rest,)*) {
            const BYTES_MIN: usize = $First::BYTES_MIN $(.saturating_add($Rest::BYTES_MIN))*;

            fn encode(&self, out: &mut Vec<u8>) {
                let ($First, $($Rest,)*) = self;
                $First.encode(out);
                $($Rest.encode(out);)*
            }

            fn decode(input: &mut &[u8]) -> Result<Self, Error> {
                Ok(($First::decode(input)?, $($Rest::decode(input)?,)*))
            }
        }
        tuples!($($Rest)*);
    };
}

tuples!(A B C D E F G H I J K L);

crate::wire! { struct Range<T> { start, end } }
crate::wire! { struct RangeFrom<T> { start } }
crate::wire! { struct RangeTo<T> { end } }
crate::wire! { struct RangeToInclusive<T> { end } }
crate::wire! { struct RangeFull }
crate::wire! { struct Wrapping<T>(number) }

impl<T: Wire> Wire for RangeInclusive<T> {
    fn encode(&self, out: &mut Vec<u8>) {
        self.start().encode(out);
        self.end().encode(out);
        // Only here does a range of any type show that it was iterated to its end.
        let end = RangeBounds::<T>::end_bound(self);
        matches!(end, Bound::Excluded(_)).encode(out);
    }

    fn decode(input: &mut &[u8]) -> Result<Self, Error> {
        let (start, end, is_exhausted) = <(T, T, bool)>::decode(input)?;
        match is_exhausted {
            false => Ok(start..=end),
            true => Err(expected("a range", "one that was iterated to its end")),
        }
    }
}

// ------------------------------------------------------------------------ one value out of several

/// The code of the operating system, or else the kind and the text.
impl Wire for io::Error {
    fn encode(&self, out: &mut Vec<u8>) {
        let code = self.raw_os_error();
        code.encode(out);
        if code.is_none() {
            let kind = IO_KINDS.iter().position(|kind| *kind == self.kind());
            kind.encode(out);
            self.to_string().encode(out);
        }
    }

    fn decode(input: &mut &[u8]) -> Result<io::Error, Error> {
        if let Some(code) = Option::decode(input)? {
            return Ok(io::Error::from_raw_os_error(code));
        }
        let (kind, text) = <(Option<usize>, String)>::decode(input)?;
        let kind = match kind {
            None => io::ErrorKind::Other,
            Some(index) => *IO_KINDS
                .get(index)
                .ok_or_else(|| expected("a kind of `io::Error`", format_args!("index {index}")))?,
        };
        Ok(io::Error::new(kind, text))
    }
}

macro_rules! io_kinds {
    ($($kind:ident)*) => {
        &[$(io::ErrorKind::$kind),*]
    };
}

/// Those that have a name. What has none arrives as [`io::ErrorKind::Other`].
const IO_KINDS: &[io::ErrorKind] = io_kinds! {
    NotFound PermissionDenied ConnectionRefused ConnectionReset HostUnreachable NetworkUnreachable
    ConnectionAborted NotConnected AddrInUse AddrNotAvailable NetworkDown BrokenPipe AlreadyExists
    WouldBlock NotADirectory IsADirectory DirectoryNotEmpty ReadOnlyFilesystem StaleNetworkFileHandle
    InvalidInput InvalidData TimedOut WriteZero StorageFull NotSeekable QuotaExceeded FileTooLarge
    ResourceBusy ExecutableFileBusy Deadlock CrossesDevices TooManyLinks ArgumentListTooLong Interrupted
    Unsupported UnexpectedEof OutOfMemory
};

impl<T: Wire> Wire for Option<T> {
    fn encode(&self, out: &mut Vec<u8>) {
        self.is_some().encode(out);
        if let Some(value) = self {
            value.encode(out);
        }
    }

    fn decode(input: &mut &[u8]) -> Result<Self, Error> {
        bool::decode(input)?.then(|| T::decode(input)).transpose()
    }
}

crate::wire! { enum Result<T, E> { Ok(value), Err(error) } }
crate::wire! { enum Bound<T> { Included(limit), Excluded(limit), Unbounded } }
crate::wire! { enum Ordering { Less, Equal, Greater } }
crate::wire! { enum IpAddr { V4(address), V6(address) } }
crate::wire! { enum SocketAddr { V4(address), V6(address) } }

/// Lets a struct or an enum of yours cross to a worker process: implements [`Wire`](crate::Wire).
///
/// Write the type down once more, without the types of its fields, where its fields are visible.
/// The fields of a tuple get a name here, any name. A field or variant that is forgotten, misspelt
/// or too much does not compile, and neither does a field whose type cannot cross. The order in the
/// macro is the order on the wire.
///
/// Type parameters stand without bounds, and each has to be `Wire`. A type with other bounds,
/// lifetimes or constants gets its [`Wire`](crate::Wire) by hand.
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
    // No name of the user meets one of the macro: locals are hygienic, types are `Self` or absolute
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
                    // one variant and not of all.
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
    ($(#[$($attribute:tt)*])* $visibility:vis struct $Name:ident $($rest:tt)*) => {
        $crate::__not_wire! { struct $Name { first, second } }
    };
    ($(#[$($attribute:tt)*])* $visibility:vis enum $Name:ident $($rest:tt)*) => {
        $crate::__not_wire! { enum $Name { Empty, Pair(first, second) } }
    };
    ($($rest:tt)*) => {
        $crate::__not_wire! { struct Name { first, second } }
    };
}

/// What `wire!` says of a form that it does not know.
#[doc(hidden)]
#[macro_export]
macro_rules! __not_wire {
    ($($form:tt)*) => {
        ::core::compile_error!(::core::concat!(
            "`wire!` describes a type that is defined beside it, by the names of its fields alone: \
             no `pub`, no attributes, no types, no lifetimes or bounds, as in `unsync::wire!(",
            ::core::stringify!($($form)*),
            ");`"
        ));
    };
}
