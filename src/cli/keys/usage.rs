//! `keygate keys usage`.

use super::{Failure, Session, exit};
use crate::audit::fields::Fields;
use crate::audit::index::IndexReader;
use crate::audit::reader::{Follow, journals};
use crate::audit::usage::{Day, LastUse, Statuses, Usage};
use crate::cli::output::{self, Output};
use crate::cli::when;
use crate::clock::Timestamp;
use crate::config::Config;
use crate::key::KeyId;
use crate::manage::coverage::Verdict;
use crate::manage::usage::KeyUsage;
use crate::store::Use;
use serde_json::{Map, Value, json};
use std::path::Path;
use std::process::ExitCode;

/// Which key, and since when.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The key's id.
    id: String,
    /// By what time the key is judged: a time back from now (30d) or RFC 3339.
    #[arg(long, value_name = "WHEN", default_value = "30d")]
    since: String,
}

/// The details, and of which journals they are.
struct Details {
    usage: Usage,
    /// Journals of other machines, which the details are not of.
    elsewhere: Vec<String>,
}

/// Classes of statuses as they are told.
const CLASSES: [(usize, &str); 6] = [(1, "1xx"), (2, "2xx"), (3, "3xx"), (4, "4xx"), (5, "5xx"), (0, "none")];

// === impl Session ===

impl Session<'_> {
    pub(super) fn usage(&self, args: &Args, config: &Config) -> Result<ExitCode, Failure> {
        let (id, since) = (super::key_id(&args.id)?, when::parse(&args.since)?);
        let Details { usage, elsewhere } = self.details(config, id, since)?;
        let usage = self.manage.key_usage(id, since, usage, &config.routes)?;
        match self.output {
            Output::Table => self.show_usage(&usage, &elsewhere)?,
            Output::Json | Output::Ndjson => output::line(self.usage_value(&usage, &elsewhere)?)?,
        }
        Ok(exit::DONE)
    }

    /// The key's calls in the journals of this machine, by whole days.
    fn details(&self, config: &Config, id: KeyId, since: Timestamp) -> Result<Details, Failure> {
        let here = gateway_id(config);
        let journals = self.store.accounts()?.journals;
        let elsewhere = journals.iter().filter(|journal| Some(journal.gateway()) != here.as_deref());
        let elsewhere = elsewhere.map(|journal| journal.journal.clone()).collect();
        let usage = usage_here(&config.audit.dir, &id.to_string(), since, self.now)?;
        Ok(Details { usage, elsewhere })
    }

    fn show_usage(&self, usage: &KeyUsage, elsewhere: &[String]) -> Result<(), Failure> {
        let key = &usage.key;
        let code = self.codes()?.remove(&key.entity_id).unwrap_or_default();
        let last = |call: &Option<Use>| show_last(call.as_ref(), usage.details.last());
        let list = |list: Option<Vec<String>>| match list {
            None => "unknown: too many to tell apart".to_owned(),
            Some(list) if list.is_empty() => "-".to_owned(),
            Some(list) => list.join(" "),
        };
        let nets = usage.unmatched.as_ref().map(|nets| nets.iter().map(ToString::to_string).collect());
        let mut rows = vec![
            ["key".to_owned(), format!("{} '{}' of {code}, {}, ending in {}", key.id, key.name, key.mode, key.last4)],
            ["state".to_owned(), key.state(self.now).as_str().to_owned()],
            ["verdict".to_owned(), usage.verdict.to_string()],
            ["because".to_owned(), reason(usage)],
            ["last use".to_owned(), last(&usage.last.any)],
            ["last allowed use".to_owned(), last(&usage.last.allowed)],
            ["scopes never used".to_owned(), list(usage.unused_scopes.clone())],
            ["allowlist never matched".to_owned(), list(nets)],
        ];
        if !elsewhere.is_empty() {
            rows.push(["not in the details".to_owned(), elsewhere.join(" ")]);
        }
        output::table(&["FIELD", "VALUE"], rows.into_iter().map(Vec::from).collect())?;
        show_details(&usage.details)
    }

    fn usage_value(&self, usage: &KeyUsage, elsewhere: &[String]) -> Result<Value, Failure> {
        let (coverage, details) = (&usage.coverage, &usage.details);
        let lacks: Vec<_> = coverage.lacks(usage.begin).map(ToString::to_string).collect();
        let days = details.days().map(|(day, one)| {
            let mut value = statuses_value(one.statuses);
            value.insert("day".to_owned(), day.to_string().into());
            Value::from(value)
        });
        let addresses = details.addresses();
        let told = addresses
            .iter()
            .map(|(ip, seen)| json!({ "ip": ip.to_string(), "calls": seen.count, "last": seen.last.to_string() }));
        let routes = details.routes();
        let asked = routes.iter().map(|(route, seen)| {
            json!({ "method": route.method, "route": route.pattern, "calls": seen.count, "last": seen.last.to_string() })
        });
        Ok(json!({
            "key": self.value(&usage.key)?,
            "since": usage.begin.to_string(),
            "until": coverage.reported_through().to_string(),
            "verdict": usage.verdict.as_str(),
            "reason": reason(usage),
            "coverage": { "percent": coverage.percent(usage.begin), "from": coverage.from().to_string(), "lacks": lacks },
            "last_use": usage.last.any.as_ref().map(use_value),
            "last_allowed_use": usage.last.allowed.as_ref().map(use_value),
            "statuses": statuses_value(details.statuses()),
            "days": days.collect::<Vec<_>>(),
            "addresses": told.collect::<Vec<_>>(),
            "calls_from_other_addresses": addresses.others(),
            "routes": asked.collect::<Vec<_>>(),
            "calls_of_other_routes": routes.others(),
            "refusals": details.refusals(),
            "unused_scopes": usage.unused_scopes,
            "unmatched_allowlist": usage.unmatched.as_ref().map(|nets| nets.iter().map(ToString::to_string).collect::<Vec<_>>()),
            "journals_elsewhere": elsewhere,
        }))
    }
}

