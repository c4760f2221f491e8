//! Replaced files: whoever renews a certificate writes it into its place, and new connections are shown it within a second or two.

use super::files::{self, Certificate, Contents};
use super::{Certificates, Current, Tls, config, tickets};
use crate::clock::{Clock, Timestamp};
use crate::key::Digest;
use crate::telemetry;
use crate::tls::Roots;
use crate::tls::x509::Facts;
use std::sync::Arc;
use std::time::Duration;

/// How often the files are read.
pub const PERIOD: Duration = Duration::from_secs(1);
/// When the end of a certificate is near: less than this, and less than a third of its time, is left.
const SOON: i64 = 14 * 86_400;

/// Follows the files of one listener.
pub struct Watcher {
    tls: Arc<Tls>,
    /// The listener's address, as gateway.toml has it.
    listen: String,
    clock: Clock,
    /// By pair, and last of the authorities: contents that are no good.
    suspects: Vec<Option<Suspect>>,
}

/// Contents that could not be used. Told at their second sight: at the first they may be half written.
struct Suspect {
    mark: Digest,
    is_told: bool,
}

/// What a look at a pair's files, or at the authorities', came to.
enum Sight<T> {
    Same,
    New(T, Digest),
    Bad(String, Digest),
}

// === impl Watcher ===

impl Watcher {
    pub fn new(tls: Arc<Tls>, listen: String, clock: Clock) -> Self {
        let suspects = (0..=tls.settings.pairs.len()).map(|_| None).collect();
        let watcher = Self { tls, listen, clock, suspects };
        watcher.tell_ends();
        watcher
    }

    /// Looks at all files once. What is good is taken, each pair by itself; what is not is told, and what was before stays.
    pub fn turn(&mut self) {
        let current = self.tls.current();
        let now = self.clock.now();
        let (mut certificates, mut marks) = (current.certificates.0.clone(), current.marks.clone());
        let mut is_changed = false;
        for index in 0..certificates.len() {
            let (Some(certificate), Some(mark)) = (certificates.get_mut(index), marks.get_mut(index)) else { continue };
            let Some(pair) = self.tls.settings.pairs.get(index) else { continue };
            let sight = look_at_pair(&pair.read(), index, *mark, now);
            if let Some((new, new_mark)) = self.judge(index, sight) {
                (*certificate, *mark) = (Arc::new(new), new_mark);
                is_changed = true;
            }
        }
        let roots = self.look_at_roots(&current);
        if is_changed || roots.is_some() {
            self.take(&current, certificates, marks, roots);
        }
    }

    fn take(
        &self,
        current: &Current,
        certificates: Vec<Arc<Certificate>>,
        marks: Vec<Digest>,
        new_roots: Option<(Roots, Digest)>,
    ) {
        let made = || {
            // With a ticket of before, a client would come in whose authority has gone.
            let tickets = if new_roots.is_some() { tickets()? } else { Arc::clone(&current.tickets) };
            let (roots, mark_of_roots) = match new_roots {
                Some((roots, mark)) => (Some(roots), Some(mark)),
                None => (current.roots.clone(), current.mark_of_roots),
            };
            let certificates = Arc::new(Certificates(certificates));
            let config = config(&self.tls.settings, &certificates, roots.as_ref(), &tickets)?;
            Ok::<_, String>(Current { config, certificates, roots, tickets, marks, mark_of_roots })
        };
        match made() {
            Ok(current) => {
                self.tls.swap(current);
                telemetry::certificates_reloaded(true);
                tracing::info!(listen = self.listen, "certificates were replaced");
                self.tell_ends();
            }
            Err(error) => {
                telemetry::certificates_reloaded(false);
                tracing::error!(listen = self.listen, error, "certificates could not be replaced");
            }
        }
    }

