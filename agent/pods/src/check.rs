//! One look at a container: run a program in it, ask it over HTTP, connect to it, or ask its gRPC health service.
//!
//! Used by probes and by lifecycle hooks. Network looks start inside the pod's network namespace and go to the pod's
//! address, so they see what clients see and work without any route from the node.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::Request;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use skiff_runtime::{ExecSpec, Pod as RuntimePod};
use tokio::io::AsyncReadExt;

use crate::netns;

/// As much of an answer as a message shows.
const OUTPUT_BYTES_MAX: usize = 10 * 1024;

/// Where a container can be looked at.
#[derive(Clone)]
pub struct Target {
    /// The runtime's pod.
    pub pod: RuntimePod,
    /// The runtime's container.
    pub container_id: String,
    /// The pod's address.
    pub ip: IpAddr,
    /// The pod's network namespace; none for the host's.
    pub netns: Option<PathBuf>,
}

/// What a look is.
#[derive(Debug, Clone, PartialEq)]
pub enum Look {
    /// Exit code 0.
    Exec(Vec<String>),
    /// A status from 200 to 399.
    Http { host: String, port: u16, path: String, tls: bool, headers: Vec<(String, String)> },
    /// A connection.
    Tcp { host: String, port: u16 },
    /// `SERVING`.
    Grpc { port: u16, service: String },
}

impl Look {
    /// What a probe asks for; ports by name are looked up in the container.
    pub fn of_probe(probe: &Probe, container: &Container) -> Result<Look, String> {
        if let Some(exec) = &probe.exec {
            return Ok(Look::Exec(exec.command.clone().unwrap_or_default()));
        }
        if let Some(get) = &probe.http_get {
            return Look::http(get, container);
        }
        if let Some(tcp) = &probe.tcp_socket {
            return Ok(Look::Tcp { host: tcp.host.clone().unwrap_or_default(), port: port(&tcp.port, container)? });
        }
        if let Some(grpc) = &probe.grpc {
            let port = u16::try_from(grpc.port).map_err(|_| format!("invalid port number: {}", grpc.port))?;
            return Ok(Look::Grpc { port, service: grpc.service.clone().unwrap_or_default() });
        }
        Err("the probe has no handler".into())
    }

    /// An HTTP request.
    pub fn http(get: &HTTPGetAction, container: &Container) -> Result<Look, String> {
        let headers =
            get.http_headers.iter().flatten().map(|header| (header.name.clone(), header.value.clone())).collect();
        let path = get.path.clone().filter(|path| !path.is_empty()).unwrap_or_else(|| "/".into());
        let path = if path.starts_with('/') { path } else { format!("/{path}") };
        let tls = get.scheme.as_deref().is_some_and(|scheme| scheme.eq_ignore_ascii_case("HTTPS"));
        Ok(Look::Http {
            host: get.host.clone().unwrap_or_default(),
            port: port(&get.port, container)?,
            path,
            tls,
            headers,
        })
    }

    /// Looks. The error is what a message shows.
    pub async fn look(&self, target: &Target, timeout: Duration) -> Result<String, String> {
        let look = async {
            match self {
                Look::Exec(command) => exec(target, command).await,
                Look::Http { host, port, path, tls, headers } => http(target, host, *port, path, *tls, headers).await,
                Look::Tcp { host, port } => connect(target, host, *port).await.map(|_| String::new()),
                Look::Grpc { port, service } => crate::health::check(target, *port, service).await,
            }
        };
        match tokio::time::timeout(timeout, look).await {
            Ok(result) => result,
            Err(_) => Err(format!("{}: no answer within {timeout:?}", self.name(target))),
        }
    }

    fn name(&self, target: &Target) -> String {
        match self {
            Look::Exec(command) => format!("command {:?} timed out", command.join(" ")),
            Look::Http { port, path, tls, .. } => {
                format!("Get \"{}://{}:{port}{path}\"", if *tls { "https" } else { "http" }, target.ip)
            }
            Look::Tcp { port, .. } => format!("dial tcp {}:{port}", target.ip),
            Look::Grpc { port, .. } => format!("grpc {}:{port}", target.ip),
        }
    }
}

fn port(port: &IntOrString, container: &Container) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => match name.parse() {
            Ok(number) => number,
            Err(_) => {
                let found = container.ports.iter().flatten().find(|port| port.name.as_deref() == Some(name));
                found.ok_or_else(|| format!("couldn't find port: {name:?}"))?.container_port
            }
        },
    };
    u16::try_from(number).ok().filter(|port| *port > 0).ok_or_else(|| format!("invalid port number: {number}"))
}

