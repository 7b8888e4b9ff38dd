//! What people type: real kubectls against a server with made-up containers. Ignored, with the reason, where there is no kubectl.
//!
//! Every version that can be found is run, each with a cache of its own: those that `SKIFF_KUBECTL` names (paths with `:`
//! between), else `kubectl` in the `PATH` and each `kubectl.1.NN` or `kubectl-1.NN` in the `PATH` or beside it.
//! `SKIFF_HOLD=1` only starts the server, prints the line to use it with, and waits for Ctrl-C.

mod support;

use libtest_mimic::{Arguments, Failed, Trial};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;
use support::Cluster;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::Command;

/// No command here takes longer.
const COMMAND_MAX: Duration = Duration::from_secs(30);

/// One kubectl of this machine.
#[derive(Clone, Debug)]
struct Binary {
    path: PathBuf,
    /// `v1.31.9`
    version: String,
}

impl Binary {
    /// None when it cannot be run.
    fn at(path: PathBuf) -> Option<Binary> {
        let output = std::process::Command::new(&path).args(["version", "--client", "-o", "json"]).output().ok()?;
        let told: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
        let version = told.pointer("/clientVersion/gitVersion")?.as_str()?.to_string();
        Some(Binary { path, version })
    }

    /// `1.31` as a number that can be compared: 31.
    fn minor(&self) -> u32 {
        self.version.split('.').nth(1).and_then(|m| m.parse().ok()).unwrap_or(0)
    }
}

/// Every kubectl there is, the oldest first.
fn binaries() -> Vec<Binary> {
    let mut paths: Vec<PathBuf> = Vec::new();
    if let Some(named) = std::env::var_os("SKIFF_KUBECTL") {
        paths.extend(std::env::split_paths(&named));
    } else {
        let mut folders: Vec<PathBuf> = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect();
        let found = folders.iter().map(|f| f.join("kubectl")).find(|p| p.is_file());
        // The one in the PATH may be a link into the folder where the others are.
        folders.extend(found.as_ref().and_then(|p| p.canonicalize().ok()?.parent().map(Path::to_path_buf)));
        paths.extend(found);
        for folder in folders {
            for minor in 20..60 {
                paths
                    .extend([format!("kubectl.1.{minor}"), format!("kubectl-1.{minor}")].map(|name| folder.join(name)));
            }
        }
        paths.retain(|p| p.is_file());
    }
    let mut all: Vec<Binary> = paths.into_iter().filter_map(Binary::at).collect();
    all.sort_by_key(Binary::minor);
    all.dedup_by(|a, b| a.version == b.version);
    all
}

struct Kubectl {
    binary: Binary,
    cluster: Cluster,
    config: PathBuf,
    /// Speaks SPDY, as older versions do.
    spdy: bool,
}

