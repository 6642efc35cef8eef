//! The floors of the crate, read from its source: what each file may use, how long it may be, and where
//! platforms may differ.

use std::fs;
use std::path::{Path, PathBuf};

/// From the ground up: a file uses only what is above it in this list. A folder that is listed without its
/// files is one floor.
const FLOORS: &[&str] = &[
    "sync",
    "error",
    "spin",
    "current",
    "progress",
    "stop",
    "slot",
    "unfuture",
    "config",
    "engine",
    "stalls",
    "block_on",
    // The engines, none of which uses another.
    "ambient",
    "threads",
    "processes/procfs",
    "processes/beside",
    "processes/buffers",
    "processes/latch",
    "processes/wire",
    "processes/frame",
    "processes/registry",
    "processes/transport",
    "processes/wire/impls",
    "processes/handshake",
    "processes/worker",
    "processes/scheduler",
    "processes/report",
    "processes/relay",
    "processes/supervisor",
    "processes/mod",
    // What is built on the engines.
    "continuations",
    "combine",
    "limit",
    "shared",
    "pinned",
    "convert",
    "lifecycle",
    "macros",
    "cookbook",
    "hosts",
    "lib",
];

/// Allowed uses of a higher floor: the user, what it uses, and why.
const UPWARD: &[(&str, &str, &str)] = &[
    (
        "processes/worker",
        "processes/relay",
        "`init` is where a process becomes the one or the other",
    ),
    (
        "processes/report",
        "processes/mod",
        "the call that a worker had when it ended",
    ),
    (
        "processes/supervisor",
        "processes/mod",
        "it feeds the pool, which starts it",
    ),
];

const ENGINES: &[&str] = &["ambient", "threads", "processes"];

/// Names that `lib.rs` hands down.
const HANDED_DOWN: &[&str] = &["log"];

const LINES_MAX: usize = 500;

/// Where platforms may differ: in this file, and in the file of `register!`, which writes the attributes of
/// a platform.
const WITH_CFG: &str = "processes/transport";
const WITH_CFG_ATTR: &str = "processes/registry";

struct Source {
    /// The path within `src`, without the extension.
    name: String,
    /// The lines of code, without comments and tests.
    code: Vec<String>,
}

impl Source {
    fn floor(&self) -> &'static str {
        let segments: Vec<&str> = self.name.split('/').collect();
        floor_of(&segments).unwrap_or_else(|| panic!("`{}` is not in the list", self.name))
    }

    /// The module that `super` means.
    fn parent(&self) -> Vec<&str> {
        let name = self.name.strip_suffix("/mod").unwrap_or(&self.name);
        let mut segments: Vec<&str> = name.split('/').collect();
        segments.pop();
        segments
    }

    /// All paths within the crate.
    fn paths(&self) -> Vec<String> {
        let text = self.code.join("\n");
        let mut paths = Vec::new();
        for (root, parent) in [("crate::", Vec::new()), ("super::", self.parent())] {
            for (at, _) in text.match_indices(root) {
                if text[..at].ends_with(|c: char| c == '$' || c == ':' || is_word(c)) {
                    continue;
                }
                let rest = &text[at + root.len()..];
                let names = match rest.strip_prefix('{') {
                    Some(group) => group.split('}').next().unwrap().split(',').collect(),
                    None => vec![rest],
                };
                for name in names.into_iter().map(str::trim) {
                    let end = name.find(|c: char| c != ':' && !is_word(c));
                    let (path, rest) = name.split_at(end.unwrap_or(name.len()));
                    // A macro of this crate is at its root, and expands to what it names.
                    if !path.is_empty() && !rest.starts_with('!') {
                        let mut segments = parent.clone();
                        for segment in path.split("::") {
                            match segment {
                                "super" => drop(segments.pop()),
                                _ => segments.push(segment),
                            }
                        }
                        paths.push(segments.join("/"));
                    }
                }
            }
        }
        paths
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The floor of a path, which may end with the name of an item.
fn floor_of(segments: &[&str]) -> Option<&'static str> {
    let named = |name: &str| FLOORS.iter().copied().find(|floor| *floor == name);
    let mut prefixes = (1..=segments.len()).rev().map(|n| segments[..n].join("/"));
    prefixes
        .find_map(|prefix| named(&prefix))
        .or_else(|| named(&format!("{}/mod", segments.first()?)))
}

