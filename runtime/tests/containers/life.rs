//! The life of containers and pods: start, output, exit, exec, attach, recovery, end.

use libtest_mimic::Failed;
use skiff_runtime::{ContainerSpec, ExecSpec, LogSpec, Mount, PodSpec, Resources, Runtime, RuntimeConfig, boottime_ms};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::fixture::{Test, equal, holds, running, with};

pub const TESTS: &[Test] = &[
    ("life::exit_codes_and_output", exit_codes_and_output),
    ("life::what_cannot_start_says_why", what_cannot_start_says_why),
    ("life::namespaces_and_files", namespaces_and_files),
    ("life::volumes", volumes),
    ("life::exec_pipes_and_terminal", exec_pipes_and_terminal),
    ("life::attach_feeds_and_copies", attach_feeds_and_copies),
    ("life::out_of_memory", out_of_memory),
    ("life::survives_its_owner", survives_its_owner),
    ("life::a_dead_helper_takes_its_pod", a_dead_helper_takes_its_pod),
    ("life::a_lease_that_passes_kills", a_lease_that_passes_kills),
    ("life::a_shared_process_namespace", a_shared_process_namespace),
];

fn exit_codes_and_output() -> Result<(), Failed> {
    with(async |fixture| {
        let pod = fixture.pod("codes").await?;
        let mut number = 0;
        let mut check = async |script: &str, code: i32, signal: i32, output: &str| -> Result<(), Failed> {
            number += 1;
            let (state, log) = fixture.run(&pod, fixture.container(&format!("c-{number}"), script)).await?;
            equal((state.exit_code, state.signal, log.as_str()), (code, signal, output))?;
            Ok(pod.remove_container(&state.id).await?)
        };
        check("echo out; echo err >&2", 0, 0, "out\nerr\n").await?;
        check("exit 3", 3, 0, "").await?;
        check("printf no-newline", 0, 0, "no-newline\n").await?;
        check("echo $FOO $HOSTNAME $HOME; hostname", 0, 0, "codes /root\ncodes\n").await?;
        // The first process of a PID namespace dies only of signals from outside.
        let (pod_signal, spec) = (pod.clone(), fixture.container("killed", "sleep 100"));
        pod_signal.start_container(spec).await?;
        running(&pod, "killed").await?;
        pod.signal("killed", libc::SIGKILL, false).await?;
        let state = pod.wait_exit("killed").await?;
        equal((state.exit_code, state.signal), (137, 9))?;
        Ok(pod.delete().await?)
    })
}

fn what_cannot_start_says_why() -> Result<(), Failed> {
    with(async |fixture| {
        let pod = fixture.pod("broken").await?;
        let mut number = 0;
        let mut check = async |change: &dyn Fn(&mut ContainerSpec), expect: &str| -> Result<(), Failed> {
            number += 1;
            let mut spec = fixture.container(&format!("c-{number}"), "true");
            change(&mut spec);
            let error = pod.start_container(spec).await.err().map(|error| error.to_string()).unwrap_or_default();
            holds(&format!("{error:?} says {expect:?}"), error.contains(expect))
        };
        check(&|spec| spec.args = vec!["nothing".into()], "executable file not found").await?;
        check(&|spec| spec.args = vec!["/nothing".into()], "no such file").await?;
        check(&|spec| spec.args = vec!["/etc/passwd".into()], "permission denied").await?;
        check(&|spec| spec.args = Vec::new(), "there is no command").await?;
        check(&|spec| spec.image = "absent".into(), "no image").await?;
        check(&|spec| spec.id = "../x".into(), "container id").await?;
        check(&|spec| spec.security.user = "nobody".into(), "no user").await?;
        check(&|spec| spec.security.add_capabilities = vec!["FLY".into()], "no capability").await?;
        let absent = Mount { source: "/nothing/here".into(), target: "/x".into(), ..Mount::default() };
        check(&|spec| spec.mounts = vec![absent.clone()], "/nothing/here").await?;
        Ok(pod.delete().await?)
    })
}

fn namespaces_and_files() -> Result<(), Failed> {
    with(async |fixture| {
        let pod = fixture.pod("files").await?;
        let script = "echo $$; ls /proc/self/fd | cat; ls /dev; cat /proc/self/cgroup | cat >/dev/null && echo cg; \
                      ls /sys/class/net; cat /proc/kcore | dd count=1 2>/dev/null; echo x > /proc/sys/kernel/domainname || echo refused; \
                      ls /sys/fs/cgroup >/dev/null && echo limits; readlink_missing 2>/dev/null; echo > /dev/null && echo null";
        let (_, log) = fixture.run(&pod, fixture.container("c", script)).await?;
        holds(&format!("first process: {log}"), log.starts_with("1\n"))?;
        for word in ["null", "ptmx", "shm", "lo", "cg", "refused", "limits", "zero"] {
            holds(&format!("{word} in {log}"), log.lines().any(|line| line == word))?;
        }
        let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
        holds("nothing is mounted on the host", !mounts.contains(&*fixture.dir.to_string_lossy()))?;
        Ok(pod.delete().await?)
    })
}

