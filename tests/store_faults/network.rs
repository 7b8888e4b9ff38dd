//! What happens to the packets of a member beside being cut off altogether: it does not hear one other member, or its link is
//! slow.

use anyhow::{Context as _, ensure};
use skiff_local::Host;
use skiff_netlink::nft::{Batch, Chain, Expr, Family, Hook, Kind, Load, Nft, REG_1, Verdict};
use std::net::Ipv4Addr;
use std::process::Command;

const TABLE: &str = "deaf";
const CHAIN: &str = "input";
/// NF_INET_LOCAL_IN.
const LOCAL_IN: u32 = 1;

/// A member hears nothing from these addresses; with none, it hears everyone.
pub fn deafen(host: &Host, name: &str, to: &[Ipv4Addr]) -> anyhow::Result<()> {
    refuse(host, name, to, &Expr::Verdict(Verdict::Drop))
}

/// The connections that these addresses have with a member are reset, and none can be made; with none, they can.
pub fn sever(host: &Host, name: &str, from: &[Ipv4Addr]) -> anyhow::Result<()> {
    refuse(host, name, from, &Expr::RejectTcp)
}

fn refuse(host: &Host, name: &str, to: &[Ipv4Addr], how: &Expr) -> anyhow::Result<()> {
    let change = || -> anyhow::Result<()> {
        let mut nft = Nft::open()?;
        nft.drop_table(Family::Ipv4, TABLE)?;
        if to.is_empty() {
            return Ok(());
        }
        let mut batch = Batch::new(Family::Ipv4, TABLE);
        batch.add_table();
        let hook = Hook { kind: Kind::Filter, number: LOCAL_IN, priority: 0, device: None, drop: false };
        batch.add_chain(&Chain { name: CHAIN.into(), hook: Some(hook) });
        for address in to {
            let mut rule = Expr::address_is(Load::Source, *address);
            if *how == Expr::RejectTcp {
                rule.extend([Expr::Load(Load::Protocol, REG_1), Expr::Equal(REG_1, vec![6])]);
            }
            rule.push(how.clone());
            batch.add_rule(CHAIN, &rule);
        }
        Ok(nft.commit("make a member deaf to another", batch)?)
    };
    host.run_in(name, change)?
}

/// How slow: kilobits a second, and how long a packet may wait in the queue before it is dropped.
#[derive(Clone, Copy, Debug)]
pub struct Slow {
    pub kbit: u32,
    pub queue_ms: u32,
}

/// What a member sends goes through a narrow pipe; with None, as fast as it can. The kernel's token bucket is in every build; a
/// delay of its own (netem) is not, but a queue that fills up delays as well.
pub fn slow(host: &Host, name: &str, slow: Option<Slow>) -> anyhow::Result<()> {
    let command = || -> anyhow::Result<std::process::Output> {
        let mut tc = Command::new("tc");
        match slow {
            Some(Slow { kbit, queue_ms }) => tc
                .args("qdisc replace dev eth0 root tbf burst".split(' '))
                // What may go at once must be what goes in a tick of the kernel at least.
                .arg(if kbit > 10_000 { "128kb" } else { "4kb" })
                .arg("rate")
                .arg(format!("{kbit}kbit"))
                .arg("latency")
                .arg(format!("{queue_ms}ms")),
            None => tc.args("qdisc del dev eth0 root".split(' ')),
        };
        tc.output().context("running tc")
    };
    let output = host.run_in(name, command)??;
    ensure!(output.status.success(), "tc in {name}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