impl Kubectl {
    async fn start(binary: &Binary, spdy: bool) -> anyhow::Result<Kubectl> {
        let cluster = Cluster::start().await?;
        cluster.running_pod("n1", "web").await?;
        let config = cluster.kubeconfig("root", Some("system:masters"))?;
        Ok(Kubectl { binary: binary.clone(), cluster, config, spdy })
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(&self.binary.path);
        command.args(line.split_whitespace()).kill_on_drop(true);
        command.env("KUBECONFIG", &self.config).env("HOME", &self.cluster.folder).env("KUBECACHEDIR", self.cache());
        for switch in ["KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "KUBECTL_PORT_FORWARD_WEBSOCKETS"] {
            command.env(switch, if self.spdy { "false" } else { "true" });
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn cache(&self) -> PathBuf {
        self.cluster.folder.join("cache")
    }

    async fn run(&self, line: &str, input: &str) -> anyhow::Result<Output> {
        let mut command = self.command(line);
        command.stdin(Stdio::piped());
        let mut child = command.spawn()?;
        let mut stdin = child.stdin.take();
        let write = async {
            if let Some(stdin) = &mut stdin {
                // A command that reads no input closes it.
                let _ = stdin.write_all(input.as_bytes()).await;
            }
            drop(stdin);
        };
        let both = async { tokio::join!(write, child.wait_with_output()).1 };
        Ok(tokio::time::timeout(COMMAND_MAX, both).await??)
    }

    /// Runs a command line with an input; output, error output and code must be as expected (texts: contained).
    async fn check(&self, line: &str, input: &str, expect: &str, errors: &str, code: i32) -> anyhow::Result<()> {
        let output = self.run(line, input).await?;
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let fits = out.contains(expect) && err.contains(errors) && output.status.code() == Some(code);
        let head: String = out.chars().take(2000).collect();
        let version = &self.binary.version;
        anyhow::ensure!(fits, "kubectl {version} {line}: {:?}\n--- out\n{head}\n--- err\n{err}", output.status.code());
        Ok(())
    }
}

async fn remote_commands(binary: &Binary, spdy: bool) -> anyhow::Result<()> {
    let k = Kubectl::start(binary, spdy).await?;
    k.check("exec web -- echo hello world", "", "hello world\n", "", 0).await?;
    k.check("exec web -- warn careful", "", "", "careful", 0).await?;
    k.check("exec -i web -- cat", "to and fro", "to and fro", "", 0).await?;
    k.check("exec -i web -- cat", &"x".repeat(30_000_000), &"x".repeat(30_000_000), "", 0).await?;
    k.check("exec web -- exit 42", "", "", "exit code 42", 42).await?;
    k.check("exec web -c none -- echo", "", "", "container none is not valid for pod web", 1).await?;
    k.check("exec nobody -- echo", "", "", "pods \"nobody\" not found", 1).await?;
    k.check("attach -i web", "attached", "attached", "", 0).await
}

async fn forwards(binary: &Binary, spdy: bool) -> anyhow::Result<()> {
    let k = Kubectl::start(binary, spdy).await?;
    let mut child = k.command("port-forward pod/web :8080 :9").spawn()?;
    let mut lines = BufReader::new(child.stdout.take().ok_or_else(|| anyhow::anyhow!("no output"))?).lines();
    let mut ports = Vec::new();
    while ports.len() < 2 {
        let line = tokio::time::timeout(COMMAND_MAX, lines.next_line()).await??;
        let line = line.ok_or_else(|| anyhow::anyhow!("port-forward ended"))?;
        // Forwarding from 127.0.0.1:41000 -> 8080
        if let Some(port) = line.strip_prefix("Forwarding from 127.0.0.1:").and_then(|l| l.split(' ').next()) {
            ports.push(port.parse::<u16>()?);
        }
    }
    let talk = async |number: usize| {
        let mut socket = tokio::net::TcpStream::connect(("127.0.0.1", ports[0])).await?;
        let text = format!("connection {number} ").repeat(100_000);
        let (mut read, mut write) = socket.split();
        let (sent, answer) = tokio::join!(
            async {
                write.write_all(text.as_bytes()).await?;
                write.shutdown().await
            },
            async {
                let mut answer = String::new();
                read.read_to_string(&mut answer).await.map(|_| answer)
            }
        );
        sent?;
        anyhow::ensure!(answer? == text.to_uppercase(), "connection {number} got something else");
        anyhow::Ok(())
    };
    let all = futures_util::future::try_join_all((0..20).map(talk));
    tokio::time::timeout(COMMAND_MAX, all).await??;
    let mut refused = tokio::net::TcpStream::connect(("127.0.0.1", ports[1])).await?;
    refused.write_all(b"x").await?;
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(COMMAND_MAX, refused.read_to_end(&mut answer)).await?;
    anyhow::ensure!(answer.is_empty(), "a refused port answered");
    let mut errors = BufReader::new(child.stderr.take().ok_or_else(|| anyhow::anyhow!("no errors"))?).lines();
    let told = tokio::time::timeout(COMMAND_MAX, errors.next_line()).await??.unwrap_or_default();
    anyhow::ensure!(told.contains("connection refused"), "the refusal is told: {told}");
    child.kill().await?;
    Ok(())
}

async fn logs(binary: &Binary) -> anyhow::Result<()> {
    let k = Kubectl::start(binary, false).await?;
    k.check("logs web", "", "first\n", "", 0).await?;
    k.check("logs -p web", "", "", "previous terminated container \"main\" in pod \"web\" not found", 1).await?;
    // A line arrives as soon as it is written, and the end of the log ends the command.
    let mut child = k.command("logs -f web").spawn()?;
    let mut lines = BufReader::new(child.stdout.take().ok_or_else(|| anyhow::anyhow!("no output"))?).lines();
    let first = tokio::time::timeout(COMMAND_MAX, lines.next_line()).await??;
    anyhow::ensure!(first.as_deref() == Some("first"), "{first:?}");
    support::nodes::MORE.notify_one();
    let second = tokio::time::timeout(COMMAND_MAX, lines.next_line()).await??;
    anyhow::ensure!(second.as_deref() == Some("second"), "{second:?}");
    let status = tokio::time::timeout(COMMAND_MAX, child.wait()).await??;
    anyhow::ensure!(status.success(), "logs -f ended with {status}");
    Ok(())
}

/// Commands of every day; most of the `create`s send protobuf.
async fn everyday(binary: &Binary) -> anyhow::Result<()> {
    let k = Kubectl::start(binary, false).await?;
    let manifest = k.cluster.folder.join("app.json");
    let text = |image: &str| {
        serde_json::json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "app"},
            "spec": {
                "selector": {"matchLabels": {"app": "app"}},
                "template": {
                    "metadata": {"labels": {"app": "app"}},
                    "spec": {"containers": [{"name": "c", "image": image}]},
                },
            },
        })
        .to_string()
    };
    let file = manifest.display();
    let apply = format!("apply -f {file}");
    let server_side = format!("apply --server-side --field-manager=other -f {file}");
    std::fs::write(&manifest, text("one"))?;
    k.check(&apply, "", "deployment.apps/app created", "", 0).await?;
    k.check(&apply, "", "deployment.apps/app unchanged", "", 0).await?;
    k.check("set image deploy/app c=two", "", "image updated", "", 0).await?;
    std::fs::write(&manifest, text("three"))?;
    k.check(&server_side, "", "", "conflict", 1).await?;
    k.check(&format!("{server_side} --force-conflicts"), "", "serverside-applied", "", 0).await?;
    let rows: &[(&str, &str, &str, i32)] = &[
        ("create deployment web --image=nginx --replicas=2", "deployment.apps/web created", "", 0),
        ("get deploy web -o jsonpath={.spec.replicas}{.spec.template.spec.containers[0].image}", "2nginx", "", 0),
        ("create service clusterip s --tcp=80:8080", "service/s created", "", 0),
        ("get service s -o jsonpath={.spec.ports[0].targetPort}", "8080", "", 0),
        ("create configmap c --from-literal=a=b", "configmap/c created", "", 0),
        ("create secret generic s --from-literal=p=q", "secret/s created", "", 0),
        ("get secret s -o jsonpath={.data.p}", "cQ==", "", 0),
        ("create namespace other", "namespace/other created", "", 0),
        ("create serviceaccount robot", "serviceaccount/robot created", "", 0),
        ("create token robot", "ey", "", 0),
        ("create role r --verb=get --resource=pods", "role.rbac.authorization.k8s.io/r created", "", 0),
        ("create rolebinding r --role=r --serviceaccount=default:robot", "r created", "", 0),
        ("auth can-i get pods --as=system:serviceaccount:default:robot", "yes", "", 0),
        ("auth can-i list pods --as=system:serviceaccount:default:robot", "no", "", 1),
        ("explain deployment.spec.strategy", "rollingUpdate", "", 0),
        ("explain pods", "One or more containers", "", 0),
        ("describe deploy web", "nginx", "", 0),
        ("get pods -o wide", "NOMINATED NODE", "", 0),
        ("exec web -- echo hello", "hello", "", 0),
        ("api-resources --api-group=apps", "deployments", "", 0),
        ("scale deploy/app --replicas=3", "scaled", "", 0),
        ("rollout restart deploy/app", "restarted", "", 0),
        ("label pod web tier=front", "labeled", "", 0),
        ("annotate pod web note=x", "pod/web annotate", "", 0),
        ("get pods -l tier=front -o name", "pod/web", "", 0),
        ("describe pod web", "tier=front", "", 0),
        ("wait --for=condition=Ready pod/web --timeout=5s", "condition met", "", 0),
        ("drain n1 --force --timeout=1s", "evicting pod default/web", "", 1),
        ("get node n1", "SchedulingDisabled", "", 0),
        ("uncordon n1", "uncordoned", "", 0),
        ("delete deploy app web", "deleted", "", 0),
    ];
    for (line, expect, errors, code) in rows {
        k.check(line, "", expect, errors, *code).await?;
    }
    let csr = k.cluster.folder.join("csr.json");
    std::fs::write(&csr, signing_request()?)?;
    let file = csr.display();
    k.check(&format!("apply -f {file}"), "", "certificatesigningrequest.certificates.k8s.io/ann created", "", 0)
        .await?;
    k.check("certificate approve ann", "", "certificatesigningrequest.certificates.k8s.io/ann approved", "", 0).await?;
    k.check("get csr ann", "", "Approved", "", 0).await?;
    k.check("wait --for=condition=Approved csr/ann --timeout=5s", "", "condition met", "", 0).await?;
    k.check("create deployment scaled --image=nginx", "", "created", "", 0).await?;
    k.check("autoscale deployment scaled --max=5 --cpu-percent=60", "", "autoscaled", "", 0).await?;
    k.check("get hpa scaled -o jsonpath={.spec.metrics[0].resource.target.averageUtilization}", "", "60", "", 0)
        .await?;
    k.check(
        "get horizontalpodautoscalers.v1.autoscaling scaled -o jsonpath={.spec.targetCPUUtilizationPercentage}",
        "",
        "60",
        "",
        0,
    )
    .await?;
    if binary.minor() >= 28 {
        // Before, it asks for a beta version that is gone.
        k.check("auth whoami -o jsonpath={.status.userInfo.username}", "", "root", "", 0).await?;
    } else {
        k.check("explain pods.spec --output plaintext-openapiv2", "", "containers", "", 0).await?;
    }
    Ok(())
}

