//! One task for all pods: it takes the level and gives each pod's task its part.
//!
//! At first it finds what an agent before it left: pods with a record and a living sandbox are adopted and go on; a
//! sandbox without a record is removed. Nothing is stopped for being unwanted before the level is known to be whole.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use skiff_runtime::Pod as RuntimePod;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};

use crate::actor::{Actor, Input};
use crate::caught::caught;
use crate::context::{Context, PodsConfig, PodsDeps};
use crate::desired::{Desired, Key, Report};
use crate::record::Record;
use crate::translate::{PodPaths, identity};
use crate::visible::Directory;

/// The pods of this node. Dropping it leaves them running.
pub struct Pods {
    directory: Directory,
    task: JoinHandle<()>,
}

impl Pods {
    /// Recovers what is there and follows the level from then on.
    pub async fn start(
        config: PodsConfig,
        deps: PodsDeps,
        desired: watch::Receiver<Arc<Desired>>,
        reports: mpsc::Sender<Report>,
    ) -> anyhow::Result<Pods> {
        skiff_runtime::private::dir(&config.root_dir)?;
        let ctx = Arc::new(Context { config, deps, desired, reports, events: Mutex::default() });
        let directory = Directory::default();
        let mut manager = Manager {
            ctx,
            directory: directory.clone(),
            pods: BTreeMap::new(),
            over: BTreeSet::new(),
            tasks: JoinSet::new(),
            setbacks: BTreeMap::new(),
        };
        manager.recover().await?;
        let task = tokio::spawn(manager.run());
        Ok(Pods { directory, task })
    }

    /// Logs, exec, attach and port forwarding.
    pub fn streams(&self) -> &Directory {
        &self.directory
    }
}

impl Drop for Pods {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Known {
    input: watch::Sender<Input>,
    /// What it refers to, as it last was.
    objects: Vec<Object>,
}

/// An object that a pod refers to; two are the same only if they are the same allocation.
#[derive(Clone)]
enum Object {
    Map(Option<Arc<ConfigMap>>),
    Secret(Option<Arc<Secret>>),
}

impl PartialEq for Object {
    fn eq(&self, other: &Object) -> bool {
        let same = |a: Option<*const ()>, b: Option<*const ()>| a == b;
        match (self, other) {
            (Object::Map(a), Object::Map(b)) => {
                same(a.as_ref().map(|a| Arc::as_ptr(a).cast()), b.as_ref().map(|b| Arc::as_ptr(b).cast()))
            }
            (Object::Secret(a), Object::Secret(b)) => {
                same(a.as_ref().map(|a| Arc::as_ptr(a).cast()), b.as_ref().map(|b| Arc::as_ptr(b).cast()))
            }
            _ => false,
        }
    }
}

struct Manager {
    ctx: Arc<Context>,
    directory: Directory,
    /// By UID.
    pods: BTreeMap<String, Known>,
    /// Pods of the level that have left nothing here any more. Their objects may stay for long (a finalizer holds them);
    /// a task for one would find nothing to do, end, and be started again without a pause.
    over: BTreeSet<String>,
    tasks: JoinSet<(String, Ended)>,
    /// How often a pod's task has panicked.
    setbacks: BTreeMap<String, u32>,
}

/// How a pod's task came to its end.
enum Ended {
    /// The pod has left nothing here any more.
    Over,
    /// A bug, and what it said. The pod itself goes on.
    Panicked(String),
    /// A pod whose task panicked has been set aside for long enough.
    SetAside,
}

/// A pod whose task panicked gets another one after this, and after twice as long each further time.
const SET_ASIDE_MIN: Duration = Duration::from_secs(1);
const SET_ASIDE_MAX: Duration = Duration::from_secs(300);

impl Manager {
    async fn recover(&mut self) -> anyhow::Result<()> {
        let mut found: BTreeMap<String, (RuntimePod, bool)> = BTreeMap::new();
        for recovered in self.ctx.deps.runtime.recover().await? {
            found.insert(recovered.pod.spec().id.clone(), (recovered.pod, recovered.alive));
        }
        let entries = std::fs::read_dir(&self.ctx.config.root_dir)?.flatten();
        for dir in entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            let Some(record) = Record::load(&dir.path()) else { continue };
            let uid = identity(&record.pod).uid;
            let made = match found.remove(&uid) {
                Some((pod, true)) => Some(pod),
                Some((pod, false)) => {
                    pod.delete().await?;
                    None
                }
                None => None,
            };
            tracing::info!(pod = %uid, alive = made.is_some(), "found a pod of an earlier agent");
            let (input, receiver) = watch::channel(Input { pod: Arc::new(record.pod.clone()), ..Input::default() });
            let objects = Vec::new();
            self.pods.insert(uid.clone(), Known { input, objects });
            let actor = Actor::adopt(self.ctx.clone(), self.directory.clone(), receiver, record, made);
            self.spawn(uid, actor);
        }
        for (uid, (pod, _)) in found {
            tracing::warn!(pod = %uid, "removing a sandbox that no record knows");
            let _ = self.ctx.deps.network.detach(uid).await;
            pod.delete().await?;
        }
        Ok(())
    }

    fn spawn(&mut self, uid: String, actor: Actor) {
        self.tasks.spawn(async move {
            let ended = caught("pod", &uid, actor.run()).await;
            let ended = ended.map_or_else(Ended::Panicked, |()| Ended::Over);
            (uid, ended)
        });
    }

