//! `[scopes]`, `[presets]` and `[[routes]]`: the route-scope map.

use super::diagnostics::Diagnostic;
use super::reader::{Located, Raw, Section};
use super::values::{is_name, suggest};
use crate::key::Vocabulary;
use crate::key::scope::SCOPES_MAX;
use crate::policy::{Access, Requirement, RouteSpec, UpstreamId};
use crate::proxy::UpstreamSettings;
use http::{HeaderName, Method};
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use toml::de::DeValue;

/// The longest body bound that makes sense: a pebibyte.
const BODY_MAX: u64 = 1 << 50;

/// `[scopes]`: `resource = ["read", "write"]`, or a table with `permissions` and `elevated`.
pub fn vocabulary(mut section: Section<'_, '_>) -> Vocabulary {
    let (report, span) = (section.report(), section.span.clone());
    let mut declared = Vec::new();
    for (resource, raw) in section.rest() {
        if !is_name(&resource.value) {
            report.add(
                Diagnostic::new(resource.span, format!("'{}' is not a resource name", resource.value))
                    .help("use a-z, 0-9, _ and -"),
            );
            continue;
        }
        let (permissions, elevated) = permissions(&section, raw);
        for permission in permissions {
            if is_name(&permission.value) {
                declared.push((format!("{}:{}", resource.value, permission.value), elevated));
            } else {
                let message = format!("'{}' is not a permission name", permission.value);
                report.add(Diagnostic::new(permission.span, message).help("use a-z, 0-9, _ and -"));
            }
        }
    }
    Vocabulary::new(declared).unwrap_or_else(|message| {
        report.add(Diagnostic::new(span, message).help(format!("declare at most {SCOPES_MAX}")));
        Vocabulary::default()
    })
}

fn permissions<'t>(section: &Section<'_, 't>, raw: Raw<'t>) -> (Vec<Located<String>>, bool) {
    if !matches!(raw.get_ref(), DeValue::Table(_)) {
        let elements = section.elements(raw);
        return (elements.into_iter().filter_map(|raw| section.as_string(raw)).collect(), false);
    }
    let mut table = section.as_section("the scope's table", raw);
    let permissions = table.list("permissions", |text| Ok(text.to_owned()));
    let elevated = table.boolean("elevated").is_some_and(|elevated| elevated.value);
    table.finish();
    (permissions, elevated)
}

/// `[presets]`: name to declared scopes.
pub fn presets(mut section: Section<'_, '_>, vocabulary: &Vocabulary) -> BTreeMap<String, Vec<String>> {
    let mut presets = BTreeMap::new();
    for (name, raw) in section.rest() {
        let elements = section.elements(raw).into_iter().filter_map(|raw| section.as_string(raw));
        let scopes: Vec<_> = elements.filter(|scope| check_scope(&section, scope, vocabulary)).collect();
        presets.insert(name.value, scopes.into_iter().map(|scope| scope.value).collect());
    }
    presets
}

/// Reports an undeclared scope.
fn check_scope(section: &Section<'_, '_>, scope: &Located<String>, vocabulary: &Vocabulary) -> bool {
    let declared = vocabulary.contains(&scope.value);
    if !declared {
        let message = format!("the scope '{}' is not declared in [scopes]", scope.value);
        section
            .report()
            .add(Diagnostic::new(scope.span.clone(), message).help(suggest(&scope.value, vocabulary.names())));
    }
    declared
}

/// What routes refer to.
pub struct Known<'a> {
    pub vocabulary: &'a Vocabulary,
    pub upstreams: &'a [UpstreamSettings],
}

/// `[[routes]]`.
pub fn routes(sections: Vec<Section<'_, '_>>, known: &Known<'_>) -> Vec<RouteSpec> {
    let mut seen: HashMap<String, Range<usize>> = HashMap::new();
    sections.into_iter().filter_map(|section| route(section, known, &mut seen)).collect()
}

fn route(
    mut section: Section<'_, '_>,
    known: &Known<'_>,
    seen: &mut HashMap<String, Range<usize>>,
) -> Option<RouteSpec> {
    let has_path = section.has("path");
    let path = section
        .string("path")
        .and_then(|text| section.read(text, |text| check_pattern(text).map(|()| text.to_owned())));
    let has_upstream = section.has("upstream");
    let upstream = section.string("upstream");
    let access = access(&mut section, known.vocabulary);
    let body_bytes_max = section.size("body_max", 1..=BODY_MAX);
    let strict = section.boolean("strict");
    let trailers = section.list("trailers", trailer);
    let upgrades = section.list("upgrades", protocol);
    if !has_path {
        section.missing("path", "such as path = \"/v1/entities/{entity_id}/orders/**\"");
    }
    if !has_upstream {
        section.missing("upstream", "name one of [upstreams]: upstream = \"erp\"");
    }
    let upstream = upstream.and_then(|name| find_upstream(&section, name, known.upstreams));
    if let Some(path) = &path {
        check_reachable(&section, path, seen);
    }
    if let Some(access) = &access {
        check_upgrades(&section, &upgrades, access);
    }
    section.finish();
    Some(RouteSpec {
        path: path?.value,
        upstream: upstream?,
        access: access?,
        body_bytes_max,
        strict: strict.is_some_and(|strict| strict.value),
        trailers: trailers.into_iter().map(|name| name.value).collect(),
        upgrades: upgrades.into_iter().map(|protocol| protocol.value).collect(),
    })
}

