//! Somebody who has a shell in a container that was granted nothing special, as root in it: what is there of the node, of other pods, of the kernel.

use crate::local::{Local, block_on, text};
use crate::{busybox, pods};
use anyhow::ensure;
use serde_json::json;

/// What a shell command says in a pod, with what it complains.
fn said(local: &Local, pod: &str, script: &str) -> anyhow::Result<String> {
    let output = local.skiff(&["exec", pod, "--", "sh", "-c", script])?;
    Ok(text(&output.stdout) + &text(&output.stderr))
}

pub fn stays_inside(local: &Local) -> anyhow::Result<()> {
    busybox::pod(
        local,
        "victim",
        "echo the-word-of-the-victim > /tmp/word; sleep 1000",
        "env: [{name: TEST_POD, value: victim}]",
    )?;
    busybox::pod(local, "attacker", "sleep 1000", "")?;
    // Each line must say `no`: what comes after && is what must not happen. The first says that the shell works.
    let attempts = [
        ("a shell", "false && echo reached || echo no"),
        // Other processes.
        ("processes of the host", "test $(ls -d /proc/[0-9]* | wc -l) -gt 8 && echo reached || echo no"),
        (
            "the environment of others",
            "cat /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n' | grep -q TEST_POD && echo reached || echo no",
        ),
        (
            "the kernel's memory",
            "head -c 1 /proc/kcore >/dev/null 2>&1 && test $(head -c 1 /proc/kcore | wc -c) -gt 0 && echo reached || echo no",
        ),
        ("the kernel's keys", "test -s /proc/keys && echo reached || echo no"),
        ("sysrq", "echo h 2>/dev/null > /proc/sysrq-trigger && echo reached || echo no"),
        ("the host's sysctls", "echo 1 2>/dev/null > /proc/sys/kernel/panic && echo reached || echo no"),
        ("who handles cores", "echo '|/x' 2>/dev/null > /proc/sys/kernel/core_pattern && echo reached || echo no"),
        // Files.
        ("the node's data", "ls /var/lib/skiff 2>/dev/null | grep -q . && echo reached || echo no"),
        (
            "other pods' volumes",
            "grep -l the-word-of-the-victim -r /var /run /mnt /v 2>/dev/null | grep -q . && echo reached || echo no",
        ),
        (
            "the host's root by the first process",
            "ls /proc/1/root/var/lib/skiff 2>/dev/null | grep -q . && echo reached || echo no",
        ),
        ("a mount", "mount -t tmpfs none /mnt 2>/dev/null && echo reached || echo no"),
        ("a mount namespace", "unshare -m true 2>/dev/null && echo reached || echo no"),
        ("a user namespace", "unshare -U -r mount -t tmpfs none /mnt 2>/dev/null && echo reached || echo no"),
        ("a chroot out", "mkdir -p /x && chroot /x /bin/sh -c true 2>/dev/null && echo reached || echo no"),
        // Control groups and the kernel's own tree.
        ("a control group", "mkdir /sys/fs/cgroup/x 2>/dev/null && echo reached || echo no"),
        (
            "its own limits",
            "for f in $(find /sys/fs/cgroup -name 'pids.max'); do echo max 2>/dev/null > $f && echo reached; done; echo no",
        ),
        (
            "a release agent",
            "for f in $(find /sys/fs/cgroup -name release_agent); do echo /x 2>/dev/null > $f && echo reached; done; echo no",
        ),
        ("the kernel's tree", "echo 0 2>/dev/null > /sys/kernel/profiling && echo reached || echo no"),
        ("modules", "echo x 2>/dev/null > /sys/module/x/parameters/y && echo reached || echo no"),
        // Devices.
        (
            "a disk that is there",
            "for d in /dev/sd* /dev/vd* /dev/nvme* /dev/loop* /dev/dm* /dev/mem /dev/kmsg; do test -e $d && echo reached; done; echo no",
        ),
        (
            "a disk that it makes",
            "for n in '8 0' '253 0' '254 0' '259 0' '7 0'; do rm -f /tmp/d; mknod /tmp/d b $n 2>/dev/null && head -c 1 /tmp/d 2>/dev/null | grep -q . && echo reached; done; echo no",
        ),
        (
            "memory that it makes",
            "mknod /tmp/m c 1 1 2>/dev/null && head -c 1 /tmp/m 2>/dev/null | grep -q . && echo reached || echo no",
        ),
        // Sockets of the agent and of the pods' helpers: those without a file can be reached from the same network, those with one by their path.
        ("sockets of the host", "grep @ /proc/net/unix && echo reached || echo no"),
        ("socket files", "find / -xdev -type s 2>/dev/null | grep -q . && echo reached || echo no"),
        // Descriptors that a careless parent left open.
        (
            "open descriptors",
            "ls -l /proc/1/fd | grep -E 'skiff|memfd|cgroup|socket:|/var/lib' && echo reached || echo no",
        ),
        ("time", "date -s 2000.01.01-00:00 >/dev/null 2>&1; test $(date +%Y) = 2000 && echo reached || echo no"),
        ("the host's name", "hostname taken 2>/dev/null && echo reached || echo no"),
        (
            "raw packets in another's name",
            "ip link set dev eth0 address 02:00:00:00:00:01 2>/dev/null && echo reached || echo no",
        ),
    ];
    let mut wrong = Vec::new();
    for (what, script) in attempts {
        let answer = said(local, "attacker", script)?;
        if answer.lines().last() != Some("no") || answer.contains("reached") {
            wrong.push(format!("{what}: {answer}"));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    // What it may: its own files, its own network, cluster DNS by the name that charts use.
    let own = said(
        local,
        "attacker",
        "echo x > /tmp/y && cat /tmp/y && nslookup kube-dns.kube-system.svc.cluster.local && nslookup 10.43.0.10",
    )?;
    ensure!(
        own.starts_with('x') && own.contains("10.43.0.10") && own.contains("kube-dns.kube-system.svc.cluster.local"),
        "{own}"
    );
    let dns = local.run(&["get", "service", "kube-dns", "-n", "kube-system"])?;
    ensure!(dns.contains("10.43.0.10"), "{dns}");
    let api = local.cluster()?.api;
    block_on(async {
        for name in ["attacker", "victim"] {
            let _ = api.delete(&format!("{}/{name}", pods::PODS), &json!({"gracePeriodSeconds": 0})).await;
        }
        Ok(())
    })?;
    crate::local::wait_until("they are gone", || {
        let pods = local.run(&["get", "pods"])?;
        Ok(!pods.contains("attacker") && !pods.contains("victim"))
    })
}