fn volumes() -> Result<(), Failed> {
    with(async |fixture| {
        let (data, memory) = (fixture.dir.join("data"), fixture.dir.join("memory"));
        std::fs::create_dir_all(data.join("sub"))?;
        std::fs::write(data.join("file"), "content\n")?;
        std::os::unix::fs::symlink("/etc", data.join("trap"))?;
        let tmpfs = skiff_runtime::Tmpfs { path: memory.clone(), size_bytes: 1 << 20, mode: 0o1777 };
        let spec = PodSpec { id: "volumes".into(), tmpfs: vec![tmpfs], ..PodSpec::default() };
        let pod = fixture.runtime.create_pod(spec).await?;
        let mount = |source: &std::path::Path, sub_path: &str, target: &str, read_only: bool| Mount {
            source: source.into(),
            sub_path: sub_path.into(),
            target: target.into(),
            read_only,
            ..Mount::default()
        };
        let mut spec = fixture.container(
            "c",
            "cat /data/file; touch /data/no 2>/dev/null || echo read-only; touch /sub/yes && echo written; \
             cat /one; touch /memory/m && echo memory; touch /var/run/volume/x && echo through-link; ls /trap; \
             mknod /memory/null c 1 3; cat /memory/null 2>/dev/null || echo inert",
        );
        spec.mounts = vec![
            mount(&data, "", "/data", true),
            mount(&data, "sub", "/sub", false),
            mount(&data, "file", "/one", true),
            mount(&memory, "", "/memory", false),
            mount(&data, "new/dir", "/var/run/volume", false),
            mount(&data, "trap", "/trap", false),
        ];
        let (_, log) = fixture.run(&pod, spec).await?;
        equal(log.as_str(), "content\nread-only\nwritten\ncontent\nmemory\nthrough-link\ninert\n")?;
        holds("written on the host", data.join("sub/yes").exists() && data.join("new/dir/x").exists())?;
        holds("a link stays inside the volume", data.join("etc").is_dir())?;
        holds("memory is not on the host", !memory.join("m").exists())?;
        holds("but reachable", pod.through_helper(&memory)?.join("m").exists())?;
        Ok(pod.delete().await?)
    })
}

fn exec_pipes_and_terminal() -> Result<(), Failed> {
    with(async |fixture| {
        let pod = fixture.pod("exec").await?;
        let mut spec = fixture.container("c", "sleep 100");
        spec.env.push(("FROM".into(), "container".into()));
        spec.security.user = "web".into();
        pod.start_container(spec).await?;
        equal(fixture.exec(&pod, "c", "echo $FROM $HOME; id -u; exit 5").await?, (5, "container /srv\n33\n".into()))?;
        let (_, processes) = fixture.exec(&pod, "c", "echo /proc/[0-9]*").await?;
        holds(&format!("sees only its own processes: {processes}"), processes.split(' ').count() <= 3)?;

        let args = ["cat"].map(str::to_owned).to_vec();
        let mut session = pod.exec(ExecSpec { container: "c".into(), args, ..ExecSpec::default() }, true).await?;
        if let Some(mut stdin) = session.io.stdin.take() {
            stdin.write_all(b"round trip").await?;
        }
        let mut output = String::new();
        if let Some(mut stdout) = session.io.stdout.take() {
            stdout.read_to_string(&mut output).await?;
        }
        equal((session.wait().await?, output.as_str()), (0, "round trip"))?;

        let args = ["sh", "-c", "read line; echo got $line; ls -l /proc/self/fd/0 >/dev/null; exit 7"]
            .map(str::to_owned)
            .to_vec();
        let mut session =
            pod.exec(ExecSpec { container: "c".into(), args, tty: true, ..ExecSpec::default() }, true).await?;
        if let Some(terminal) = &session.io.terminal {
            terminal.resize(100, 40)?;
        }
        let (stdin, stdout) = (session.io.stdin.take(), session.io.stdout.take());
        let (Some(mut stdin), Some(mut stdout)) = (stdin, stdout) else { return Err("no terminal".into()) };
        stdin.write_all(b"hello\n").await?;
        let mut output = Vec::new();
        stdout.read_to_end(&mut output).await?;
        holds("a terminal echoes and answers", String::from_utf8_lossy(&output).contains("got hello"))?;
        equal(session.wait().await?, 7)?;

        let missing = ExecSpec { container: "c".into(), args: vec!["nothing".into()], ..ExecSpec::default() };
        holds(
            "a missing program is an error",
            pod.exec(missing, false).await.is_err_and(|e| e.to_string().contains("not found")),
        )?;
        Ok(pod.delete().await?)
    })
}

