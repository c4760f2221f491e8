//! Times, sizes, names: the small values of gateway.toml.

use std::time::Duration;
use toml::de::DeValue;

/// Reads `"30s"`, `"250ms"`, `"15m"`, `"24h"`, `"90d"`.
///
/// # Errors
/// A sentence for the operator; zero is one too, because a missing deadline is a mistake, not a setting.
pub fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split(text);
    let seconds_each = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        "d" => 86_400.0,
        _ => {
            return Err(format!(
                "'{text}' is not a time; write it like \"250ms\", \"30s\", \"15m\", \"24h\" or \"90d\""
            ));
        }
    };
    let time = number.map(|number| Duration::try_from_secs_f64(number * seconds_each));
    match time {
        Some(Ok(time)) if !time.is_zero() => Ok(time),
        Some(Ok(_)) => Err("zero is not a time; leave the setting out for its default".to_owned()),
        Some(Err(_)) | None => Err(format!("'{text}' is not a time")),
    }
}

/// A time in whole seconds, in the largest unit that leaves nothing over.
pub fn show_duration(time: Duration) -> String {
    let seconds = time.as_secs();
    let units = [(86_400, "d"), (3600, "h"), (60, "m")];
    let fitting = units.into_iter().find(|(each, _)| seconds >= *each && seconds.is_multiple_of(*each));
    fitting.map_or_else(|| format!("{seconds}s"), |(each, unit)| format!("{}{unit}", seconds / each))
}

/// Reads `"16 KiB"`, `"10 MiB"`, `"512 B"`.
///
/// # Errors
/// A sentence for the operator.
pub fn size(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text);
    let bytes_each: u64 = match unit {
        "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(format!("'{text}' is not a size; write it like \"16 KiB\", \"10 MiB\" or \"512 B\"")),
    };
    let bytes = number.filter(|number| number.fract() == 0.0).map(|number| number * bytes_each as f64);
    match bytes {
        Some(bytes) if (1.0..9e15).contains(&bytes) => Ok(bytes as u64),
        Some(_) | None => Err(format!("'{text}' is not a size: a whole number from 1, and a unit")),
    }
}

pub fn show_size(bytes: u64) -> String {
    let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    let fitting = units.into_iter().find(|(each, _)| bytes >= *each && bytes.is_multiple_of(*each));
    fitting.map_or_else(|| format!("{bytes} B"), |(each, unit)| format!("{} {unit}", bytes / each))
}

fn split(text: &str) -> (Option<f64>, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    (number.parse().ok().filter(|number: &f64| number.is_finite()), unit.trim_start())
}

/// What a value is, for errors. The value itself is never shown: it may be a secret in the wrong place.
pub const fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a decimal number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// The nearest known name, or all of them.
pub fn suggest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> String {
    let known: Vec<&str> = known.collect();
    let nearest = known.iter().map(|known| (strsim::damerau_levenshtein(name, known), *known)).min();
    match nearest {
        Some((distance, known)) if distance <= 1 + name.len() / 4 => format!("did you mean '{known}'?"),
        Some(_) => format!("there is {}", known.join(", ")),
        None => "nothing can be set here".to_owned(),
    }
}

/// Whether `name` is `[a-z][a-z0-9_-]*`.
pub fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes_need_units_and_are_never_zero() {
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("15m"), Ok(Duration::from_secs(900)));
        assert_eq!(size("16 KiB"), Ok(16 * 1024));
        for text in ["0s", "30", "s", "-1s", "1e9s", "1 fortnight", ""] {
            assert!(duration(text).is_err(), "{text}");
        }
        for text in ["0 B", "16", "1.5 KiB", "-1 KiB", "9999999999 GiB", ""] {
            assert!(size(text).is_err(), "{text}");
        }
    }
}
