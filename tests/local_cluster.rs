//! A cluster of real processes on this machine, from the command line, as a newcomer would: up, an image, a Deployment and its Service, down, and nothing
//! left behind.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// The cluster's folder; whatever happens, the cluster goes with it.
struct Local {
    dir: PathBuf,
}

impl Local {
    fn new(name: &str) -> Local {
        Local { dir: std::env::temp_dir().join(format!("skiff-test-{name}-{}", std::process::id())) }
    }

    fn skiff(&self, words: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_skiff"));
        command.args(words).env("KUBECONFIG", self.dir.join("kubeconfig"));
        command.output().unwrap_or_else(|e| panic!("running skiff {words:?}: {e}"))
    }

    /// Runs a command that must succeed; its output.
    fn run(&self, words: &[&str]) -> String {
        let output = self.skiff(words);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "skiff {words:?}: {}{}", text(&output.stdout), text(&output.stderr));
        text(&output.stdout)
    }

    fn dir(&self) -> &str {
        self.dir.to_str().expect("a plain path")
    }

    /// Looks until the output of a command is as it should be.
    fn until(&self, words: &[&str], good: impl Fn(&str) -> bool) {
        let begun = Instant::now();
        loop {
            let output = self.run(words);
            if good(&output) {
                return;
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "skiff {words:?} still says:\n{output}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        self.skiff(&["down", "--dir", self.dir()]);
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// Namespaces, mounts and control groups need root; without it the test says so, and fails where everything must run.
fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        assert!(std::env::var_os("CI").is_none(), "this test needs root");
        eprintln!("ignored: a local cluster needs root");
    }
    root
}

#[test]
fn a_newcomer_brings_up_a_cluster_deploys_and_takes_it_down() {
    if !is_root() {
        return;
    }
    let local = Local::new("up");
    let said = local.run(&["up", "--servers", "1", "--agents", "2", "--dir", local.dir()]);
    assert!(said.contains("export KUBECONFIG="), "{said}");
    local.until(&["get", "nodes"], |nodes| nodes.matches(" Ready").count() == 2);
    local.run(&["demo-image"]);
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/manifests/demo/web.yaml");
    local.run(&["apply", "-f", manifest]);
    local.until(&["get", "deployment", "web"], |d| d.contains("3/3"));
    let pods = local.run(&["get", "pods", "-o", "wide"]);
    assert!(pods.contains("a1") && pods.contains("a2"), "spread over both nodes:\n{pods}");
    local.run(&["scale", "deployment", "web", "--replicas", "5"]);
    local.until(&["get", "deployment", "web"], |d| d.contains("5/5"));
    local.run(&["delete", "-f", manifest]);
    local.until(&["get", "pods"], |pods| !pods.contains("web-"));
    local.run(&["down", "--dir", local.dir()]);
    assert!(!local.dir.exists(), "the folder is gone with the cluster");
}

#[test]
fn bad_input_is_told_by_file_and_field_and_nothing_is_done() {
    if !is_root() {
        return;
    }
    let local = Local::new("bad");
    local.run(&["up", "--servers", "1", "--agents", "0", "--dir", local.dir()]);
    let file = local.dir.join("bad.yaml");
    let check = |yaml: &str, expect: &str| {
        std::fs::write(&file, yaml).expect("writing the manifest");
        let output = local.skiff(&["apply", "-f", file.to_str().expect("a plain path")]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(expect), "{yaml}\nsaid: {said}");
    };
    let good = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: good}\n---\n";
    check("a: [1, 2\n", "bad.yaml");
    check(&format!("{good}apiVersion: v1\nkind: Nothing\nmetadata: {{name: x}}\n"), "Nothing");
    check(
        &format!("{good}apiVersion: v1\nkind: Pod\nmetadata: {{name: X}}\nspec: {{containers: []}}\n"),
        "metadata.name",
    );
    let there = local.run(&["get", "configmaps"]);
    assert!(!there.contains("good"), "half of a file was applied:\n{there}");
}
