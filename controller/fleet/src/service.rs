//! The gRPC service that agents dial.

use crate::SharedView;
use crate::beats::Beats;
use crate::calls::Calls;
use crate::drain::Drain;
use crate::interest::{Told, difference};
use crate::upstream::{Upstream, UpstreamError};
use futures_util::Stream;
use skiff_api::view::Key;
use skiff_proto::fleet as pb;
use skiff_proto::fleet::fleet_server::Fleet;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// Messages that may wait for a slow agent.
const QUEUE: usize = 64;
/// While a deletion waits for acknowledgements, it is looked at this often even without news.
const DRAIN_LOOK: Duration = Duration::from_millis(100);

/// How long a node may wait for a server that is behind what the node knows, before it tries the next server.
const CATCH_UP_MAX: Duration = Duration::from_secs(5);
/// The list of servers is looked at this often even without news.
const WELCOME_LOOK: Duration = Duration::from_secs(2);

/// The node whose certificate a request came with; whoever terminates TLS puts it into the request's extensions.
#[derive(Clone, Debug)]
pub struct NodeName(pub String);

/// Marks a request whose certificate is an administrator's or a server's.
#[derive(Clone, Copy, Debug)]
pub struct Trusted;

/// What a node hears whose Node was deleted.
pub fn removed(node: &str) -> String {
    format!(
        "the node {node:?} is not part of this cluster any more: its Node was deleted. To take it in again, start its agent with a token \
         (skiff token create)"
    )
}

/// Serves agents.
#[derive(Clone)]
pub struct FleetService {
    pub view: SharedView,
    pub beats: Arc<Beats>,
    pub calls: Arc<Calls>,
    pub upstream: Arc<dyn Upstream>,
}

type Out<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn node_of<T>(request: &Request<T>) -> Result<String, Status> {
    let name = request.extensions().get::<NodeName>();
    name.map(|n| n.0.clone())
        .ok_or_else(|| Status::unauthenticated("this needs a node's certificate; join the cluster first"))
}

fn administrator<T>(request: &Request<T>) -> Result<(), Status> {
    let trusted = request.extensions().get::<Trusted>().is_some();
    trusted.then_some(()).ok_or_else(|| {
        Status::permission_denied(
            "only an administrator (a certificate of group system:masters) may change the cluster's images, servers and authority",
        )
    })
}

impl From<UpstreamError> for Status {
    fn from(error: UpstreamError) -> Status {
        match error {
            UpstreamError::Refused(why) => Status::failed_precondition(why),
            UpstreamError::Unavailable(why) => Status::unavailable(why),
        }
    }
}

#[tonic::async_trait]
impl Fleet for FleetService {
    type SessionStream = ReceiverStream<Result<pb::ToAgent, Status>>;
    type HeartbeatStream = Out<pb::BeatAnswer>;
    type CallsStream = ReceiverStream<Result<pb::Call, Status>>;
    type AttachStream = Out<pb::Frame>;
    type ImageStream = Out<pb::ImageChunk>;

    async fn join(&self, request: Request<pb::JoinRequest>) -> Result<Response<pb::JoinAnswer>, Status> {
        Ok(Response::new(self.upstream.join(request.into_inner()).await?))
    }

