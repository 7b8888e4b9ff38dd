//! What a container cannot reach: the process that joins it, the kernel's files by way of a volume, the host's mounts
//! unless it is meant to.

use std::path::Path;

use libtest_mimic::Failed;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use skiff_runtime::{ExecSpec, Mount, PodSpec, Security};

use super::fixture::{Test, equal, holds, running, with};

pub const TESTS: &[Test] = &[
    ("guarded::who_joins_cannot_be_looked_into", who_joins_cannot_be_looked_into),
    ("guarded::no_volume_in_proc", no_volume_in_proc),
    ("guarded::mounts_go_where_they_are_meant_to", mounts_go_where_they_are_meant_to),
    ("guarded::parameters_of_the_host", parameters_of_the_host),
    ("guarded::other_users_see_nothing", other_users_see_nothing),
    ("guarded::account_files_have_a_bound", account_files_have_a_bound),
];

/// A program that joins a container is in its namespaces for a while before it is a program of the container: it must
/// not be open to the container's processes then (those that were given CAP_SYS_PTRACE of the host may look anywhere).
fn who_joins_cannot_be_looked_into() -> Result<(), Failed> {
    with(async |fixture| {
        let pod = fixture.pod("join").await?;
        pod.start_container(fixture.container("main", "sleep 100")).await?;
        running(&pod, "main").await?;
        // So many directories to look for its program in that the way there can be watched.
        let path = "/nowhere:".repeat(400_000);
        let args = ["no-such-program".to_owned()].to_vec();
        let joins =
            ExecSpec { container: "main".into(), args, env: vec![("PATH".into(), path)], ..ExecSpec::default() };
        let watch = "exec 2>/dev/null; n=0; while [ $n -lt 20000 ]; do n=$((n+1)); for p in /proc/[0-9]*; do \
                     read name < $p/comm || continue; [ $name = skiff-pod ] || continue; \
                     if ls -l $p/exe > /dev/null; then echo open; else echo shut; fi; exit 0; done; done";
        let (joined, watched) = tokio::join!(
            async {
                match pod.exec(joins, false).await {
                    Ok(mut session) => session.wait().await.map(drop),
                    Err(error) => Err(error),
                }
            },
            fixture.exec(&pod, "main", watch),
        );
        holds("the program was not found", joined.is_err())?;
        equal(watched?.1.as_str(), "shut\n")?;
        Ok(pod.delete().await?)
    })
}

fn no_volume_in_proc() -> Result<(), Failed> {
    with(async |fixture| {
        let pod = fixture.pod("proc").await?;
        let data = fixture.dir.join("data");
        std::fs::create_dir_all(&data)?;
        for (number, target) in ["/proc", "/proc/sys", "/proc/self", "/x/../proc/kcore"].into_iter().enumerate() {
            let mut spec = fixture.container(&format!("c-{number}"), "true");
            spec.mounts = vec![Mount { source: data.clone(), target: target.into(), ..Mount::default() }];
            let error = pod.start_container(spec).await.err().map(|error| error.to_string()).unwrap_or_default();
            holds(&format!("{target} is refused ({error})"), error.contains("/proc"))?;
        }
        Ok(pod.delete().await?)
    })
}

fn mounts_go_where_they_are_meant_to() -> Result<(), Failed> {
    with(async |fixture| {
        let data = fixture.dir.join("shared");
        std::fs::create_dir_all(&data)?;
        let none: Option<&str> = None;
        mount(Some("skiff-test"), &data, Some("tmpfs"), MsFlags::empty(), none)?;
        let result = shared_mounts(fixture, &data).await;
        while umount2(&data, MntFlags::MNT_DETACH).is_ok() {}
        result
    })
}