/// Why the verdict is what it is, and the time it rests on.
fn reason(usage: &KeyUsage) -> String {
    let KeyUsage { begin, coverage, .. } = usage;
    match usage.verdict {
        Verdict::InUse => format!("there were calls with it since {begin}"),
        Verdict::SafeToDelete => format!(
            "no call with it, refused or not, on any gateway from {begin} to {}",
            coverage.reported_through().max(*begin)
        ),
        Verdict::Unknown { .. } => {
            let lacks: Vec<_> = coverage.lacks(*begin).map(ToString::to_string).collect();
            format!("no call with it is known since {begin}, but {}", lacks.join("; "))
        }
    }
}

fn statuses_value(statuses: Statuses) -> Map<String, Value> {
    let classes = CLASSES.iter().map(|(class, name)| ((*name).to_owned(), statuses.of_class(*class).into()));
    [("calls".to_owned(), statuses.total().into())].into_iter().chain(classes).collect()
}

fn show_details(usage: &Usage) -> Result<(), Failure> {
    if usage.total() == 0 {
        return Ok(());
    }
    let show_time = |time| output::show_time(Some(time));
    let days = usage.days().map(|(day, one)| {
        let classes = CLASSES.iter().map(|(class, _)| one.statuses.of_class(*class).to_string());
        [day.to_string(), one.statuses.total().to_string()].into_iter().chain(classes).collect()
    });
    table(&["DAY", "CALLS", "1XX", "2XX", "3XX", "4XX", "5XX", "NONE"], days.collect())?;
    let routes = usage.routes();
    let asked = routes.iter().map(|(route, seen)| {
        let pattern = route.pattern.clone().unwrap_or_else(|| "-".to_owned());
        vec![route.method.clone(), pattern, seen.count.to_string(), show_time(seen.last)]
    });
    table(&["METHOD", "ROUTE", "CALLS", "LAST"], asked.collect())?;
    let addresses = usage.addresses();
    let told = addresses.iter().map(|(ip, seen)| vec![ip.to_string(), seen.count.to_string(), show_time(seen.last)]);
    table(&["ADDRESS", "CALLS", "LAST"], told.collect())?;
    let refusals: Vec<_> =
        usage.refusals().into_iter().map(|(reason, count)| vec![reason, count.to_string()]).collect();
    if refusals.is_empty() { Ok(()) } else { table(&["REFUSED BECAUSE", "CALLS"], refusals) }
}

