//! PostgreSQL behind a headless Service, with a password that a shell would stumble over, and rows that come through `exec -i`.

use super::software;
use crate::kubectl::Kubectl;
use crate::local::Local;
use anyhow::ensure;
use std::fmt::Write as _;

const ROWS: usize = 100_000;

pub fn postgres(local: &Local) -> anyhow::Result<()> {
    software::images(local)?;
    let k = Kubectl::newest(local, "database")?;
    k.run("create namespace database")?;
    local.file("postgres.yaml", include_str!("postgres.yaml"))?;
    k.run("apply -f postgres.yaml")?;
    k.says("rollout status deployment/postgres --timeout=60s", &["successfully rolled out"])?;
    let password = k.run("exec deploy/postgres -- printenv POSTGRES_PASSWORD")?;
    ensure!(password == "pa'ss word\n", "{password:?}");

    let mut rows = "create table t (n int, word text);\ncopy t from stdin;\n".to_owned();
    for n in 1..=ROWS {
        writeln!(rows, "{n}\tword {n}")?;
    }
    rows += "\\.\nselect 'sum', sum(n) from t;\n";
    let psql = "exec -i deploy/postgres -- psql -U postgres -At -v ON_ERROR_STOP=1";
    let said = k.pipe(psql, &rows)?;
    ensure!(said == format!("CREATE TABLE\nCOPY {ROWS}\nsum|5000050000\n"), "{said}");
    let dump = k.run("exec deploy/postgres -- pg_dump -U postgres")?;
    ensure!(dump.lines().filter(|line| line.contains("\tword ")).count() == ROWS, "{} bytes", dump.len());

    // By name, from elsewhere, with the password; the name has the pod's own address.
    let from = "run client --rm -i --quiet --restart=Never --image=scenarios.local/postgres:1";
    let overrides = r#"{"spec":{"containers":[{"name":"client","image":"scenarios.local/postgres:1","stdin":true,"stdinOnce":true,
        "command":["psql","-At"],"env":[{"name":"PGHOST","value":"postgres"},{"name":"PGUSER","value":"postgres"},
        {"name":"PGPASSWORD","valueFrom":{"secretKeyRef":{"name":"postgres","key":"password"}}}]}]}}"#;
    let said =
        k.pipe(&format!("{from} --overrides='{}'", overrides.replace('\n', " ")), "select count(*) from t;\n")?;
    ensure!(said == format!("{ROWS}\n"), "{said:?}");
    let address = k.run("get pod -l app=postgres -o jsonpath={.items[0].status.podIP}")?;
    let named = k.run("exec deploy/postgres -- getent hosts postgres.database.svc.cluster.local")?;
    ensure!(named.starts_with(&format!("{address} ")), "{named:?} instead of {address}");

    // Its first process is told to end at once, with connections open; started again, it has everything.
    k.run("exec deploy/postgres -- sh -c 'kill -INT 1'")?;
    let restarts = "get pod -l app=postgres -o jsonpath={.items[0].status.containerStatuses[0].restartCount}";
    k.until(restarts, |count| count == "1")?;
    k.says("rollout status deployment/postgres --timeout=60s", &["successfully rolled out"])?;
    k.until("get pod -l app=postgres", |said| said.contains("1/1"))?;
    let said = k.pipe(psql, "select count(*) from t;\n")?;
    ensure!(said == format!("{ROWS}\n"), "{said:?}");
    k.run("delete namespace database --timeout=60s").map(drop)
}
