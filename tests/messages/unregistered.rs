//! Functions that nobody has registered, each with a place beside it for the line that does. Compiled twice:
//! as a part of `messages.rs`, which calls them and reads the lines, and with the lines in their places.

#![allow(unreachable_pub)]

use std::collections::HashMap;
use unsync::{Error, Unfuture};

fn plain(n: u32) -> u32 {
    n
}
// beside: plain

mod shapes {
    pub fn area(side: u32) -> u32 {
        side * side
    }
    // beside: area

    pub fn first<T: Clone>(items: Vec<T>) -> T {
        items[0].clone()
    }
    // beside: first
    // beside: first of tiles
    // beside: first of many

    #[derive(Clone)]
    pub struct Tile(pub u32);
    unsync::wire!(struct Tile(side));
    // beside: constructor

    impl Tile {
        pub fn grow(self) -> Tile {
            Tile(self.0 + 1)
        }
        pub fn pair<T>(self, other: T) -> (Tile, T) {
            (self, other)
        }
    }
    // beside: method
    // beside: generic method

    pub struct Stack<T>(pub Vec<T>);
    unsync::wire!(struct Stack<T>(items));

    impl<T> Stack<T> {
        pub fn depth(self) -> usize {
            self.0.len()
        }
    }
    // beside: method of a generic type

    pub mod traits {
        pub trait Area<Unit> {
            fn area_in(self) -> Unit;
        }
    }
}

mod elsewhere {
    use super::shapes::traits::Area;
    use super::shapes::{Stack, Tile};

    impl Tile {
        pub fn shrink(self) -> Tile {
            Tile(self.0 - 1)
        }
    }
    // beside: method elsewhere

    impl Area<u64> for Tile {
        fn area_in(self) -> u64 {
            u64::from(self.0 * self.0)
        }
    }
    // beside: method of a trait

    impl Area<HashMap<String, Tile>> for Stack<Tile> {
        fn area_in(self) -> HashMap<String, Tile> {
            HashMap::new()
        }
    }
    use std::collections::HashMap;
    // beside: method of a generic trait
}

fn error_of<T>(call: Unfuture<T>) -> Error {
    call.result().map(drop).unwrap_err()
}

pub(crate) fn errors() -> Vec<(&'static str, Error)> {
    use shapes::traits::Area;
    use shapes::{Stack, Tile, area, first};
    use unsync::cpu;

    fn inside(n: u32) -> u32 {
        n
    }
    // beside: inside

    let tile = || Tile(2);
    let many = || vec![(1, HashMap::<String, Vec<Tile>>::new())];
    let stack = || Stack(vec![tile()]);
    vec![
        ("plain", error_of(cpu(plain, (1,)))),
        ("area", error_of(cpu(area, (1,)))),
        ("first", error_of(cpu(first::<u32>, (vec![1],)))),
        (
            "first of tiles",
            error_of(cpu(first::<Tile>, (vec![tile()],))),
        ),
        (
            "first of many",
            error_of(cpu(first::<(u8, HashMap<String, Vec<Tile>>)>, (many(),))),
        ),
        ("constructor", error_of(cpu(Tile, (1,)))),
        ("method", error_of(cpu(Tile::grow, (tile(),)))),
        (
            "generic method",
            error_of(cpu(Tile::pair::<[u8; 3]>, (tile(), [0; 3]))),
        ),
        (
            "method of a generic type",
            error_of(cpu(Stack::<Tile>::depth, (stack(),))),
        ),
        ("method elsewhere", error_of(cpu(Tile::shrink, (tile(),)))),
        (
            "method of a trait",
            error_of(cpu(<Tile as Area<u64>>::area_in, (tile(),))),
        ),
        (
            "method of a generic trait",
            error_of(cpu(
                <Stack<Tile> as Area<HashMap<String, Tile>>>::area_in,
                (stack(),),
            )),
        ),
        ("inside", error_of(cpu(inside, (1,)))),
        ("of std", error_of(cpu(u32::pow, (2, 3)))),
    ]
}
// beside: of std
