//! Addresses and networks, IPv4-mapped IPv6 folded onto IPv4 once and for all.

use ipnet::IpNet;
use std::fmt;
use std::io::Write as _;
use std::net::IpAddr;

/// A set of addresses and CIDR ranges: a key's allowlist, or the trusted proxies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Networks(Box<[IpNet]>);

/// Folds `::ffff:a.b.c.d` onto `a.b.c.d`, so that one client has one address whichever socket family accepted it.
pub const fn canonical_ip(ip: IpAddr) -> IpAddr {
    ip.to_canonical()
}

/// Reads one address or CIDR range, such as `10.0.0.0/8`, `::1` or `192.0.2.7`.
///
/// # Errors
/// A sentence for the person who wrote it, when the text is neither, or when the address has bits beyond the prefix:
/// `10.0.0.1/8` is either a mistaken address or a mistaken range, and guessing which one would widen or narrow access.
pub fn parse_network(text: &str) -> Result<IpNet, String> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(IpNet::from(canonical_ip(ip)));
    }
    let net = text.parse::<IpNet>().map_err(|_| {
        format!("'{text}' is not an IP address or CIDR range, such as 192.0.2.7, 10.0.0.0/8 or 2001:db8::/32")
    })?;
    if net.addr() != net.network() {
        return Err(format!("'{text}' has bits beyond its prefix; write {} or {}", net.trunc(), net.addr()));
    }
    match net {
        IpNet::V6(v6) if v6.addr().to_ipv4_mapped().is_some() => Err(format!("'{text}': write the IPv4 range itself")),
        _ => Ok(net),
    }
}

/// Appends a number in decimal.
pub fn push_number(out: &mut Vec<u8>, value: u64) {
    if value < 10 {
        out.push(b'0' + value as u8);
        return;
    }
    let mut digits = [b'0'; 20];
    let (mut rest, mut first) = (value, digits.len());
    for (at, digit) in digits.iter_mut().enumerate().rev() {
        *digit = b'0' + (rest % 10) as u8;
        (rest, first) = (rest / 10, at);
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(digits.get(first..).unwrap_or_default());
}

/// Appends an address as text. By hand for IPv4: the formatting machinery is too slow for every request.
pub fn push_ip(out: &mut Vec<u8>, ip: IpAddr) {
    match ip {
        IpAddr::V4(v4) => {
            let mut text = [b'.'; 16];
            let mut len = 0;
            for octet in v4.octets() {
                for (place, digit) in [(100, octet / 100), (10, octet / 10 % 10), (1, octet % 10)] {
                    if let Some(slot) = text.get_mut(len).filter(|_| octet >= place || place == 1) {
                        *slot = b'0' + digit;
                        len += 1;
                    }
                }
                len += 1;
            }
            out.extend_from_slice(text.get(..len - 1).unwrap_or_default());
        }
        // Writing to a vector cannot fail.
        IpAddr::V6(v6) => _ = write!(out, "{v6}"),
    }
}

// === impl Networks ===

impl Networks {
    pub fn new(mut networks: Vec<IpNet>) -> Self {
        networks.sort();
        networks.dedup();
        Self(networks.into())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `ip` is inside one of the networks. Linear: allowlists are short, and a scan of sixteen beats a tree.
    pub fn contains(&self, ip: IpAddr) -> bool {
        let ip = canonical_ip(ip);
        self.0.iter().any(|net| net.contains(&ip))
    }

    pub fn iter(&self) -> impl Iterator<Item = &IpNet> {
        self.0.iter()
    }

    /// Reads the stored form: networks separated by spaces.
    ///
    /// # Errors
    /// As [`parse_network`].
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        text.split(' ').map(parse_network).collect::<Result<Vec<_>, _>>().map(Self::new)
    }
}

impl fmt::Display for Networks {
    /// The stored form: networks separated by spaces.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, net) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(" ")?;
            }
            write!(f, "{net}")?;
        }
        Ok(())
    }
}