async fn shared_mounts(fixture: &super::fixture::Fixture, data: &Path) -> Result<(), Failed> {
    let none: Option<&str> = None;
    let volume = |bidirectional: bool, host_to_container: bool| Mount {
        source: data.to_owned(),
        target: "/v".into(),
        bidirectional,
        host_to_container,
        ..Mount::default()
    };
    let privileged = Security { privileged: true, ..Security::default() };
    mount(none, data, none, MsFlags::MS_PRIVATE, none)?;
    let pod = fixture.pod("alone").await?;
    let mut spec = fixture.container("both", "true");
    (spec.mounts, spec.security) = (vec![volume(true, false)], privileged.clone());
    let error = pod.start_container(spec).await.err().map(|error| error.to_string()).unwrap_or_default();
    holds(&format!("a private mount is named ({error})"), error.contains("not shared"))?;
    pod.delete().await?;

    mount(none, data, none, MsFlags::MS_SHARED, none)?;
    let pod = fixture.pod("two-ways").await?;
    for (id, volume) in
        [("takes", volume(false, true)), ("private", volume(false, false)), ("gives", volume(true, false))]
    {
        let mut spec = fixture.container(id, "sleep 100");
        spec.mounts = vec![volume];
        if id == "gives" {
            spec.security = privileged.clone();
        }
        pod.start_container(spec).await?;
        running(&pod, id).await?;
    }
    let made =
        fixture.exec(&pod, "gives", "mkdir /v/sub && mount -t tmpfs t /v/sub && touch /v/sub/here && echo ok").await?;
    equal(made.1.as_str(), "ok\n")?;
    holds("the host sees it", data.join("sub/here").exists())?;
    let look = "ls /v/sub";
    equal(fixture.exec(&pod, "takes", look).await?.1.as_str(), "here\n")?;
    equal(fixture.exec(&pod, "private", look).await?.1.as_str(), "")?;
    // A read-only volume with a mount in it: that is read-only only where it is asked for.
    for (id, recursive, expect) in [("top", false, "refused\nwritten\n"), ("all", true, "refused\nrefused\n")] {
        let script = "for d in /v /v/sub; do touch $d/x 2>/dev/null && echo written || echo refused; done";
        let mut spec = fixture.container(id, script);
        spec.mounts = vec![Mount { read_only: true, recursive_read_only: recursive, ..volume(false, true) }];
        equal(fixture.run(&pod, spec).await?.1.as_str(), expect)?;
    }
    Ok(pod.delete().await?)
}

fn parameters_of_the_host() -> Result<(), Failed> {
    with(async |fixture| {
        let check = async |name: &str, host_network: bool, part: &str| -> Result<(), Failed> {
            let sysctls = vec![(name.to_owned(), "1".to_owned())];
            let spec = PodSpec { id: "parameters".into(), host_network, sysctls, ..PodSpec::default() };
            match fixture.runtime.create_pod(spec).await {
                Ok(pod) => {
                    pod.delete().await?;
                    equal((name, ""), (name, part))
                }
                Err(error) => {
                    let text = error.to_string();
                    holds(&format!("{name}: {text}"), !part.is_empty() && text.contains(part))
                }
            }
        };
        check("net.ipv4.ip_forward", false, "").await?;
        check("net.ipv4.ip_forward", true, "would be the host's").await?;
        check("kernel.printk_ratelimit_burst", false, "of the whole machine").await?;
        check("net/../kernel/core_pattern", false, "not the name of a kernel parameter").await
    })
}

/// Whatever other users of the machine could open begins below a directory that they cannot enter.
fn other_users_see_nothing() -> Result<(), Failed> {
    use std::os::unix::fs::PermissionsExt;
    with(async |fixture| {
        let pod = fixture.pod("modes").await?;
        let (state, log) =
            fixture.run(&pod, fixture.container("main", "umask; touch /x; stat -c %a /x /; touch /tmp/y")).await?;
        equal((state.exit_code, log.as_str()), (0, "0022\n644\n755\n"))?;
        let mode = |path: &Path| std::fs::metadata(path).map(|found| found.permissions().mode() & 0o7777);
        for (dir, expect) in [("state", 0o700), ("images", 0o700), ("state/pods", 0o700), ("state/pods/modes", 0o700)] {
            equal((dir, mode(&fixture.dir.join(dir))?), (dir, expect))?;
        }
        for file in ["pod.json", "helper.json", "containers/main/spec.json"] {
            let path = fixture.dir.join("state/pods/modes").join(file);
            if path.exists() {
                equal((file, mode(&path)?), (file, 0o600))?;
            }
        }
        equal(mode(&fixture.log_path("main"))?, 0o640)?;
        // What an older version left open is closed.
        let images = fixture.dir.join("images");
        std::fs::set_permissions(&images, PermissionsExt::from_mode(0o755))?;
        drop(skiff_runtime::ImageStore::open(&images, &[])?);
        equal(mode(&images)?, 0o700)?;
        Ok(pod.delete().await?)
    })
}

/// Whoever makes the image, or a volume in its place, decides what `/etc/passwd` is.
fn account_files_have_a_bound() -> Result<(), Failed> {
    with(async |fixture| {
        let pod = fixture.pod("accounts").await?;
        let (pipe, long) = (fixture.dir.join("pipe"), fixture.dir.join("long"));
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::from_bits_truncate(0o666))?;
        std::fs::File::create(&long)?.set_len(1 << 40)?;
        let with_passwd = |id: &str, source: &Path| {
            let mut spec = fixture.container(id, "echo runs");
            spec.mounts = vec![Mount { source: source.to_owned(), target: "/etc/passwd".into(), ..Mount::default() }];
            spec
        };
        equal(fixture.run(&pod, with_passwd("pipe", &pipe)).await?.1.as_str(), "runs\n")?;
        let refused = pod.start_container(with_passwd("long", &long)).await.err().map(|error| error.to_string());
        holds(
            &format!("{refused:?}"),
            refused.is_some_and(|text| text.contains("/etc/passwd of the image has more than")),
        )?;
        Ok(pod.delete().await?)
    })
}
