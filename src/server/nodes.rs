//! From the API server to a node: its requests for logs, exec, attach and port-forward become calls that the agent answers with a stream.

use futures_util::future::BoxFuture;
use skiff_api::status::Status;
use skiff_apiserver::NodeConnector;
use skiff_apiserver::node::{Frame, NodeRequest, NodeStream, Target};
use skiff_fleet::{CallStream, Calls};
use skiff_proto::fleet as pb;
use std::sync::Arc;

/// Opens streams to agents that listen to this server.
pub struct Connector {
    calls: Arc<Calls>,
}

impl Connector {
    pub fn new(calls: Arc<Calls>) -> Self {
        Connector { calls }
    }
}

impl NodeConnector for Connector {
    fn open(&self, node: &str, request: NodeRequest) -> BoxFuture<'static, Result<NodeStream, Status>> {
        let (calls, node) = (self.calls.clone(), node.to_owned());
        Box::pin(async move {
            let stream = calls.open(&node, call(request)).await;
            let stream = stream.map_err(|e| Status::service_unavailable(format!("{e}; see that its agent runs")))?;
            let (ours, theirs) = NodeStream::pair();
            tokio::spawn(join(stream, theirs));
            Ok(ours)
        })
    }
}

/// Copies frames both ways, each way on its own: a full queue in one must not stop the other. Ends when the node's half
/// has ended and everything was handed on, or when the client is gone, which the node is told.
async fn join(stream: CallStream, client: NodeStream) {
    let CallStream { send: to_node, receive: mut from_node, over } = stream;
    let NodeStream { send: to_client, receive: mut from_client } = client;
    let down = async {
        while let Some(frame) = from_node.recv().await {
            let frame = Frame { channel: frame.channel as u8, data: frame.data };
            if to_client.send(frame).await.is_err() {
                return false;
            }
        }
        true
    };
    let up = async {
        while let Some(frame) = from_client.recv().await {
            let frame = pb::Frame { id: String::new(), channel: frame.channel.into(), data: frame.data };
            if to_node.send(frame).await.is_err() {
                break;
            }
        }
        // It sends no more, but may still listen.
        std::future::pending::<()>().await;
    };
    let ended = tokio::select! {
        ended = down => ended,
        () = up => false,
        () = to_client.closed() => false,
    };
    if !ended {
        over.tell().await;
    }
}

fn call(request: NodeRequest) -> pb::call::Kind {
    use pb::call::Kind;
    let exec = |t: Target, command, tty, (stdin, stdout, stderr)| pb::Exec {
        namespace: t.namespace,
        pod: t.pod,
        uid: t.uid,
        container: t.container,
        command,
        stdin,
        stdout,
        stderr,
        tty,
    };
    match request {
        NodeRequest::Logs { target, options } => Kind::Logs(pb::Logs {
            namespace: target.namespace,
            pod: target.pod,
            uid: target.uid,
            container: target.container,
            follow: options.follow,
            previous: options.previous,
            timestamps: options.timestamps,
            tail_lines: options.tail_lines.map_or(-1, |n| n as i64),
            since_time: options.since.map(|t| t.to_string()).unwrap_or_default(),
            limit_bytes: options.limit_bytes.map_or(0, |n| n as i64),
        }),
        NodeRequest::Exec { target, command, tty, stdin, stdout, stderr } => {
            Kind::Exec(exec(target, command, tty, (stdin, stdout, stderr)))
        }
        NodeRequest::Attach { target, tty, stdin, stdout, stderr } => {
            Kind::Attach(exec(target, Vec::new(), tty, (stdin, stdout, stderr)))
        }
        NodeRequest::PortForward { target, port } => Kind::PortForward(pb::PortForward {
            namespace: target.namespace,
            pod: target.pod,
            uid: target.uid,
            port: port.into(),
        }),
    }
}

/// The node that a certificate (DER) is of: by its name, and by the group that only nodes' certificates are in.
pub fn name_in(der: &[u8]) -> Option<String> {
    let is_node = skiff_identity::organization(der).as_deref() == Some("system:nodes");
    skiff_identity::common_name(der)?.strip_prefix("system:node:").filter(|_| is_node).map(str::to_owned)
}

/// Whether a certificate (DER) is a server's.
pub fn is_server(der: &[u8]) -> bool {
    skiff_identity::organization(der).as_deref() == Some("system:skiff-servers")
}

/// Whether a certificate (DER) is an administrator's or a server's: these may hand images to the cluster.
pub fn is_trusted(der: &[u8]) -> bool {
    matches!(skiff_identity::organization(der).as_deref(), Some("system:masters" | "system:skiff-servers"))
}