/// A field that may follow a body.
fn trailer(text: &str) -> Result<HeaderName, String> {
    let name = HeaderName::from_bytes(text.as_bytes()).map_err(|_| format!("'{text}' is not a header's name"))?;
    if crate::proxy::headers::may_trail(&name) {
        Ok(name)
    } else {
        Err(format!("'{text}' decides how a request is read, or is the gateway's own: it cannot follow a body"))
    }
}

/// What a connection may come to speak instead of HTTP. In HTTP itself, whatever its version, the requests would go on, and
/// nobody would judge them.
fn protocol(text: &str) -> Result<String, String> {
    let is_token = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~/".contains(&byte));
    if text.is_empty() || !is_token {
        return Err(format!("'{text}' is not a protocol's name; write it like \"websocket\""));
    }
    let name = text.to_ascii_lowercase();
    if matches!(name.as_str(), "h2c" | "h2" | "h3") || name.starts_with("http/") || name.starts_with("tls/") {
        return Err(format!("'{text}' would carry requests that nobody judges"));
    }
    Ok(name)
}

/// WebSocket begins with GET (RFC 6455, section 4.1): where that is not taken, it could never be used.
fn check_upgrades(section: &Section<'_, '_>, upgrades: &[Located<String>], access: &Access) {
    let takes_get = match access {
        Access::Public => true,
        Access::Keyed(methods) => methods.iter().any(|(method, _)| *method == Method::GET),
    };
    for upgrade in upgrades.iter().filter(|upgrade| upgrade.value == "websocket" && !takes_get) {
        let diagnostic =
            Diagnostic::new(upgrade.span.clone(), "a WebSocket begins with GET, which this route does not take");
        section.report().add(diagnostic.help("say with read or methods which scope it needs"));
    }
}

fn find_upstream(section: &Section<'_, '_>, name: Located<String>, known: &[UpstreamSettings]) -> Option<UpstreamId> {
    let found = known.iter().position(|upstream| upstream.name == name.value);
    if found.is_none() {
        let names = known.iter().map(|upstream| upstream.name.as_str());
        let message = format!("there is no upstream '{}' in [upstreams]", name.value);
        section.report().add(Diagnostic::new(name.span, message).help(suggest(&name.value, names)));
    }
    found.and_then(|index| u32::try_from(index).ok()).map(UpstreamId)
}

/// Two routes that match the same paths: the later one could never be reached.
fn check_reachable(section: &Section<'_, '_>, path: &Located<String>, seen: &mut HashMap<String, Range<usize>>) {
    let shape = shape(&path.value);
    if let Some(first) = seen.get(&shape) {
        let diagnostic = Diagnostic::new(path.span.clone(), format!("the route '{}' can never be reached", path.value));
        section.report().add(diagnostic.other(first.clone(), "this route takes the same paths"));
        return;
    }
    seen.insert(shape, path.span.clone());
}

/// The pattern without its parameters' names.
fn shape(pattern: &str) -> String {
    let segments = pattern.split('/').map(|segment| if segment.starts_with('{') { "{}" } else { segment });
    segments.collect::<Vec<_>>().join("/")
}

/// `/literal/{parameter}/**`.
fn check_pattern(pattern: &str) -> Result<(), String> {
    let Some(inner) = pattern.strip_prefix('/') else { return Err("a path begins with '/'".to_owned()) };
    let inner = inner.strip_suffix("/**").or_else(|| (inner == "**").then_some("")).unwrap_or(inner);
    let mut names = Vec::new();
    for segment in inner.split('/').filter(|_| !inner.is_empty()) {
        if let Some(name) = segment.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
            check_parameter(name, &mut names)?;
        } else {
            check_literal(segment)?;
        }
    }
    Ok(())
}

fn check_parameter<'a>(name: &'a str, names: &mut Vec<&'a str>) -> Result<(), String> {
    if !is_name(name) || name.contains('-') {
        return Err(format!("'{{{name}}}' is not a parameter; name it with a-z and _"));
    }
    if names.contains(&name) {
        return Err(format!("the parameter '{{{name}}}' stands twice"));
    }
    names.push(name);
    Ok(())
}

