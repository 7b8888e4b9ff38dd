//! A local cluster of two nodes, made and ended in several ways. The nodes run this same program as a small server.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Failed, Trial};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use skiff_local::{Direction, Host, LocalConfig, NodeSpec, groups, registry, supervisor_main};

fn main() {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some("local-supervisor") => {
            if let Err(error) = supervisor_main(Path::new(&args[2])) {
                eprintln!("{error:#}");
                std::process::exit(1);
            }
        }
        Some("serve") => serve(&args[2], args[3].parse().unwrap()),
        Some("hold") => hold(&args[2], Path::new(&args[3])),
        _ => {
            let root = nix::unistd::geteuid().is_root();
            if !root {
                assert!(std::env::var("CI").as_deref() != Ok("true"), "the local cluster's tests need root");
                eprintln!("ignored: the local cluster's tests need root");
            }
            let test = |name: &str, run: fn()| {
                Trial::test(name, move || -> Result<(), Failed> {
                    run();
                    Ok(())
                })
                .with_ignored_flag(!root)
            };
            let trials = vec![
                test("nodes_meet_and_cuts_drop", nodes_meet_and_cuts_drop),
                test("the_api_follows_live_servers", the_api_follows_live_servers),
                test("orphans_outlive_an_agent_but_not_the_cluster", orphans_outlive_an_agent_but_not_the_cluster),
                test("a_killed_parent_takes_all_along", a_killed_parent_takes_all_along),
                test("an_untied_cluster_is_found_by_its_directory", an_untied_cluster_is_found_by_its_directory),
                test("a_start_waits_for_one_that_is_ending", a_start_waits_for_one_that_is_ending),
                test("bad_requests_are_refused_in_words", bad_requests_are_refused_in_words),
            ];
            libtest_mimic::run(&Arguments::from_args(), trials).exit();
        }
    }
}

/// What nodes run: answers each connection with its name. With the name `orphan:FILE`, first leaves a child behind and its pid in the file.
#[expect(clippy::zombie_processes, reason = "the orphan must outlive this process")]
fn serve(name: &str, port: u16) {
    if let Some(file) = name.strip_prefix("orphan:") {
        let child = std::process::Command::new("/proc/self/exe").args(["serve", "orphan", "7000"]).spawn().unwrap();
        std::fs::write(file, child.id().to_string()).unwrap();
    }
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap();
    for stream in listener.incoming().flatten() {
        let mut stream = stream;
        let _ = stream.write_all(name.as_bytes());
        let mut byte = [0];
        // Until the client goes.
        let _ = stream.read(&mut byte);
    }
}

/// A parent to be killed: makes a tied cluster, says so, and waits.
fn hold(name: &str, dir: &Path) {
    let host = Host::create(config(name, dir, true)).unwrap();
    host.spawn(node(&host, "s1", 6443)).unwrap();
    std::fs::create_dir_all(cgroup_of(name)).unwrap();
    println!("{}", host.status().unwrap().pid);
    loop {
        std::thread::park();
    }
}

fn folder(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("skiff-local-{}-{name}", std::process::id()))
}

fn cgroup_of(name: &str) -> PathBuf {
    let own = groups::own().unwrap();
    // Where the test runs in a group of some hierarchy, that one is the telling one.
    let telling = own.iter().max_by_key(|path| path.components().count()).unwrap();
    telling.join(groups::name(name, "a1"))
}

fn config(name: &str, dir: &Path, tied: bool) -> LocalConfig {
    LocalConfig {
        dir: dir.join("cluster"),
        instance: name.to_owned(),
        uplink: false,
        port: 0,
        subnet: None,
        tied,
        temporary: true,
        supervisor_args: vec!["local-supervisor".into()],
        registry: dir.join("registry"),
    }
}

fn node(host: &Host, name: &str, port: u16) -> NodeSpec {
    let argv = vec!["/proc/self/exe".into(), "serve".into(), name.into(), port.to_string()];
    NodeSpec { name: name.into(), argv, env: Default::default(), log: host.dir().join(format!("{name}.log")) }
}

fn greet(to: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_millis(400))?;
    stream.set_read_timeout(Some(Duration::from_millis(400)))?;
    let mut bytes = [0; 64];
    let length = stream.read(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes[..length]).into_owned())
}

