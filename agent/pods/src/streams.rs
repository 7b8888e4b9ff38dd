//! Logs, exec, attach and port forwarding for whoever serves them: channels of bytes, no protocol.

use bytes::Bytes;
use skiff_runtime::ExecSpec;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::logs::{self, LogRange};
use crate::netns;
use crate::relay;
use crate::visible::{Directory, VisibleContainer, VisiblePod};

/// Which log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogRequest {
    /// Namespace.
    pub namespace: String,
    /// Pod.
    pub name: String,
    /// Container; empty when the pod has only one.
    pub container: String,
    /// The instance before the newest.
    pub previous: bool,
    /// Which part.
    pub range: LogRange,
}

/// What to run, or (without a command) what to attach to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecRequest {
    /// Namespace.
    pub namespace: String,
    /// Pod.
    pub name: String,
    /// Container; empty when the pod has only one.
    pub container: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// The client will send input.
    pub stdin: bool,
    /// The program gets a terminal.
    pub tty: bool,
    /// How many columns and rows the terminal has before the program starts.
    pub window: Option<(u16, u16)>,
}

/// Bytes out of a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Its output.
    Stdout(Bytes),
    /// Its errors.
    Stderr(Bytes),
}

/// A program with a client. Dropping it ends an exec that still runs, and detaches from an attach.
pub struct ExecStream {
    /// Input; dropping it is the end of input. None when there is none.
    pub stdin: Option<mpsc::Sender<Bytes>>,
    /// Output and errors, until both ended. As with other container runtimes a program that was left in the background
    /// keeps them open; what was written is never cut off, however slowly it is read.
    pub output: mpsc::Receiver<Output>,
    /// New sizes of the terminal: columns, rows.
    pub resize: mpsc::Sender<(u16, u16)>,
    /// The exit code. It may be there before all output has been read: read the output first.
    pub exit: oneshot::Receiver<Result<i32, String>>,
    /// The client's interest; the tasks behind the channels end with it.
    pub interest: DropGuard,
}

/// Why there is no stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// No such pod on this node.
    #[error("pod {name:?} is not on this node")]
    NoPod {
        /// `namespace/name`.
        name: String,
    },
    /// The pod has no such container, or several.
    #[error("{0}")]
    NoContainer(String),
    /// The container has not run, or does not run now.
    #[error("{0}")]
    NotRunning(String),
    /// It did not work.
    #[error("{0}")]
    Failed(String),
}

impl Directory {
    fn find(&self, namespace: &str, name: &str) -> Result<VisiblePod, StreamError> {
        self.get(namespace, name).ok_or_else(|| StreamError::NoPod { name: format!("{namespace}/{name}") })
    }

    fn container(
        &self,
        namespace: &str,
        name: &str,
        container: &str,
    ) -> Result<(VisiblePod, String, VisibleContainer), StreamError> {
        let pod = self.find(namespace, name)?;
        // As kubectl does it: the first one, when none is named.
        let found = pod.containers.iter().find(|(have, _)| have == container || container.is_empty()).cloned();
        let missing = || StreamError::NoContainer(format!("container {container} is not valid for pod {name}"));
        let (container, visible) = found.ok_or_else(missing)?;
        Ok((pod, container, visible))
    }

    /// Streams a log.
    pub fn logs(&self, request: &LogRequest) -> Result<mpsc::Receiver<std::io::Result<Bytes>>, StreamError> {
        let (_, container, visible) = self.container(&request.namespace, &request.name, &request.container)?;
        let wanted = if request.previous { visible.previous } else { visible.log };
        let kind = if request.previous { "previous terminated container" } else { "container" };
        let path = wanted.ok_or_else(|| {
            StreamError::NotRunning(format!(
                "{kind} {container:?} in pod {:?} has no log: it has not been started",
                request.name
            ))
        })?;
        let mut range = request.range.clone();
        range.follow &= !request.previous;
        let (directory, namespace, name, followed) =
            (self.clone(), request.namespace.clone(), request.name.clone(), path.clone());
        let lives = move || {
            let now = directory.container(&namespace, &name, &container).ok();
            now.is_some_and(|(_, _, visible)| visible.running.is_some() && visible.log.as_deref() == Some(&followed))
        };
        Ok(logs::stream(path, range, lives))
    }

    /// Runs a program in a container.
    pub async fn exec(&self, request: &ExecRequest) -> Result<ExecStream, StreamError> {
        let (pod, container, visible) = self.container(&request.namespace, &request.name, &request.container)?;
        let (Some(made), Some(id)) = (pod.made, visible.running) else {
            return Err(StreamError::NotRunning(format!("container not found or not running (\"{container}\")")));
        };
        let spec = ExecSpec {
            container: id,
            args: request.command.clone(),
            tty: request.tty,
            window: request.window,
            ..ExecSpec::default()
        };
        let mut session =
            made.exec(spec, request.stdin).await.map_err(|error| StreamError::Failed(error.to_string()))?;
        let (sender, exit) = oneshot::channel();
        let gone = CancellationToken::new();
        let stream = relay::connect(session.take_io(), request.stdin, exit, gone.clone());
        tokio::spawn(async move {
            tokio::select! {
                code = session.wait() => drop(sender.send(code.map_err(|error| error.to_string()))),
                // The session goes, and the program with it.
                () = gone.cancelled() => {}
            }
        });
        Ok(stream)
    }

    /// Joins a container's own streams.
    pub async fn attach(&self, request: &ExecRequest) -> Result<ExecStream, StreamError> {
        let (pod, container, visible) = self.container(&request.namespace, &request.name, &request.container)?;
        let (Some(made), Some(id)) = (pod.made, visible.running) else {
            return Err(StreamError::NotRunning(format!(
                "container {container:?} in pod {:?} is not running",
                request.name
            )));
        };
        let attached = made.attach(&id).await.map_err(|error| StreamError::Failed(error.to_string()))?;
        let (sender, exit) = oneshot::channel();
        // Attaching ends well when the streams end; how the container ended is told by the pod's status.
        let _ = sender.send(Ok(0));
        Ok(relay::connect(attached.io, request.stdin, exit, CancellationToken::new()))
    }

    /// A connection to a port on the pod's own loopback address.
    pub async fn port_forward(&self, namespace: &str, name: &str, port: u16) -> Result<TcpStream, StreamError> {
        let pod = self.find(namespace, name)?;
        let made = pod.made.ok_or_else(|| StreamError::NotRunning(format!("pod {name:?} is not running")))?;
        let netns = made.netns_path().map_err(|error| StreamError::Failed(error.to_string()))?;
        let netns = pod.own_network.then_some(netns);
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));
        let stream = netns::connect(netns.as_deref(), address).await;
        stream
            .map_err(|error| StreamError::Failed(format!("connect to port {port} in pod {namespace}/{name}: {error}")))
    }
}
