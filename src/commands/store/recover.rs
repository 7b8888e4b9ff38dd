//! `skiff store verify` and `skiff store recover`: a member's data while nothing runs on it.

use anyhow::bail;
use std::io::Write as _;
use std::path::PathBuf;

/// Check the data directory of a member that is stopped: every record, and what it comes to
#[derive(clap::Args)]
pub struct VerifyArgs {
    dir: PathBuf,
}

/// Make a cluster of one from the data of a stopped member whose cluster has lost its majority for good
#[derive(clap::Args)]
pub struct RecoverArgs {
    dir: PathBuf,
    /// The address at which this member will be reached from now on [default: as before]
    #[arg(long, value_name = "HOST:PORT")]
    advertise_peer: Option<String>,
    /// Do it without asking
    #[arg(long)]
    yes: bool,
}

fn tell(report: &skiff_store::Report) {
    println!("cluster    {:x}", report.cluster_id);
    println!("member     {:x}", report.member_id);
    println!("snapshot   at entry {}", report.snapshot_index);
    match report.entries {
        Some((first, last)) => {
            println!("log        entries {first} to {last}; known to be committed to {}", report.committed)
        }
        None => println!("log        no entries behind the snapshot"),
    }
    println!("term       {}", report.term);
    println!("revision   {}", report.revision);
    println!("hash       {:08x}", report.hash);
    if report.torn_bytes > 0 {
        println!("torn       {} bytes at the end of the log, from a crash while writing; harmless", report.torn_bytes);
    }
}

pub fn verify(args: &VerifyArgs) -> anyhow::Result<()> {
    tell(&skiff_store::verify(&args.dir)?);
    println!("every record is whole");
    Ok(())
}

pub fn recover(args: &RecoverArgs) -> anyhow::Result<()> {
    let peer_addr = args.advertise_peer.as_deref().map(super::address).transpose()?;
    let plan = skiff_store::recover(&args.dir, peer_addr.as_deref(), false)?;
    tell(&plan.report);
    println!();
    println!("This will");
    println!("  keep the directory as it is as {}", plan.backup.display());
    println!("  make {} the data of a new cluster whose only member is this one", args.dir.display());
    for member in &plan.lost {
        println!(
            "  leave out member {:x} {} {}: start it again with an empty directory and --join",
            member.id, member.name, member.peer_addr
        );
    }
    if plan.uncertain_entries > 0 {
        println!(
            "  keep the last {} entries of the log, of which it is not known whether a majority had them",
            plan.uncertain_entries
        );
    }
    println!(
        "If another member has a higher term or a longer log, recover from that one instead: compare with `skiff store verify`."
    );
    if !args.yes {
        print!("Go on? [yes/no] ");
        std::io::stdout().flush()?;
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer)?;
        if answer.trim() != "yes" {
            bail!("nothing was changed");
        }
    }
    let done = skiff_store::recover(&args.dir, peer_addr.as_deref(), true)?;
    println!("done; the directory as it was: {}", done.backup.display());
    Ok(())
}