    /// What a pod's task leaves when it ends.
    async fn settle(&mut self, uid: String, ended: Ended) {
        match ended {
            Ended::Over => {
                self.pods.remove(&uid);
                self.setbacks.remove(&uid);
                self.over.insert(uid);
            }
            Ended::Panicked(said) => {
                let count = self.setbacks.entry(uid.clone()).or_default();
                let wait = SET_ASIDE_MIN.saturating_mul(1 << (*count).min(16)).min(SET_ASIDE_MAX);
                *count += 1;
                tracing::error!(pod = %uid, "the pod has nobody to look after it, and gets a new task in {wait:?}: {said}");
                self.tasks.spawn(async move {
                    tokio::time::sleep(wait).await;
                    (uid, Ended::SetAside)
                });
            }
            Ended::SetAside => self.take_up(uid).await,
        }
    }

    /// Gives a pod a new task, which finds the pod as an agent that was restarted does.
    async fn take_up(&mut self, uid: String) {
        let Some(known) = self.pods.get(&uid) else { return };
        let input = known.input.subscribe();
        let pod = input.borrow().pod.clone();
        let dir = PodPaths::new(&self.ctx.config.root_dir, &self.ctx.config.log_dir, &identity(&pod)).dir;
        let made = self.ctx.deps.runtime.recover_pod(&uid).await.filter(|found| found.alive).map(|found| found.pod);
        let (ctx, directory) = (self.ctx.clone(), self.directory.clone());
        let actor = match Record::load(&dir) {
            Some(record) => Actor::adopt(ctx, directory, input, record, made),
            None => Actor::new(ctx, directory, input),
        };
        self.spawn(uid, actor);
    }

    async fn run(mut self) {
        let mut desired = self.ctx.desired.clone();
        loop {
            let level = desired.borrow_and_update().clone();
            self.take(&level);
            tokio::select! {
                changed = desired.changed() => if changed.is_err() { return },
                Some(done) = self.tasks.join_next() => match done {
                    Ok((uid, ended)) => self.settle(uid, ended).await,
                    Err(error) => tracing::error!("a pod's task ended: {error}"),
                },
            }
        }
    }

    fn take(&mut self, level: &Desired) {
        let mut wanted = BTreeSet::new();
        for pod in &level.pods {
            let uid = identity(pod).uid;
            wanted.insert(uid.clone());
            if self.over.contains(&uid) {
                continue;
            }
            let objects = objects(pod, level);
            let hold = level.hold.contains(&uid);
            match self.pods.get_mut(&uid) {
                Some(known) => {
                    let touched = known.objects != objects;
                    known.objects = objects;
                    known.input.send_if_modified(|input| {
                        let changed = touched || input.removed || input.hold != hold || !Arc::ptr_eq(&input.pod, pod);
                        if changed {
                            *input = Input {
                                pod: pod.clone(),
                                removed: false,
                                hold,
                                objects: input.objects + u64::from(touched),
                            };
                        }
                        changed
                    });
                }
                None => {
                    let (input, receiver) =
                        watch::channel(Input { pod: pod.clone(), removed: false, hold, objects: 0 });
                    self.pods.insert(uid.clone(), Known { input, objects });
                    let actor = Actor::new(self.ctx.clone(), self.directory.clone(), receiver);
                    self.spawn(uid, actor);
                }
            }
        }
        if !level.synced {
            return;
        }
        self.over.retain(|uid| wanted.contains(uid));
        for (_, known) in self.pods.iter().filter(|(uid, _)| !wanted.contains(*uid)) {
            known.input.send_if_modified(|input| !std::mem::replace(&mut input.removed, true));
        }
    }
}

/// The ConfigMaps and Secrets that a pod refers to, as they are in this level.
fn objects(pod: &Pod, level: &Desired) -> Vec<Object> {
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let (mut maps, mut secrets): (BTreeSet<String>, BTreeSet<String>) = Default::default();
    let Some(spec) = &pod.spec else { return Vec::new() };
    for container in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
        for source in container.env_from.iter().flatten() {
            maps.extend(source.config_map_ref.iter().map(|reference| reference.name.clone()));
            secrets.extend(source.secret_ref.iter().map(|reference| reference.name.clone()));
        }
        for source in container.env.iter().flatten().filter_map(|variable| variable.value_from.as_ref()) {
            maps.extend(source.config_map_key_ref.iter().map(|reference| reference.name.clone()));
            secrets.extend(source.secret_key_ref.iter().map(|reference| reference.name.clone()));
        }
    }
    for volume in spec.volumes.iter().flatten() {
        maps.extend(volume.config_map.iter().map(|source| source.name.clone()));
        secrets.extend(volume.secret.iter().filter_map(|source| source.secret_name.clone()));
        for source in volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten()) {
            maps.extend(source.config_map.iter().map(|source| source.name.clone()));
            secrets.extend(source.secret.iter().map(|source| source.name.clone()));
        }
    }
    let key = |name: &String| -> Key { (namespace.clone(), name.clone()) };
    let maps = maps.iter().map(|name| Object::Map(level.config_maps.get(&key(name)).cloned()));
    let secrets = secrets.iter().map(|name| Object::Secret(level.secrets.get(&key(name)).cloned()));
    maps.chain(secrets).collect()
}
