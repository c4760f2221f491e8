//! `tls` in `[[listen]]`: certificates, whose names say for which hosts they are, and who may connect.

use crate::config::Purpose;
use crate::config::diagnostics::Diagnostic;
use crate::config::reader::{Located, Section};
use crate::server::Protocols;
use crate::server::tls::files::{Pair, Place};
use crate::server::tls::{Settings, Tls, Version};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// `cert` and `key`, as they are written.
struct Written {
    cert: Located<String>,
    key: Located<String>,
}

/// Reads `tls`, and to serve the files that it names: a mistake in them is one of this file.
pub fn tls(section: &mut Section<'_, '_>, protocols: Protocols, dir: &Path, purpose: Purpose) -> Option<Arc<Tls>> {
    let raw = section.take("tls")?;
    let mut table = section.as_section("tls", raw);
    let mistakes = table.report().len();
    let written = pairs(&mut table);
    let ca = table.string("client_ca");
    let client_auth = table.parsed("client_auth", |text| match text {
        "required" => Ok(true),
        "optional" => Ok(false),
        _ => Err(format!("'{text}' is neither required nor optional")),
    });
    if let (Some(auth), None) = (&client_auth, &ca) {
        let diagnostic =
            Diagnostic::new(auth.span.clone(), "client_auth without client_ca: no client is asked for a certificate");
        table.report().add(diagnostic.help("name the authorities of the clients: client_ca = \"tls/clients.pem\""));
    }
    let oldest = table.parsed("min_version", |text| match text {
        "1.2" => Ok(Version::Tls12),
        "1.3" => Ok(Version::Tls13),
        _ => Err(format!("'{text}' is neither 1.2 nor 1.3")),
    });
    let settings = Settings {
        pairs: written.iter().map(|pair| pair.files(dir)).collect(),
        client_ca: ca.as_ref().map(|ca| dir.join(&ca.value)),
        is_client_required: client_auth.is_none_or(|auth| auth.value),
        oldest: oldest.map_or(Version::Tls12, |version| version.value),
        protocols,
    };
    let (report, span) = (table.report(), table.span.clone());
    table.finish();
    if report.len() > mistakes || purpose == Purpose::Command {
        return None;
    }
    let loaded = Tls::load(settings);
    let loaded = loaded.map_err(|faults| {
        for fault in faults {
            let span = span_of(fault.place, &written, ca.as_ref()).unwrap_or_else(|| span.clone());
            report.add(Diagnostic::new(span, fault.message));
        }
    });
    loaded.ok().map(Arc::new)
}

/// `cert` and `key`, or those of each of `certificates`.
fn pairs(table: &mut Section<'_, '_>) -> Vec<Written> {
    if !table.has("certificates") {
        return pair(table).into_iter().collect();
    }
    for key in ["cert", "key"] {
        if let Some(one) = table.string(key) {
            let diagnostic = Diagnostic::new(one.span, format!("{key} beside certificates"));
            table.report().add(diagnostic.help("write this pair into certificates too; the first is the default"));
        }
    }
    let sections = table.tables("certificates", "certificate");
    if sections.is_empty() {
        table.missing(
            "certificate",
            "name at least one: certificates = [{ cert = \"tls/a.pem\", key = \"tls/a.key\" }]",
        );
    }
    let pairs = sections.into_iter().map(|mut section| {
        let pair = pair(&mut section);
        section.finish();
        pair
    });
    pairs.collect::<Vec<_>>().into_iter().flatten().collect()
}

fn pair(section: &mut Section<'_, '_>) -> Option<Written> {
    for (key, example) in [("cert", "cert = \"tls/server.pem\""), ("key", "key = \"tls/server.key\"")] {
        if !section.has(key) {
            section.missing(key, &format!("such as {example}"));
        }
    }
    let (cert, key) = (section.string("cert"), section.string("key"));
    Some(Written { cert: cert?, key: key? })
}

fn span_of(place: Place, written: &[Written], ca: Option<&Located<String>>) -> Option<Range<usize>> {
    match place {
        Place::Cert(index) => written.get(index).map(|pair| pair.cert.span.clone()),
        Place::Key(index) => written.get(index).map(|pair| pair.key.span.clone()),
        Place::ClientCa => ca.map(|ca| ca.span.clone()),
        Place::Whole => None,
    }
}

// === impl Written ===

impl Written {
    fn files(&self, dir: &Path) -> Pair {
        let (cert, key) = (dir.join(&self.cert.value), dir.join(&self.key.value));
        Pair { cert, key, name: self.cert.value.clone() }
    }
}
