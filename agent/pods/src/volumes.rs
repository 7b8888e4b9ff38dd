//! A pod's volumes: where each is, and what is in those that Skiff writes.
//!
//! Secrets and tokens live in memory file systems of the pod's helper: they reach no disk and end with the pod.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{
    ConfigMap, DownwardAPIVolumeFile, HostPathVolumeSource, KeyToPath, Pod, Secret, Volume,
};
use skiff_api::quantity::Quantity;
use skiff_runtime::Tmpfs;

use crate::atomic::Files;
use crate::desired::Desired;
use crate::fields::{Situation, field};
use crate::resources::{NodeCapacity, resource_field};
use crate::traits::TokenRequest;

/// Where a volume is and who fills it.
#[derive(Debug, Clone, PartialEq)]
pub struct Place {
    /// As the pod names it.
    pub name: String,
    /// On the host, or (for memory) in the helper's namespace.
    pub path: PathBuf,
    /// In memory.
    pub tmpfs: Option<Tmpfs>,
    /// How it gets its content.
    pub content: Content,
}

/// How a volume gets its content.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// Empty, for the pod to fill.
    Empty,
    /// It is the host's.
    Host(HostPathVolumeSource),
    /// Files that follow objects.
    Files,
}

/// The place of every volume of a pod. `base`: the pod's directory for volumes.
pub fn places(pod: &Pod, base: &Path) -> Result<Vec<Place>, String> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.map(|volume| place(volume, base)).collect()
}

fn place(volume: &Volume, base: &Path) -> Result<Place, String> {
    let path = base.join(&volume.name);
    let memory = |size_bytes: u64, mode: u32| Some(Tmpfs { path: path.clone(), size_bytes, mode });
    let (tmpfs, content) = if let Some(source) = &volume.empty_dir {
        let limit = source
            .size_limit
            .as_ref()
            .and_then(|limit| Quantity::parse(&limit.0).ok())
            .map_or(0, |limit| limit.value().max(0) as u64);
        match source.medium.as_deref() {
            Some("Memory") => (memory(limit, 0o1777), Content::Empty),
            _ => (None, Content::Empty),
        }
    } else if let Some(source) = &volume.host_path {
        return Ok(Place {
            name: volume.name.clone(),
            path: source.path.clone().into(),
            tmpfs: None,
            content: Content::Host(source.clone()),
        });
    } else if volume.config_map.is_some() || volume.downward_api.is_some() {
        (None, Content::Files)
    } else if volume.secret.is_some() || volume.projected.is_some() {
        (memory(0, 0o755), Content::Files)
    } else {
        return Err(format!(
            "the volume {:?} is of a kind that this node cannot provide; it has emptyDir, hostPath, configMap, secret, downwardAPI and projected",
            volume.name
        ));
    };
    Ok(Place { name: volume.name.clone(), path, tmpfs, content })
}

/// Makes a volume's directory, or checks the host's.
pub fn make(place: &Place, group: Option<u32>) -> Result<(), String> {
    let fail = |error: io::Error| format!("{}: {error}", place.path.display());
    match &place.content {
        Content::Host(source) => host_path(source),
        Content::Empty | Content::Files if place.tmpfs.is_some() => Ok(()),
        Content::Empty => {
            fs::create_dir_all(&place.path).map_err(fail)?;
            share(&place.path, group, 0o777).map_err(fail)
        }
        Content::Files => {
            fs::create_dir_all(&place.path).map_err(fail)?;
            fs::set_permissions(&place.path, PermissionsExt::from_mode(0o755)).map_err(fail)
        }
    }
}

/// Gives a directory to a group, whose files in it then belong to the group too.
pub fn share(path: &Path, group: Option<u32>, mode: u32) -> io::Result<()> {
    if group.is_some() {
        chown(path, None, group)?;
    }
    let sticky = if group.is_some() { 0o2000 } else { 0 };
    fs::set_permissions(path, PermissionsExt::from_mode(mode | sticky))
}

fn host_path(source: &HostPathVolumeSource) -> Result<(), String> {
    let path = Path::new(&source.path);
    let fail = |what: &str| Err(format!("hostPath type check failed: {} is not a {what}", source.path));
    let kind = fs::metadata(path).map(|metadata| metadata.file_type());
    let is = |test: &dyn Fn(&fs::FileType) -> bool| kind.as_ref().is_ok_and(test);
    match source.type_.as_deref().unwrap_or_default() {
        "" | "DirectoryOrCreate" if kind.is_err() => {
            fs::create_dir_all(path).map_err(|error| format!("{}: {error}", source.path))
        }
        "" => Ok(()),
        "FileOrCreate" if kind.is_err() => {
            fs::File::create(path).map(drop).map_err(|error| format!("{}: {error}", source.path))
        }
        "Directory" | "DirectoryOrCreate" if !is(&fs::FileType::is_dir) => fail("directory"),
        "File" | "FileOrCreate" if !is(&fs::FileType::is_file) => fail("file"),
        "Socket" if !is(&FileTypeExt::is_socket) => fail("socket file"),
        "CharDevice" if !is(&FileTypeExt::is_char_device) => fail("character device"),
        "BlockDevice" if !is(&FileTypeExt::is_block_device) => fail("block device"),
        _ => Ok(()),
    }
}