fn table(headings: &[&str], rows: Vec<Vec<String>>) -> Result<(), Failure> {
    output::line("")?;
    output::table(headings, rows)
}

/// This machine's gateway, if it has one.
fn gateway_id(config: &Config) -> Option<String> {
    let kept = || std::fs::read_to_string(config.data_dir.join("gateway-id")).ok();
    config.gateway_id.clone().or_else(|| kept().map(|id| id.trim().to_owned()))
}

/// A key's calls in the journals of this machine: from the index, or from the journals where there is none.
fn usage_here(dir: &Path, key: &str, since: Timestamp, until: Timestamp) -> Result<Usage, Failure> {
    if !dir.exists() {
        say!("there is no journal in {}: what is known is what gateways have reported", dir.display());
        return Ok(Usage::default());
    }
    match IndexReader::open(dir).and_then(|index| index.map(|index| index.usage(key, since, until)).transpose()) {
        Ok(Some(usage)) => return Ok(usage),
        Ok(None) => {}
        Err(error) => say!("warning: {error}; reading the journal instead"),
    }
    let (mut usage, days) = (Usage::default(), Day::of(since)..=Day::of(until));
    for slot in journals(dir)? {
        let mut journal = Follow::new(slot);
        journal.read(|line| {
            let fields = Fields::read(line.text).filter(|fields| fields.key_id.is_some_and(|id| id.is(key)));
            let wanted = fields.filter(|fields| fields.at().is_some_and(|at| days.contains(&Day::of(at))));
            wanted.iter().for_each(|fields| usage.add(fields));
        })?;
        journal.take_faults().iter().for_each(|fault| say!("warning: {fault}"));
    }
    Ok(usage)
}

/// The last call that gateways have reported. Seconds after a key's first one it is in the journal alone.
fn show_last(reported: Option<&Use>, here: Option<&LastUse>) -> String {
    match (reported, here) {
        (Some(call), _) => show_use(call),
        (None, Some(here)) => {
            format!("none reported yet; in the journal here there is a call at {}", output::show_time(Some(here.at)))
        }
        (None, None) => "never, as far as is known".to_owned(),
    }
}

/// A call with a key, for people.
pub fn show_use(call: &Use) -> String {
    let ip = call.client_ip.map_or_else(|| "an unknown address".to_owned(), |ip| ip.to_string());
    let refused =
        if call.allowed { String::new() } else { format!(", refused: {}", call.reason.as_deref().unwrap_or("-")) };
    let (method, route) = (&call.method, call.route.as_deref().unwrap_or("no route"));
    format!("{} from {ip}: {method} {route} on {}{refused}", output::show_time(Some(call.at)), call.gateway)
}

/// The JSON object of a call with a key.
pub fn use_value(call: &Use) -> Value {
    json!({
        "at": call.at.to_string(),
        "ended_at": call.ended_at.to_string(),
        "gateway": call.gateway,
        "journal": call.journal,
        "seq": call.seq,
        "client_ip": call.client_ip.map(|ip| ip.to_string()),
        "method": call.method,
        "route": call.route,
        "decision": if call.allowed { "allow" } else { "deny" },
        "reason": call.reason,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_is_not_reported_yet_is_not_said_to_be_none() {
        let at = Timestamp::from_micros(0);
        let here = LastUse {
            at,
            gateway: "edge-1".into(),
            client_ip: None,
            method: "GET".into(),
            route: None,
            refused: false,
        };
        let told = "none reported yet; in the journal here there is a call at 1970-01-01 00:00:00";
        assert_eq!(show_last(None, Some(&here)), told);
        assert_eq!(show_last(None, None), "never, as far as is known");
    }
}