    fn look_at_roots(&mut self, current: &Current) -> Option<(Roots, Digest)> {
        let content = files::read(self.tls.settings.client_ca.as_deref()?);
        let mark = files::mark(&[&content]);
        let sight = if current.mark_of_roots == Some(mark) {
            Sight::Same
        } else {
            match files::parse(&content, Roots::parse) {
                Ok(roots) => Sight::New(roots, mark),
                Err(message) => Sight::Bad(message, mark),
            }
        };
        self.judge(self.tls.settings.pairs.len(), sight)
    }

    /// What is to be taken. What is bad is told once.
    fn judge<T>(&mut self, index: usize, sight: Sight<T>) -> Option<(T, Digest)> {
        let suspect = self.suspects.get_mut(index)?;
        match sight {
            Sight::Same => *suspect = None,
            Sight::New(new, mark) => {
                *suspect = None;
                return Some((new, mark));
            }
            Sight::Bad(error, mark) => match suspect {
                Some(known) if known.mark == mark => {
                    if !std::mem::replace(&mut known.is_told, true) {
                        telemetry::certificates_reloaded(false);
                        tracing::error!(
                            listen = self.listen,
                            error,
                            "a replaced file is no good; what was there before stays in use"
                        );
                    }
                }
                Some(_) | None => *suspect = Some(Suspect { mark, is_told: false }),
            },
        }
        None
    }

    /// Tells when the certificates end, and of those whose end is near.
    fn tell_ends(&self) {
        let now = self.clock.now();
        for (cert, facts) in self.tls.certificates() {
            telemetry::certificate_ends(&self.listen, &cert, facts.not_after);
            if let Some(warning) = near_end(&facts, now) {
                tracing::warn!(listen = self.listen, cert, "a certificate {warning}");
            }
        }
    }
}

fn look_at_pair(contents: &Contents, index: usize, mark: Digest, now: Timestamp) -> Sight<Certificate> {
    let new_mark = contents.mark();
    if new_mark == mark {
        return Sight::Same;
    }
    match contents.parse(index) {
        // Taken, it would be refused by everybody, which the one before may not be.
        Ok(certificate) if is_over(&certificate.facts, now) => {
            Sight::Bad("the new certificate has run out already".to_owned(), new_mark)
        }
        Ok(certificate) => Sight::New(certificate, new_mark),
        Err(faults) => {
            let messages: Vec<_> = faults.into_iter().map(|fault| fault.message).collect();
            Sight::Bad(messages.join("; "), new_mark)
        }
    }
}

const fn is_over(facts: &Facts, now: Timestamp) -> bool {
    facts.not_after < now.as_millis() / 1000
}

/// What an operator is told of a certificate that clients refuse, or will soon.
pub fn near_end(facts: &Facts, now: Timestamp) -> Option<String> {
    let seconds = now.as_millis() / 1000;
    let (left, all) = (facts.not_after - seconds, facts.not_after - facts.not_before);
    if left < 0 {
        Some("has run out: no client accepts it".to_owned())
    } else if seconds < facts.not_before {
        Some("does not hold yet: no client accepts it".to_owned())
    } else if left < SOON && left < all / 3 {
        let (days, hours) = (left / 86_400, left / 3600);
        Some(if days > 0 { format!("runs out in {days} days") } else { format!("runs out in {hours} hours") })
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_near_when_two_weeks_and_a_third_of_the_time_are_left() {
        let day = 86_400;
        let facts = |not_after| Facts { not_before: 0, not_after, common_name: None, names: Vec::new() };
        let told = |days: i64, at: i64| near_end(&facts(days * day), Timestamp::from_micros(at * day * 1_000_000));
        assert_eq!(told(90, 75), None);
        assert_eq!(told(90, 77), Some("runs out in 13 days".into()));
        assert_eq!(told(6, 3), None);
        assert_eq!(told(6, 5), Some("runs out in 1 days".into()));
        assert_eq!(told(90, 91), Some("has run out: no client accepts it".into()));
        assert_eq!(told(90, -1), Some("does not hold yet: no client accepts it".into()));
    }
}
