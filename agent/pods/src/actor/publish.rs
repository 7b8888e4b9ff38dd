//! What others learn of a pod: its status, its record, its streams, and in the end that it is gone.

use k8s_openapi::api::core::v1::{Container, Pod};

use super::Actor;
use crate::desired::Report;
use crate::observed::{Stage, container_id};
use crate::plan::restarts;
use crate::record::Record;
use crate::status::status;
use crate::translate::identity;
use crate::visible::{VisibleContainer, VisiblePod};

impl Actor {
    /// Shows, saves and reports what changed.
    pub(super) async fn publish(&mut self, now: u64) {
        if self.observed.cleaned {
            return;
        }
        self.show();
        if self.quiet {
            return;
        }
        let situation = self.ctx.situation(self.observed.shown_ip.as_deref());
        let status = status(self.pod(), &self.observed, &situation, &self.reported, now);
        let changed = status != self.reported;
        if changed || self.saved.as_ref() != Some(&self.observed) {
            let record =
                Record { pod: Pod::clone(self.pod()), observed: self.observed.clone(), status: status.clone() };
            if let Err(error) = record.save(&self.paths.dir) {
                tracing::error!(dir = %self.paths.dir.display(), "save a pod's record: {error}");
            }
            self.saved = Some(self.observed.clone());
        }
        // An agent that came back tells every status once: somebody may have spoken for the pod meanwhile.
        if changed || !self.told {
            self.told = true;
            let id = identity(self.pod());
            self.reported = status.clone();
            let report =
                Report::PodStatus { namespace: id.namespace, name: id.name, uid: id.uid, status: Box::new(status) };
            let _ = self.ctx.reports.send(report).await;
        }
    }

    fn show(&self) {
        let spec = self.pod().spec.clone().unwrap_or_default();
        let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
        let show = |container: &Container| {
            let seen = self.observed.containers.get(&container.name).cloned().unwrap_or_default();
            let running = matches!(seen.stage, Stage::Running { .. });
            let began = running || matches!(seen.stage, Stage::Exited(_));
            let newest = if began { Some(seen.attempt) } else { seen.attempt.checked_sub(1) };
            let log = |attempt: Option<u32>| attempt.map(|attempt| self.paths.log(&container.name, attempt));
            let again = seen.exit().is_none_or(|exit| restarts(&spec, exit.code)) && self.observed.end.is_none();
            VisibleContainer {
                running: running.then(|| container_id(&container.name, seen.attempt)),
                log: log(newest),
                previous: log(newest.and_then(|newest| newest.checked_sub(1))),
                tty: container.tty.unwrap_or(false),
                lives: running || (again && self.pod().metadata.deletion_timestamp.is_none()),
            }
        };
        let visible = VisiblePod {
            uid: identity(self.pod()).uid,
            made: self.made.clone(),
            own_network: spec.host_network != Some(true),
            containers: containers.map(|container| (container.name.clone(), show(container))).collect(),
        };
        self.directory.set(&self.key(), visible);
    }

    /// Removes the last traces and says so.
    pub(super) async fn clean(&mut self) {
        let id = identity(self.pod());
        self.directory.remove(&self.key(), &id.uid);
        let dirs = [self.paths.dir.clone(), self.paths.logs.clone()];
        let removed = tokio::task::spawn_blocking(move || {
            for dir in &dirs {
                match std::fs::remove_dir_all(dir) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        tracing::error!(dir = %dir.display(), "remove a pod's files: {error}");
                    }
                    _ => {}
                }
            }
        });
        let _ = removed.await;
        self.observed.cleaned = true;
        let _ = self.ctx.reports.send(Report::PodGone { namespace: id.namespace, name: id.name, uid: id.uid }).await;
    }
}