/// A CertificateSigningRequest for the user `ann`.
fn signing_request() -> anyhow::Result<String> {
    use base64::Engine as _;
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, "ann");
    let pem = params.serialize_request(&rcgen::KeyPair::generate()?)?.pem()?;
    let request = base64::engine::general_purpose::STANDARD.encode(pem);
    let spec = serde_json::json!({"request": request, "signerName": "example.com/s", "usages": ["client auth"]});
    let object = serde_json::json!({"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
        "metadata": {"name": "ann"}, "spec": spec});
    Ok(object.to_string())
}

async fn hold(binary: &Binary) -> anyhow::Result<()> {
    let k = Kubectl::start(binary, false).await?;
    println!("export KUBECONFIG={}", Path::new(&k.config).display());
    tokio::signal::ctrl_c().await?;
    Ok(())
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::from_args();
    let runtime = || tokio::runtime::Runtime::new().map_err(Failed::from);
    if std::env::var_os("SKIFF_HOLD").is_some() {
        let newest = binaries().pop().ok_or_else(|| anyhow::anyhow!("there is no kubectl here"))?;
        return tokio::runtime::Runtime::new()?.block_on(hold(&newest));
    }
    let binaries = binaries();
    let required = std::env::var_os("CI").is_some_and(|v| v == "true");
    let Some(newest) = binaries.last().cloned() else {
        eprintln!("kubectl: {}: there is no kubectl here", if required { "failed" } else { "ignored" });
        let trial = Trial::test("kubectl", || Err("there is no kubectl here".into())).with_ignored_flag(!required);
        libtest_mimic::run(&arguments, vec![trial]).exit();
    };
    let versions: Vec<&str> = binaries.iter().map(|b| b.version.as_str()).collect();
    println!("kubectl versions: {}", versions.join(", "));
    macro_rules! trial {
        ($name:expr, $binary:expr, |$b:ident| $run:expr) => {{
            let $b = $binary.clone();
            Trial::test(format!("{} ({})", $name, $b.version), move || {
                let $b = &$b;
                runtime()?.block_on($run).map_err(|e| Failed::from(format!("{e:#}")))
            })
        }};
    }
    let mut trials = vec![
        trial!("exec and attach over WebSocket", newest, |b| remote_commands(b, false)),
        trial!("exec and attach over SPDY", newest, |b| remote_commands(b, true)),
        trial!("port-forward over WebSocket", newest, |b| forwards(b, false)),
        trial!("port-forward over SPDY", newest, |b| forwards(b, true)),
        trial!("logs", newest, |b| logs(b)),
    ];
    trials.extend(binaries.iter().map(|binary| trial!("everyday commands", binary, |b| everyday(b))));
    libtest_mimic::run(&arguments, trials).exit();
}
