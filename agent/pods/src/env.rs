//! A container's environment: services, whole ConfigMaps and Secrets, single values, references between them.
//!
//! Later ones win over earlier ones: service variables, then `envFrom` in order, then `env` in order; `$(NAME)` in a value refers to
//! what came before. What is missing and not optional stops the container with a reason that names it.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, EnvVarSource, Pod, Service};
use skiff_api::expand::expand;

use crate::desired::Desired;
use crate::fields::{Situation, field};
use crate::resources::{NodeCapacity, resource_field};

/// The variables of a container, in the order in which they were first named.
pub fn environment(
    pod: &Pod,
    container: &Container,
    desired: &Desired,
    situation: &Situation,
    node: NodeCapacity,
) -> Result<Vec<(String, String)>, String> {
    let mut env = Environment::default();
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let links = pod.spec.as_ref().and_then(|spec| spec.enable_service_links).unwrap_or(true);
    for (name, value) in service_variables(&desired.services, namespace, links) {
        env.set(name, value);
    }
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        if let Some(reference) = &source.config_map_ref {
            let key = (namespace.to_owned(), reference.name.clone());
            match desired.config_maps.get(&key) {
                Some(map) => map
                    .data
                    .iter()
                    .flatten()
                    .for_each(|(name, value)| env.set(format!("{prefix}{name}"), value.clone())),
                None if reference.optional == Some(true) => {}
                None => return Err(format!("configmap {:?} not found", reference.name)),
            }
        }
        if let Some(reference) = &source.secret_ref {
            let key = (namespace.to_owned(), reference.name.clone());
            match desired.secrets.get(&key) {
                Some(secret) => {
                    for (name, value) in secret.data.iter().flatten() {
                        env.set(format!("{prefix}{name}"), String::from_utf8_lossy(&value.0).into_owned());
                    }
                }
                None if reference.optional == Some(true) => {}
                None => return Err(format!("secret {:?} not found", reference.name)),
            }
        }
    }
    for variable in container.env.iter().flatten() {
        let value = match &variable.value_from {
            Some(source) => match referenced(pod, container, source, desired, situation, node)? {
                Some(value) => value,
                None => continue,
            },
            None => expand(variable.value.as_deref().unwrap_or_default(), |name| env.get(name)),
        };
        env.set(variable.name.clone(), value);
    }
    Ok(env.list)
}

#[derive(Default)]
struct Environment {
    list: Vec<(String, String)>,
    places: BTreeMap<String, usize>,
}

impl Environment {
    fn set(&mut self, name: String, value: String) {
        match self.places.get(&name) {
            Some(place) => self.list[*place].1 = value,
            None => {
                self.places.insert(name.clone(), self.list.len());
                self.list.push((name, value));
            }
        }
    }

    fn get(&self, name: &str) -> Option<String> {
        self.places.get(name).map(|place| self.list[*place].1.clone())
    }
}

fn referenced(
    pod: &Pod,
    container: &Container,
    source: &EnvVarSource,
    desired: &Desired,
    situation: &Situation,
    node: NodeCapacity,
) -> Result<Option<String>, String> {
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    if let Some(reference) = &source.field_ref {
        return field(pod, &reference.field_path, situation, false).map(Some);
    }
    if let Some(reference) = &source.resource_field_ref {
        let other = reference.container_name.as_deref().filter(|name| !name.is_empty());
        let spec = pod.spec.iter().flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()));
        let of = match other {
            Some(name) => spec
                .into_iter()
                .find(|container| container.name == name)
                .ok_or_else(|| format!("container {name:?} not found"))?,
            None => container,
        };
        return resource_field(of, &reference.resource, reference.divisor.as_ref(), node).map(Some);
    }
    if let Some(reference) = &source.config_map_key_ref {
        let optional = reference.optional == Some(true);
        let Some(map) = desired.config_maps.get(&(namespace.clone(), reference.name.clone())) else {
            return if optional { Ok(None) } else { Err(format!("configmap {:?} not found", reference.name)) };
        };
        return match map.data.as_ref().and_then(|data| data.get(&reference.key)) {
            Some(value) => Ok(Some(value.clone())),
            None if optional => Ok(None),
            None => Err(format!("couldn't find key {} in ConfigMap {namespace}/{}", reference.key, reference.name)),
        };
    }
    if let Some(reference) = &source.secret_key_ref {
        let optional = reference.optional == Some(true);
        let Some(secret) = desired.secrets.get(&(namespace.clone(), reference.name.clone())) else {
            return if optional { Ok(None) } else { Err(format!("secret {:?} not found", reference.name)) };
        };
        return match secret.data.as_ref().and_then(|data| data.get(&reference.key)) {
            Some(value) => Ok(Some(String::from_utf8_lossy(&value.0).into_owned())),
            None if optional => Ok(None),
            None => Err(format!("couldn't find key {} in Secret {namespace}/{}", reference.key, reference.name)),
        };
    }
    let empty = *source == EnvVarSource::default();
    if empty { Ok(Some(String::new())) } else { Err("an env source of a kind that this node cannot provide".into()) }
}

