//! The control groups of an instance: where its nodes put their pods', and removing them when the nodes are gone.
//!
//! A node makes groups below its own, and inherits its own from whoever started the instance: a login session, a service, a container. So where they are is
//! known only from there, and is kept in the instance's record for a later process that sweeps.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Where the processes of a group on version 2 go when it gets children, because it may hold none itself then. A node's process does the same with what
/// it finds in its group; here it has to be done beforehand, because from within the instance's PID namespace the others cannot be named.
const LEAF: &str = "skiff.leaf";

/// The group below which a node of an instance keeps its pods, relative to that of whoever started it.
pub fn name(instance: &str, node: &str) -> String {
    format!("skiff/{instance}/{node}")
}

/// This process' groups, one a mounted hierarchy.
pub fn own() -> Result<Vec<PathBuf>> {
    let read = |path: &str| fs::read_to_string(path).with_context(|| format!("read {path}"));
    Ok(locate(&read("/proc/self/mountinfo")?, &read("/proc/self/cgroup")?))
}

/// From the mounts (proc_pid_mountinfo(5)) and a process' groups (cgroups(7), /proc/PID/cgroup) to directories.
fn locate(mounts: &str, groups: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for mount in mounts.lines() {
        let Some((left, right)) = mount.split_once(" - ") else { continue };
        let (left, right): (Vec<_>, Vec<_>) = (left.split(' ').collect(), right.split(' ').collect());
        let (&[_, _, _, root, point, ..], &[kind, _, options, ..]) = (&left[..], &right[..]) else { continue };
        let is_mounted_here = |names: &str| match kind {
            "cgroup2" => names.is_empty(),
            "cgroup" => !names.is_empty() && names.split(',').all(|name| options.split(',').any(|o| o == name)),
            _ => false,
        };
        let lines = groups.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
        let Some((_, path)) = lines.into_iter().find(|(names, _)| is_mounted_here(names)) else { continue };
        // Of a group outside of what is mounted, nothing is to be seen here.
        let Some(below) = path.strip_prefix(root.trim_end_matches('/')) else { continue };
        let mut dir = Path::new(point).join(below.trim_start_matches('/'));
        if dir.file_name().is_some_and(|name| name == LEAF) {
            dir.pop();
        }
        found.push(dir);
    }
    found
}

/// Makes the instance's group where nodes will look for it, and room for it: on version 2 the processes of the starter's group move to a leaf.
pub fn make_room(groups: &[PathBuf], instance: &str) -> Result<()> {
    for base in groups.iter().filter(|base| gives_controllers(base)) {
        let (leaf, ours) = (base.join(LEAF), base.join("skiff").join(instance));
        for dir in [&leaf, &ours] {
            fs::create_dir_all(dir).with_context(|| format!("make the control group {}", dir.display()))?;
        }
        // What is born while others are moved is moved in the next round.
        for _ in 0..10 {
            if move_all(base, &leaf)? == 0 {
                break;
            }
        }
    }
    Ok(())
}

/// Whether this is a group on version 2, other than the root, that has controllers to hand down.
fn gives_controllers(base: &Path) -> bool {
    let controllers = fs::read_to_string(base.join("cgroup.controllers")).unwrap_or_default();
    base.join("cgroup.type").exists() && !controllers.trim().is_empty()
}

/// Moves every process of a group to another; how many there were.
fn move_all(from: &Path, to: &Path) -> Result<usize> {
    let list = from.join("cgroup.procs");
    let all = fs::read_to_string(&list).with_context(|| format!("read {}", list.display()))?;
    for pid in all.lines() {
        // A process that ended meanwhile is no failure.
        let _ = fs::write(to.join("cgroup.procs"), pid);
    }
    Ok(all.lines().count())
}

/// Removes `skiff/INSTANCE` and all below it under each of these groups. With the last instance, a group on version 2 gets back what was moved to a leaf.
pub fn remove(groups: &[PathBuf], instance: &str) -> Result<()> {
    for base in groups {
        let all = base.join("skiff");
        let ours = all.join(instance);
        if ours.is_dir() {
            remove_tree(&ours).with_context(|| format!("remove the control group {}", ours.display()))?;
            // That others are in it is no error.
            if fs::remove_dir(&all).is_ok() {
                let what = || format!("take processes back to the control group {}", base.display());
                take_back(base).with_context(what)?;
            }
        }
    }
    Ok(())
}

fn remove_tree(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)?.flatten() {
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    // Processes killed a moment ago leave their group a moment later; the kernel has no event for that in version 1.
    for _ in 0..200 {
        match fs::remove_dir(path) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                std::thread::sleep(std::time::Duration::from_millis(10))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => return other,
        }
    }
    fs::remove_dir(path)
}

/// The reverse of [`make_room`]: the leaf's processes return, and the leaf goes.
fn take_back(base: &Path) -> Result<()> {
    let leaf = base.join(LEAF);
    if !leaf.is_dir() {
        return Ok(());
    }
    let control = base.join("cgroup.subtree_control");
    let given = fs::read_to_string(&control)?;
    let back: Vec<String> = given.split_whitespace().map(|controller| format!("-{controller}")).collect();
    if !back.is_empty() {
        fs::write(&control, back.join(" "))?;
    }
    move_all(&leaf, base)?;
    Ok(remove_tree(&leaf)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_found_where_they_are_mounted() {
        let check = |mounts: &str, groups: &str, expect: &[&str]| {
            let expect: Vec<PathBuf> = expect.iter().map(PathBuf::from).collect();
            assert_eq!(locate(mounts, groups), expect, "{groups}");
        };
        let hybrid = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                      32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                      35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw";
        let groups = "4:memory:/session/a\n1:cpu,cpuacct:/\n0::/";
        let expect = ["/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/memory/session/a", "/sys/fs/cgroup/unified"];
        check(hybrid, groups, &expect);
        let unified = "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw";
        check(unified, "0::/user.slice/session-2.scope", &["/sys/fs/cgroup/user.slice/session-2.scope"]);
        check(unified, "0::/user.slice/session-2.scope/skiff.leaf", &["/sys/fs/cgroup/user.slice/session-2.scope"]);
        let container = "30 23 0:26 /docker/x /sys/fs/cgroup rw - cgroup2 cgroup2 rw";
        check(container, "0::/docker/x/y", &["/sys/fs/cgroup/y"]);
        check(container, "0::/elsewhere", &[]);
    }
}