async fn exec(target: &Target, command: &[String]) -> Result<String, String> {
    let spec = ExecSpec { container: target.container_id.clone(), args: command.to_vec(), ..ExecSpec::default() };
    let mut session = target.pod.exec(spec, false).await.map_err(|error| error.to_string())?;
    let (stdout, stderr) = (session.io.stdout.take(), session.io.stderr.take());
    let read = |stream: Option<Box<dyn tokio::io::AsyncRead + Send + Unpin>>| async move {
        let mut kept = Vec::new();
        let Some(mut stream) = stream else { return kept };
        let mut chunk = [0u8; 4096];
        // All of it is read, so that the program never waits; only the beginning is kept.
        while let Ok(count @ 1..) = stream.read(&mut chunk).await {
            kept.extend_from_slice(&chunk[..count.min(OUTPUT_BYTES_MAX.saturating_sub(kept.len()))]);
        }
        kept
    };
    let (out, err) = tokio::join!(read(stdout), read(stderr));
    let text = String::from_utf8_lossy(&[out, err].concat()).trim_end().to_owned();
    match session.wait().await.map_err(|error| error.to_string())? {
        0 => Ok(text),
        code if text.is_empty() => Err(format!("command exited with code {code}")),
        _ => Err(text),
    }
}

/// A connection to the pod, or to another host from inside it.
pub async fn connect(target: &Target, host: &str, port: u16) -> Result<tokio::net::TcpStream, String> {
    let ip = if host.is_empty() {
        target.ip
    } else {
        host.parse().map_err(|_| format!("the host {host:?} is not an IP address"))?
    };
    let address = SocketAddr::new(ip, port);
    netns::connect(target.netns.as_deref(), address)
        .await
        .map_err(|error| format!("dial tcp {address}: connect: {}", words(&error)))
}

fn words(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connection refused".into(),
        _ => error.to_string(),
    }
}

async fn http(
    target: &Target,
    host: &str,
    port: u16,
    path: &str,
    tls: bool,
    headers: &[(String, String)],
) -> Result<String, String> {
    let stream = connect(target, host, port).await?;
    let scheme = if tls { "https" } else { "http" };
    let name = if host.is_empty() { target.ip.to_string() } else { host.to_owned() };
    let mut request = Request::get(path).header("Accept", "*/*").header("Connection", "close");
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("user-agent")) {
        request = request.header("User-Agent", "kube-probe/1.36");
    }
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        request = request.header("Host", format!("{name}:{port}"));
    }
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let request =
        request.body(Empty::<bytes::Bytes>::new()).map_err(|error| format!("the probe's request: {error}"))?;
    let fail = |error: &dyn std::fmt::Display| format!("Get \"{scheme}://{name}:{port}{path}\": {error}");
    let stream: Box<dyn crate::tls::Stream> = match tls {
        true => Box::new(crate::tls::wrap(stream, target.ip).await.map_err(|error| fail(&error))?),
        false => Box::new(stream),
    };
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| fail(&error))?;
    let driver = tokio::spawn(connection);
    let answer = sender.send_request(request).await;
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) => {
            driver.abort();
            return Err(fail(&error));
        }
    };
    let status = answer.status();
    let body = Limited::new(answer.into_body(), OUTPUT_BYTES_MAX).collect().await;
    driver.abort();
    let text = body.map(|body| String::from_utf8_lossy(&body.to_bytes()).into_owned()).unwrap_or_default();
    if (200..400).contains(&status.as_u16()) {
        Ok(text)
    } else {
        Err(format!("HTTP probe failed with statuscode: {}", status.as_u16()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn looks() {
        let container: Container =
            serde_json::from_value(json!({"name": "c", "ports": [{"name": "web", "containerPort": 8080}]})).unwrap();
        let check = |probe: serde_json::Value, expect: Result<Look, &str>| {
            let probe: Probe = serde_json::from_value(probe).unwrap();
            let got = Look::of_probe(&probe, &container);
            match expect {
                Ok(look) => assert_eq!(got, Ok(look)),
                Err(part) => assert!(got.as_ref().is_err_and(|error| error.contains(part)), "{got:?}"),
            }
        };
        check(json!({"exec": {"command": ["a"]}}), Ok(Look::Exec(vec!["a".into()])));
        let http = Look::Http { host: String::new(), port: 8080, path: "/x".into(), tls: false, headers: vec![] };
        check(json!({"httpGet": {"port": "web", "path": "x"}}), Ok(http));
        check(json!({"tcpSocket": {"port": 5}}), Ok(Look::Tcp { host: String::new(), port: 5 }));
        check(json!({"grpc": {"port": 5}}), Ok(Look::Grpc { port: 5, service: String::new() }));
        check(json!({"httpGet": {"port": "none"}}), Err("couldn't find port"));
        check(json!({"tcpSocket": {"port": 70000}}), Err("invalid port"));
        check(json!({}), Err("no handler"));
    }
}
