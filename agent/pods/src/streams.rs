//! Logs, exec, attach and port forwarding for whoever serves them: channels of bytes, no protocol.

use bytes::Bytes;
use skiff_runtime::{ExecIo, ExecSpec};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};

use crate::logs::{self, LogRange};
use crate::netns;
use crate::visible::{Directory, VisibleContainer, VisiblePod};

/// Chunks on their way; with their size the most that a slow client holds.
const QUEUE_MAX: usize = 8;
const CHUNK_BYTES: usize = 32 * 1024;

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
}

/// Bytes out of a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Its output.
    Stdout(Bytes),
    /// Its errors.
    Stderr(Bytes),
}

/// A program with a client. Dropping it ends an exec, and detaches from an attach.
pub struct ExecStream {
    /// Input; dropping it is the end of input. None when there is none.
    pub stdin: Option<mpsc::Sender<Bytes>>,
    /// Output and errors, until both ended.
    pub output: mpsc::Receiver<Output>,
    /// New sizes of the terminal: columns, rows.
    pub resize: mpsc::Sender<(u16, u16)>,
    /// The exit code, after the output.
    pub exit: oneshot::Receiver<Result<i32, String>>,
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
        let spec = ExecSpec { container: id, args: request.command.clone(), tty: request.tty, ..ExecSpec::default() };
        let session = made.exec(spec, request.stdin).await.map_err(|error| StreamError::Failed(error.to_string()))?;
        let (sender, exit) = oneshot::channel();
        let mut session = session;
        let io = std::mem::replace(&mut session.io, ExecIo { stdin: None, stdout: None, stderr: None, terminal: None });
        let mut stream = connect(io, request.stdin, exit);
        let output = std::mem::replace(&mut stream.output, mpsc::channel(1).1);
        let (forward, receiver) = mpsc::channel(QUEUE_MAX);
        stream.output = receiver;
        tokio::spawn(async move {
            // The session lives as long as the client listens; the exit code comes after the last output.
            let mut output = output;
            let closed = forward.clone();
            let relay = async move {
                while let Some(chunk) = output.recv().await {
                    if forward.send(chunk).await.is_err() {
                        return;
                    }
                }
            };
            let wait = async {
                let code = session.wait().await.map_err(|error| error.to_string());
                // A background child may hold the output open for ever; the program's own end is the end.
                code
            };
            tokio::pin!(relay);
            tokio::select! {
                code = wait => {
                    let _ = tokio::time::timeout(std::time::Duration::from_secs(2), &mut relay).await;
                    let _ = sender.send(code);
                }
                () = closed.closed() => {}
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
        tokio::spawn(async move {
            let code = made.wait_exit(&id).await.map(|state| state.exit_code).map_err(|error| error.to_string());
            let _ = sender.send(code);
        });
        Ok(connect(attached.io, request.stdin, exit))
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

/// Pumps between a program's descriptors and channels.
fn connect(io: ExecIo, stdin: bool, exit: oneshot::Receiver<Result<i32, String>>) -> ExecStream {
    let (sender, output) = mpsc::channel(QUEUE_MAX);
    if let Some(stdout) = io.stdout {
        tokio::spawn(pump(stdout, sender.clone(), Output::Stdout));
    }
    if let Some(stderr) = io.stderr {
        tokio::spawn(pump(stderr, sender, Output::Stderr));
    }
    let input = io.stdin.filter(|_| stdin).map(|mut writer| {
        let (sender, mut receiver) = mpsc::channel::<Bytes>(QUEUE_MAX);
        tokio::spawn(async move {
            while let Some(bytes) = receiver.recv().await {
                if writer.write_all(&bytes).await.is_err() {
                    return;
                }
            }
        });
        sender
    });
    let (resize, mut sizes) = mpsc::channel::<(u16, u16)>(QUEUE_MAX);
    if let Some(terminal) = io.terminal {
        tokio::spawn(async move {
            while let Some((columns, rows)) = sizes.recv().await {
                let _ = terminal.resize(columns, rows);
            }
        });
    }
    ExecStream { stdin: input, output, resize, exit }
}

async fn pump(mut reader: Box<dyn AsyncRead + Send + Unpin>, sender: mpsc::Sender<Output>, wrap: fn(Bytes) -> Output) {
    let mut chunk = vec![0u8; CHUNK_BYTES];
    loop {
        let count = tokio::select! {
            count = reader.read(&mut chunk) => count.unwrap_or(0),
            () = sender.closed() => return,
        };
        if count == 0 || sender.send(wrap(Bytes::copy_from_slice(&chunk[..count]))).await.is_err() {
            return;
        }
    }
}
