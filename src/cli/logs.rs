//! `keygate logs`: what the gateway decided, read from its journal.

mod fleet;
mod row;

use super::output::{self, Output};
use super::{Failure, exit, when};
use crate::audit::fields::Fields;
use crate::audit::index::IndexReader;
use crate::audit::query::{Cursor, Filter, JournalSource, Kinds, Page, QueryError, Source, StatusFilter};
use crate::audit::reader::{Follow, journals};
use crate::audit::record::GATEWAY_DIED;
use crate::audit::segment::Kind;
use crate::config::{Config, values};
use crate::net::{Networks, parse_network};
use crate::reason::Reason;
use crate::store;
use clap::builder::PossibleValuesParser;
use fleet::FleetSource;
use row::{HEADINGS, row};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Which records.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Of this kind; seals are shown when they are asked for. Can be repeated.
    #[arg(long = "kind", value_name = "KIND", value_parser = kind_parser())]
    kinds: Vec<String>,
    /// Of this key, by its id.
    #[arg(long, value_name = "ID")]
    key: Option<String>,
    /// Of this entity, by its code; it may have been deleted.
    #[arg(long, value_name = "CODE")]
    entity: Option<String>,
    /// Of keys of this mode.
    #[arg(long, value_parser = ["test", "live"])]
    mode: Option<String>,
    /// With this status, or of this class: 403, 4xx.
    #[arg(long, value_parser = StatusFilter::parse)]
    status: Option<StatusFilter>,
    /// Allowed or denied.
    #[arg(long, value_parser = ["allow", "deny"])]
    decision: Option<String>,
    /// With this reason, such as key_revoked.
    #[arg(long, value_name = "CODE", value_parser = parse_reason)]
    reason: Option<String>,
    /// With this method.
    #[arg(long, value_parser = parse_method)]
    method: Option<String>,
    /// Whose path begins with this.
    #[arg(long, value_name = "PREFIX", value_parser = parse_path)]
    path: Option<String>,
    /// Of this route, by its path in the configuration.
    #[arg(long, value_name = "PATTERN")]
    route: Option<String>,
    /// From this client address, or from one in this range.
    #[arg(long, value_name = "CIDR", value_parser = parse_network)]
    ip: Option<ipnet::IpNet>,
    /// With this request id.
    #[arg(long, value_name = "ID")]
    request_id: Option<String>,
    /// That took longer than this, such as 500ms.
    #[arg(long, value_name = "TIME", value_parser = values::duration)]
    slower_than: Option<Duration>,
    /// Not older than this: a time back from now (1h) or RFC 3339.
    #[arg(long, value_name = "WHEN")]
    since: Option<String>,
    /// Older than this.
    #[arg(long, value_name = "WHEN")]
    until: Option<String>,
    /// At most this many, the newest.
    #[arg(long, default_value_t = 100, value_name = "N")]
    limit: usize,
    /// The newest first.
    #[arg(long)]
    newest_first: bool,
    /// Those before the ones that were shown with this cursor.
    #[arg(long, value_name = "CURSOR")]
    after: Option<String>,
    /// Of all gateways, from the stream in Redis, as far back as that reaches.
    #[arg(long)]
    fleet: bool,
    /// Go on with new records as they are written.
    #[arg(long, conflicts_with_all = ["newest_first", "after", "until"])]
    follow: bool,
}

/// What `--kind` takes: each kind of record, and the word for all of them.
const KINDS: [Kind; 7] =
    [Kind::Request, Kind::Change, Kind::Gap, Kind::Summary, Kind::Connection, Kind::Start, Kind::Seal];
const ALL: &str = "all";

/// Between two looks at the journal while following.
const LOOK: Duration = Duration::from_millis(100);

/// Runs the command.
pub fn run(args: &Args, config: &Config, output: Output) -> Result<ExitCode, Failure> {
    let (dir, filter) = (&config.audit.dir, args.filter(config)?);
    // Beside the gateways there is no journal, but there may be a stream.
    let stream = fleet::stream(config).filter(|_| args.fleet || !dir.exists());
    if let Some(stream) = stream {
        return args.run_on_fleet(FleetSource::new(stream), &filter, output);
    }
    if args.fleet {
        return Err("no sink in gateway.toml keeps a stream of all gateways' records; add one of type redis".into());
    }
    super::audit::check_is_dir(dir)?;
    let (page, lasts) = args.journal_page(dir, &filter)?;
    if !args.follow {
        return args.end(output, page);
    }
    show(output, &page.lines)?;
    let mut tail = Tail { dir: dir.clone(), lasts, journals: BTreeMap::new() };
    loop {
        std::thread::sleep(LOOK);
        show_more(output, &tail.read(&filter)?)?;
    }
}

// === impl Args ===

impl Args {
    fn filter(&self, config: &Config) -> Result<Filter, Failure> {
        Ok(Filter {
            kinds: self.kinds(),
            key_id: self.key.as_deref().map(super::keys::key_id).transpose()?.map(|id| id.to_string()),
            entity_ids: self.entity.as_deref().map(|code| entity_ids(config, code)).transpose()?,
            mode: self.mode.clone(),
            status: self.status,
            decision: self.decision.clone(),
            reason: self.reason.clone(),
            method: self.method.clone(),
            path_prefix: self.path.clone(),
            route: self.route.clone(),
            client_ip: self.ip.map(|network| Networks::new(vec![network])),
            request_id: self.request_id.clone(),
            slower_than: self.slower_than,
            since: self.since.as_deref().map(when::parse).transpose()?,
            until: self.until.as_deref().map(when::parse).transpose()?,
        })
    }

