#![forbid(unsafe_code)]
//! The codec, by its promises: what arrives, as which bytes, and what becomes of bytes that lie.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, HashSet, LinkedList, VecDeque};
use std::ffi::OsString;
use std::fmt::Debug;
use std::hash::BuildHasherDefault;
use std::marker::PhantomData;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::num::{NonZero, Wrapping};
use std::ops::{Bound, RangeInclusive};
use std::panic::catch_unwind;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use unsync::{Error, ErrorKind, Wire};

mod support;
use support::quick;

fn encoded<T: Wire>(value: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    value.encode(&mut bytes);
    bytes
}

/// Decodes all of `bytes`: leftover bytes are a failure.
#[track_caller]
fn decoded<T: Wire>(mut bytes: &[u8]) -> T {
    let value = T::decode(&mut bytes).expect("bytes of the encoder");
    assert!(bytes.is_empty(), "{} bytes left", bytes.len());
    value
}

/// The message with which `bytes` are refused as a `T`.
#[track_caller]
fn refusal<T: Wire>(mut bytes: &[u8]) -> String {
    match T::decode(&mut bytes) {
        Ok(_) => panic!("{bytes:?} left, but decoded"),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Codec);
            error.to_string()
        }
    }
}

/// The value arrives alone and in bulk, in a `Vec` and in arrays; what follows it is left unread.
#[track_caller]
fn round_trip<T: Wire + PartialEq + Clone + Debug>(value: T) {
    assert_eq!(decoded::<T>(&encoded(&value)), value);
    let several = vec![value; 3];
    assert_eq!(decoded::<Vec<T>>(&encoded(&several)), several);
    let array: [T; 3] = several.clone().try_into().unwrap();
    let bytes = [encoded(&[array.clone(), array.clone()]), vec![1, 2, 3]].concat();
    let mut input = bytes.as_slice();
    assert_eq!(
        <[[T; 3]; 2]>::decode(&mut input).unwrap(),
        [array.clone(), array]
    );
    assert_eq!(input, [1, 2, 3]);
}

// ------------------------------------------------------------------------------------ what arrives

#[test]
fn numbers_arrive() {
    macro_rules! integers {
        ($($number:ident)*) => {$(
            for value in [$number::MIN, 0, 1, 42, $number::MAX] {
                round_trip(value);
                round_trip(Wrapping(value));
                round_trip(NonZero::<$number>::new(value));
            }
            assert!(refusal::<NonZero<$number>>(&encoded(&$number::default())).contains("found 0"));
        )*};
    }
    integers!(u8 u16 u32 u64 u128 usize i8 i16 i32 i64 i128 isize);
    for value in [
        0.0,
        -0.0,
        1.5,
        f64::MIN,
        f64::MAX,
        f64::MIN_POSITIVE,
        f64::INFINITY,
    ] {
        round_trip(value);
        round_trip(value as f32);
    }
}

#[test]
fn every_bit_of_a_nan_arrives() {
    for bits in [
        0x7ff8_0000_0000_0001,
        0xfff8_dead_beef_0001,
        0x7ff0_0000_0000_0001_u64,
    ] {
        let several = encoded(&vec![f64::from_bits(bits); 2]);
        assert_eq!(decoded::<f64>(&several[8..16]).to_bits(), bits);
        assert_eq!(decoded::<Vec<f64>>(&several)[1].to_bits(), bits);
    }
    let bits = 0x7fc0_1234_u32;
    assert_eq!(
        decoded::<f32>(&encoded(&f32::from_bits(bits))).to_bits(),
        bits
    );
}

/// However many numbers there are, they arrive as if encoded one by one.
#[test]
fn many_numbers_arrive() {
    macro_rules! many {
        ($($number:ident)*) => {$(
            let per_page = 4096 / size_of::<$number>();
            for length in [per_page - 1, per_page, per_page + 1, 5 * per_page / 2] {
                let numbers: Vec<_> = (0..length).map(|n| (n * 77) as $number).collect();
                let one_by_one: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
                let bytes = encoded(&numbers);
                assert_eq!(bytes[..8], (length as u64).to_le_bytes());
                assert!(bytes[8..] == one_by_one, "{length} of `{}`", stringify!($number));
                round_trip(numbers);
            }
        )*};
    }
    many!(u8 u16 u32 u64 u128 usize i8 i16 i32 i64 i128 isize f32 f64);
}

