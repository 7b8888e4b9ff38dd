//! Which ranges a cluster may use on this host. A range that the host already routes elsewhere would take that traffic, or lose its own.

use anyhow::{Result, bail};
use skiff_netlink::Cidr;
use skiff_netlink::route::{Route, Rt};

use crate::pods::PROTOCOL;

/// Checks a new cluster's ranges for pods and services against each other and against what this host routes.
///
/// # Errors
/// The ranges overlap each other, or one that a route of this host leads to; the message names both.
pub fn check_ranges(pods: Cidr, services: Cidr) -> Result<()> {
    check_apart(pods, services)?;
    check_host(pods, services, &Rt::open()?.routes()?)
}

pub(crate) fn check_apart(pods: Cidr, services: Cidr) -> Result<()> {
    if pods.overlaps(&services) {
        bail!("the pods' range {pods} and the services' {services} overlap: choose ranges apart");
    }
    Ok(())
}

/// Routes of ours, of one host only, and the default route take nothing away.
pub(crate) fn check_host(pods: Cidr, services: Cidr, routes: &[Route]) -> Result<()> {
    let foreign = || routes.iter().filter(|r| r.protocol != PROTOCOL && (1..32).contains(&r.to.prefix()));
    for (range, whose) in [(pods, "pods"), (services, "services")] {
        if let Some(route) = foreign().find(|route| route.to.overlaps(&range)) {
            bail!(
                "the range {range} for {whose} overlaps {}, which this host has a route to: choose another range",
                route.to
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_that_the_host_routes_elsewhere_is_refused() {
        let cidr = |text: &str| text.parse::<Cidr>().unwrap();
        let check = |to: &str, protocol: u8, expect: bool| {
            let routes = [Route::direct(cidr(to), 1, protocol)];
            let said = check_host(cidr("10.42.0.0/16"), cidr("10.43.0.0/16"), &routes);
            assert_eq!(said.is_ok(), expect, "{to}: {said:?}");
        };
        let kernel = 2;
        check("0.0.0.0/0", kernel, true);
        check("192.168.1.0/24", kernel, true);
        check("10.42.7.0/24", kernel, false);
        check("10.0.0.0/8", kernel, false);
        check("10.43.0.0/16", kernel, false);
        check("10.42.7.0/24", PROTOCOL, true);
        check("10.42.0.5/32", kernel, true);
        assert!(check_apart(cidr("10.42.0.0/16"), cidr("10.42.128.0/17")).is_err());
    }
}
