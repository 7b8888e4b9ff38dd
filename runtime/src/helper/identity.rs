//! Who a container's process is and what it may do: user and groups by the image's own files, capabilities, no_new_privs.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;

use caps::{CapSet, Capability, CapsHashSet};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

use crate::spec::Security;

/// What Docker grants by default; the set that images are written for.
const DEFAULT: [Capability; 14] = [
    Capability::CAP_CHOWN,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_FSETID,
    Capability::CAP_FOWNER,
    Capability::CAP_MKNOD,
    Capability::CAP_NET_RAW,
    Capability::CAP_SETGID,
    Capability::CAP_SETUID,
    Capability::CAP_SETFCAP,
    Capability::CAP_SETPCAP,
    Capability::CAP_NET_BIND_SERVICE,
    Capability::CAP_SYS_CHROOT,
    Capability::CAP_KILL,
    Capability::CAP_AUDIT_WRITE,
];

/// Bytes of an image's passwd(5) or group(5): tens of thousands of users.
const ACCOUNT_FILE_BYTES_MAX: u64 = 4 << 20;

/// A user as the kernel knows one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub home: String,
}

/// Resolves `user[:group]` and the overrides against the texts of passwd(5) and group(5).
pub fn resolve(security: &Security, passwd: &str, group: &str) -> Result<User, String> {
    let (user, group_name) = match security.user.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (security.user.as_str(), None),
    };
    let wanted = match (security.uid, user) {
        (Some(uid), _) => uid.to_string(),
        (None, "") => "0".into(),
        (None, user) => user.into(),
    };
    let entries = || passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()).filter(|fields| fields.len() >= 6);
    let entry = entries().find(|fields| fields[0] == wanted || fields[2] == wanted);
    let number = |text: &str| text.parse::<u32>().ok();
    let uid = number(&wanted)
        .or_else(|| entry.as_ref().and_then(|fields| number(fields[2])))
        .ok_or_else(|| format!("the image's /etc/passwd has no user {wanted:?}; name one that it has, or a number"))?;
    let groups_of = || group.lines().map(|line| line.split(':').collect::<Vec<_>>()).filter(|fields| fields.len() >= 3);
    let gid = match (security.gid, group_name.filter(|_| security.uid.is_none())) {
        (Some(gid), _) => gid,
        (None, Some(name)) => number(name)
            .or_else(|| groups_of().find(|fields| fields[0] == name).and_then(|fields| number(fields[2])))
            .ok_or_else(|| {
                format!("the image's /etc/group has no group {name:?}; name one that it has, or a number")
            })?,
        (None, None) => entry.as_ref().and_then(|fields| number(fields[3])).unwrap_or(0),
    };
    let mut groups = security.groups.clone();
    if let Some(entry) = entry.as_ref().filter(|_| !security.strict_groups) {
        let member =
            |fields: &Vec<&str>| fields.get(3).is_some_and(|names| names.split(',').any(|name| name == entry[0]));
        groups.extend(groups_of().filter(member).filter_map(|fields| number(fields[2])));
    }
    groups.sort_unstable();
    groups.dedup();
    let home = entry.map(|fields| fields[5].to_owned()).filter(|home| !home.is_empty()).unwrap_or_else(|| "/".into());
    Ok(User { uid, gid, groups, home })
}

/// [`resolve`] against the files of the current root.
pub fn resolve_here(security: &Security) -> Result<User, String> {
    resolve(security, &account_file("/etc/passwd")?, &account_file("/etc/group")?)
}

