//! Starting one container: image, environment, process, post-start hook.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Container, LifecycleHandler, Pod};
use skiff_runtime::Pod as RuntimePod;
use skiff_runtime::image::ImageName;
use tokio_util::sync::CancellationToken;

use crate::admit;
use crate::check::{Look, Target};
use crate::context::Context;
use crate::env::environment;
use crate::observed::container_id;
use crate::traits::{EnsuredImage, PullPolicy};
use crate::translate::{Parts, PodPaths};
use crate::volumes;

/// Everything that a start needs.
#[derive(Clone)]
pub struct Starter {
    /// The node.
    pub ctx: Arc<Context>,
    /// The pod.
    pub pod: Arc<Pod>,
    /// Its files.
    pub paths: PodPaths,
    /// Its sandbox.
    pub made: RuntimePod,
    /// Its address.
    pub ip: Option<String>,
    /// Stops waiting for an image.
    pub cancel: CancellationToken,
}

/// A container whose program runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Started {
    /// What the status shows as image.
    pub image_ref: String,
    /// The post-start hook failed: the container must be killed.
    pub hook_failure: Option<String>,
}

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StartError {
    /// The image is not here.
    Image {
        /// `ErrImagePull` and so on.
        reason: &'static str,
        /// A sentence.
        message: String,
    },
    /// The object asks for something that is not there (yet) or not allowed.
    Config(String),
    /// The object asks for something that this node's runtime does not have.
    Unsupported(String),
    /// The runtime could not run it.
    Run {
        /// What the status shows as image.
        image_ref: String,
        /// A sentence.
        message: String,
    },
    /// It was not wanted any more.
    Cancelled,
}

impl Starter {
    /// Starts an instance.
    pub async fn start(&self, container: &Container, attempt: u32) -> Result<Started, StartError> {
        let image = self.image(container).await?;
        let started = self.run(container, attempt, &image).await;
        if let Err(StartError::Config(message) | StartError::Unsupported(message) | StartError::Run { message, .. }) =
            &started
        {
            self.ctx.event(&self.pod, Some(&container.name), true, "Failed", format!("Error: {message}")).await;
        }
        started
    }

    async fn image(&self, container: &Container) -> Result<EnsuredImage, StartError> {
        let image = container.image.clone().unwrap_or_default();
        let policy = pull_policy(container);
        let present = self.ctx.deps.runtime.images().resolve(&image).is_some();
        let asks = policy == PullPolicy::Always || (policy == PullPolicy::IfNotPresent && !present);
        // Nobody is asked for what is no name.
        if asks && ImageName::parse(&image).is_ok() {
            self.event(container, false, "Pulling", format!("Pulling image {image:?}")).await;
        }
        let begin = Instant::now();
        let ensured = self.ctx.deps.images.ensure(image.clone(), policy, self.pull_configs());
        let ensured = tokio::select! {
            ensured = ensured => ensured,
            () = self.cancel.cancelled() => return Err(StartError::Cancelled),
        };
        match ensured {
            Ok(found) => {
                let message = if found.present {
                    format!("Container image {image:?} already present on machine")
                } else {
                    format!(
                        "Successfully pulled image {image:?} in {:.0?}. Image size: {} bytes.",
                        begin.elapsed(),
                        found.size_bytes
                    )
                };
                self.event(container, false, "Pulled", message).await;
                Ok(found)
            }
            Err(error) => {
                self.event(container, true, error.event(), error.to_string()).await;
                self.event(container, true, "Failed", format!("Error: {}", error.reason())).await;
                Err(StartError::Image { reason: error.reason(), message: error.to_string() })
            }
        }
    }

    fn pull_configs(&self) -> Vec<Vec<u8>> {
        let desired = self.ctx.now();
        let namespace = self.pod.metadata.namespace.clone().unwrap_or_default();
        let names = self.pod.spec.iter().flat_map(|spec| spec.image_pull_secrets.iter().flatten());
        let secrets = names.filter_map(|reference| desired.secrets.get(&(namespace.clone(), reference.name.clone())));
        secrets
            .filter_map(|secret| {
                let data = secret.data.as_ref()?;
                data.get(".dockerconfigjson").or_else(|| data.get(".dockercfg")).map(|bytes| bytes.0.clone())
            })
            .collect()
    }

