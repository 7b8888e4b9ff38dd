//! The slow steps before a container: sandbox, network, files. Each is one async function that owns nothing.

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use skiff_runtime::{Pod as RuntimePod, private};

use crate::admit;
use crate::atomic;
use crate::context::{Context, now_ms};
use crate::fields::Situation;
use crate::files;
use crate::translate::{PodPaths, host_ports, identity, pod_spec};
use crate::volumes::{self, Content, Place, Sources};

/// Part of a token's life after which a new one is got: four fifths, as the kubelet does.
const TOKEN_FRESH: (u64, u64) = (4, 5);

/// Why there is no sandbox: the event's reason, and a sentence.
pub type SandboxError = (&'static str, String);

/// Makes namespaces and wires them. A failure leaves nothing.
pub async fn sandbox(
    ctx: &Context,
    pod: &Pod,
    paths: &PodPaths,
) -> Result<(RuntimePod, Option<Ipv4Addr>), SandboxError> {
    let fail = |why: String| ("FailedCreatePodSandBox", format!("Failed to create pod sandbox: {why}"));
    pod.spec.as_ref().map_or(Ok(()), admit::unsupported).map_err(fail)?;
    let places = volumes::places(pod, &paths.volumes())
        .map_err(|why| ("FailedMount", format!("MountVolume.SetUp failed: {why}")))?;
    let hostname = files::hostname(pod, &ctx.config.node_name);
    let kernel_name = files::kernel_hostname(pod, &hostname, &ctx.config.cluster_domain).map_err(fail)?;
    let spec = pod_spec(pod, &kernel_name, &places, ctx.config.pod_pids_max);
    let host_network = spec.host_network;
    let made = ctx.deps.runtime.create_pod(spec).await.map_err(|error| fail(error.to_string()))?;
    if host_network {
        return Ok((made, None));
    }
    match attach(ctx, pod, &made).await {
        Ok(ip) => Ok((made, Some(ip))),
        Err(error) => {
            let _ = ctx.deps.network.detach(identity(pod).uid).await;
            let _ = made.delete().await;
            Err(fail(format!("attach the pod to the network: {error}")))
        }
    }
}

/// Removes what a sandbox that was given up half made has left, so that it can be made anew.
pub async fn clear(ctx: &Context, pod: &Pod) {
    let uid = identity(pod).uid;
    if let Some(left) = ctx.deps.runtime.recover_pod(&uid).await
        && let Err(error) = left.pod.delete().await
    {
        tracing::warn!(pod = %uid, "removing what is left of a sandbox: {error}");
    }
    let _ = ctx.deps.network.detach(uid).await;
}

/// Wires a pod; once more after the agent came back, which must not hurt.
pub async fn attach(ctx: &Context, pod: &Pod, made: &RuntimePod) -> Result<Ipv4Addr, String> {
    let netns = made.netns_path().map_err(|error| error.to_string())?;
    ctx.deps.network.attach(identity(pod), netns, host_ports(pod)).await
}

/// Removes processes, namespaces and wires.
pub async fn tear_down(ctx: &Context, pod: &Pod, made: Option<RuntimePod>) -> Result<(), String> {
    if let Some(made) = made {
        made.delete().await.map_err(|error| error.to_string())?;
    }
    if pod.spec.as_ref().is_none_or(|spec| spec.host_network != Some(true)) {
        ctx.deps.network.detach(identity(pod).uid).await?;
    }
    Ok(())
}

/// Writes everything that Skiff writes into a pod's volumes, and the pod's own small files. Gives the time at which a
/// token wants to be renewed (`u64::MAX` for never).
pub async fn files(
    ctx: &Context,
    pod: &Arc<Pod>,
    made: &RuntimePod,
    ip: Option<&str>,
    paths: &PodPaths,
) -> Result<u64, String> {
    let mut tokens = BTreeMap::new();
    let mut renew_ms = u64::MAX;
    for request in volumes::token_requests(pod) {
        let key = (request.audience.clone(), request.expiration_seconds);
        let life_ms = (request.expiration_seconds.max(0) as u64).saturating_mul(1000);
        let token = ctx
            .deps
            .tokens
            .service_account_token(request)
            .await
            .map_err(|error| format!("get a service account token: {error}"))?;
        tokens.insert(key, token);
        renew_ms = renew_ms.min(now_ms().saturating_add(life_ms / TOKEN_FRESH.1 * TOKEN_FRESH.0));
    }
    let texts = small_files(ctx, pod, ip);
    let (pod, made, paths) = (pod.clone(), made.clone(), paths.clone());
    let (desired, situation, capacity) = (ctx.now(), ctx.situation(ip), ctx.config.capacity);
    let written = tokio::task::spawn_blocking(move || {
        write_small(&paths.dir, &texts)?;
        let sources = Sources { pod: &pod, desired: &desired, situation: &situation, node: capacity, tokens: &tokens };
        write_volumes(&sources, &made, &paths)
    });
    written.await.map_err(|error| format!("writing files ended: {error}"))??;
    Ok(renew_ms)
}

type Texts = Vec<(&'static str, String)>;

fn small_files(ctx: &Context, pod: &Pod, ip: Option<&str>) -> Texts {
    let config = &ctx.config;
    let situation: Situation = ctx.situation(ip);
    let hostname = files::hostname(pod, &config.node_name);
    let host_file = fs::read_to_string("/etc/hosts").unwrap_or_default();
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let spec = pod.spec.clone().unwrap_or_default();
    let resolver = files::resolver(&spec, namespace, &config.cluster_dns, &config.cluster_domain, &ctx.host_resolver());
    vec![
        ("hosts", files::hosts(pod, &hostname, &config.cluster_domain, &situation.pod_ips, &host_file)),
        ("hostname", format!("{hostname}\n")),
        ("resolv.conf", resolver.text()),
    ]
}

fn write_small(dir: &Path, texts: &Texts) -> Result<(), String> {
    private::dir(dir).map_err(|error| format!("make {}: {error}", dir.display()))?;
    for (name, text) in texts {
        let file = dir.join(name);
        // In place: a running container has this very file mounted.
        if fs::read_to_string(&file).is_ok_and(|have| have == *text) {
            continue;
        }
        let written =
            fs::write(&file, text).and_then(|()| fs::set_permissions(&file, PermissionsExt::from_mode(0o644)));
        written.map_err(|error| format!("write {}: {error}", file.display()))?;
    }
    Ok(())
}

fn write_volumes(sources: &Sources<'_>, made: &RuntimePod, paths: &PodPaths) -> Result<(), String> {
    let group = fs_group(sources.pod);
    let places = volumes::places(sources.pod, &paths.volumes())?;
    for place in &places {
        let fail = |error: String| format!("MountVolume.SetUp failed for volume {:?} : {error}", place.name);
        volumes::make(place, group).map_err(fail)?;
        let reachable = reachable(place, made).map_err(fail)?;
        if place.tmpfs.is_some() && place.content == Content::Empty && group.is_some() {
            volumes::share(&reachable, group, 0o777).map_err(|error| fail(error.to_string()))?;
        }
        if place.content != Content::Files {
            continue;
        }
        let volume = sources
            .pod
            .spec
            .iter()
            .flat_map(|spec| spec.volumes.iter().flatten())
            .find(|volume| volume.name == place.name);
        if let Some(volume) = volume {
            let files = sources.render(volume).map_err(fail)?;
            atomic::write(&reachable, &files, group).map_err(|error| fail(error.to_string()))?;
        }
    }
    Ok(())
}

/// Volumes in memory are in the helper's mount namespace.
fn reachable(place: &Place, made: &RuntimePod) -> Result<PathBuf, String> {
    match place.tmpfs {
        Some(_) => made.through_helper(&place.path).map_err(|error| error.to_string()),
        None => Ok(place.path.clone()),
    }
}

fn fs_group(pod: &Pod) -> Option<u32> {
    let context = pod.spec.as_ref()?.security_context.as_ref()?;
    context.fs_group.and_then(|group| u32::try_from(group).ok())
}

/// Whether a pod has volumes whose content follows objects.
pub fn follows_objects(pod: &Pod) -> bool {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.into_iter().any(|volume| {
        volume.config_map.is_some()
            || volume.secret.is_some()
            || volume.projected.is_some()
            || volume.downward_api.is_some()
    })
}