/// A literal must be in canonical form, or no request could ever match it.
fn check_literal(segment: &str) -> Result<(), String> {
    if segment.contains('*') {
        return Err("'**' stands only at the end, after a '/'; a '*' elsewhere has no meaning".to_owned());
    }
    if segment.contains(['{', '}']) {
        return Err("a parameter is a whole segment: /{name}/".to_owned());
    }
    match crate::proxy::canonical::canonical_path(&format!("/{segment}")) {
        Ok(None) if !segment.is_empty() => Ok(()),
        Ok(Some(canonical)) => {
            Err(format!("write '{}': requests are compared in canonical form", canonical.trim_start_matches('/')))
        }
        Ok(None) | Err(_) => Err(format!("the segment '{segment}' can match no request: such paths are refused")),
    }
}

/// `read`, `write`, `methods` or `public`.
fn access(section: &mut Section<'_, '_>, vocabulary: &Vocabulary) -> Option<Access> {
    let public = section.boolean("public").filter(|public| public.value);
    let mut methods: Vec<(Method, Requirement)> = Vec::new();
    let mut given = false;
    for (key, names) in [("read", &["GET", "HEAD", "OPTIONS"][..]), ("write", &["POST", "PUT", "PATCH", "DELETE"][..])]
    {
        if let Some(raw) = section.take(key) {
            given = true;
            let requirement = requirement(section, raw, vocabulary);
            let scoped = |name: &&str| Some((method(name).ok()?, requirement.clone()?));
            methods.extend(names.iter().filter_map(scoped));
        }
    }
    if let Some(raw) = section.take("methods") {
        given = true;
        explicit_methods(section, raw, vocabulary, &mut methods);
    }
    match (public, methods.is_empty()) {
        (Some(_), true) => Some(Access::Public),
        (None, false) => Some(Access::Keyed(methods)),
        (Some(public), false) => {
            let message = "a public route lets everybody in: it cannot need scopes";
            section.report().add(Diagnostic::new(public.span, message).help("leave out public, or the scopes"));
            None
        }
        // A scope that could not be read has been told already.
        (None, true) if given => None,
        (None, true) => {
            section.missing(
                "scope",
                "give read and write, or methods; only public = true lets a request through without a key",
            );
            None
        }
    }
}

fn explicit_methods<'t>(
    section: &Section<'_, 't>,
    raw: Raw<'t>,
    vocabulary: &Vocabulary,
    methods: &mut Vec<(Method, Requirement)>,
) {
    for (name, raw) in section.as_section("methods", raw).rest() {
        let requirement = requirement(section, raw, vocabulary);
        let span = name.span.clone();
        let Some(name) = section.read(name, method) else { continue };
        if methods.iter().any(|(known, _)| *known == name.value) {
            let message = format!("{} is named twice: by methods and by read or write", name.value);
            section.report().add(Diagnostic::new(span, message));
        } else if let Some(requirement) = requirement {
            methods.push((name.value, requirement));
        }
    }
}

fn method(name: &str) -> Result<Method, String> {
    if !name.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'-') || name.is_empty() {
        return Err(format!("'{name}' is not a method; methods are written in capitals"));
    }
    if matches!(name, "TRACE" | "TRACK" | "CONNECT") {
        return Err(format!("{name} is refused on every route"));
    }
    Method::from_bytes(name.as_bytes()).map_err(|_| format!("'{name}' is not a method"))
}

/// One scope, or a list of scopes all of which are needed.
fn requirement<'t>(section: &Section<'_, 't>, raw: Raw<'t>, vocabulary: &Vocabulary) -> Option<Requirement> {
    let span = raw.span();
    let elements = if matches!(raw.get_ref(), DeValue::String(_)) { vec![raw] } else { section.elements(raw) };
    let scopes: Vec<_> = elements.into_iter().filter_map(|raw| section.as_string(raw)).collect();
    if scopes.is_empty() {
        section
            .report()
            .add(Diagnostic::new(span, "an empty list would let every key in").help("name the scope that is needed"));
        return None;
    }
    let declared = scopes.iter().filter(|scope| check_scope(section, scope, vocabulary)).count();
    if declared < scopes.len() {
        return None;
    }
    let set = scopes.iter().filter_map(|scope| vocabulary.set(&scope.value)).reduce(|all, one| all.union(one))?;
    let mut names: Vec<_> = scopes.into_iter().map(|scope| scope.value).collect();
    names.sort();
    Some(Requirement { scopes: set, text: names.join(" ") })
}
