//! How a function is written in the place where it stands.
//!
//! `type_name` names it as seen from nowhere, in no syntax of its own: the crate stands first, modules of
//! the standard library are private ones, generic arguments have no `::` before them.

/// The expression that names a function beside it, made of its `type_name`. `None` for a closure, which
/// has no name.
///
/// Only by their case can modules be told from types, so a method of a type in lower case comes out
/// without its type.
pub(super) fn beside(type_name: &str) -> Option<String> {
    if type_name.ends_with("{{closure}}") {
        return None;
    }
    let own = crate_of(type_name);
    let (mut written, mut rest) = (String::new(), type_name);
    // The part of `<Type as Trait>::method` that stands in brackets names the function too.
    let (mut depth, mut depth_of_name) = (0, usize::from(type_name.starts_with('<')));
    while let Some(next) = rest.chars().next() {
        let length = rest.find(|c| !is_in_path(c)).unwrap_or(rest.len());
        if length > 0 {
            let (path, after) = rest.split_at(length);
            rest = after;
            match path.strip_suffix("::{{constructor}}").unwrap_or(path) {
                // `core::num::<impl u32>::pow`
                "impl" => rest = rest.trim_start(),
                path if path.ends_with("::") => {}
                path => written += &shorten(path, depth <= depth_of_name, own),
            }
            continue;
        }
        match next {
            '<' => {
                if depth == 0 && !written.is_empty() {
                    written += "::";
                }
                depth += 1;
            }
            '>' if !written.ends_with('-') => {
                depth -= 1;
                depth_of_name = depth_of_name.min(depth);
            }
            _ => {}
        }
        written.push(next);
        rest = &rest[next.len_utf8()..];
    }
    Some(written)
}

fn is_in_path(c: char) -> bool {
    c.is_alphanumeric() || "_:{}".contains(c)
}

fn is_std(path: &str) -> bool {
    ["std", "core", "alloc"].contains(&path.split("::").next().unwrap_or(path))
}

/// The first crate that is named, other than those of the standard library.
fn crate_of(type_name: &str) -> &str {
    let mut paths = type_name.split(|c| !is_in_path(c));
    let path = paths.find(|path| path.contains("::") && !path.starts_with(':') && !is_std(path));
    path.and_then(|path| path.split("::").next())
        .unwrap_or_default()
}

/// The path of a type or function from where the function stands. It is named there by its last part;
/// what is no part of its name need not be.
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
