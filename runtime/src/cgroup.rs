//! Control groups, version 1 (hybrid included) and version 2, behind one value.
//!
//! A [`Cgroup`] is only a list of directories, so that it can be written into a record and removed by a later
//! process, even one that itself lives elsewhere in the hierarchy. Version 2 is used when it holds the cpu, memory and
//! pids controllers; otherwise each controller has its own version 1 hierarchy and gets a directory of the same name.
//!
//! Everything is made below the caller's own group (Kernel documentation, cgroup-v2, "Delegation"); on version 2 its
//! processes first move to a leaf, because a group with processes cannot hand controllers to its children.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::error::{Context, Result, on};
use crate::spec::{Resources, Stats};

/// Version 1 controllers that we use.
const V1_CONTROLLERS: [&str; 5] = ["cpu", "cpuacct", "memory", "pids", "freezer"];
/// Version 2 controllers that children need.
const V2_CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];
/// Where the processes of a version 2 group go when it gets children.
const LEAF: &str = "skiff.leaf";

/// A group: one directory in version 2, one a controller in version 1.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cgroup {
    /// Version 2.
    pub unified: bool,
    /// (`controller`, directory); version 2 has one with an empty name.
    pub dirs: Vec<(String, PathBuf)>,
}

impl Cgroup {
    /// The group `parent` below the caller's own (or below the root, when it begins with `/`), made and ready for children.
    pub fn parent(parent: &str) -> Result<Cgroup> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").context(|| "read /proc/self/mountinfo".into())?;
        let own = fs::read_to_string("/proc/self/cgroup").context(|| "read /proc/self/cgroup".into())?;
        let layout = Layout::read(&mounts, &own, |dir| fs::read_to_string(dir.join("cgroup.controllers")).ok());
        let base = layout.base;
        if base.dirs.is_empty() {
            let source = io::Error::from(io::ErrorKind::NotFound);
            let what = "find control groups in /proc/self/mountinfo (mount them at /sys/fs/cgroup first)".into();
            return Err(crate::Error::Io { what, source });
        }
        let mut group = match parent.strip_prefix('/') {
            Some(_) => layout.root,
            None => base,
        };
        if group.unified {
            group.vacate()?;
        }
        for part in parent.split('/').filter(|part| !part.is_empty()) {
            if group.unified {
                group.hand_down()?;
            }
            group = group.child(part);
            group.make()?;
        }
        if group.unified {
            group.hand_down()?;
        }
        Ok(group)
    }

    /// The group of that name below this one; nothing is made.
    pub fn child(&self, name: &str) -> Cgroup {
        let dirs = self.dirs.iter().map(|(controller, dir)| (controller.clone(), dir.join(name))).collect();
        Cgroup { unified: self.unified, dirs }
    }

    /// Makes the directories.
    pub fn make(&self) -> Result<()> {
        for (_, dir) in &self.dirs {
            match fs::create_dir(dir) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(error).context(on("make control group", dir));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Version 2: gives the controllers to the children to come.
    pub fn hand_down(&self) -> Result<()> {
        for (_, dir) in self.dirs.iter().filter(|_| self.unified) {
            let have = fs::read_to_string(dir.join("cgroup.controllers")).unwrap_or_default();
            for controller in V2_CONTROLLERS.iter().filter(|name| have.split_whitespace().any(|have| have == **name)) {
                write(&dir.join("cgroup.subtree_control"), &format!("+{controller}"))?;
            }
        }
        Ok(())
    }

    /// Version 2: moves the group's processes to a leaf. The root group may keep its own.
    fn vacate(&self) -> Result<()> {
        for (_, dir) in self.dirs.iter().filter(|(_, dir)| dir.join("cgroup.type").exists()) {
            let leaf = dir.join(LEAF);
            for _ in 0..10 {
                let procs = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
                if procs.trim().is_empty() {
                    break;
                }
                fs::create_dir_all(&leaf).context(on("make control group", &leaf))?;
                for pid in procs.lines() {
                    // A process that ended meanwhile is no failure.
                    let _ = write(&leaf.join("cgroup.procs"), pid);
                }
            }
        }
        Ok(())
    }

    /// Puts limits in place.
    pub fn limit(&self, wanted: &Resources) -> Result<()> {
        let period = if wanted.cpu_period_us == 0 { 100_000 } else { wanted.cpu_period_us };
        for (controller, dir) in &self.dirs {
            let set = |file: &str, value: String| write(&dir.join(file), &value);
            if wanted.cpu_shares > 0 && controller.is_empty() {
                set("cpu.weight", weight(wanted.cpu_shares).to_string())?;
            }
            if wanted.cpu_shares > 0 && controller == "cpu" {
                set("cpu.shares", wanted.cpu_shares.max(2).to_string())?;
            }
            if wanted.cpu_quota_us > 0 && controller.is_empty() {
                set("cpu.max", format!("{} {period}", wanted.cpu_quota_us.max(1000)))?;
            }
            if wanted.cpu_quota_us > 0 && controller == "cpu" {
                set("cpu.cfs_period_us", period.to_string())?;
                set("cpu.cfs_quota_us", wanted.cpu_quota_us.max(1000).to_string())?;
            }
            if wanted.memory_bytes > 0 && controller.is_empty() {
                set("memory.max", wanted.memory_bytes.to_string())?;
                // One victim takes its container along: half a container serves nobody.
                let _ = set("memory.oom.group", "1".into());
            }
            if wanted.memory_bytes > 0 && controller == "memory" {
                set("memory.limit_in_bytes", wanted.memory_bytes.to_string())?;
            }
            if wanted.pids > 0 && (controller.is_empty() || controller == "pids") {
                set("pids.max", wanted.pids.to_string())?;
            }
        }
        Ok(())
    }

    /// Moves the calling process into the group.
    pub fn enter(&self) -> Result<()> {
        self.dirs.iter().try_for_each(|(_, dir)| write(&dir.join("cgroup.procs"), "0"))
    }

    /// Processes of the group itself, as numbers of the caller's PID namespace (others show as 0 and are left out).
    pub fn pids(&self) -> Vec<i32> {
        let Some((_, dir)) = self.dirs.first() else { return Vec::new() };
        let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0).collect()
    }

    /// Kills every process of the group, at once where the kernel can (`cgroup.kill`, Linux 5.14), else frozen so that none escapes by forking.
    pub fn kill(&self) {
        if self.unified && self.dirs.iter().all(|(_, dir)| write(&dir.join("cgroup.kill"), "1").is_ok()) {
            return;
        }
        let freezer =
            self.dirs.iter().find(|(controller, _)| controller == "freezer").map(|(_, dir)| dir.join("freezer.state"));
        if let Some(file) = &freezer {
            let _ = write(file, "FROZEN");
        }
        for pid in self.pids() {
            // SAFETY: kill takes no pointers. The numbers come from the group, which only holds our processes.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
        if let Some(file) = &freezer {
            let _ = write(file, "THAWED");
        }
    }

    /// Kills what is left and removes the group with its children, waiting up to two seconds for the last process to vanish.
    pub fn destroy(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(2);
        for (_, dir) in &self.dirs {
            let children: Vec<PathBuf> = match fs::read_dir(dir) {
                Ok(entries) => {
                    entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()).collect()
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error).context(on("list control group", dir)),
            };
            for child in children {
                self.single(child).destroy()?;
            }
            let mut pause = Duration::from_micros(200);
            loop {
                match fs::remove_dir(dir) {
                    Ok(()) => break,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                    Err(error) if Instant::now() > deadline => {
                        return Err(error).context(on("remove control group", dir));
                    }
                    Err(_) => {
                        self.kill();
                        std::thread::sleep(pause);
                        pause = (pause * 2).min(Duration::from_millis(50));
                    }
                }
            }
        }
        Ok(())
    }

    /// One directory as a group of its own.
    fn single(&self, dir: PathBuf) -> Cgroup {
        Cgroup { unified: self.unified, dirs: vec![(String::new(), dir)] }
    }

    /// How many processes the kernel has killed here for lack of memory.
    pub fn oom_kills(&self) -> u64 {
        self.find("memory").map_or(0, |dir| {
            let file = if self.unified { "memory.events" } else { "memory.oom_control" };
            keyed(&dir.join(file), "oom_kill")
        })
    }

    /// What the group uses now; zeros where the kernel does not say.
    pub fn stats(&self) -> Stats {
        let mut stats = Stats::default();
        if self.unified {
            let Some(dir) = self.find("") else { return stats };
            stats.cpu_usage_us = keyed(&dir.join("cpu.stat"), "usage_usec");
            stats.memory_bytes = number(&dir.join("memory.current"));
            let inactive = keyed(&dir.join("memory.stat"), "inactive_file");
            stats.working_set_bytes = stats.memory_bytes.saturating_sub(inactive);
            stats.pids = number(&dir.join("pids.current"));
            return stats;
        }
        if let Some(dir) = self.find("cpuacct") {
            stats.cpu_usage_us = number(&dir.join("cpuacct.usage")) / 1000;
        }
        if let Some(dir) = self.find("memory") {
            stats.memory_bytes = number(&dir.join("memory.usage_in_bytes"));
            let inactive = keyed(&dir.join("memory.stat"), "total_inactive_file");
            stats.working_set_bytes = stats.memory_bytes.saturating_sub(inactive);
        }
        if let Some(dir) = self.find("pids") {
            stats.pids = number(&dir.join("pids.current"));
        }
        stats
    }

    fn find(&self, controller: &str) -> Option<&PathBuf> {
        self.dirs.iter().find(|(name, _)| self.unified || name == controller).map(|(_, dir)| dir)
    }
}