fn height(floor: &str) -> usize {
    FLOORS.iter().position(|it| *it == floor).unwrap()
}

fn engine_of(floor: &str) -> Option<&str> {
    let folder = floor.split('/').next().unwrap();
    ENGINES.contains(&folder).then_some(folder)
}

/// All files of the library.
fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut sources = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let name = path.strip_prefix(&root).unwrap().with_extension("");
            let name = name.to_str().unwrap().replace('\\', "/");
            let code = code(&fs::read_to_string(&path).unwrap());
            sources.push(Source { name, code });
        }
    }
    assert!(sources.len() > 30, "{}", sources.len());
    sources
}

/// Lines without comments, blank lines, and items for tests.
fn code(text: &str) -> Vec<String> {
    let mut code = Vec::new();
    let mut lines = text.lines().filter(|line| {
        let line = line.trim();
        !line.is_empty() && !line.starts_with("//")
    });
    while let Some(line) = lines.next() {
        if !line.trim().starts_with("#[cfg(test)]") {
            let line = line.split(" // ").next().unwrap();
            code.push(line.to_owned());
            continue;
        }
        // The item ends where its braces are closed, or with a semicolon before there are any.
        let mut depth = 0_usize;
        for line in lines.by_ref() {
            depth += line.matches('{').count();
            depth -= line.matches('}').count();
            if depth == 0 && line.ends_with(['}', ';', ',']) {
                break;
            }
        }
    }
    code
}

#[test]
fn every_file_uses_only_what_lies_below_it() {
    let mut wrong = Vec::new();
    for source in sources() {
        let user = source.floor();
        for path in source.paths() {
            let segments: Vec<&str> = path.split('/').collect();
            let Some(used) = floor_of(&segments) else {
                if !HANDED_DOWN.contains(&segments[0]) && user != "lib" {
                    wrong.push(format!("{user} uses the root of the crate: {path}"));
                }
                continue;
            };
            let is_excepted = UPWARD
                .iter()
                .any(|(who, what, _)| (*who, *what) == (user, used));
            if height(used) > height(user) && !is_excepted {
                wrong.push(format!("{user} uses {used}, which lies above it: {path}"));
            }
            if let (Some(one), Some(other)) = (engine_of(user), engine_of(used)) {
                if one != other {
                    wrong.push(format!("one engine uses another: {user} uses {path}"));
                }
            }
        }
    }
    wrong.sort();
    wrong.dedup();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_list_names_only_what_there_is() {
    let sources = sources();
    for floor in FLOORS {
        assert!(
            sources.iter().any(|source| source.floor() == *floor),
            "{floor}"
        );
    }
}

#[test]
fn no_file_is_long() {
    for Source { name, code } in sources() {
        let length = code.len();
        assert!(
            length <= LINES_MAX,
            "{name} has {length} lines of code, and {LINES_MAX} at most are allowed"
        );
    }
}

#[test]
fn platforms_differ_in_one_file() {
    for Source { name, code } in sources() {
        for line in code {
            let has_cfg = line.contains("cfg(") || line.contains("cfg!(");
            let is_right = name == WITH_CFG || line.contains("cfg(doctest)");
            assert!(!has_cfg || is_right, "{name}: {line}");
            let has_attributes = line.contains("cfg_attr(");
            assert!(!has_attributes || name == WITH_CFG_ATTR, "{name}: {line}");
        }
    }
}