/// The tokens that a pod's volumes hold.
pub fn token_requests(pod: &Pod) -> Vec<TokenRequest> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let sources = spec
        .volumes
        .iter()
        .flatten()
        .filter_map(|volume| volume.projected.as_ref())
        .flat_map(|projected| projected.sources.iter().flatten());
    let tokens = sources.filter_map(|source| source.service_account_token.as_ref());
    let account = spec.service_account_name.clone().filter(|name| !name.is_empty()).unwrap_or_else(|| "default".into());
    tokens
        .map(|token| TokenRequest {
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            service_account: account.clone(),
            audience: token.audience.clone().unwrap_or_default(),
            expiration_seconds: token.expiration_seconds.unwrap_or(3600),
            pod_name: pod.metadata.name.clone().unwrap_or_default(),
            pod_uid: pod.metadata.uid.clone().unwrap_or_default(),
        })
        .collect()
}

/// What rendering looks at.
pub struct Sources<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// Objects.
    pub desired: &'a Desired,
    /// Addresses and names.
    pub situation: &'a Situation,
    /// For resource fields.
    pub node: NodeCapacity,
    /// In the order of [`token_requests`]: (audience, expiration) to token.
    pub tokens: &'a BTreeMap<(String, i64), String>,
}

impl Sources<'_> {
    /// The files of a volume whose content follows objects.
    pub fn render(&self, volume: &Volume) -> Result<Files, String> {
        let mut files = Files::new();
        if let Some(source) = &volume.config_map {
            let mode = source.default_mode.unwrap_or(0o644);
            self.config_map(&mut files, &source.name, source.items.as_deref(), mode, source.optional)?;
        } else if let Some(source) = &volume.secret {
            let mode = source.default_mode.unwrap_or(0o644);
            let name = source.secret_name.as_deref().unwrap_or_default();
            self.secret(&mut files, name, source.items.as_deref(), mode, source.optional)?;
        } else if let Some(source) = &volume.downward_api {
            self.downward(&mut files, source.items.as_deref(), source.default_mode.unwrap_or(0o644))?;
        } else if let Some(source) = &volume.projected {
            let mode = source.default_mode.unwrap_or(0o644);
            for part in source.sources.iter().flatten() {
                if let Some(part) = &part.config_map {
                    self.config_map(&mut files, &part.name, part.items.as_deref(), mode, part.optional)?;
                } else if let Some(part) = &part.secret {
                    self.secret(&mut files, &part.name, part.items.as_deref(), mode, part.optional)?;
                } else if let Some(part) = &part.downward_api {
                    self.downward(&mut files, part.items.as_deref(), mode)?;
                } else if let Some(part) = &part.service_account_token {
                    let key = (part.audience.clone().unwrap_or_default(), part.expiration_seconds.unwrap_or(3600));
                    let token =
                        self.tokens.get(&key).ok_or_else(|| "no service account token was issued".to_owned())?;
                    files.insert(part.path.clone(), (token.clone().into_bytes(), mode as u32));
                } else {
                    return Err("a projected source of a kind that this node cannot provide".into());
                }
            }
        }
        Ok(files)
    }

    fn namespace(&self) -> String {
        self.pod.metadata.namespace.clone().unwrap_or_default()
    }

    fn config_map(
        &self,
        files: &mut Files,
        name: &str,
        items: Option<&[KeyToPath]>,
        mode: i32,
        optional: Option<bool>,
    ) -> Result<(), String> {
        match self.desired.config_maps.get(&(self.namespace(), name.to_owned())) {
            Some(map) => select(files, &map_content(map), items, mode, optional, &format!("configmap {name:?}")),
            None if optional == Some(true) => Ok(()),
            None => Err(format!("configmap {name:?} not found")),
        }
    }

    fn secret(
        &self,
        files: &mut Files,
        name: &str,
        items: Option<&[KeyToPath]>,
        mode: i32,
        optional: Option<bool>,
    ) -> Result<(), String> {
        match self.desired.secrets.get(&(self.namespace(), name.to_owned())) {
            Some(secret) => select(files, &secret_content(secret), items, mode, optional, &format!("secret {name:?}")),
            None if optional == Some(true) => Ok(()),
            None => Err(format!("secret {name:?} not found")),
        }
    }

    fn downward(&self, files: &mut Files, items: Option<&[DownwardAPIVolumeFile]>, mode: i32) -> Result<(), String> {
        for item in items.unwrap_or_default() {
            let value = if let Some(reference) = &item.field_ref {
                field(self.pod, &reference.field_path, self.situation, true)?
            } else if let Some(reference) = &item.resource_field_ref {
                let name = reference.container_name.as_deref().unwrap_or_default();
                let mut containers = self
                    .pod
                    .spec
                    .iter()
                    .flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()));
                let container = containers
                    .find(|container| container.name == name)
                    .ok_or_else(|| format!("container {name:?} not found"))?;
                resource_field(container, &reference.resource, reference.divisor.as_ref(), self.node)?
            } else {
                continue;
            };
            files.insert(item.path.clone(), (value.into_bytes(), item.mode.unwrap_or(mode) as u32));
        }
        Ok(())
    }
}