    async fn run(&self, container: &Container, attempt: u32, image: &EnsuredImage) -> Result<Started, StartError> {
        let config = &self.ctx.config;
        admit::unsupported_container(&self.pod, container).map_err(StartError::Unsupported)?;
        let situation = self.ctx.situation(self.ip.as_deref().or(self.host_ip()));
        let env = environment(&self.pod, container, &self.ctx.now(), &situation, config.capacity)
            .map_err(StartError::Config)?;
        let places = volumes::places(&self.pod, &self.paths.volumes()).map_err(StartError::Config)?;
        let parts = Parts {
            pod: &self.pod,
            container,
            attempt,
            image,
            env: &env,
            places: &places,
            paths: &self.paths,
            node: config.capacity,
        };
        let spec = parts.spec().map_err(StartError::Config)?;
        let failed = |message: String| StartError::Run { image_ref: image.image_ref.clone(), message };
        self.prepare_files(container, attempt).map_err(|error| failed(error.to_string()))?;
        self.event(container, false, "Created", format!("Created container: {}", container.name)).await;
        let id = spec.id.clone();
        if let Err(error) = self.made.start_container(spec).await {
            let _ = self.made.remove_container(&id).await;
            return Err(failed(error.to_string()));
        }
        self.event(container, false, "Started", format!("Started container {}", container.name)).await;
        let mut started = Started { image_ref: image.image_ref.clone(), hook_failure: None };
        let hook = container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.post_start.as_ref());
        if let Some(hook) = hook
            && let Err(why) =
                run_hook(hook, container, &self.target(container, attempt), Duration::from_secs(3600)).await
        {
            self.event(container, true, "FailedPostStartHook", format!("PostStartHook failed: {why}")).await;
            started.hook_failure = Some(why);
        }
        Ok(started)
    }

    fn host_ip(&self) -> Option<&str> {
        self.ctx.config.host_ips.first().map(String::as_str)
    }

    /// Where probes and hooks find the container.
    pub fn target(&self, container: &Container, attempt: u32) -> Target {
        target(&self.ctx, &self.made, &container.name, attempt, self.ip.as_deref())
    }

    /// The file for the termination message; and old logs go: the last instance's and the one before are enough.
    fn prepare_files(&self, container: &Container, attempt: u32) -> std::io::Result<()> {
        let message = self.paths.termination(&container.name, attempt);
        if let Some(dir) = message.parent() {
            fs::create_dir_all(dir)?;
        }
        fs::write(&message, "")?;
        fs::set_permissions(&message, PermissionsExt::from_mode(0o666))?;
        if attempt >= 2 {
            let old = self.paths.log(&container.name, attempt - 2);
            let name = old.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            for entry in old.parent().and_then(|dir| fs::read_dir(dir).ok()).into_iter().flatten().flatten() {
                if entry.file_name().to_string_lossy().starts_with(&name) {
                    let _ = fs::remove_file(entry.path());
                }
            }
            let _ = fs::remove_file(self.paths.termination(&container.name, attempt - 2));
        }
        Ok(())
    }

    async fn event(&self, container: &Container, warning: bool, reason: &str, message: String) {
        self.ctx.event(&self.pod, Some(&container.name), warning, reason, message).await;
    }
}

/// Where probes and hooks find a container.
pub fn target(ctx: &Context, made: &RuntimePod, name: &str, attempt: u32, ip: Option<&str>) -> Target {
    let host = ctx.config.host_ips.first().map(String::as_str);
    let address = ip.or(host).and_then(|ip| ip.parse().ok()).unwrap_or(std::net::IpAddr::from([127, 0, 0, 1]));
    let netns = ip.and_then(|_| made.netns_path().ok());
    Target { pod: made.clone(), container_id: container_id(name, attempt), ip: address, netns }
}

/// Runs a lifecycle hook.
pub async fn run_hook(
    hook: &LifecycleHandler,
    container: &Container,
    target: &Target,
    timeout: Duration,
) -> Result<(), String> {
    if let Some(sleep) = &hook.sleep {
        tokio::time::sleep(Duration::from_secs(sleep.seconds.max(0) as u64).min(timeout)).await;
        return Ok(());
    }
    let look = match (&hook.exec, &hook.http_get) {
        (Some(exec), _) => Look::Exec(exec.command.clone().unwrap_or_default()),
        (None, Some(get)) => Look::http(get, container)?,
        (None, None) => return Err("the hook has no handler that can run (use exec, httpGet or sleep)".into()),
    };
    look.look(target, timeout).await.map(drop)
}

/// The container's policy; `Always` for `latest` when none is set.
fn pull_policy(container: &Container) -> PullPolicy {
    match container.image_pull_policy.as_deref() {
        Some("Always") => PullPolicy::Always,
        Some("Never") => PullPolicy::Never,
        Some("IfNotPresent") => PullPolicy::IfNotPresent,
        _ => {
            let image = container.image.as_deref().unwrap_or_default();
            let latest =
                skiff_runtime::image::ImageName::parse(image).is_ok_and(|name| name.tag.as_deref() == Some("latest"));
            if latest { PullPolicy::Always } else { PullPolicy::IfNotPresent }
        }
    }
}
