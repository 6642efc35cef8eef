//! [`Wire`] for the types of the standard library.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, HashSet, LinkedList, VecDeque};
use std::ffi::OsString;
use std::hash::{BuildHasher, Hash};
use std::io;
use std::marker::PhantomData;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::num::{NonZero, Wrapping};
use std::ops::{
    Bound, Range, RangeBounds, RangeFrom, RangeFull, RangeInclusive, RangeTo, RangeToInclusive,
};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::super::transport;
use super::{
    LENGTH, Level, Wire, array, decode_collection, encode_collection, encode_slice, expected,
    room_for, take,
};
use crate::error::Error;

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
        let bytes = take::<u8>(count, input)?;
        let mut items = room_for(count)?;
        items.extend_from_slice(bytes);
        Ok(items)
    }

    #[inline]
    fn decode_array<const N: usize>(input: &mut &[u8]) -> Result<[u8; N], Error> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(take::<u8>(N, input)?);
        Ok(bytes)
    }
}

/// Many numbers are encoded in blocks of this many bytes. A block starts as zeros, which are still in the
/// cache when the numbers overwrite them. From 2 to 8 KiB, depending on the processor, glibc copies by
/// `rep movsb`, which some processors do slowly.
const BLOCK: usize = 1024;

/// The code for a single number is `#[inline]`, for generic code in the caller's crate that handles one after
/// another. The code for many is written so that the compiler turns it into a plain copy.
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
                let mut items = room_for(count)?;
                items.extend(bytes.map(|bytes| $number::from_le_bytes(array(bytes))));
                Ok(items)
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
                point_to(T::decode(input), $pointer::new)
            }
        }
    )*};
}

pointers!(Box Rc Arc);

/// A separate function: without optimisation, each step copies a value that may be large, and the stack for
/// these copies is not in use while the value is decoded.
fn point_to<T, P>(decoded: Result<T, Error>, new: fn(T) -> P) -> Result<P, Error> {
    match decoded {
        Ok(value) => Ok(new(value)),
        Err(error) => Err(error),
    }
}

/// `(type[bounds]…) value => slice, vector => value`
macro_rules! sequences {
    ($(
        ($($sequence:ty[$($bounds:tt)*])*)
        $value:ident => $slice:expr, $vector:ident => $back:expr;
    )*) => {$($(
        impl<$($bounds)*> Wire for $sequence {
            const BYTES_MIN: usize = LENGTH;

            fn encode(&self, out: &mut Vec<u8>) {
                let $value = self;
                encode_slice($slice, out);
            }

            fn decode(input: &mut &[u8]) -> Result<Self, Error> {
                let $vector = decode_collection(input)?;
                $back.map(Self::from)
            }
        }
    )*)*};
}

sequences! {
    (Vec<T>[T: Wire] Box<[T]>[T: Wire] Rc<[T]>[T: Wire] Arc<[T]>[T: Wire]
    Cow<'static, [T]>[T: Wire + Clone])
        items => items,
        items => Ok(items);
    (String[] Box<str>[] Rc<str>[] Arc<str>[] Cow<'static, str>[])
        text => text.as_bytes(),
        bytes => String::from_utf8(bytes).map_err(|error| expected("UTF-8", error));
    (OsString[] PathBuf[])
        text => &transport::os_units(text.as_ref()),
        units => Ok(transport::os_string(units));
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
        // For a range of any type, only the end bound shows that it was iterated to its end.
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

/// The kinds that have a name in Rust 1.85. Any other arrives as [`io::ErrorKind::Other`].
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
