//! Which address a node has, and which subnet an instance.

use std::net::Ipv4Addr;

use anyhow::{Context, Result, bail};
use skiff_netlink::Cidr;

/// The port of a server's API, which the supervisor forwards to.
pub const API_PORT: u16 = 6443;
/// Of the subnet: the switch itself, from which the supervisor dials.
pub const SWITCH_HOST: u64 = 1;
/// Of the subnet: the root namespace's end of the uplink.
pub const UPLINK_HOST: u64 = 254;

/// A node's place in its subnet: servers `s1`..`s80` from 11 on, agents `a1`..`a140` from 101 on.
pub fn host_number(name: &str) -> Result<u64> {
    let (kind, digits) = name.split_at_checked(1).unwrap_or_default();
    let number: u64 = digits.parse().ok().filter(|_| !digits.starts_with(['0', '+'])).unwrap_or(0);
    match (kind, number) {
        ("s", 1..=80) => Ok(10 + number),
        ("a", 1..=140) => Ok(100 + number),
        _ => bail!("{name:?} is not a local node's name: s1 to s80 are servers, a1 to a140 agents"),
    }
}

/// The root namespace's end of an instance's uplink.
pub fn uplink_device(instance: &str) -> String {
    format!("skl-{instance}")
}

/// Whether a name is a server's.
pub fn is_server(name: &str) -> bool {
    name.starts_with('s')
}

/// A node's address in an instance's subnet.
pub fn address(subnet: Cidr, name: &str) -> Result<Ipv4Addr> {
    subnet.nth(host_number(name)?).with_context(|| format!("{name} has no place in {subnet}"))
}

/// The first of 172.31.0.0/24 to 172.31.255.0/24 that nothing on this machine uses; counted from `start`, so that instances that begin at the
/// same moment seldom want the same.
pub fn free_subnet(used: &[Cidr], start: u8) -> Result<Cidr> {
    (0..=255u8)
        .map(|step| Cidr::around(Ipv4Addr::new(172, 31, start.wrapping_add(step), 0), 24))
        .find(|subnet| !used.iter().any(|range| range.prefix() > 0 && range.overlaps(subnet)))
        .context("every subnet of 172.31.0.0/16 is in use by this machine's routes or by other local clusters: give a subnet")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_places() {
        fn check(name: &str, expect: Option<u64>) {
            assert_eq!(host_number(name).ok(), expect, "{name}");
        }
        check("s1", Some(11));
        check("s80", Some(90));
        check("a1", Some(101));
        check("a140", Some(240));
        for bad in ["", "s", "s0", "s01", "s81", "a141", "b1", "é1", "a-1", "a+1"] {
            check(bad, None);
        }
    }

    #[test]
    fn a_subnet_in_use_is_passed_over() {
        let cidr = |text: &str| text.parse::<Cidr>().unwrap();
        assert_eq!(free_subnet(&[], 7).unwrap(), cidr("172.31.7.0/24"));
        assert_eq!(
            free_subnet(&[cidr("172.31.255.0/24"), cidr("172.31.0.0/23"), cidr("0.0.0.0/0")], 255).unwrap(),
            cidr("172.31.2.0/24")
        );
        assert!(free_subnet(&[cidr("172.16.0.0/12")], 0).is_err());
    }
}