/// Where the caller is in the hierarchies.
struct Layout {
    root: Cgroup,
    base: Cgroup,
}

impl Layout {
    fn read(mountinfo: &str, own: &str, controllers: impl Fn(&Path) -> Option<String>) -> Layout {
        let mut empty = Layout { root: Cgroup::default(), base: Cgroup::default() };
        let mounts: Vec<CgroupMount> = mountinfo.lines().filter_map(CgroupMount::parse).collect();
        let own_path = |controller: &str| {
            own.lines().find_map(|line| {
                let mut fields = line.splitn(3, ':');
                let (_, names, path) = (fields.next()?, fields.next()?, fields.next()?);
                (names.split(',').any(|name| name == controller)).then(|| path.to_owned())
            })
        };
        if let Some(mount) = mounts.iter().find(|mount| mount.unified) {
            let have = controllers(&mount.point).unwrap_or_default();
            if V2_CONTROLLERS.iter().all(|name| have.split_whitespace().any(|have| have == *name)) {
                let mut base = mount.locate(&own_path("").unwrap_or_default());
                if base.file_name().is_some_and(|name| name == LEAF) {
                    base.pop();
                }
                empty.root = Cgroup { unified: true, dirs: vec![(String::new(), mount.point.clone())] };
                empty.base = Cgroup { unified: true, dirs: vec![(String::new(), base)] };
                return empty;
            }
        }
        for controller in V1_CONTROLLERS {
            let Some(mount) = mounts.iter().find(|mount| mount.options.iter().any(|option| option == controller))
            else {
                continue;
            };
            let base = mount.locate(&own_path(controller).unwrap_or_default());
            empty.root.dirs.push((controller.into(), mount.point.clone()));
            empty.base.dirs.push((controller.into(), base));
        }
        empty
    }
}

