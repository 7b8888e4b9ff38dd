//! An IPv4 range in CIDR notation: what subnets of pods, services and nodes are.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// `base/prefix`, the host bits always zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cidr {
    base: u32,
    prefix: u8,
}

/// Why a text is not a range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an IPv4 range: {reason} (write for example 10.42.0.0/16)")]
pub struct BadCidr {
    text: String,
    reason: &'static str,
}

impl Cidr {
    /// The range of `prefix` bits (at most 32) that holds `address`.
    pub fn around(address: Ipv4Addr, prefix: u8) -> Cidr {
        let prefix = prefix.min(32);
        Cidr { base: address.to_bits() & mask(prefix), prefix }
    }

    pub fn base(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.base)
    }

    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    pub fn mask(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(mask(self.prefix))
    }

    /// How many addresses the range has.
    pub fn size(&self) -> u64 {
        1 << (32 - u32::from(self.prefix))
    }

    /// The n-th address, counted from the base; none beyond the end.
    pub fn nth(&self, n: u64) -> Option<Ipv4Addr> {
        (n < self.size()).then(|| Ipv4Addr::from_bits(self.base + n as u32))
    }

    pub fn contains(&self, address: Ipv4Addr) -> bool {
        address.to_bits() & mask(self.prefix) == self.base
    }

    pub fn overlaps(&self, other: &Cidr) -> bool {
        self.contains(other.base()) || other.contains(self.base())
    }
}

fn mask(prefix: u8) -> u32 {
    if prefix == 0 { 0 } else { u32::MAX << (32 - u32::from(prefix)) }
}

impl fmt::Display for Cidr {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.base(), self.prefix)
    }
}

impl FromStr for Cidr {
    type Err = BadCidr;

    fn from_str(text: &str) -> Result<Cidr, BadCidr> {
        let bad = |reason| BadCidr { text: text.to_owned(), reason };
        let (address, prefix) = text.split_once('/').ok_or_else(|| bad("the /prefix is missing"))?;
        let address: Ipv4Addr = address.parse().map_err(|_| bad("the address is not one"))?;
        let prefix: u8 =
            prefix.parse().ok().filter(|bits| *bits <= 32).ok_or_else(|| bad("the prefix is not 0 to 32"))?;
        let cidr = Cidr::around(address, prefix);
        if cidr.base() != address {
            return Err(bad("bits are set beyond the prefix"));
        }
        Ok(cidr)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_and_refuses() {
        fn check(text: &str, expect: Result<&str, &str>) {
            match (text.parse::<Cidr>(), expect) {
                (Ok(cidr), Ok(shown)) => assert_eq!(cidr.to_string(), shown),
                (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
                (got, _) => panic!("{text}: {got:?}"),
            }
        }
        check("10.42.0.0/16", Ok("10.42.0.0/16"));
        check("0.0.0.0/0", Ok("0.0.0.0/0"));
        check("1.2.3.4/32", Ok("1.2.3.4/32"));
        check("10.42.0.0", Err("missing"));
        check("10.42.0/16", Err("address"));
        check("10.42.0.0/33", Err("0 to 32"));
        check("10.42.0.1/16", Err("beyond"));
    }

    #[test]
    fn members_and_overlaps() {
        let wide: Cidr = "10.42.0.0/16".parse().unwrap();
        let narrow: Cidr = "10.42.7.0/24".parse().unwrap();
        assert!(wide.overlaps(&narrow) && narrow.overlaps(&wide));
        assert!(!narrow.overlaps(&"10.42.8.0/24".parse().unwrap()));
        assert_eq!(narrow.nth(255), Some(Ipv4Addr::new(10, 42, 7, 255)));
        assert_eq!(narrow.nth(256), None);
    }
}
