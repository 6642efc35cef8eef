//! The path of a function, as written in the module where the function is defined.
//!
//! `type_name` gives no such path: it starts with the name of the crate, uses private modules of the
//! standard library, and writes generic arguments without `::`.

/// Turns the `type_name` of a function into an expression that names it beside its definition. `None` for
/// a closure, which has no name.
///
/// Only case tells types from modules, so a method of a lower-case type loses its type.
pub(super) fn beside(type_name: &str) -> Option<String> {
    if type_name.ends_with("{{closure}}") {
        return None;
    }
    let own = crate_of(type_name);
    let mut written = String::new();
    // Each piece is a path, or a part of one behind a `>`, and the character after it.
    for piece in type_name.split_inclusive(|c| !is_in_path(c)) {
        let path = piece.trim_end_matches(|c| !is_in_path(c));
        let is_name = written.is_empty() || path.starts_with(':');
        match path.strip_suffix("::{{constructor}}").unwrap_or(path) {
            // `core::num::<impl u32>::pow`
            "impl" => continue,
            path if path.ends_with("::") => {}
            path => written += &shorten(path, is_name, own),
        }
        if is_name && !written.is_empty() && piece.ends_with('<') {
            written += "::";
        }
        written += &piece[path.len()..];
    }
    Some(written)
}

fn is_in_path(c: char) -> bool {
    c.is_alphanumeric() || "_:{}".contains(c)
}

fn is_std(path: &str) -> bool {
    ["std", "core", "alloc"].contains(&path.split(':').next().unwrap_or(path))
}

/// The first crate that is named, other than those of the standard library.
fn crate_of(type_name: &str) -> &str {
    let mut paths = type_name.split(|c| !is_in_path(c));
    let path = paths.find(|path| path.contains(':') && !path.starts_with(':') && !is_std(path));
    path.and_then(|path| path.split(':').next())
        .unwrap_or_default()
}

/// Shortens the path of a type or function for use beside the function. The name of the function is in scope
/// there by its last part, and so is the type that it is a method of. Other types may not be.
fn shorten(path: &str, is_name: bool, own: &str) -> String {
    let mut parts: Vec<&str> = path.split("::").collect();
    let is_type = |part: &&str| part.starts_with(char::is_uppercase);
    let last = parts.len() - 1;
    let names = parts.split_off(parts.iter().position(is_type).unwrap_or(last));
    let name = names.join("::");
    if path.starts_with(':') || parts.is_empty() {
        return path.to_owned();
    }
    if is_std(path) {
        let in_prelude = ["Box", "Option", "Result", "String", "Vec"].contains(&names[0]);
        return match parts.get(1) {
            Some(module) if !in_prelude => format!("std::{module}::{name}"),
            _ => name,
        };
    }
    if is_name {
        return name;
    }
    if parts[0] == own {
        parts[0] = "crate";
    }
    format!("{}::{name}", parts.join("::"))
}