/// `WEB_SERVICE_HOST` and its relatives, for services of the pod's namespace; the API server's always.
fn service_variables(services: &[std::sync::Arc<Service>], namespace: &str, links: bool) -> Vec<(String, String)> {
    let mut variables = Vec::new();
    for service in services {
        let name = service.metadata.name.as_deref().unwrap_or_default();
        let of = service.metadata.namespace.as_deref().unwrap_or_default();
        let master = of == "default" && name == "kubernetes";
        if !(master || (links && of == namespace)) {
            continue;
        }
        let Some(spec) = &service.spec else { continue };
        let Some(ip) = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty() && *ip != "None") else { continue };
        let word = |text: &str| text.to_ascii_uppercase().replace('-', "_");
        let base = word(name);
        let ports = spec.ports.as_deref().unwrap_or_default();
        let Some(first) = ports.first() else { continue };
        let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
        variables.push((format!("{base}_SERVICE_HOST"), ip.to_owned()));
        variables.push((format!("{base}_SERVICE_PORT"), first.port.to_string()));
        for port in ports.iter().filter(|port| port.name.as_deref().is_some_and(|name| !name.is_empty())) {
            variables.push((
                format!("{base}_SERVICE_PORT_{}", word(port.name.as_deref().unwrap_or_default())),
                port.port.to_string(),
            ));
        }
        for (index, port) in ports.iter().enumerate() {
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let url = format!("{}://{host}:{}", protocol.to_ascii_lowercase(), port.port);
            let prefix = format!("{base}_PORT_{}_{protocol}", port.port);
            if index == 0 {
                variables.push((format!("{base}_PORT"), url.clone()));
            }
            variables.push((prefix.clone(), url));
            variables.push((format!("{prefix}_PROTO"), protocol.to_ascii_lowercase()));
            variables.push((format!("{prefix}_PORT"), port.port.to_string()));
            variables.push((format!("{prefix}_ADDR"), ip.to_owned()));
        }
    }
    variables
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::sync::Arc;

    fn desired() -> Desired {
        let map = json!({"metadata": {"name": "cm"}, "data": {"a": "1", "b": "2"}});
        let secret = json!({"metadata": {"name": "s"}, "data": {"pw": "c2VjcmV0"}});
        let service = json!({"metadata": {"name": "my-web", "namespace": "n"},
            "spec": {"clusterIP": "10.43.0.7", "ports": [{"port": 80, "name": "http"}]}});
        let mut desired = Desired::default();
        desired.config_maps.insert(("n".into(), "cm".into()), Arc::new(serde_json::from_value(map).unwrap()));
        desired.secrets.insert(("n".into(), "s".into()), Arc::new(serde_json::from_value(secret).unwrap()));
        desired.services.push(Arc::new(serde_json::from_value(service).unwrap()));
        desired
    }

    #[test]
    fn sources() {
        let check = |container: serde_json::Value, expect: Result<&[(&str, &str)], &str>| {
            let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n"},
                "spec": {"containers": [container], "enableServiceLinks": false}}))
            .unwrap();
            let own = &pod.spec.as_ref().unwrap().containers[0];
            let got = environment(&pod, own, &desired(), &Situation::default(), NodeCapacity::default());
            match expect {
                Ok(pairs) => {
                    let pairs: Vec<_> =
                        pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
                    assert_eq!(got, Ok(pairs));
                }
                Err(part) => assert!(got.as_ref().is_err_and(|error| error.contains(part)), "{got:?}"),
            }
        };
        check(
            json!({"name": "c", "env": [{"name": "A", "value": "x"}, {"name": "B", "value": "$(A)$(NO)$$(A)"}]}),
            Ok(&[("A", "x"), ("B", "x$(NO)$(A)")]),
        );
        check(
            json!({"name": "c", "envFrom": [{"prefix": "P_", "configMapRef": {"name": "cm"}}], "env": [{"name": "P_a", "value": "over"}]}),
            Ok(&[("P_a", "over"), ("P_b", "2")]),
        );
        check(
            json!({"name": "c", "env": [{"name": "PW", "valueFrom": {"secretKeyRef": {"name": "s", "key": "pw"}}},
            {"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]}),
            Ok(&[("PW", "secret"), ("N", "p")]),
        );
        check(
            json!({"name": "c", "env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "no", "key": "a", "optional": true}}}]}),
            Ok(&[]),
        );
        check(
            json!({"name": "c", "env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "no", "key": "a"}}}]}),
            Err("configmap \"no\" not found"),
        );
        check(
            json!({"name": "c", "env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "no"}}}]}),
            Err("couldn't find key no in ConfigMap n/cm"),
        );
        check(json!({"name": "c", "envFrom": [{"secretRef": {"name": "no"}}]}), Err("secret \"no\" not found"));
    }

    #[test]
    fn services() {
        let variables = service_variables(&desired().services, "n", true);
        let get = |name: &str| variables.iter().find(|(have, _)| have == name).map(|(_, value)| value.as_str());
        assert_eq!(get("MY_WEB_SERVICE_HOST"), Some("10.43.0.7"));
        assert_eq!(get("MY_WEB_SERVICE_PORT_HTTP"), Some("80"));
        assert_eq!(get("MY_WEB_PORT_80_TCP"), Some("tcp://10.43.0.7:80"));
        assert!(service_variables(&desired().services, "other", true).is_empty());
    }
}