/// A file of the image that names users or groups; empty when there is none. An image may have put anything in its place: a
/// pipe that nobody writes to, or a file without end.
fn account_file(path: &str) -> Result<String, String> {
    let fail = |error: io::Error| format!("read {path} of the image: {error}");
    let file = match fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(path) {
        Ok(file) => file,
        Err(_) => return Ok(String::new()),
    };
    if !file.metadata().map_err(fail)?.is_file() {
        return Ok(String::new());
    }
    let mut bytes = Vec::new();
    file.take(ACCOUNT_FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(fail)?;
    if bytes.len() as u64 > ACCOUNT_FILE_BYTES_MAX {
        return Err(format!("{path} of the image has more than {ACCOUNT_FILE_BYTES_MAX} bytes"));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The capability set that a specification comes to.
pub fn capabilities(security: &Security) -> Result<CapsHashSet, String> {
    if security.privileged {
        return Ok(caps::all());
    }
    let parse = |name: &String| -> Result<Vec<Capability>, String> {
        let upper = name.to_ascii_uppercase();
        if upper == "ALL" {
            return Ok(caps::all().into_iter().collect());
        }
        let full = if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") };
        full.parse().map(|cap| vec![cap]).map_err(|_| format!("there is no capability {name:?} (see capabilities(7))"))
    };
    let mut set: CapsHashSet = DEFAULT.into_iter().collect();
    let (drop_all, drops): (Vec<_>, Vec<_>) =
        security.drop_capabilities.iter().partition(|name| name.eq_ignore_ascii_case("ALL"));
    if !drop_all.is_empty() {
        set.clear();
    }
    for name in &security.add_capabilities {
        set.extend(parse(name)?);
    }
    for name in drops {
        for cap in parse(name)? {
            set.remove(&cap);
        }
    }
    Ok(set)
}

/// First half, as root: takes what is not in `set` out of the bounding set, so that no program gets it back.
pub fn bound(set: &CapsHashSet) -> Result<(), String> {
    for cap in caps::all() {
        if !set.contains(&cap) && caps::has_cap(None, CapSet::Bounding, cap).unwrap_or(false) {
            caps::drop(None, CapSet::Bounding, cap).map_err(|error| format!("drop {cap}: {error}"))?;
        }
    }
    Ok(())
}

/// Second half: becomes the user with exactly the capabilities of `set` that the host has.
pub fn become_user(user: &User, set: &CapsHashSet) -> Result<(), String> {
    let fail = |what: &str, error: io::Error| format!("{what}: {error}");
    let groups: Vec<Gid> = user.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    setgroups(&groups).map_err(|error| fail("set supplemental groups", error.into()))?;
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    setresgid(gid, gid, gid).map_err(|error| fail("set the group", error.into()))?;
    // Kept over the change of user, then cut down to the set: a non-root program loses them at exec anyway.
    nix::sys::prctl::set_keepcaps(true).map_err(|error| fail("keep capabilities", error.into()))?;
    setresuid(uid, uid, uid).map_err(|error| fail("set the user", error.into()))?;
    let have = caps::read(None, CapSet::Permitted).map_err(|error| format!("read capabilities: {error}"))?;
    let set: CapsHashSet = set.intersection(&have).copied().collect();
    let none = CapsHashSet::new();
    caps::set(None, CapSet::Inheritable, &none).map_err(|error| format!("clear inheritable capabilities: {error}"))?;
    caps::set(None, CapSet::Effective, &none).map_err(|error| format!("clear effective capabilities: {error}"))?;
    caps::set(None, CapSet::Permitted, &set).map_err(|error| format!("set capabilities: {error}"))?;
    caps::set(None, CapSet::Effective, &set).map_err(|error| format!("set capabilities: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:Web:/srv:/bin/false\nnohome:x:7:7:::";
        let group = "root:x:0:\nwww:x:34:\nextra:x:50:root,web\n";
        let check = |user: &str, uid: Option<u32>, gid: Option<u32>, expect: Option<(u32, u32, &[u32], &str)>| {
            let security = Security { user: user.into(), uid, gid, groups: vec![9], ..Security::default() };
            let got = resolve(&security, passwd, group).ok();
            let expect =
                expect.map(|(uid, gid, groups, home)| User { uid, gid, groups: groups.to_vec(), home: home.into() });
            assert_eq!(got, expect, "{user} {uid:?} {gid:?}");
        };
        check("", None, None, Some((0, 0, &[9, 50], "/root")));
        check("web", None, None, Some((33, 34, &[9, 50], "/srv")));
        check("33", None, None, Some((33, 34, &[9, 50], "/srv")));
        check("web:extra", None, None, Some((33, 50, &[9, 50], "/srv")));
        check("1000:1001", None, None, Some((1000, 1001, &[9], "/")));
        check("web", Some(1000), None, Some((1000, 0, &[9], "/")));
        check("", Some(33), Some(5), Some((33, 5, &[9, 50], "/srv")));
        check("nohome", None, None, Some((7, 7, &[9], "/")));
        check("nobody", None, None, None);
        check("web:none", None, None, None);
    }

    #[test]
    fn capability_sets() {
        let check = |add: &[&str], drop: &[&str], expect: Option<usize>| {
            let own = |names: &[&str]| names.iter().map(|name| name.to_string()).collect();
            let security = Security { add_capabilities: own(add), drop_capabilities: own(drop), ..Security::default() };
            assert_eq!(capabilities(&security).ok().map(|set| set.len()), expect, "+{add:?} -{drop:?}");
        };
        check(&[], &[], Some(14));
        check(&["NET_ADMIN"], &[], Some(15));
        check(&["cap_net_admin"], &["CHOWN"], Some(14));
        check(&["NET_BIND_SERVICE"], &["ALL"], Some(1));
        check(&["ALL"], &["SYS_ADMIN"], Some(caps::all().len() - 1));
        check(&["NO_SUCH"], &[], None);
    }
}
