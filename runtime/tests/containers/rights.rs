//! What a container may and may not do.

use libtest_mimic::Failed;
use skiff_runtime::Security;

use super::fixture::{Test, equal, with};

pub const TESTS: &[Test] = &[("rights::users_capabilities_and_calls", users_capabilities_and_calls)];

fn users_capabilities_and_calls() -> Result<(), Failed> {
    with(async |fixture| {
        let pod = fixture.pod("rights").await?;
        let mut number = 0;
        let mut check = async |security: Security, script: &str, expect: &str| -> Result<(), Failed> {
            number += 1;
            let mut spec = fixture.container(&format!("c-{number}"), script);
            spec.security = security;
            let (_, log) = fixture.run(&pod, spec).await?;
            equal((script, log.trim_end()), (script, expect))
        };
        let capabilities =
            "while read name value; do case $name in CapEff:|NoNewPrivs:) echo $value;; esac; done < /proc/self/status";
        let plain = Security::default;
        check(plain(), "id -u; id -g; id -G", "0\n0\n0").await?;
        check(Security { user: "web".into(), groups: vec![7], ..plain() }, "id -u; id -g; id -G", "33\n33\n33 7 50")
            .await?;
        check(
            Security { uid: Some(1000), gid: Some(2000), ..plain() },
            "id -u; id -g; echo hi > /dev/stdout",
            "1000\n2000\nhi",
        )
        .await?;
        check(plain(), capabilities, "00000000a80425fb\n0").await?;
        check(Security { uid: Some(1000), ..plain() }, capabilities, "0000000000000000\n0").await?;
        check(Security { no_new_privileges: true, ..plain() }, capabilities, "00000000a80425fb\n1").await?;
        let drop =
            Security { drop_capabilities: vec!["ALL".into()], add_capabilities: vec!["CHOWN".into()], ..plain() };
        check(drop, capabilities, "0000000000000001\n0").await?;
        check(plain(), "mount -t tmpfs t /tmp 2>/dev/null || echo refused", "refused").await?;
        check(plain(), "unshare -U true 2>/dev/null || echo refused", "refused").await?;
        let admin = Security { add_capabilities: vec!["SYS_ADMIN".into()], ..plain() };
        check(admin, "mount -t tmpfs t /tmp && echo mounted", "mounted").await?;
        let privileged = Security { privileged: true, ..plain() };
        check(privileged, "mount -t tmpfs t /tmp && echo mounted; ls -d /dev/mem /dev/kmsg 2>/dev/null | dd bs=8 count=1 2>/dev/null; echo", "mounted\n/dev/kms").await?;
        let read_only = Security { read_only_root: true, ..plain() };
        check(read_only, "touch /x 2>/dev/null || echo refused; touch /dev/shm/x && echo shm", "refused\nshm").await?;
        check(plain(), "mknod /tmp/null c 1 3 && cat /tmp/null 2>/dev/null || echo inert", "inert").await?;
        Ok(pod.delete().await?)
    })
}
