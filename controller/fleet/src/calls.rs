//! Streams to a node that a client asked for: logs, exec, attach, port-forward. The agent dials, so a node behind NAT works: this side asks, and the
//! agent opens a stream that names the request.

use skiff_proto::fleet as pb;
use std::collections::HashMap;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Frames that may wait in either direction.
const QUEUE: usize = 32;
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a stream could not be had.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    #[error("node {0} is not connected to this server")]
    NotConnected(String),
    #[error("node {0} did not open the stream within 5 s")]
    NoAnswer(String),
}

/// Both directions of an open stream.
pub struct CallStream {
    pub send: mpsc::Sender<pb::Frame>,
    pub receive: mpsc::Receiver<pb::Frame>,
    pub over: Over,
}

/// How to tell the agent that its stream is not wanted any more.
pub struct Over {
    id: String,
    agent: mpsc::Sender<Result<pb::Call, tonic::Status>>,
}

impl Over {
    /// Tells it. The stream itself may be full in both directions, with the agent waiting for a program that reads nothing.
    pub async fn tell(self) {
        let _ = self.agent.send(Ok(pb::Call { id: self.id, kind: None, over: true })).await;
    }
}

/// Frames to the agent, and from it.
type Frames = (mpsc::Sender<pb::Frame>, mpsc::Receiver<pb::Frame>);

/// Agents that listen for calls, and calls that wait for their stream.
pub struct Calls {
    agents: Mutex<HashMap<String, mpsc::Sender<Result<pb::Call, tonic::Status>>>>,
    /// By call: the node that may answer it, and where the stream goes.
    waiting: Mutex<HashMap<String, (String, oneshot::Sender<Frames>)>>,
    /// Tells this server's calls from another's, and from those before a restart.
    incarnation: u64,
    next: AtomicU64,
}

impl Default for Calls {
    fn default() -> Self {
        let incarnation = RandomState::new().build_hasher().finish();
        Calls { agents: Mutex::default(), waiting: Mutex::default(), incarnation, next: AtomicU64::new(0) }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

impl Calls {
    /// An agent listens. The newest connection of a node counts.
    pub fn listen(&self, node: &str) -> mpsc::Receiver<Result<pb::Call, tonic::Status>> {
        let (send, receive) = mpsc::channel(64);
        lock(&self.agents).insert(node.to_owned(), send);
        receive
    }

    /// Asks a node for a stream.
    pub async fn open(&self, node: &str, kind: pb::call::Kind) -> Result<CallStream, CallError> {
        let agent = lock(&self.agents).get(node).cloned().ok_or_else(|| CallError::NotConnected(node.into()))?;
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let id = format!("{node}/{:x}/{number}", self.incarnation);
        let (answer, opened) = oneshot::channel();
        lock(&self.waiting).insert(id.clone(), (node.to_owned(), answer));
        let call = pb::Call { id: id.clone(), kind: Some(kind), over: false };
        let result = match agent.send(Ok(call)).await {
            Err(_) => Err(CallError::NotConnected(node.into())),
            Ok(()) => match tokio::time::timeout(OPEN_TIMEOUT, opened).await {
                Ok(Ok((send, receive))) => Ok(CallStream { send, receive, over: Over { id: id.clone(), agent } }),
                _ => Err(CallError::NoAnswer(node.into())),
            },
        };
        lock(&self.waiting).remove(&id);
        result
    }

    /// An agent opened the stream for a call. Gives its outgoing frames, unless nobody waits (any more) for this call from this node.
    pub fn opened(&self, node: &str, id: &str) -> Option<(mpsc::Receiver<pb::Frame>, mpsc::Sender<pb::Frame>)> {
        let mut waiting = lock(&self.waiting);
        if waiting.get(id).is_none_or(|(expected, _)| expected != node) {
            return None;
        }
        let (_, answer) = waiting.remove(id)?;
        let (to_agent, outgoing) = mpsc::channel(QUEUE);
        let (incoming, from_agent) = mpsc::channel(QUEUE);
        answer.send((to_agent, from_agent)).ok()?;
        Some((outgoing, incoming))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A call is answered by the node that it was made to, once.
    #[tokio::test]
    async fn only_who_was_asked_answers() {
        let calls = std::sync::Arc::new(Calls::default());
        let mut asked = calls.listen("a2");
        let _other = calls.listen("a1");
        let caller = calls.clone();
        let opening =
            tokio::spawn(async move { caller.open("a2", pb::call::Kind::Logs(Default::default())).await.is_ok() });
        let call = asked.recv().await.unwrap().unwrap();
        assert!(calls.opened("a1", &call.id).is_none(), "another node's call");
        assert!(calls.opened("a2", "a2/0/0").is_none(), "a call that nobody made");
        assert!(calls.opened("a2", &call.id).is_some());
        assert!(opening.await.unwrap());
        assert!(calls.opened("a2", &call.id).is_none(), "a second answer");
    }
}
