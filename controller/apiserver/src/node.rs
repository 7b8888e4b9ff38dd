//! The way to a container: what the API server asks of whoever knows the agents.
//!
//! Logs, exec, attach and port-forward are streams between a client and a node. The API server speaks the client's protocol
//! on one side; on the other it hands a [`NodeRequest`] to a [`NodeConnector`] and gets a [`NodeStream`].

use bytes::Bytes;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use skiff_api::status::Status;
use tokio::sync::mpsc;

/// Which container of which pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Target {
    pub namespace: String,
    pub pod: String,
    pub uid: String,
    /// Empty for requests that are for the pod, such as port-forward.
    pub container: String,
}

/// What is wanted of a log.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LogOptions {
    pub follow: bool,
    /// The container before the last restart.
    pub previous: bool,
    pub timestamps: bool,
    pub tail_lines: Option<u64>,
    pub limit_bytes: Option<u64>,
    pub since: Option<Timestamp>,
    /// `All`, `Stdout` or `Stderr`.
    pub stream: String,
}

#[derive(Clone, Debug, PartialEq)]
pub enum NodeRequest {
    Logs {
        target: Target,
        options: LogOptions,
    },
    Exec {
        target: Target,
        command: Vec<String>,
        tty: bool,
        stdin: bool,
        stdout: bool,
        stderr: bool,
    },
    Attach {
        target: Target,
        tty: bool,
        stdin: bool,
        stdout: bool,
        stderr: bool,
    },
    /// One connection to a port of the pod. Data in both directions is on [`channel::DATA`].
    PortForward {
        target: Target,
        port: u16,
    },
}

/// Channels of the remote command protocol (v5.channel.k8s.io).
pub mod channel {
    pub const STDIN: u8 = 0;
    pub const STDOUT: u8 = 1;
    pub const STDERR: u8 = 2;
    /// A `metav1.Status` as JSON: how the command ended.
    pub const ERROR: u8 = 3;
    /// `{"Width":80,"Height":24}`.
    pub const RESIZE: u8 = 4;
    /// The one data byte names the channel that is closed.
    pub const CLOSE: u8 = 255;
    /// Both directions of a forwarded port.
    pub const DATA: u8 = 0;
}

/// A piece of a stream.
#[derive(Clone, Debug, PartialEq)]
pub struct Frame {
    pub channel: u8,
    pub data: Bytes,
}

/// How many frames wait in each direction before the sender does.
pub const QUEUE: usize = 32;

/// A stream to a node. It ends when `receive` ends; dropping it tells the node to stop.
#[derive(Debug)]
pub struct NodeStream {
    pub send: mpsc::Sender<Frame>,
    pub receive: mpsc::Receiver<Frame>,
}

impl NodeStream {
    /// Two ends of one stream: for the connector and for the API server.
    pub fn pair() -> (NodeStream, NodeStream) {
        let (a_send, b_receive) = mpsc::channel(QUEUE);
        let (b_send, a_receive) = mpsc::channel(QUEUE);
        (NodeStream { send: a_send, receive: a_receive }, NodeStream { send: b_send, receive: b_receive })
    }
}

/// Reaches agents by the name of their node.
pub trait NodeConnector: Send + Sync + 'static {
    /// Opens a stream to a node; the Status says why not.
    fn open(&self, node: &str, request: NodeRequest) -> BoxFuture<'static, Result<NodeStream, Status>>;
}

/// For a server without nodes.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoNodes;

impl NodeConnector for NoNodes {
    fn open(&self, node: &str, _: NodeRequest) -> BoxFuture<'static, Result<NodeStream, Status>> {
        let message =
            format!("node {node:?} is not connected to this cluster; see that its agent runs and can reach a server");
        Box::pin(async move { Err(Status::service_unavailable(message)) })
    }
}