fn map_content(map: &ConfigMap) -> BTreeMap<&str, &[u8]> {
    let text = map.data.iter().flatten().map(|(key, value)| (key.as_str(), value.as_bytes()));
    text.chain(map.binary_data.iter().flatten().map(|(key, value)| (key.as_str(), value.0.as_slice()))).collect()
}

fn secret_content(secret: &Secret) -> BTreeMap<&str, &[u8]> {
    secret.data.iter().flatten().map(|(key, value)| (key.as_str(), value.0.as_slice())).collect()
}

fn select(
    files: &mut Files,
    content: &BTreeMap<&str, &[u8]>,
    items: Option<&[KeyToPath]>,
    mode: i32,
    optional: Option<bool>,
    what: &str,
) -> Result<(), String> {
    let Some(items) = items.filter(|items| !items.is_empty()) else {
        files.extend(content.iter().map(|(key, bytes)| (key.to_string(), (bytes.to_vec(), mode as u32))));
        return Ok(());
    };
    for item in items {
        match content.get(item.key.as_str()) {
            Some(bytes) => {
                files.insert(item.path.clone(), (bytes.to_vec(), item.mode.unwrap_or(mode) as u32));
            }
            None if optional == Some(true) => {}
            None => return Err(format!("{what} references non-existent key: {}", item.key)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::sync::Arc;

    #[test]
    fn content() {
        let mut desired = Desired::default();
        let map = json!({"data": {"a": "1", "b": "2"}, "binaryData": {"c": "AA=="}});
        desired.config_maps.insert(("n".into(), "cm".into()), Arc::new(serde_json::from_value(map).unwrap()));
        let tokens = BTreeMap::from([(("api".to_owned(), 600), "token".to_owned())]);
        let check = |volume: serde_json::Value, expect: Result<&[(&str, &str, u32)], &str>| {
            let mut volume = volume;
            volume["name"] = json!("v");
            let pod: Pod = serde_json::from_value(
                json!({"metadata": {"name": "p", "namespace": "n"}, "spec": {"containers": [], "volumes": [volume]}}),
            )
            .unwrap();
            let sources = Sources {
                pod: &pod,
                desired: &desired,
                situation: &Situation::default(),
                node: NodeCapacity::default(),
                tokens: &tokens,
            };
            let got = sources.render(&pod.spec.as_ref().unwrap().volumes.as_ref().unwrap()[0]);
            match expect {
                Ok(files) => {
                    let files: Files = files
                        .iter()
                        .map(|(path, text, mode)| (path.to_string(), (text.as_bytes().to_vec(), *mode)))
                        .collect();
                    assert_eq!(got, Ok(files), "{volume}");
                }
                Err(part) => assert!(got.as_ref().is_err_and(|error| error.contains(part)), "{got:?}"),
            }
        };
        check(json!({"configMap": {"name": "cm"}}), Ok(&[("a", "1", 0o644), ("b", "2", 0o644), ("c", "\0", 0o644)]));
        check(
            json!({"configMap": {"name": "cm", "defaultMode": 256, "items": [{"key": "a", "path": "x/y", "mode": 511}, {"key": "b", "path": "z"}]}}),
            Ok(&[("x/y", "1", 0o777), ("z", "2", 0o400)]),
        );
        check(json!({"configMap": {"name": "no"}}), Err("configmap \"no\" not found"));
        check(json!({"configMap": {"name": "no", "optional": true}}), Ok(&[]));
        check(json!({"configMap": {"name": "cm", "items": [{"key": "no", "path": "x"}]}}), Err("non-existent key: no"));
        check(json!({"secret": {"secretName": "no"}}), Err("secret \"no\" not found"));
        check(
            json!({"downwardAPI": {"items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]}}),
            Ok(&[("name", "p", 0o644)]),
        );
        check(
            json!({"projected": {"sources": [{"serviceAccountToken": {"audience": "api", "expirationSeconds": 600, "path": "t"}},
                {"configMap": {"name": "cm", "items": [{"key": "a", "path": "a"}]}}]}}),
            Ok(&[("a", "1", 0o644), ("t", "token", 0o644)]),
        );
    }

    #[test]
    fn memory_and_unknown_kinds() {
        let check = |volume: serde_json::Value, expect: Option<bool>| {
            let volume: Volume = serde_json::from_value(volume).unwrap();
            assert_eq!(place(&volume, Path::new("/v")).ok().map(|place| place.tmpfs.is_some()), expect, "{volume:?}");
        };
        check(json!({"name": "v", "emptyDir": {}}), Some(false));
        check(json!({"name": "v", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}), Some(true));
        check(json!({"name": "v", "secret": {"secretName": "s"}}), Some(true));
        check(json!({"name": "v", "hostPath": {"path": "/x"}}), Some(false));
        check(json!({"name": "v", "persistentVolumeClaim": {"claimName": "x"}}), None);
    }
}
