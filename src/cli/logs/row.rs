//! A record as a row for people.

use serde_json::Value;

/// The columns of a request. Other records have what comes nearest to each, or nothing.
pub const HEADINGS: [&str; 8] = ["TIME", "STATUS", "DECISION", "REASON", "METHOD", "PATH", "KEY", "CLIENT"];

/// What stands in place of what a record does not have.
const NONE: &str = "-";

/// The cells of one record.
pub fn row(line: &str) -> Vec<String> {
    let record: Value = serde_json::from_str(line).unwrap_or_default();
    let text = |member: &str| text(record.get(member));
    match text("kind").as_str() {
        "request" => ["ts", "status", "decision", "reason", "method", "path", "key_name", "client_ip"].map(text).into(),
        "change" => {
            let changed = |member: &str| record.get("after").and_then(|after| after.get(member));
            let name = self::text(changed("name").or_else(|| changed("code")));
            let none = || NONE.to_owned();
            let (time, kind, action) = (text("ts"), text("kind"), text("action"));
            vec![time, kind, action, none(), none(), self::text(changed("id")), name, text("actor")]
        }
        kind => {
            let none = || NONE.to_owned();
            vec![text("ts"), kind.to_owned(), none(), none(), none(), what(&record)]
        }
    }
}

/// What a record says that is of no request and no change.
fn what(record: &Value) -> String {
    let number = |member: &str| record.get(member).and_then(Value::as_u64);
    let records = number("first").zip(number("last")).map(|(first, last)| {
        if first == last { format!("record {first}") } else { format!("records {first} to {last}") }
    });
    let counts = record.get("counts").and_then(Value::as_object).into_iter().flatten();
    let members = ["version", "after", "requests_refused", "records_dropped", "records_lost"];
    let members = members.into_iter().filter_map(|member| Some((member, record.get(member)?)));
    let named = |(name, value): (&str, &Value)| match value {
        Value::Null => format!("{name} unknown"),
        value => format!("{name} {}", text(Some(value))),
    };
    let named = counts.map(|(name, count)| (name.as_str(), count)).chain(members).map(named);
    records.into_iter().chain(named).collect::<Vec<_>>().join(", ")
}

fn text(value: Option<&Value>) -> String {
    match value {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Number(number)) => number.to_string(),
        Some(_) | None => NONE.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_record_says_what_happened_to_what() {
        let shown = |body: &str| row(&format!("{{\"ts\":\"T\",{body}}}")).join("|");
        let request = r#""kind":"request","status":403,"decision":"deny","reason":"scope_missing","method":"GET","path":"/v1/a","key_name":"n","client_ip":"192.0.2.1""#;
        assert_eq!(shown(request), "T|403|deny|scope_missing|GET|/v1/a|n|192.0.2.1");
        assert_eq!(shown(r#""kind":"request","status":null"#), "T|-|-|-|-|-|-|-");
        let change = r#""kind":"change","action":"key.revoked","actor":"cli:ops","after":{"id":"key_1","name":"erp"}"#;
        assert_eq!(shown(change), "T|change|key.revoked|-|-|key_1|erp|cli:ops");
        for (body, what) in [
            (r#""kind":"start","version":"0.1.0","after":"kill""#, "start|-|-|-|version 0.1.0, after kill"),
            (r#""kind":"seal","first":1,"last":12,"hash":"00""#, "seal|-|-|-|records 1 to 12"),
            (
                r#""kind":"gap","requests_refused":3,"records_dropped":0"#,
                "gap|-|-|-|requests_refused 3, records_dropped 0",
            ),
            (r#""kind":"seal","first":3,"last":3"#, "seal|-|-|-|record 3"),
            (r#""kind":"gap","records_lost":null"#, "gap|-|-|-|records_lost unknown"),
            (r#""kind":"summary","counts":{"missing_api_key":7}"#, "summary|-|-|-|missing_api_key 7"),
            (r#""kind":"later""#, "later|-|-|-|"),
        ] {
            assert_eq!(shown(body), format!("T|{what}"));
        }
    }
}
