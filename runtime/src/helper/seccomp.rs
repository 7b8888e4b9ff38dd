//! Which system calls a container may make.
//!
//! Three filters, because a seccompiler filter has one answer each: what the kernel did not have when this was written
//! answers "not implemented" (so that libraries fall back, and nothing new is open by accident); what reaches beyond the
//! container answers "not permitted" unless a capability that was granted speaks for it; `clone3` answers "not
//! implemented", because its flags are in memory where no filter can see them. In the spirit of Docker's profile.

use std::collections::BTreeMap;

use caps::{Capability, CapsHashSet};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter,
};

/// The last system call number that was looked at (`listns`, Linux 6.19).
const LAST_KNOWN: i64 = 470;

/// Flags of `clone` that make namespaces.
const NAMESPACES: [libc::c_int; 7] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWCGROUP,
];

/// What is refused, and the capability that opens it.
fn refused() -> Vec<(i64, Option<Capability>)> {
    use Capability::*;
    let admin = [
        libc::SYS_mount,
        libc::SYS_umount2,
        libc::SYS_pivot_root,
        libc::SYS_setns,
        libc::SYS_unshare,
        libc::SYS_bpf,
        libc::SYS_perf_event_open,
        libc::SYS_fanotify_init,
        libc::SYS_lookup_dcookie,
        libc::SYS_quotactl,
        libc::SYS_quotactl_fd,
        libc::SYS_sethostname,
        libc::SYS_setdomainname,
        libc::SYS_fsopen,
        libc::SYS_fsconfig,
        libc::SYS_fsmount,
        libc::SYS_fspick,
        libc::SYS_open_tree,
        libc::SYS_move_mount,
        libc::SYS_mount_setattr,
        libc::SYS_swapon,
        libc::SYS_swapoff,
    ];
    let mut table: Vec<(i64, Option<Capability>)> = admin.into_iter().map(|call| (call, Some(CAP_SYS_ADMIN))).collect();
    table.extend([
        (libc::SYS_reboot, Some(CAP_SYS_BOOT)),
        (libc::SYS_kexec_load, None),
        (libc::SYS_init_module, Some(CAP_SYS_MODULE)),
        (libc::SYS_finit_module, Some(CAP_SYS_MODULE)),
        (libc::SYS_delete_module, Some(CAP_SYS_MODULE)),
        (libc::SYS_acct, Some(CAP_SYS_PACCT)),
        (libc::SYS_settimeofday, Some(CAP_SYS_TIME)),
        (libc::SYS_clock_settime, Some(CAP_SYS_TIME)),
        (libc::SYS_clock_adjtime, Some(CAP_SYS_TIME)),
        (libc::SYS_adjtimex, Some(CAP_SYS_TIME)),
        (libc::SYS_syslog, Some(CAP_SYSLOG)),
        (libc::SYS_vhangup, Some(CAP_SYS_TTY_CONFIG)),
        (libc::SYS_open_by_handle_at, Some(CAP_DAC_READ_SEARCH)),
        (libc::SYS_userfaultfd, None),
        (libc::SYS_add_key, None),
        (libc::SYS_request_key, None),
        (libc::SYS_keyctl, None),
        (libc::SYS_move_pages, Some(CAP_SYS_NICE)),
        (libc::SYS_mbind, Some(CAP_SYS_NICE)),
        (libc::SYS_set_mempolicy, Some(CAP_SYS_NICE)),
        (libc::SYS_io_uring_setup, None),
        (libc::SYS_io_uring_enter, None),
        (libc::SYS_io_uring_register, None),
        (libc::SYS_nfsservctl, None),
    ]);
    #[cfg(target_arch = "x86_64")]
    table.extend([
        (libc::SYS_kexec_file_load, None),
        (libc::SYS_iopl, Some(CAP_SYS_RAWIO)),
        (libc::SYS_ioperm, Some(CAP_SYS_RAWIO)),
        (libc::SYS_uselib, None),
        (libc::SYS_ustat, None),
        (libc::SYS_sysfs, None),
        (libc::SYS__sysctl, None),
    ]);
    table
}

/// The programs for a process that keeps the given capabilities.
fn programs(keeps: &CapsHashSet) -> Result<Vec<BpfProgram>, String> {
    let arch: TargetArch = std::env::consts::ARCH.try_into().map_err(|error| format!("system call filter: {error}"))?;
    let build = |rules: BTreeMap<i64, Vec<SeccompRule>>, matched: SeccompAction, other: SeccompAction| {
        let filter =
            SeccompFilter::new(rules, other, matched, arch).map_err(|error| format!("system call filter: {error}"))?;
        BpfProgram::try_from(filter).map_err(|error| format!("system call filter: {error}"))
    };
    let errno = |errno: i32| SeccompAction::Errno(errno as u32);
    let known = (0..=LAST_KNOWN).map(|call| (call, Vec::new())).collect();
    let mut denied: BTreeMap<i64, Vec<SeccompRule>> = refused()
        .into_iter()
        .filter(|(_, opens)| !opens.is_some_and(|cap| keeps.contains(&cap)))
        .map(|(call, _)| (call, Vec::new()))
        .collect();
    if !keeps.contains(&Capability::CAP_SYS_ADMIN) {
        let rule = |flag: &libc::c_int| {
            let mask = *flag as u32 as u64;
            SeccompCondition::new(0, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(mask), mask)
                .and_then(|condition| SeccompRule::new(vec![condition]))
                .map_err(|error| format!("system call filter: {error}"))
        };
        denied.insert(libc::SYS_clone, NAMESPACES.iter().map(rule).collect::<Result<_, _>>()?);
    }
    let hidden = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    Ok(vec![
        build(known, SeccompAction::Allow, errno(libc::ENOSYS))?,
        build(denied, errno(libc::EPERM), SeccompAction::Allow)?,
        build(hidden, errno(libc::ENOSYS), SeccompAction::Allow)?,
    ])
}

/// Installs the filters in the calling thread, for good. Needs no_new_privs or CAP_SYS_ADMIN (seccomp(2)).
pub fn apply(keeps: &CapsHashSet) -> Result<(), String> {
    for program in programs(keeps)? {
        install(&program)?;
    }
    Ok(())
}

/// seccompiler's own `apply_filter` always sets no_new_privs, which would take sudo and ping from every image; this one leaves it alone.
fn install(program: &BpfProgram) -> Result<(), String> {
    let fprog = libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr() as *mut libc::sock_filter };
    // SAFETY: seccompiler's instruction has the layout of sock_filter, and the kernel copies the program during the call.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &fprog) };
    match crate::sys::check(result) {
        Ok(_) => Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::EACCES) => {
            apply_filter(program).map_err(|error| format!("install the system call filter: {error}"))
        }
        Err(error) => Err(format!("install the system call filter: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_fit_the_kernel() {
        let check = |keeps: CapsHashSet| {
            for program in programs(&keeps).unwrap() {
                assert!((5..4096).contains(&program.len()), "{}", program.len());
            }
        };
        check(CapsHashSet::new());
        check(caps::all());
    }
}
