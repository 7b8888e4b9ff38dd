//! Events are news, not state: each goes some time after it last happened.

use crate::Controller;
use crate::action::{Action, Context, Plan};
use crate::clock::after;
use jiff::SignedDuration;
use skiff_api::view::{Change, Key, Resource, View};

pub(crate) const CONTROLLER: Controller = Controller { name: "events", keys, all, plan, refused: crate::untold };

fn all(view: &View) -> Vec<Key> {
    view.events.iter().map(|(k, _)| k.clone()).collect()
}

fn keys(_: &View, change: &Change) -> Vec<Key> {
    let is_event = change.resource.plural == "events" && change.resource.group.is_empty();
    if is_event && !change.gone { vec![change.key.clone()] } else { Vec::new() }
}

fn plan(c: &Context<'_>, key: &Key) -> Plan {
    let mut plan = Plan::default();
    let Some(event) = c.view.events.get(key) else { return plan };
    let last = event.last_timestamp.as_ref().or(event.metadata.creation_timestamp.as_ref()).map_or(c.now, |t| t.0);
    let ends = after(last, SignedDuration::from_secs(c.settings.event_ttl_seconds));
    if c.now < ends {
        plan.again(ends);
        return plan;
    }
    plan.push(Action::Delete {
        resource: Resource::new("", "v1", "events"),
        key: key.clone(),
        uid: event.metadata.uid.clone().unwrap_or_default(),
        resource_version: None,
        propagation: None,
        grace_seconds: None,
    });
    plan
}