fn attach_feeds_and_copies() -> Result<(), Failed> {
    with(async |fixture| {
        let pod = fixture.pod("attach").await?;
        let mut spec = fixture.container("c", "while read line; do echo heard $line; done; echo end");
        spec.stdin = true;
        spec.stdin_once = true;
        pod.start_container(spec).await?;
        let mut attached = pod.attach("c").await?;
        if let Some(mut stdin) = attached.io.stdin.take() {
            stdin.write_all(b"one\ntwo\n").await?;
        }
        let mut output = String::new();
        if let Some(mut stdout) = attached.io.stdout.take() {
            stdout.read_to_string(&mut output).await?;
        }
        equal(output.as_str(), "heard one\nheard two\nend\n")?;
        pod.wait_exit("c").await?;
        equal(fixture.log("c").as_str(), "heard one\nheard two\nend\n")?;
        Ok(pod.delete().await?)
    })
}

fn out_of_memory() -> Result<(), Failed> {
    with(async |fixture| {
        let pod = fixture.pod("memory").await?;
        let mut spec = fixture.container("c", "x=aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa; while true; do x=$x$x; done");
        spec.resources = Resources {
            memory_bytes: 16 << 20,
            pids: 20,
            cpu_shares: 512,
            cpu_quota_us: 90_000,
            ..Resources::default()
        };
        let (state, _) = fixture.run(&pod, spec).await?;
        equal((state.oom_killed, state.exit_code), (true, 137))?;
        Ok(pod.delete().await?)
    })
}

fn survives_its_owner() -> Result<(), Failed> {
    with(async |fixture| {
        let pod = fixture.pod("stays").await?;
        pod.start_container(fixture.container("c", "sleep 100")).await?;
        let pid = pod.container("c").map(|state| state.pid);
        drop(pod);
        let config = RuntimeConfig {
            state_dir: fixture.dir.join("state"),
            image_dir: fixture.dir.join("images"),
            cgroup_parent: format!("skiff-test-{}-again", std::process::id()),
            insecure_registries: Vec::new(),
        };
        let again = Runtime::open(config)?;
        let recovered = again.recover().await?;
        equal(recovered.len(), 1)?;
        let found = &recovered[0];
        holds("alive", found.alive)?;
        equal(found.pod.container("c").map(|state| state.pid), pid)?;
        equal(found.containers["c"].args.len(), 3)?;
        equal(fixture.exec(&found.pod, "c", "echo here").await?, (0, "here\n".into()))?;
        let error = again.create_pod(found.pod.spec().clone()).await.err().map(|error| error.to_string());
        holds("it is not made twice", error.is_some_and(|error| error.contains("recover or delete")))?;
        found.pod.delete().await?;
        holds("nothing is left", again.recover().await?.is_empty())
    })
}

fn a_dead_helper_takes_its_pod() -> Result<(), Failed> {
    with(async |fixture| {
        let pod = fixture.pod("orphan").await?;
        let pid = pod.start_container(fixture.container("c", "sleep 100")).await?;
        // SAFETY: kill takes no pointers; the helper is ours.
        unsafe { libc::kill(pod.helper_pid()?, libc::SIGKILL) };
        pod.watch().wait_for(|state| state.gone).await?;
        holds("a start says so", pod.start_container(fixture.container("d", "true")).await.is_err())?;
        pod.delete().await?;
        // Whoever adopts it may not have buried it yet; a dead process has no command line.
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        holds("its process is gone", command.is_empty())
    })
}

fn a_lease_that_passes_kills() -> Result<(), Failed> {
    with(async |fixture| {
        let pod = fixture.pod("fenced").await?;
        pod.start_container(fixture.container("c", "sleep 100")).await?;
        let now_ms = boottime_ms();
        pod.set_lease(now_ms + 60_000).await?;
        pod.set_lease(now_ms + 50).await?;
        equal(pod.wait_exit("c").await?.exit_code, 137)?;
        holds("it says so", pod.watch().wait_for(|state| state.fenced).await.is_ok())?;
        holds("and starts nothing more", pod.start_container(fixture.container("d", "true")).await.is_err())?;
        Ok(pod.delete().await?)
    })
}

fn a_shared_process_namespace() -> Result<(), Failed> {
    with(async |fixture| {
        let spec = PodSpec { id: "shared".into(), share_process_namespace: true, ..PodSpec::default() };
        let pod = fixture.runtime.create_pod(spec).await?;
        pod.start_container(fixture.container("a", "sleep 100")).await?;
        let mut spec = fixture.container("b", "cat /proc/[0-9]*/cmdline");
        spec.log = Some(LogSpec::at(fixture.log_path("b")));
        let (_, log) = fixture.run(&pod, spec).await?;
        holds(&format!("sees the other: {log:?}"), log.contains("sleep"))?;
        equal(fixture.exec(&pod, "a", "exit 4").await?.0, 4)?;
        Ok(pod.delete().await?)
    })
}