fn until(what: &str, mut is: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is() {
        assert!(start.elapsed() < Duration::from_secs(10), "waited too long until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

struct Cleanup(PathBuf);

impl Drop for Cleanup {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn nodes_meet_and_cuts_drop() {
    let dir = Cleanup(folder("meet"));
    let host = Host::create(config("meet", &dir.0, true)).unwrap();
    host.spawn(node(&host, "a1", 7000)).unwrap();
    host.spawn(node(&host, "a2", 7000)).unwrap();
    let to = SocketAddr::from((host.address("a2").unwrap(), 7000));
    let reach = |from: &str| host.run_in(from, || greet(to)).unwrap();
    until("a2 answers a1", || reach("a1").is_ok_and(|answer| answer == "a2"));
    for direction in [Direction::Out, Direction::In, Direction::Both] {
        host.cut("a2", direction).unwrap();
        let error = reach("a1").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{direction:?}: a cut drops, it does not refuse");
        host.heal("a2").unwrap();
        until("a2 answers again", || reach("a1").is_ok());
    }
    // One way: what a2 sends arrives nowhere, what others send arrives at a2.
    host.cut("a2", Direction::Out).unwrap();
    let received = || host.run_in("a2", packets_received).unwrap();
    let before = received();
    let _ = reach("a1");
    assert!(received() > before);
    host.shutdown().unwrap();
    assert!(!dir.0.join("cluster").exists());
    assert_eq!(registry::all(&dir.0.join("registry")), []);
}

fn packets_received() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let line = text.lines().find_map(|line| line.trim().strip_prefix("eth0:")).unwrap().to_owned();
    line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
}

fn the_api_follows_live_servers() {
    let dir = Cleanup(folder("api"));
    let host = Host::create(config("api", &dir.0, true)).unwrap();
    for name in ["s1", "s2"] {
        host.spawn(node(&host, name, 6443)).unwrap();
    }
    let api = SocketAddr::from((Ipv4Addr::LOCALHOST, host.port()));
    until("s1 answers", || greet(api).is_ok_and(|answer| answer == "s1"));
    host.kill("s1", Signal::SIGKILL).unwrap();
    until("s2 answers", || greet(api).is_ok_and(|answer| answer == "s2"));
    host.restart("s1").unwrap();
    // Whoever answered last is asked first. A connection to a server that is cut off ends, so that its client dials again.
    let mut stream = TcpStream::connect(api).unwrap();
    let mut bytes = [0; 8];
    assert_eq!(stream.read(&mut bytes).unwrap(), 2);
    assert_eq!(&bytes[..2], b"s2");
    host.cut("s2", Direction::Both).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    assert!(matches!(stream.read(&mut bytes), Ok(0) | Err(_)));
    until("s1 answers again", || greet(api).is_ok_and(|answer| answer == "s1"));
    let status = host.status().unwrap();
    assert_eq!(status.nodes.len(), 2);
    assert_eq!(status.nodes[1].cut, Some(Direction::Both));
    host.shutdown().unwrap();
}

fn orphans_outlive_an_agent_but_not_the_cluster() {
    let dir = Cleanup(folder("orphan"));
    let host = Host::create(config("orphan", &dir.0, true)).unwrap();
    let file = host.dir().join("orphan.pid");
    let mut agent = node(&host, "a1", 7001);
    agent.argv[2] = format!("orphan:{}", file.display());
    let pid = host.spawn(agent).unwrap();
    assert!(host.outer_pid(pid).is_ok());
    let orphan = SocketAddr::from((host.address("a1").unwrap(), 7000));
    let alive = || host.run_in("a1", || greet(orphan)).unwrap().is_ok();
    until("the agent's child serves", alive);
    let inner: i32 = std::fs::read_to_string(&file).unwrap().parse().unwrap();
    let outer = host.outer_pid(inner).unwrap();
    host.kill("a1", Signal::SIGKILL).unwrap();
    assert!(alive(), "the child goes on without its agent");
    host.restart("a1").unwrap_or_default();
    host.shutdown().unwrap();
    assert_eq!(registry::started(outer), None, "nothing outlives the cluster");
}

fn a_killed_parent_takes_all_along() {
    let dir = Cleanup(folder("killed"));
    let mut parent = std::process::Command::new("/proc/self/exe")
        .args(["hold", "killed"])
        .arg(&dir.0)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut bytes = [0; 32];
    let length = parent.stdout.take().unwrap().read(&mut bytes).unwrap();
    let supervisor: i32 = String::from_utf8_lossy(&bytes[..length]).trim().parse().unwrap();
    assert!(registry::started(supervisor).is_some());
    parent.kill().unwrap();
    parent.wait().unwrap();
    until("the supervisor is gone", || registry::started(supervisor).is_none());
    assert!(cgroup_of("killed").is_dir(), "a cgroup is left");
    let registry_folder = dir.0.join("registry");
    let _held = registry::lock(&registry_folder).unwrap();
    let swept = registry::sweep(&registry_folder).unwrap();
    assert_eq!(swept.len(), 1);
    assert!(!cgroup_of("killed").exists() && !dir.0.join("cluster").exists());
}

fn an_untied_cluster_is_found_by_its_directory() {
    let dir = Cleanup(folder("untied"));
    let made = Host::create(config("untied", &dir.0, false)).unwrap();
    made.spawn(node(&made, "s1", 6443)).unwrap();
    let (cluster, registry_folder) = (made.dir().to_owned(), dir.0.join("registry"));
    let again = Host::create(config("untied", &dir.0, false)).unwrap_err();
    assert!(again.to_string().contains("is running"), "{again}");
    let api = SocketAddr::from((Ipv4Addr::LOCALHOST, made.port()));
    drop(made);
    let found = Host::open(&cluster, &registry_folder).unwrap();
    until("s1 answers", || greet(api).is_ok_and(|answer| answer == "s1"));
    // Another lives beside it.
    let mut second = config("second", &dir.0, true);
    second.dir = dir.0.join("second");
    let second = Host::create(second).unwrap();
    assert_ne!(second.subnet(), found.subnet());
    second.shutdown().unwrap();
    found.shutdown().unwrap();
    assert!(Host::open(&cluster, &registry_folder).is_err());
}

/// A killed supervisor answers nobody any more, but stays until the last process of its PID namespace has been waited for: here one whose end a tracer
/// has yet to take note of.
fn a_start_waits_for_one_that_is_ending() {
    let dir = Cleanup(folder("ending"));
    let (before, registry_folder) = (config("ending", &dir.0, false), dir.0.join("registry"));
    let made = Host::create(before.clone()).unwrap();
    let traced = made.outer_pid(made.spawn(node(&made, "s1", 6443)).unwrap()).unwrap();
    // SAFETY: PTRACE_SEIZE reads and writes no memory of this process.
    let seized = unsafe { libc::ptrace(libc::PTRACE_SEIZE, traced, 0, 0) };
    assert_eq!(seized, 0, "trace {traced}: {}", std::io::Error::last_os_error());
    let supervisor = made.status().unwrap().pid;
    kill(Pid::from_raw(supervisor), Signal::SIGKILL).unwrap();
    until("the supervisor answers nobody", || made.status().is_err());
    assert!(registry::started(supervisor).is_some(), "it should be held by the process that is traced");
    drop(made);
    let starting = std::thread::spawn(move || Host::create(before));
    until("the start has begun", || is_locked(&registry_folder));
    until("the traced process has ended", || registry::started(traced).is_none());
    assert!(!starting.is_finished() && is_locked(&registry_folder), "the start should wait");
    waitpid(Pid::from_raw(traced), None).unwrap();
    let again = starting.join().unwrap().unwrap();
    waitpid(Pid::from_raw(supervisor), None).unwrap();
    assert_ne!(again.status().unwrap().pid, supervisor);
    again.shutdown().unwrap();
}

/// Somebody holds [`registry::lock`].
fn is_locked(registry: &Path) -> bool {
    let file = std::fs::File::create(registry.join("lock")).unwrap();
    matches!(file.try_lock(), Err(std::fs::TryLockError::WouldBlock))
}

fn bad_requests_are_refused_in_words() {
    let dir = Cleanup(folder("bad"));
    let refused = |config: LocalConfig, part: &str| {
        let error = format!("{:#}", Host::create(config).unwrap_err());
        assert!(error.contains(part), "{error}");
    };
    refused(config("Not A Name", &dir.0, true), "cannot name");
    let mut taken = config("bad", &dir.0, true);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    taken.port = listener.local_addr().unwrap().port();
    refused(taken, "choose another port");
    let host = Host::create(config("bad", &dir.0, true)).unwrap();
    let says = |result: anyhow::Result<i32>, part: &str| {
        let error = format!("{:#}", result.unwrap_err());
        assert!(error.contains(part), "{error}");
    };
    says(host.spawn(node(&host, "x1", 1)), "not a local node's name");
    let mut missing = node(&host, "a1", 1);
    missing.argv[0] = "/no/such/program".into();
    says(host.spawn(missing), "/no/such/program");
    says(host.restart("a7"), "no node a7");
    assert!(host.kill("a1", Signal::SIGTERM).is_err());
    host.shutdown().unwrap();
}