    fn kinds(&self) -> Kinds {
        match &*self.kinds {
            [] => Kinds::Events,
            kinds if kinds.iter().any(|kind| kind == ALL) => Kinds::All,
            kinds => Kinds::Of(kinds.to_vec()),
        }
    }

    fn run_on_fleet(&self, mut source: FleetSource, filter: &Filter, output: Output) -> Result<ExitCode, Failure> {
        let page = self.page(&mut source, filter)?;
        if !self.follow {
            return self.end(output, page);
        }
        show(output, &page.lines)?;
        loop {
            std::thread::sleep(LOOK);
            show_more(output, &source.read_on(filter)?)?;
        }
    }

    /// The last page, and where the next one begins.
    fn end(&self, output: Output, page: Page) -> Result<ExitCode, Failure> {
        show(output, &page.lines)?;
        let fleet = if self.fleet { "--fleet " } else { "" };
        page.next.iter().for_each(|next| say!("there are more: {fleet}--after {next}"));
        Ok(exit::DONE)
    }

    /// The journal's records, and the last of each slot. Asks the journal alone when the index cannot be used.
    fn journal_page(&self, dir: &Path, filter: &Filter) -> Result<(Page, BTreeMap<PathBuf, u64>), Failure> {
        let index = IndexReader::open(dir).unwrap_or_else(|error| {
            say!("warning: {error}");
            None
        });
        let mut source = JournalSource::new(dir, index);
        let mut asked = self.page(&mut source, filter);
        if let Err(QueryError::Index(error)) = &asked {
            say!("warning: {error}");
            source = JournalSource::new(dir, None);
            asked = self.page(&mut source, filter);
        }
        Ok((asked?, source.lasts().clone()))
    }

    /// The records that are there, in the order in which they are shown.
    fn page(&self, source: &mut dyn Source, filter: &Filter) -> Result<Page, QueryError> {
        let after = self.after.clone().map(Cursor);
        let mut page = source.page(filter, after.as_ref(), self.limit)?;
        page.warnings.iter().for_each(|warning| say!("warning: {warning}"));
        if !self.newest_first {
            page.lines.reverse();
        }
        Ok(page)
    }
}

fn kind_parser() -> PossibleValuesParser {
    PossibleValuesParser::new(KINDS.map(Kind::as_str).into_iter().chain([ALL]))
}

/// A mistyped one would select nothing.
fn parse_reason(text: &str) -> Result<String, String> {
    let known = || Reason::ALL.iter().map(|reason| reason.as_str()).chain([GATEWAY_DIED]);
    let unknown = || format!("there is no reason '{text}'; {}", values::suggest(text, known()));
    known().find(|known| *known == text).map(str::to_owned).ok_or_else(unknown)
}

/// Methods are recorded as they came. Those that everybody uses are in capitals; another stands as it is written.
fn parse_method(text: &str) -> Result<String, String> {
    const USUAL: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
    let usual = USUAL.into_iter().find(|usual| usual.eq_ignore_ascii_case(text));
    Ok(usual.unwrap_or(text).to_owned())
}

fn parse_path(text: &str) -> Result<String, String> {
    if text.starts_with('/') { Ok(text.to_owned()) } else { Err(format!("a path begins with /: write /{text}")) }
}

/// The entities that have this code or had it until they were deleted: what they did is asked for then more than ever.
fn entity_ids(config: &Config, code: &str) -> Result<Vec<String>, Failure> {
    let entities = store::open_existing(&config.store)?.entities()?;
    let ids: Vec<_> =
        entities.iter().filter(|entity| entity.code == code).map(|entity| entity.id.to_string()).collect();
    if ids.is_empty() { Err(format!("there is no entity '{code}', and there was none").into()) } else { Ok(ids) }
}

/// What is written behind the records that were shown, in all journals of the directory, those included that appear later.
struct Tail {
    dir: PathBuf,
    /// The last record of each slot that is not to be shown.
    lasts: BTreeMap<PathBuf, u64>,
    journals: BTreeMap<PathBuf, Follow>,
}

// === impl Tail ===

impl Tail {
    /// New records of all journals that the filter wants, by time. Faults are told at once.
    fn read(&mut self, filter: &Filter) -> Result<Vec<String>, Failure> {
        for slot in journals(&self.dir)? {
            let last = self.lasts.get(&slot).copied().filter(|last| *last > 0);
            let begin = || last.map_or_else(|| Follow::new(slot.clone()), |last| Follow::after(slot.clone(), last));
            self.journals.entry(slot.clone()).or_insert_with(begin);
        }
        let mut lines = Vec::new();
        for journal in self.journals.values_mut() {
            journal.read(|line| {
                let is_wanted = Fields::read(line.text).is_some_and(|fields| filter.wants(&fields));
                lines.extend(is_wanted.then(|| line.text.to_owned()));
            })?;
            journal.take_faults().iter().for_each(|fault| say!("warning: {fault}"));
        }
        if self.journals.len() > 1 {
            lines.sort_by_cached_key(|line| Fields::read(line).and_then(|fields| Some(fields.ts?.raw().to_owned())));
        }
        Ok(lines)
    }
}

/// The records that were there when it began.
fn show(output: Output, lines: &[String]) -> Result<(), Failure> {
    match output {
        Output::Json => output::line(format_args!("[{}]", lines.join(","))),
        Output::Ndjson => lines.iter().try_for_each(output::line),
        Output::Table => output::table(&HEADINGS, lines.iter().map(|line| row(line)).collect()),
    }
}

/// New ones, below what was shown.
fn show_more(output: Output, lines: &[String]) -> Result<(), Failure> {
    match output {
        Output::Json | Output::Ndjson => lines.iter().try_for_each(output::line),
        Output::Table => lines.iter().try_for_each(|line| output::line(output::printable(&row(line).join("  ")))),
    }
}
