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
    let (mut written, mut rest) = (String::new(), type_name);
    // In `<Type as Trait>::method` the part in brackets belongs to the name.
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

/// Shortens the path of a type or function for use beside the function. What belongs to the function's name
/// is in scope there by its last part; the types of its generic arguments may not be.
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
