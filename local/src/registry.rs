//! Which instances there are on this machine, and removing what the dead ones left: control groups, devices and files.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use skiff_netlink::route::Rt;

use crate::{groups, plan};

/// Where instances are recorded.
pub const FOLDER: &str = "/run/skiff/local";

/// One instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub instance: String,
    /// The supervisor's, in the root PID namespace.
    pub pid: i32,
    /// Clock ticks after boot at which it began: a pid alone may be another's by now.
    pub started: u64,
    pub subnet: String,
    pub dir: PathBuf,
    /// The directory is removed with the instance.
    pub temporary: bool,
    /// The control groups of whoever started it, one a hierarchy: those of its nodes lie below.
    #[serde(default)]
    pub groups: Vec<PathBuf>,
}

impl Record {
    pub fn is_alive(&self) -> bool {
        started(self.pid) == Some(self.started)
    }

    /// The supervisor was killed and answers nobody, but its process stays until the kernel has ended every other process of its PID namespace, whose
    /// first process it is: with many containers that takes a while (pid_namespaces(7)).
    fn is_ending(&self) -> bool {
        stat(self.pid).is_some_and(|stat| stat.started == self.started && stat.flags & EXITING != 0)
    }
}

/// How long the processes of a dying instance may take to end before [`sweep`] lets it stand as alive.
const END_WITHIN: Duration = Duration::from_secs(30);

/// The process has begun to exit (PF_EXITING in the kernel's sched.h).
const EXITING: u64 = 0x4;

/// What is read of a process that has not ended.
struct Stat {
    flags: u64,
    started: u64,
}

/// Fields 3 (state), 9 (flags), 20 (threads) and 22 (start time) of proc_pid_stat(5). None when the process is gone, or all its threads are and it waits to
/// be taken note of: the first thread alone may end before others.
fn stat(pid: i32) -> Option<Stat> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in brackets, which may hold anything.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    let field = |number: usize| fields.get(number - 3).copied();
    let threads: u64 = field(20)?.parse().ok()?;
    let first_ended = ["Z", "X"].contains(&field(3)?);
    if first_ended && threads <= 1 {
        return None;
    }
    Some(Stat { flags: field(9)?.parse().ok()?, started: field(22)?.parse().ok()? })
}

/// When a process began, in clock ticks after boot; none when it has ended.
pub fn started(pid: i32) -> Option<u64> {
    stat(pid).map(|stat| stat.started)
}

/// Held while instances are chosen or swept, so that two starts do not take the same subnet.
pub fn lock(folder: &Path) -> Result<File> {
    fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    let path = folder.join("lock");
    let file = File::create(&path).with_context(|| format!("open {}", path.display()))?;
    // SAFETY: flock on a descriptor that is open.
    if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX) } != 0 {
        return Err(io::Error::last_os_error()).with_context(|| format!("lock {}", path.display()));
    }
    Ok(file)
}

pub fn save(folder: &Path, record: &Record) -> Result<()> {
    let path = folder.join(format!("{}.json", record.instance));
    fs::write(&path, serde_json::to_vec(record)?).with_context(|| format!("write {}", path.display()))
}

/// All instances on record. A damaged record is passed over.
pub fn all(folder: &Path) -> Vec<Record> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.path().extension().is_some_and(|end| end == "json"))
        .filter_map(|entry| serde_json::from_slice(&fs::read(entry.path()).ok()?).ok())
        .collect()
}

/// Removes what dead instances left, and says which they were; waits for those that are just ending. Call it under [`lock`].
pub fn sweep(folder: &Path) -> Result<Vec<Record>> {
    let begun = Instant::now();
    while all(folder).iter().any(Record::is_ending) && begun.elapsed() < END_WITHIN {
        std::thread::sleep(Duration::from_millis(5));
    }
    let dead: Vec<Record> = all(folder).into_iter().filter(|record| !record.is_alive()).collect();
    for record in &dead {
        forget(folder, record)?;
    }
    Ok(dead)
}

/// Removes what one instance, whose processes are gone, left behind.
pub fn forget(folder: &Path, record: &Record) -> Result<()> {
    groups::remove(&record.groups, &record.instance)?;
    remove_device(&record.instance)?;
    let gone = |result: io::Result<()>| match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    let socket = record.dir.join(crate::host::SOCKET);
    gone(fs::remove_file(&socket)).with_context(|| format!("remove {}", socket.display()))?;
    if record.temporary {
        gone(fs::remove_dir_all(&record.dir)).with_context(|| format!("remove {}", record.dir.display()))?;
    }
    let path = folder.join(format!("{}.json", record.instance));
    gone(fs::remove_file(&path)).with_context(|| format!("remove {}", path.display()))
}

/// Removes an instance's uplink. The kernel does so itself, some time after the switch's namespace has lost its last process: who starts again at once
/// would find the name taken.
pub fn remove_device(instance: &str) -> Result<()> {
    let name = plan::uplink_device(instance);
    let mut rt = Rt::open()?;
    if let Some(link) = rt.link(&name)?
        && let Err(error) = rt.delete_link(link.index)
        // The kernel was faster.
        && rt.link(&name)?.is_some()
    {
        return Err(error).with_context(|| format!("remove the device {name}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_when_it_began() {
        let me = std::process::id() as i32;
        let began = started(me).unwrap();
        let record = |started| Record {
            instance: "x".into(),
            pid: me,
            started,
            subnet: "172.31.0.0/24".into(),
            dir: "/".into(),
            temporary: false,
            groups: Vec::new(),
        };
        assert!(record(began).is_alive() && !record(began + 1).is_alive());
        assert_eq!(started(i32::MAX), None);
    }
}
