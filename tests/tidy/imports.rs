//! Imports go from the top down, and some modules never meet.

use super::source::{Source, closing, is_name, occurrences};

/// From the leaves up: a module imports from the layers below its own.
const LAYERS: [&[&str]; 8] = [
    &["reason", "clock", "secret", "net", "ulid", "sync", "tls", "telemetry"],
    &["key"],
    &["policy", "store", "audit"],
    &["auth", "manage"],
    &["proxy", "admin", "server"],
    &["config"],
    &["app"],
    &["cli"],
];

/// Who may import a module of its own layer.
const BESIDE: [(&str, &str); 3] = [("ulid", "clock"), ("telemetry", "reason"), ("server", "proxy")];

/// Who never imports whom, though it stands above: these meet in a third place.
const APART: [(&str, &str); 3] = [("proxy", "store"), ("proxy", "manage"), ("auth", "policy")];

const PURE: [&str; 2] = ["key", "policy"];
/// Beginnings of what a pure module does not name.
const IMPURE: [&str; 8] =
    ["tokio", "hyper", "serde", "std::fs", "std::process", "TcpStream", "TcpListener", "UdpSocket"];

/// Imports against the direction.
pub fn faults(source: &Source) -> Vec<String> {
    let Some(module) = source.module() else { return Vec::new() };
    let imports = imported(source).into_iter().filter(|(_, target)| target != module);
    let against = imports.filter_map(|(at, target)| {
        let complaint = refusal(module, &target)?;
        Some(source.fault(at, &complaint))
    });
    against.chain(escapes(source)).collect()
}

/// What a pure module names of runtimes and I/O.
pub fn impurities(source: &Source) -> Vec<String> {
    let Some(module) = source.module().filter(|module| PURE.contains(module)) else { return Vec::new() };
    let begins = |at: &usize| !source.code[..*at].chars().next_back().is_some_and(is_name);
    let live = |at: &usize| !source.is_test(source.line_of(*at));
    let named = |word: &'static str| {
        let found = source.code.match_indices(word).map(|(at, _)| at).filter(begins).filter(live);
        found.map(move |at| source.fault(at, &format!("{module} is pure and may not name {word}")))
    };
    IMPURE.into_iter().flat_map(named).collect()
}

fn refusal(module: &str, target: &str) -> Option<String> {
    let layer = |name: &str| LAYERS.iter().position(|layer| layer.contains(&name));
    let (Some(own), Some(other)) = (layer(module), layer(target)) else {
        return Some(format!("the import matrix does not know {module} and {target}: give both a layer"));
    };
    let pair = (module, target);
    let allowed = (other < own && !APART.contains(&pair)) || BESIDE.contains(&pair);
    (!allowed).then(|| format!("{module} may not import {target}"))
}

/// The top-level modules that code outside tests reaches through `crate::`, with their places.
fn imported(source: &Source) -> Vec<(usize, String)> {
    let code = &source.code;
    let targets = source.uses("crate").into_iter().flat_map(|at| {
        let path = code[at + "crate".len()..].strip_prefix("::").map(|path| (code.len() - path.len(), path));
        path.map(|(begin, path)| heads(code, begin, path)).unwrap_or_default().into_iter().map(move |name| (at, name))
    });
    targets.collect()
}

/// The first names of a path, or of each path in its braces.
fn heads(code: &str, begin: usize, path: &str) -> Vec<String> {
    let first = |path: &str| path.trim_start().chars().take_while(|character| is_name(*character)).collect::<String>();
    if !path.starts_with('{') {
        return vec![first(path)];
    }
    let list = &code[begin + 1..closing(code, begin)];
    let mut depth = 0_usize;
    let elements = list.split(|character| {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        character == ',' && depth == 0
    });
    elements.map(first).filter(|name| !name.is_empty() && name != "self").collect()
}

/// `super::` paths that leave the top-level module, where the matrix would not see them.
fn escapes(source: &Source) -> Vec<String> {
    let parts = source.path.split('/').count() - 1;
    let depth = if source.path.ends_with("/mod.rs") { parts - 1 } else { parts };
    let chain = "super::".repeat(depth.max(1));
    let leaves = occurrences(&source.code, &chain).into_iter().filter(|at| !source.is_test(source.line_of(*at)));
    leaves.map(|at| source.fault(at, "write crate:: for a path that leaves the module")).collect()
}

#[test]
fn an_import_against_the_direction_is_found() {
    let told = |path: &str, text: &str| faults(&Source::new(path, text)).len();
    assert_eq!(told("src/key/token.rs", "use crate::store::KeyStore;"), 1);
    assert_eq!(told("src/key/token.rs", "use crate::{clock, auth::{self, X}, app};"), 2);
    assert_eq!(told("src/proxy/service.rs", "fn x() { crate::manage::create(); crate::store::x() }"), 2);
    assert_eq!(told("src/auth/cache.rs", "use crate::policy::Permit;"), 1);
    assert_eq!(told("src/policy/mod.rs", "use crate::auth::X;"), 1);
    assert_eq!(told("src/admin/mod.rs", "use crate::proxy::X;"), 1);
    assert_eq!(told("src/server/mod.rs", "use crate::config::Config;"), 1);
    assert_eq!(told("src/config/mod.rs", "use crate::app::Gateway;"), 1);
    assert_eq!(told("src/net.rs", "use super::key::Key;"), 1);
    assert_eq!(told("src/key/token.rs", "use super::super::store::KeyStore;"), 1);
    assert_eq!(told("src/novel/mod.rs", "use crate::key::Key;"), 1);
}

#[test]
fn allowed_imports_comments_and_tests_are_let_through() {
    let text = "//! [crate::app]\nuse crate::{clock::Clock, key};\nuse super::digest;\n#[cfg(test)]\nmod tests {\n    use crate::app;\n}\n";
    assert_eq!(faults(&Source::new("src/store/codec.rs", text)), Vec::<String>::new());
    assert_eq!(faults(&Source::new("src/server/mod.rs", "use crate::proxy::X;")), Vec::<String>::new());
}

#[test]
fn a_runtime_in_a_pure_module_is_found() {
    let text = "use tokio::sync::watch;\nuse serde_json::Value;\nuse std::net::{IpAddr, TcpStream};\nuse std::fs;";
    assert_eq!(impurities(&Source::new("src/policy/x.rs", text)).len(), 4);
    assert_eq!(impurities(&Source::new("src/store/x.rs", text)).len(), 0);
}