    async fn session(
        &self,
        request: Request<Streaming<pb::FromAgent>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let node = node_of(&request)?;
        let (send, receive) = mpsc::channel(QUEUE);
        let service = self.clone();
        let from_agent = request.into_inner();
        tokio::spawn(async move {
            if let Err(status) = service.run_session(node.clone(), from_agent, send.clone()).await {
                tracing::debug!(node, "session ended: {}", status.message());
                let _ = send.send(Err(status)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(receive)))
    }

    async fn heartbeat(
        &self,
        request: Request<Streaming<pb::Beat>>,
    ) -> Result<Response<Self::HeartbeatStream>, Status> {
        let node = node_of(&request)?;
        let (beats, mut stream) = (self.beats.clone(), request.into_inner());
        let (send, receive) = mpsc::channel(4);
        tokio::spawn(async move {
            while let Ok(Some(beat)) = stream.message().await {
                beats.beat(&node, beat.applied, beat.shutting_down, Instant::now());
                beats.stands(&node, beat.stance);
                // A slow reader loses answers, never holds up beats.
                if send.try_send(Ok(pb::BeatAnswer { sequence: beat.sequence })).is_err() && send.is_closed() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receive))))
    }

    async fn calls(&self, request: Request<pb::Hello>) -> Result<Response<Self::CallsStream>, Status> {
        let node = node_of(&request)?;
        Ok(Response::new(ReceiverStream::new(self.calls.listen(&node))))
    }

    async fn attach(&self, request: Request<Streaming<pb::Frame>>) -> Result<Response<Self::AttachStream>, Status> {
        let node = node_of(&request)?;
        let mut stream = request.into_inner();
        let first = stream.message().await?.ok_or_else(|| Status::invalid_argument("an empty stream"))?;
        let (mut outgoing, incoming) =
            self.calls.opened(&node, &first.id).ok_or_else(|| Status::not_found("nobody waits for this call"))?;
        tokio::spawn(async move {
            if !first.data.is_empty() && incoming.send(first).await.is_err() {
                return;
            }
            // Also when the agent says nothing: what is dropped here is what tells it.
            let gone = incoming.clone();
            let copy = async {
                while let Ok(Some(frame)) = stream.message().await {
                    if incoming.send(frame).await.is_err() {
                        return;
                    }
                }
            };
            tokio::select! { () = copy => {}, () = gone.closed() => {} }
        });
        let out = async_stream(move |cx| outgoing.poll_recv(cx).map(|frame| frame.map(Ok)));
        Ok(Response::new(Box::pin(out)))
    }

    async fn image(&self, request: Request<pb::ImageRequest>) -> Result<Response<Self::ImageStream>, Status> {
        if request.extensions().get::<Trusted>().is_none() {
            node_of(&request)?;
        }
        let mut chunks = self.upstream.image(request.into_inner().reference).await?;
        let out = async_stream(move |cx| chunks.poll_recv(cx).map(|chunk| chunk.map(Ok)));
        Ok(Response::new(Box::pin(out)))
    }

    async fn put_image(&self, request: Request<Streaming<pb::ImageChunk>>) -> Result<Response<pb::ImageList>, Status> {
        administrator(&request)?;
        let mut stream = request.into_inner();
        let (send, receive) = mpsc::channel(8);
        let work = self.upstream.put_image(receive);
        let read = async move {
            while let Some(chunk) = stream.message().await? {
                if send.send(chunk).await.is_err() {
                    break;
                }
            }
            Ok::<_, Status>(())
        };
        let (read, images) = futures_util::future::join(read, work).await;
        read?;
        Ok(Response::new(pb::ImageList { images: images? }))
    }

    async fn images(&self, request: Request<pb::ImageRequest>) -> Result<Response<pb::ImageList>, Status> {
        if request.extensions().get::<Trusted>().is_none() {
            node_of(&request)?;
        }
        let images = self.upstream.images(request.into_inner().reference).await?;
        Ok(Response::new(pb::ImageList { images }))
    }

    async fn pull_image(&self, request: Request<pb::PullRequest>) -> Result<Response<pb::ImageRecord>, Status> {
        administrator(&request)?;
        Ok(Response::new(self.upstream.pull_image(request.into_inner()).await?))
    }

    async fn remove_image(&self, request: Request<pb::ImageRequest>) -> Result<Response<pb::ImageRecord>, Status> {
        administrator(&request)?;
        Ok(Response::new(self.upstream.remove_image(request.into_inner().reference).await?))
    }

    async fn members(&self, request: Request<pb::MembersRequest>) -> Result<Response<pb::MemberList>, Status> {
        administrator(&request)?;
        Ok(Response::new(self.upstream.members().await?))
    }

    async fn rotate_authority(&self, request: Request<pb::RotationStep>) -> Result<Response<pb::Rotation>, Status> {
        administrator(&request)?;
        Ok(Response::new(self.upstream.rotate_authority(request.into_inner().step).await?))
    }

    async fn remove_member(&self, request: Request<pb::MemberName>) -> Result<Response<pb::MemberList>, Status> {
        administrator(&request)?;
        Ok(Response::new(self.upstream.remove_member(request.into_inner().name).await?))
    }
}

/// A stream from a poll function.
fn async_stream<T>(
    poll: impl FnMut(&mut std::task::Context<'_>) -> std::task::Poll<Option<T>> + Send,
) -> impl Stream<Item = T> + Send {
    futures_util::stream::poll_fn(poll)
}

impl FleetService {
    async fn run_session(
        &self,
        node: String,
        mut from_agent: Streaming<pb::FromAgent>,
        to_agent: mpsc::Sender<Result<pb::ToAgent, Status>>,
    ) -> Result<(), Status> {
        let first = from_agent.message().await?.and_then(|m| m.message);
        let Some(pb::from_agent::Message::Register(register)) = first else {
            return Err(Status::invalid_argument("a session begins with Register"));
        };
        if register.node != node {
            let why = format!("the certificate is of node {node}, not {}", register.node);
            return Err(Status::permission_denied(why));
        }
        self.upstream.register(node.clone(), register.node_json.to_vec()).await?;
        let pod_cidr = self.wait_for_subnet(&node).await?;
        self.wait_for_revision(register.revision).await?;
        let down = self.tell(&node, &pod_cidr, &to_agent);
        let up = self.listen(&node, from_agent, &to_agent);
        tokio::select! { result = down => result, result = up => result }
    }

    /// The leader gives every node a subnet; this waits until it has.
    async fn wait_for_subnet(&self, node: &str) -> Result<String, Status> {
        let mut revision = self.view.revision.clone();
        let key = Key::new("", node);
        let wait = async {
            loop {
                let cidr = {
                    let view = self.view.read();
                    view.nodes.get(&key).and_then(|n| n.spec.as_ref()).and_then(|s| s.pod_cidr.clone())
                };
                if let Some(cidr) = cidr {
                    return Ok(cidr);
                }
                if revision.changed().await.is_err() {
                    return Err(Status::unavailable("this server is stopping"));
                }
            }
        };
        let late = |_| Status::unavailable("the node got no subnet within 15 s; is there a leader?");
        tokio::time::timeout(Duration::from_secs(15), wait).await.map_err(late)?
    }

    /// A node that comes from another server may know more than this one does yet: what it is told must not lead it back.
    async fn wait_for_revision(&self, known: u64) -> Result<(), Status> {
        let mut revision = self.view.revision.clone();
        let caught_up = tokio::time::timeout(CATCH_UP_MAX, revision.wait_for(|now| *now >= known)).await;
        match caught_up {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(Status::unavailable("this server is stopping")),
            // Another server may know more; a node that hears this from all of them (a backup was restored) begins anew.
            Err(_) => Err(Status::out_of_range(format!("this server has not caught up with revision {known} yet"))),
        }
    }

    /// What the cluster is like, as a node wants to know it.
    fn welcome(&self, pod_cidr: &str) -> pb::Welcome {
        let welcome = self.upstream.welcome();
        pb::Welcome {
            pod_cidr: pod_cidr.to_owned(),
            service_cidr: welcome.service_cidr,
            cluster_cidr: welcome.cluster_cidr,
            cluster_dns: welcome.cluster_dns,
            cluster_domain: welcome.cluster_domain,
            servers: welcome.servers,
            ca: welcome.ca,
            issuer: welcome.issuer,
        }
    }

    /// Sends what concerns the node: all of it first, then each change.
    async fn tell(
        &self,
        node: &str,
        pod_cidr: &str,
        to_agent: &mpsc::Sender<Result<pb::ToAgent, Status>>,
    ) -> Result<(), Status> {
        let mut welcomed = None;
        let (mut told, mut drain) = (Told::new(), Drain::default());
        let mut revision = self.view.revision.clone();
        let mut acknowledgements = self.beats.acknowledgements();
        let mut snapshot = true;
        loop {
            revision.borrow_and_update();
            acknowledgements.borrow_and_update();
            if self.view.read().nodes.get(&Key::new("", node)).is_none() {
                return Err(Status::unauthenticated(removed(node)));
            }
            // Servers come and go; agents beat to all of them.
            let welcome = self.welcome(pod_cidr);
            if welcomed.as_ref() != Some(&welcome) {
                send(to_agent, pb::to_agent::Message::Welcome(welcome.clone())).await?;
                welcomed = Some(welcome);
            }
            let message = {
                let view = self.view.read();
                let now = Instant::now();
                let acknowledged = |r| self.beats.all_applied(view.nodes.iter().map(|(k, _)| k.name.as_str()), r, now);
                let objects = difference(&view, node, &mut told, &mut drain, now, acknowledged);
                pb::Objects { revision: view.revision, objects, snapshot }
            };
            snapshot = false;
            send(to_agent, pb::to_agent::Message::Objects(message)).await?;
            tokio::select! {
                changed = revision.changed() => {
                    changed.map_err(|_| Status::unavailable("this server is stopping"))?;
                }
                _ = acknowledgements.changed(), if drain.is_waiting() => {}
                () = tokio::time::sleep(DRAIN_LOOK), if drain.is_waiting() => {}
                () = tokio::time::sleep(WELCOME_LOOK) => {}
            }
        }
    }

    /// Takes in what the agent reports. Reports of one pod stay in order; a report that is refused is the agent's to repeat with its next state.
    async fn listen(
        &self,
        node: &str,
        mut from_agent: Streaming<pb::FromAgent>,
        to_agent: &mpsc::Sender<Result<pb::ToAgent, Status>>,
    ) -> Result<(), Status> {
        use pb::from_agent::Message;
        while let Some(message) = from_agent.message().await? {
            let Some(message) = message.message else { continue };
            let node = node.to_owned();
            let result = match message {
                Message::Register(register) => self.upstream.register(node, register.node_json.to_vec()).await,
                Message::NodeStatus(status) => self.upstream.node_status(node, status.status_json.to_vec()).await,
                Message::PodStatus(status) => self.upstream.pod_status(node, status).await,
                Message::PodGone(gone) => self.upstream.pod_gone(node, gone).await,
                Message::Event(event) => {
                    // News, not state: nobody waits for it.
                    tokio::spawn(self.upstream.event(node, event));
                    Ok(())
                }
                Message::Token(request) => {
                    let id = request.id;
                    let answer = match self.upstream.token(node, request).await {
                        Ok((token, expires_unix)) => pb::TokenAnswer { id, token, expires_unix, error: String::new() },
                        Err(e) => pb::TokenAnswer { id, error: e.to_string(), ..Default::default() },
                    };
                    send(to_agent, pb::to_agent::Message::Token(answer)).await?;
                    Ok(())
                }
            };
            match result {
                Ok(()) => {}
                Err(UpstreamError::Refused(why)) => tracing::info!("a report of a node was refused: {why}"),
                // The agent repeats everything when it connects again.
                Err(UpstreamError::Unavailable(why)) => return Err(Status::unavailable(why)),
            }
        }
        Ok(())
    }
}

async fn send(
    to_agent: &mpsc::Sender<Result<pb::ToAgent, Status>>,
    message: pb::to_agent::Message,
) -> Result<(), Status> {
    let message = pb::ToAgent { message: Some(message) };
    to_agent.send(Ok(message)).await.map_err(|_| Status::cancelled("the agent went away"))
}