struct CgroupMount {
    unified: bool,
    root: String,
    point: PathBuf,
    options: Vec<String>,
}

impl CgroupMount {
    /// A line of /proc/self/mountinfo (proc_pid_mountinfo(5)), when it is a control group's.
    fn parse(line: &str) -> Option<CgroupMount> {
        let (left, right) = line.split_once(" - ")?;
        let left: Vec<&str> = left.split(' ').collect();
        let right: Vec<&str> = right.split(' ').collect();
        let kind = *right.first()?;
        if kind != "cgroup" && kind != "cgroup2" {
            return None;
        }
        Some(CgroupMount {
            unified: kind == "cgroup2",
            root: (*left.get(3)?).into(),
            point: PathBuf::from(*left.get(4)?),
            options: right.get(2)?.split(',').map(str::to_owned).collect(),
        })
    }

    fn locate(&self, own: &str) -> PathBuf {
        let below = own.strip_prefix(self.root.trim_end_matches('/')).unwrap_or(own);
        let below = below.trim_start_matches('/');
        if below.split('/').any(|part| part == "..") { self.point.clone() } else { self.point.join(below) }
    }
}

/// cgroup v1 shares (2 to 262144) as a v2 weight (1 to 10000); the formula is Kubernetes' (KEP-2254).
fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

fn write(file: &Path, value: &str) -> Result<()> {
    let open = fs::OpenOptions::new().write(true).open(file);
    open.and_then(|mut file| file.write_all(value.as_bytes()))
        .context(|| format!("write {value:?} to {}", file.display()))
}

fn number(file: &Path) -> u64 {
    fs::read_to_string(file).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

fn keyed(file: &Path, key: &str) -> u64 {
    let text = fs::read_to_string(file).unwrap_or_default();
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
    value.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_and_weights() {
        let check = |shares: u64, expect: u64| assert_eq!(weight(shares), expect, "{shares}");
        check(0, 1);
        check(2, 1);
        check(1024, 39);
        check(262_144, 10_000);
    }

    #[test]
    fn layouts() {
        let hybrid = "30 24 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                      31 24 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      32 24 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw";
        let own = "4:memory:/a/b\n1:cpu,cpuacct:/\n0::/";
        let layout = Layout::read(hybrid, own, |_| Some(String::new()));
        let expect = [
            ("cpu", "/sys/fs/cgroup/cpu,cpuacct/"),
            ("cpuacct", "/sys/fs/cgroup/cpu,cpuacct/"),
            ("memory", "/sys/fs/cgroup/memory/a/b"),
        ];
        assert!(!layout.base.unified);
        let got: Vec<_> = layout.base.dirs.iter().map(|(name, dir)| (name.as_str(), dir.to_str().unwrap())).collect();
        assert_eq!(got, expect);

        let unified = "26 20 0:23 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate";
        let check = |own: &str, expect: &str| {
            let layout = Layout::read(unified, own, |_| Some("cpuset cpu io memory pids".into()));
            assert_eq!(layout.base.dirs[0].1, PathBuf::from(expect), "{own}");
        };
        check("0::/system.slice/skiff.service", "/sys/fs/cgroup/system.slice/skiff.service");
        check("0::/system.slice/skiff.service/skiff.leaf", "/sys/fs/cgroup/system.slice/skiff.service");
        check("0::/../other", "/sys/fs/cgroup/");
    }
}