#[test]
fn text_and_small_values_arrive() {
    round_trip(());
    round_trip(true);
    round_trip(false);
    for letter in ['\0', 'a', 'ß', '\u{d7ff}', '\u{e000}', '🦀', char::MAX] {
        round_trip(letter);
    }
    for text in ["", "plain", "größer 🦀 \0 end"] {
        round_trip(text.to_string());
        round_trip(Box::<str>::from(text));
        round_trip(Rc::<str>::from(text));
        round_trip(Arc::<str>::from(text));
        round_trip(Cow::<'static, str>::Owned(text.into()));
        round_trip(OsString::from(text));
        round_trip(PathBuf::from(text));
    }
    round_trip(PhantomData::<str>);
    round_trip([Ordering::Less, Ordering::Equal, Ordering::Greater]);
}

#[test]
fn collections_and_pointers_arrive() {
    for length in [0, 1, 7, 1000] {
        let numbers: Vec<u16> = (0..length).collect();
        let words: Vec<String> = numbers.iter().map(u16::to_string).collect();
        let pairs = || numbers.iter().copied().zip(words.iter().cloned());
        round_trip(numbers.clone());
        round_trip(words.clone());
        round_trip(numbers.clone().into_boxed_slice());
        round_trip(Rc::<[u16]>::from(numbers.clone()));
        round_trip(Arc::<[String]>::from(words.clone()));
        round_trip(Cow::<'static, [String]>::Owned(words.clone()));
        round_trip(words.iter().cloned().collect::<LinkedList<_>>());
        round_trip(numbers.iter().copied().collect::<BTreeSet<_>>());
        round_trip(words.iter().cloned().collect::<HashSet<_>>());
        round_trip(pairs().collect::<BTreeMap<_, _>>());
        round_trip(pairs().collect::<HashMap<_, _>>());
        round_trip(pairs().collect::<HashMap<_, _, BuildHasherDefault<DefaultHasher>>>());

        let heap: BinaryHeap<u16> = numbers.iter().copied().collect();
        assert_eq!(
            decoded::<BinaryHeap<u16>>(&encoded(&heap)).into_sorted_vec(),
            numbers
        );

        let (front, back) = numbers.split_at(numbers.len() / 3);
        let mut ring: VecDeque<u16> = back.iter().copied().collect();
        front.iter().for_each(|number| ring.push_front(*number));
        round_trip(ring);
    }
    round_trip(Box::new(7_u8));
    round_trip(Rc::new("shared".to_string()));
    round_trip(Arc::new(Some(Box::new(1.5))));
}

#[test]
fn choices_tuples_and_arrays_arrive() {
    round_trip(None::<u64>);
    round_trip(Some(Some(None::<()>)));
    round_trip([Ok::<u8, String>(7), Err("seven".to_string())]);
    round_trip((1_u8,));
    round_trip((
        1_u8,
        2_u16,
        3_u32,
        4_u64,
        5_i8,
        6_i16,
        7_i32,
        8_i64,
        'c',
        true,
        0.5,
        "end".to_string(),
    ));
    round_trip([[1_u8, 2], [3, 4]]);
    round_trip(["a".to_string(), "b".to_string()]);
    round_trip([0_u64; 0]);
    round_trip(<[String; 0]>::default());
    round_trip([1.5; 100]);
}

#[test]
fn times_and_addresses_arrive() {
    let tick = Duration::new(1, 999_999_900);
    for time in [Duration::ZERO, tick, Duration::MAX] {
        round_trip(time);
    }
    for time in [
        UNIX_EPOCH,
        UNIX_EPOCH + tick,
        UNIX_EPOCH - tick,
        SystemTime::now(),
    ] {
        round_trip(time);
    }
    let v4 = Ipv4Addr::new(127, 0, 0, 1);
    let v6 = "fe80::1:2".parse::<Ipv6Addr>().unwrap();
    let socket4 = SocketAddrV4::new(v4, 80);
    let socket6 = SocketAddrV6::new(v6, 8080, 77, 3);
    round_trip(v4);
    round_trip(v6);
    round_trip([IpAddr::V4(v4), IpAddr::V6(v6)]);
    round_trip(socket4);
    round_trip(socket6);
    round_trip([SocketAddr::V4(socket4), SocketAddr::V6(socket6)]);
}

#[test]
fn errors_of_the_system_arrive() {
    use std::io::{Error, ErrorKind};
    let missing = std::fs::read("no/such/file").unwrap_err();
    assert!(missing.raw_os_error().is_some());
    let errors = [
        missing,
        Error::from_raw_os_error(i32::MAX),
        Error::from(ErrorKind::WouldBlock),
        Error::new(ErrorKind::InvalidData, "größer 🦀"),
        Error::other(String::new()),
        Error::other("no kind"),
        Error::new(ErrorKind::ArgumentListTooLong, "in the middle of the list"),
        Error::new(ErrorKind::OutOfMemory, "the last of the list"),
    ];
    for error in errors {
        let arrived = decoded::<Error>(&encoded(&error));
        assert_eq!(arrived.kind(), error.kind());
        assert_eq!(arrived.raw_os_error(), error.raw_os_error());
        assert_eq!(arrived.to_string(), error.to_string());
    }
    let arrived: Result<u8, Error> = decoded(&encoded(&Err::<u8, _>(Error::other("no"))));
    assert_eq!(arrived.unwrap_err().to_string(), "no");
    let unknown = encoded(&(None::<i32>, Some(1000_usize), String::new()));
    assert!(refusal::<Error>(&unknown).contains("index 1000"));
}

#[test]
fn ranges_arrive() {
    round_trip(3..9_u8);
    round_trip("a".to_string().."b".to_string());
    round_trip(3..=9_i64);
    round_trip(0.5..=1.5);
    round_trip(RangeInclusive::new(9, 3));
    round_trip(3_usize..);
    round_trip(..9_u8);
    round_trip(..=9_u8);
    round_trip(..);
    round_trip([Bound::Included(1), Bound::Excluded(2), Bound::Unbounded]);
}

#[test]
fn an_exhausted_range_is_refused_and_not_revived() {
    let mut range = 3..=4;
    range.next();
    round_trip(range.clone());
    range.next();
    assert!(range.is_empty());
    assert!(refusal::<RangeInclusive<i32>>(&encoded(&range)).contains("iterated to its end"));
}

// --------------------------------------------------------------------------------------- the bytes

#[test]
fn the_format_is_pinned() {
    assert_eq!(encoded(&0x0102_0304_u32), [4, 3, 2, 1]);
    assert_eq!(encoded(&-2_i16), [0xfe, 0xff]);
    assert_eq!(encoded(&1.0_f32), [0, 0, 0x80, 0x3f]);
    assert_eq!(encoded(&5_usize), [5, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(encoded(&-1_isize), [0xff; 8]);
    assert_eq!(encoded(&(true, 'a')), [1, b'a', 0, 0, 0]);
    assert_eq!(
        encoded(&"hi".to_string()),
        [2, 0, 0, 0, 0, 0, 0, 0, b'h', b'i']
    );
    assert_eq!(
        encoded(&vec![258_u16, 3]),
        [2, 0, 0, 0, 0, 0, 0, 0, 2, 1, 3, 0]
    );
    assert_eq!(encoded(&[258_u16, 3]), [2, 1, 3, 0]);
    assert_eq!(encoded(&[None, Some(7_u8)]), [0, 1, 7]);
    assert_eq!(encoded(&Err::<(), u8>(7)), [1, 0, 0, 0, 7]);
    assert_eq!(
        encoded(&BTreeMap::from([(1_u8, 2_u8)])),
        [1, 0, 0, 0, 0, 0, 0, 0, 1, 2]
    );
    assert_eq!(
        encoded(&Duration::new(1, 2)),
        [1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0]
    );
    assert_eq!(
        encoded(&Shape::Box { w: 1, h: 2 }),
        [2, 0, 0, 0, 1, 0, 2, 0]
    );
    // One byte for each element, even where an element itself needs none.
    assert_eq!(encoded(&vec![(); 2]), [2, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn encode_appends_and_decode_leaves_the_rest() {
    let mut bytes = vec![9];
    1_u8.encode(&mut bytes);
    vec![(); 2].encode(&mut bytes);
    "x".to_string().encode(&mut bytes);
    let mut input = &bytes[1..];
    assert_eq!(u8::decode(&mut input).unwrap(), 1);
    assert_eq!(Vec::<()>::decode(&mut input).unwrap().len(), 2);
    assert_eq!(String::decode(&mut input).unwrap(), "x");
    assert!(input.is_empty() && bytes[0] == 9);
}

// ---------------------------------------------------------------------------------- bytes that lie

#[test]
fn what_is_no_value_is_refused() {
    assert_eq!(
        refusal::<u32>(&[1, 2]),
        "expected 4 bytes of `u32`, found 2"
    );
    assert_eq!(refusal::<bool>(&[2]), "expected `bool`, found 2");
    assert_eq!(refusal::<Option<u8>>(&[9, 0]), "expected `bool`, found 9");
    refusal::<char>(&encoded(&0xd800_u32));
    refusal::<char>(&encoded(&0x11_0000_u32));
    refusal::<Duration>(&encoded(&(u64::MAX, 1_000_000_000_u32)));
    refusal::<SystemTime>(&encoded(&(false, Duration::MAX)));
    refusal::<SystemTime>(&encoded(&(true, Duration::MAX)));
    refusal::<Ordering>(&encoded(&3_u32));
    refusal::<IpAddr>(&encoded(&2_u32));
    assert!(refusal::<String>(&encoded(&vec![b'a', 0xff])).starts_with("expected UTF-8"));
    refusal::<Arc<str>>(&encoded(&vec![0xed_u8, 0xa0, 0x80]));
    let message = refusal::<Shape>(&encoded(&3_u32));
    assert!(
        message.contains("Shape") && message.contains("index 3"),
        "{message}"
    );
    refusal::<Shape>(&[0xff; 4]);
}

#[test]
fn every_truncation_is_refused() {
    fn check<T: Wire>(value: T) {
        let bytes = encoded(&value);
        for length in 0..bytes.len() {
            refusal::<T>(&bytes[..length]);
        }
    }
    check((1_u8, 2_u128, 'x', true, Some(1.5)));
    check([1_u64, 2, 3]);
    check(["a".to_string(), "bc".to_string()]);
    check(vec![(); 9]);
    check(vec![Box::new(()); 9]);
    check(VecDeque::from([1_u8, 2]));
    check(BTreeMap::from([(1_u8, vec![2_u16, 3]), (4, vec![])]));
    check(HashSet::from(["a".to_string(), "b".to_string()]));
    check((PathBuf::from("a/b"), SystemTime::now(), Duration::MAX));
    check("[fe80::1]:80".parse::<SocketAddr>().unwrap());
    check((
        1..=2_u8,
        Bound::Included(3_u16),
        Err::<(), String>("no".into()),
    ));
    check(grown(3));
    check(std::io::Error::other("text"));
    check(std::io::Error::from_raw_os_error(2));
}

#[test]
fn a_length_that_lies_is_refused_at_once() {
    fn check<T: Wire>() {
        for length in [
            1,
            2,
            1 << 32,
            u64::MAX / 24,
            u64::MAX / 8 + 1,
            u64::MAX - 1,
            u64::MAX,
        ] {
            refusal::<T>(&encoded(&length));
            refusal::<T>(&encoded(&(length.saturating_add(64), [0xff_u8; 64])));
        }
    }
    check::<Vec<u8>>();
    check::<Vec<u64>>();
    check::<Vec<()>>();
    check::<Vec<[(); 1000]>>();
    check::<Vec<[u64; 1 << 10]>>();
    check::<Vec<Vec<u8>>>();
    check::<Vec<Vec<()>>>();
    check::<VecDeque<u16>>();
    check::<Box<[String]>>();
    check::<Arc<[u128]>>();
    check::<String>();
    check::<Box<str>>();
    check::<PathBuf>();
    check::<LinkedList<()>>();
    check::<BTreeSet<()>>();
    check::<BTreeMap<(), ()>>();
    check::<HashSet<()>>();
    check::<HashMap<String, u8>>();
    // The length is no larger than the number of bytes, but the elements need more bytes.
    refusal::<Vec<u64>>(&encoded(&(64_u64, [0_u8; 64])));
    refusal::<Vec<Vec<u8>>>(&encoded(&(64_u64, [64_u64; 8])));
}

#[test]
fn elements_without_bytes_arrive() {
    let bytes = encoded(&vec![(); 1_000_000]);
    assert_eq!(bytes.len(), 1_000_008);
    assert_eq!(decoded::<Vec<()>>(&bytes).len(), 1_000_000);
    round_trip(vec![Box::new(()); 10]);
    round_trip(vec![[(); 3]; 10]);
    round_trip(BTreeMap::from([((), ())]));
    round_trip(vec![vec![(); 3], vec![], vec![(); 1]]);
    round_trip((vec![PhantomData::<u8>; 5], 7_u8));
}

/// However many they are, they take no time, whether they are really there or a length lies.
#[test]
fn countless_elements_without_bytes() {
    quick(|| {
        const COUNTLESS: usize = isize::MAX as usize;
        let units: Box<[()]> = Box::new([(); COUNTLESS]);
        for too_many in [units.into_vec(), vec![(); 0]] {
            // There is no memory for this many, which is a panic, not the end of the process.
            let is_fine = too_many.is_empty();
            assert_eq!(catch_unwind(|| encoded(&too_many)).is_ok(), is_fine);
        }
        assert!(encoded(&[(); COUNTLESS]).is_empty());
        assert!(encoded(&[[(); COUNTLESS]; 1000]).is_empty());
        assert_eq!(encoded(&vec![[(); COUNTLESS]; 1000]).len(), 1008);
        decoded::<[(); COUNTLESS]>(&[]);
        decoded::<[PhantomData<u8>; COUNTLESS]>(&[]);
        let arrays: Vec<[(); COUNTLESS]> = decoded(&encoded(&vec![[(); COUNTLESS]; 1000]));
        assert_eq!(arrays.len(), 1000);
        refusal::<Vec<[(); COUNTLESS]>>(&encoded(&COUNTLESS));
        refusal::<Vec<Vec<[u8; 0]>>>(&encoded(&(1_u64, COUNTLESS)));
    });
}

// ----------------------------------------------------------------------------------------- nesting

const NESTING_MAX: usize = 256;

#[derive(Debug)]
enum List {
    End,
    Cons(Box<List>),
}
unsync::wire!(
    enum List {
        End,
        Cons(next),
    }
);

fn list(length: usize) -> Vec<u8> {
    [encoded(&vec![1_u32; length])[8..].to_vec(), vec![0; 4]].concat()
}

#[test]
fn nesting_has_a_limit() {
    let mut link = &decoded::<List>(&list(NESTING_MAX));
    let mut length = 0;
    while let List::Cons(next) = link {
        link = next;
        length += 1;
    }
    assert_eq!(length, NESTING_MAX);
    assert_eq!(
        refusal::<List>(&list(NESTING_MAX + 1)),
        "nested deeper than 256"
    );
    refusal::<List>(&list(1_000_000));
}

/// A type that contains itself only through pointers and collections, with much on the stack.
#[derive(Debug, Clone, PartialEq)]
#[allow(clippy::enum_variant_names)]
enum Deep {
    InBox(Box<Deep>, [u64; 16]),
    InRc(Rc<Deep>, String, String, String),
    InArc(Arc<Deep>, Option<[u64; 16]>),
    InVec {
        deep: Vec<Deep>,
        wide: [[u8; 16]; 8],
    },
    InSlice(Box<[Deep]>),
    InRing(VecDeque<Deep>),
    InList(LinkedList<Deep>),
    InMap(BTreeMap<u8, Deep>),
    InTable(HashMap<u8, Deep>),
    InCow(Cow<'static, [Deep]>),
    InOption(Option<Box<Deep>>),
}
unsync::wire!(enum Deep {
    InBox(deep, wide), InRc(deep, a, b, c), InArc(deep, wide), InVec { deep, wide }, InSlice(deep),
    InRing(deep), InList(deep), InMap(deep), InTable(deep), InCow(deep), InOption(deep),
});

/// On a thread with the stack size that tests and workers have, whatever `RUST_MIN_STACK` says.
#[test]
fn no_input_overflows_the_stack() {
    let thread = std::thread::Builder::new().stack_size(2 << 20).spawn(|| {
        for variant in 0..=10_u32 {
            // The variant, then the length or the `Some` if it has one, then the key if it has one.
            let mut level = encoded(&variant);
            match variant {
                0..=2 => {}
                3..=6 | 9 => 1_u64.encode(&mut level),
                7..=8 => (1_u64, 0_u8).encode(&mut level),
                _ => true.encode(&mut level),
            }
            let message = refusal::<Deep>(&level.repeat(10_000));
            assert_eq!(message, "nested deeper than 256", "variant {variant}");
        }
    });
    thread.unwrap().join().unwrap();
}

#[test]
fn the_limit_counts_levels_and_not_calls() {
    struct Bomb;
    impl Wire for Bomb {
        fn encode(&self, _: &mut Vec<u8>) {}
        fn decode(_: &mut &[u8]) -> Result<Bomb, Error> {
            std::panic::resume_unwind(Box::new("no message on stderr"))
        }
    }
    for _ in 0..2 * NESTING_MAX {
        refusal::<Box<Vec<u8>>>(&[]);
        refusal::<List>(&list(NESTING_MAX + 1));
        assert!(
            catch_unwind(|| <Box<Vec<Bomb>>>::decode(&mut &encoded(&(1_u64, 0_u8))[..])).is_err()
        );
    }
    assert_eq!(
        decoded::<Vec<Box<u8>>>(&encoded(&vec![Box::new(7_u8); 1000])).len(),
        1000
    );
    decoded::<List>(&list(NESTING_MAX));
}

// ------------------------------------------------------------------------------------------- wire!

#[derive(Debug, Clone, PartialEq)]
struct Tile {
    x: u32,
    name: String,
}
unsync::wire!(struct Tile { x, name });

#[derive(Debug, Clone, PartialEq)]
enum Shape {
    Empty,
    Circle(f64),
    Box { w: u16, h: u16 },
}
unsync::wire!(
    enum Shape {
        Empty,
        Circle(radius),
        Box { w, h },
    }
);

#[derive(Debug, Clone, PartialEq)]
enum Tree<T> {
    Leaf,
    Node(T, Box<Tree<T>>, Vec<Tree<T>>),
}
unsync::wire!(
    enum Tree<T> {
        Leaf,
        Node(value, left, right),
    }
);

/// A tree of some depth, with a value and two or three branches at each node.
fn grown(depth: u16) -> Tree<u16> {
    match depth {
        0 => Tree::Leaf,
        _ => Tree::Node(
            depth,
            Box::new(grown(depth - 1)),
            vec![grown(depth / 2), grown(0)],
        ),
    }
}

#[test]
fn every_shape_of_a_type_arrives() {
    #[derive(Debug, Clone, PartialEq)]
    struct Unit;
    unsync::wire!(struct Unit);
    #[derive(Debug, Clone, PartialEq)]
    struct Pair(u8, String);
    unsync::wire!(struct Pair(a, b));
    #[derive(Debug, Clone, PartialEq)]
    struct Both<A, B> {
        a: A,
        b: Vec<B>,
    }
    unsync::wire!(struct Both<A, B,> { a, b, });
    #[derive(Debug, Clone, PartialEq)]
    struct Wrapper<T>(T);
    unsync::wire!(struct Wrapper<T>(inner,));
    #[derive(Debug, Clone, PartialEq)]
    enum Single {
        Only(),
    }
    unsync::wire!(
        enum Single {
            Only(),
        }
    );

    round_trip(Unit);
    round_trip(Pair(1, "b".into()));
    round_trip(Both {
        a: Some(1_u8),
        b: vec![Wrapper(2.5), Wrapper(3.5)],
    });
    round_trip(Single::Only());
    round_trip(Tile {
        x: 1,
        name: "t".into(),
    });
    round_trip([Shape::Empty, Shape::Circle(0.5), Shape::Box { w: 1, h: 2 }]);
    round_trip(grown(6));
}

#[test]
fn fields_travel_in_the_order_of_the_macro() {
    struct Swapped {
        first: u8,
        second: u16,
    }
    unsync::wire!(struct Swapped { second, first });
    let bytes = encoded(&Swapped {
        first: 1,
        second: 2,
    });
    assert_eq!(bytes, [2, 0, 1]);
    let Swapped { first, second } = decoded(&bytes);
    assert_eq!((first, second), (1, 2));
}

macro_rules! many {
    ($($Variant:ident)*) => {
        #[derive(Debug, Clone, Copy, PartialEq)]
        enum Many { $($Variant),* }
        unsync::wire!(enum Many { $($Variant),* });
        const MANY: &[Many] = &[$(Many::$Variant),*];
    };
}
many! {
    V0 V1 V2 V3 V4 V5 V6 V7 V8 V9 V10 V11 V12 V13 V14 V15 V16 V17 V18 V19 V20 V21 V22 V23 V24 V25
    V26 V27 V28 V29 V30 V31 V32 V33 V34 V35 V36 V37 V38 V39 V40 V41 V42 V43 V44 V45 V46 V47 V48
    V49 V50 V51 V52 V53 V54 V55 V56 V57 V58 V59 V60 V61 V62 V63 V64 V65 V66 V67 V68 V69 V70 V71
    V72 V73 V74 V75 V76 V77 V78 V79 V80 V81 V82 V83 V84 V85 V86 V87 V88 V89 V90 V91 V92 V93 V94
    V95 V96 V97 V98 V99 V100 V101 V102 V103 V104 V105 V106 V107 V108 V109 V110 V111 V112 V113
    V114 V115 V116 V117 V118 V119 V120 V121 V122 V123 V124 V125 V126 V127 V128 V129 V130 V131
    V132 V133 V134 V135 V136 V137 V138 V139 V140 V141 V142 V143 V144 V145 V146 V147 V148 V149
    V150 V151 V152 V153 V154 V155 V156 V157 V158 V159 V160 V161 V162 V163 V164 V165 V166 V167
    V168 V169 V170 V171 V172 V173 V174 V175 V176 V177 V178 V179 V180 V181 V182 V183 V184 V185
    V186 V187 V188 V189 V190 V191 V192 V193 V194 V195 V196 V197 V198 V199
}

#[test]
fn two_hundred_variants_arrive() {
    assert_eq!(MANY.len(), 200);
    for (index, variant) in MANY.iter().enumerate() {
        assert_eq!(encoded(variant), encoded(&(index as u32)));
        round_trip(*variant);
    }
    refusal::<Many>(&encoded(&200_u32));
}

/// Names that a careless macro would trip over: its own, those of the prelude and those of types.
#[allow(dead_code, non_camel_case_types, clippy::enum_variant_names)]
mod hostile {
    #![no_implicit_prelude]

    struct Vec;
    struct Result;
    struct Error;
    struct Ok;
    struct Err;
    struct u8;
    struct u32;
    trait Wire {}
    mod core {}
    mod std {}
    mod unsync {}

    #[derive(::std::fmt::Debug, ::std::clone::Clone, ::std::cmp::PartialEq)]
    pub(super) struct Fields {
        pub(super) out: i8,
        pub(super) input: i16,
        pub(super) index: i32,
        pub(super) value: i64,
        pub(super) r#type: i128,
    }
    ::unsync::wire!(struct Fields { out, input, index, value, r#type });

    #[derive(::std::fmt::Debug, ::std::clone::Clone, ::std::cmp::PartialEq)]
    pub(super) struct Places(pub(super) i8, pub(super) i16, pub(super) i32);
    ::unsync::wire!(struct Places(out, input, index));

    #[derive(::std::fmt::Debug, ::std::clone::Clone, ::std::cmp::PartialEq)]
    pub(super) enum Index {
        Ok,
        Err(i8, i16, i32),
        Some,
        None { out: i8, input: i16, index: i32 },
        Option,
        Result,
        Box,
        Vec,
        Wire,
        Error,
        Index,
        encode,
        decode,
        unknown_variant,
        u32,
        r#type,
    }
    ::unsync::wire!(enum Index {
        Ok, Err(out, input, index), Some, None { out, input, index }, Option, Result, Box, Vec,
        Wire, Error, Index, encode, decode, unknown_variant, u32, r#type
    });

    #[derive(::std::fmt::Debug, ::std::clone::Clone, ::std::cmp::PartialEq)]
    pub(super) struct Generic<Vec, Result> {
        pub(super) vec: Vec,
        pub(super) result: Result,
    }
    ::unsync::wire!(struct Generic<Vec, Result> { vec, result });
}

#[test]
fn names_of_the_user_and_of_the_macro_do_not_meet() {
    use hostile::{Fields, Generic, Index, Places};
    round_trip(Fields {
        out: 1,
        input: 2,
        index: 3,
        value: 4,
        r#type: 5,
    });
    round_trip(Places(1, 2, 3));
    round_trip([
        Index::Ok,
        Index::Err(1, 2, 3),
        Index::None {
            out: 1,
            input: 2,
            index: 3,
        },
    ]);
    round_trip([Index::encode, Index::decode, Index::u32, Index::r#type]);
    round_trip(Generic {
        vec: 1_u8,
        result: 'x',
    });
}

// -------------------------------------------------------------------------------- a million inputs

/// Marsaglia's xorshift: the same numbers in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    /// Something close to `bytes`, or nothing like it.
    fn mutation(&mut self, bytes: &[u8], other: &[u8]) -> Vec<u8> {
        let (at, length) = (self.below(bytes.len()), bytes.len());
        let mut mutated = bytes.to_vec();
        match self.below(6) {
            0 => {
                (0..=self.below(3)).for_each(|_| mutated[self.below(length)] ^= 1 << self.below(8))
            }
            1 => mutated.truncate(at),
            2 => mutated
                .splice(at.., other[self.below(other.len())..].iter().copied())
                .for_each(drop),
            3 => (0..=self.below(3)).for_each(|_| mutated[self.below(length)] = self.next() as u8),
            4 => {
                // A troublesome length at a place where a length may be.
                let few = self.next() % 300;
                let lengths = [u64::MAX, u64::MAX / 8, 1 << 33, length as u64, few, few];
                let length = encoded(&lengths[self.below(lengths.len())]);
                mutated
                    .iter_mut()
                    .skip(at)
                    .zip(length)
                    .for_each(|(byte, new)| *byte = new);
            }
            _ => mutated
                .iter_mut()
                .for_each(|byte| *byte = self.next() as u8),
        }
        mutated
    }
}

/// The memory that a value holds on the heap, by its capacities: a counting allocator would take
/// unsafe code.
trait Heap {
    fn heap(&self) -> usize;
}

macro_rules! flat {
    ($($flat:ty)*) => {$(
        impl Heap for $flat {
            fn heap(&self) -> usize {
                0
            }
        }
    )*};
}
flat!(() u8 u16 u64 f64 char Duration SystemTime SocketAddr NonZero<u8> RangeInclusive<u16> Shape);

macro_rules! nested {
    ($([$($T:ident)*] $nested:ty: $value:pat => $heap:expr;)*) => {$(
        impl<$($T: Heap),*> Heap for $nested {
            fn heap(&self) -> usize {
                let $value = self;
                $heap
            }
        }
    )*};
}
nested! {
    [] String: text => text.capacity();
    [] PathBuf: path => path.capacity();
    [] Tile: tile => tile.name.heap();
    [T] Option<T>: value => value.as_ref().map_or(0, T::heap);
    [T E] Result<T, E>: value => value.as_ref().map_or_else(E::heap, T::heap);
    [A B] (A, B): (a, b) => a.heap() + b.heap();
    [A B C] (A, B, C): (a, b, c) => a.heap() + b.heap() + c.heap();
    [T] Box<T>: value => size_of::<T>() + (**value).heap();
    [T] [T; 3]: items => items.iter().map(T::heap).sum();
    [T] Box<[T]>: items => size_of_val(&**items) + items.iter().map(T::heap).sum::<usize>();
    [T] Vec<T>: items =>
        items.capacity() * size_of::<T>() + items.iter().map(T::heap).sum::<usize>();
    [T] VecDeque<T>: items =>
        items.capacity() * size_of::<T>() + items.iter().map(T::heap).sum::<usize>();
    [K V] HashMap<K, V>: map =>
        map.capacity() * size_of::<(K, V)>()
            + map.iter().map(|(key, value)| key.heap() + value.heap()).sum::<usize>();
    [K V] BTreeMap<K, V>: map =>
        map.len() * size_of::<(K, V)>()
            + map.iter().map(|(key, value)| key.heap() + value.heap()).sum::<usize>();
    [T] Tree<T>: tree => match tree {
        Tree::Leaf => 0,
        Tree::Node(value, left, right) => value.heap() + left.heap() + right.heap(),
    };
}

/// Decodes `bytes`. Their value, if any, is in proportion to them and arrives once more. Returns whether
/// there was a value.
fn probe<T: Wire + Heap>(bytes: &[u8]) -> bool {
    let Ok(value) = T::decode(&mut &*bytes) else {
        return false;
    };
    let heap = value.heap();
    assert!(
        heap <= 128 * bytes.len() + 64,
        "{heap} bytes of memory from {bytes:?}"
    );
    let again: T = decoded(&encoded(&value));
    assert!(again.heap() <= 2 * heap + 64, "{bytes:?}");
    true
}

type Probe = fn(&[u8]) -> bool;

/// The bytes of an honest value, and the way to probe bytes like these.
fn case<T: Wire + Heap>(value: T) -> (Vec<u8>, Probe) {
    (encoded(&value), probe::<T>)
}

#[test]
fn a_million_mutated_and_random_inputs() {
    let address = "[fe80::1]:80".parse::<SocketAddr>().unwrap();
    let tile = Tile {
        x: 1,
        name: "one".into(),
    };
    let shapes = vec![Shape::Empty, Shape::Circle(1.5), Shape::Box { w: 1, h: 2 }];
    let slices: [Box<[u16]>; 3] = [Box::new([1, 2, 3]), Box::new([]), Box::new([4])];
    let ranges = vec![(1..=2_u16, NonZero::<u8>::MAX); 4];
    let cases = [
        case(vec![vec![vec![1_u64, 2], vec![]], vec![vec![3]]]),
        case(grown(3)),
        case(HashMap::from([
            (1_u16, Ok(Duration::MAX)),
            (2, Err(address)),
        ])),
        case(BTreeMap::from([("key".to_string(), shapes)])),
        case((vec![tile; 2], vec![(7_u8, 0.5); 3])),
        case((
            vec![(); 9],
            VecDeque::from([Some('x'), None, Some('🦀')]),
            slices,
        )),
        case((PathBuf::from("a/b"), UNIX_EPOCH, ranges)),
        case(vec![Some(Box::new("text".to_string())); 3]),
    ];
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut values = 0_u32;
    for round in 0..1_000_000 {
        let (bytes, probe) = &cases[round % cases.len()];
        let (other, _) = &cases[random.below(cases.len())];
        values += u32::from(probe(&random.mutation(bytes, other)));
    }
    // The mutations are useful: some inputs are still values, and most are not.
    assert!((50_000..500_000).contains(&values), "{values} values");
}
