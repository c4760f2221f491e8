//! `keygate demo`: a small ERP, the gateway in front of it, an entity and two keys, in one process.

use super::output::Output;
use super::{demo_erp, exit, serve};
use crate::clock::Clock;
use crate::config::Config;
use crate::key::Mode;
use crate::manage::{self, NewEntity, NewKey};
use crate::store::{self, KeyStore};
use crate::telemetry::logging;
use serde_json::json;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Try keygate: starts a small ERP (live and sandbox) and the gateway in front of it, and prints curl lines that work.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where the gateway listens.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Where the admin listener listens.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8081")]
    admin: SocketAddr,
    /// Where keys and audit records are kept; a temporary directory, removed at the end, unless given.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
}

/// What the demo made, for the words and the JSON object that it prints.
struct Made {
    url: String,
    admin_url: String,
    entity_id: String,
    test_key: String,
    live_key: String,
    data: PathBuf,
}

type Failure = Box<dyn std::error::Error>;

/// The entity of the demo.
const CODE: &str = "acme";

/// Runs the demo until it is told to stop.
pub fn run(args: &Args, output: Output) -> ExitCode {
    logging::start();
    match demo(args, output != Output::Table) {
        Ok(code) => code,
        Err(error) => {
            say!("error: {error}");
            exit::FAILED
        }
    }
}

fn demo(args: &Args, as_json: bool) -> Result<ExitCode, Failure> {
    // Kept until the end: dropping it removes the directory.
    let temporary =
        args.data.is_none().then(|| tempfile::Builder::new().prefix("keygate-demo-").tempdir()).transpose()?;
    let data = match (&args.data, &temporary) {
        (Some(data), _) => std::path::absolute(data)?,
        (None, Some(temporary)) => temporary.path().to_owned(),
        (None, None) => return Err("no data directory".into()),
    };
    std::fs::create_dir_all(&data)?;
    let erp = demo_erp::start()?;
    let config = config(args, &data, &erp)?;
    let store = store::open(&config.store)?;
    let (entity_id, test_key, live_key) = make(&config, store.as_ref())?;
    let (gateway, signals) = serve::start(config)?;
    let address = gateway.listening.first().ok_or("the gateway listens nowhere")?;
    let made = Made {
        url: format!("http://{address}"),
        admin_url: format!("http://{}", gateway.admin),
        entity_id,
        test_key,
        live_key,
        data,
    };
    print(&made, as_json)?;
    drop(made);
    Ok(serve::wait(gateway, signals))
}

/// The demo's gateway.toml: the shipped one with addresses of its own, kept beside the data so that every command works on
/// the running demo.
fn config(args: &Args, data: &Path, erp: &demo_erp::Erp) -> Result<Config, Failure> {
    let shipped = include_str!("../../gateway.toml");
    let text = shipped
        .replace("0.0.0.0:8080", &args.listen.to_string())
        .replace("127.0.0.1:8081", &args.admin.to_string())
        .replace("127.0.0.1:9001", &erp.live.to_string())
        .replace("127.0.0.1:9002", &erp.test.to_string());
    let path = data.join("gateway.toml");
    std::fs::write(&path, &text)?;
    Ok(Config::parse(&text, &path).map_err(|errors| errors.to_string())?)
}

/// Makes the entity, once, and one new key for each mode.
fn make(config: &Config, store: &dyn KeyStore) -> Result<(String, String, String), Failure> {
    let clock = Clock::system();
    let manage = manage::Manage::new(store, &config.manage, &clock, "demo".into());
    let entity = match store.entity_by_code(CODE)? {
        Some(entity) => entity,
        None => manage.create_entity(NewEntity { code: CODE.into(), id: None, name: Some("Acme Ltd".into()) })?,
    };
    let create = |mode: Mode| {
        let scopes = ["orders:read", "orders:write", "accounts:read"].map(str::to_owned).to_vec();
        manage.create_key(NewKey {
            entity: CODE.into(),
            name: format!("demo {mode}"),
            mode,
            scopes,
            ..NewKey::default()
        })
    };
    let (test, live) = (create(Mode::Test)?, create(Mode::Live)?);
    Ok((entity.id.to_string(), test.text.expose().clone(), live.text.expose().clone()))
}

fn print(made: &Made, as_json: bool) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    if as_json {
        let object = json!({
            "url": made.url, "admin_url": made.admin_url, "entity_id": made.entity_id,
            "test_key": made.test_key, "live_key": made.live_key,
        });
        writeln!(out, "{object}")?;
    } else {
        writeln!(out, "{}", made.words())?;
    }
    Ok(out.flush()?)
}

// === impl Made ===

impl Made {
    fn words(&self) -> String {
        let Self { url, admin_url, entity_id, test_key, live_key, data } = self;
        let orders = format!("{url}/v1/entities/{entity_id}/orders");
        let config = data.join("gateway.toml");
        let config = config.display();
        // By its path: after `cargo run` there is no such command.
        let keygate = std::env::current_exe().map_or_else(|_| "keygate".into(), |path| path.display().to_string());
        format!(
            "keygate is running in front of a small ERP. Try, in another terminal:

# 200 from the sandbox, with the test key
curl -H 'Authorization: Bearer {test_key}' {orders}

# 200 from live data, with the live key
curl -H 'Authorization: Bearer {live_key}' {orders}

# 401 missing_api_key
curl {orders}

# 403 insufficient_scope: these keys do not hold products:read
curl -H 'Authorization: Bearer {test_key}' {url}/v1/entities/{entity_id}/products

# what the gateway did, and how it is
{keygate} logs -c {config}
curl '{admin_url}/readyz?verbose'

Stop it with Ctrl-C."
        )
    }
}
