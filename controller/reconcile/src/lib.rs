//! The controllers' decisions: what is, what should be, and the next writes that bring them together.
//!
//! A controller here is two functions of values: [`Controller::keys`] says which objects a change concerns, and [`Controller::plan`] reads the
//! whole view and gives the next actions for one of them. Nothing here acts, waits or looks at a clock; the control plane's loop
//! carries plans out, and does not plan for a key again before the view has caught up with what it wrote for it.
//!
//! | controller | keeps |
//! |---|---|
//! | `deployment` | a ReplicaSet for each template, rolling from old to new |
//! | `replicaset` | as many pods as asked for |
//! | `endpoints` | EndpointSlices and Endpoints of Services |
//! | `nodes` | conditions and taints of silent nodes; moves their pods |
//! | `garbage` | owner references: deletes dependents, holds owners |
//! | `namespaces` | empties a namespace that is being deleted |
//! | `accounts` | the default ServiceAccount and the CA's ConfigMap in each namespace |
//! | `pods` | removes pods of nodes that are gone |
//! | `quota` | what namespaces use of their quotas |
//! | `disruption` | how many pods budgets let go |
//! | `roles` | aggregated ClusterRoles |
//! | `events` | forgets old events |
//! | `tokens` | removes join tokens whose time is over |
//! | `credentials` | fills Secrets that are for the tokens of ServiceAccounts |

mod account;
mod accounts;
mod action;
mod clock;
mod credentials;
mod deployment;
mod disruption;
mod endpoints;
mod events;
mod garbage;
mod namespaces;
mod nodes;
mod order;
mod owned;
mod pods;
mod quota;
mod replicaset;
mod roles;
mod tokens;

pub use account::{MANAGER, account};
pub use action::{Action, Context, EventNote, Liveness, NodeLiveness, Plan, Settings};
pub use order::lines;

use skiff_api::view::{Change, Key, View};

/// One controller.
#[derive(Clone, Copy)]
pub struct Controller {
    pub name: &'static str,
    /// The keys that a change concerns. For most, a key names the controller's own object; what it names is the controller's business.
    pub keys: fn(&View, &Change) -> Vec<Key>,
    /// All keys there are: planned for at the start, and every so often, in case something was missed.
    pub all: fn(&View) -> Vec<Key>,
    pub plan: fn(&Context<'_>, &Key) -> Plan,
    /// What is written when the API refused to create an object of the key's plan, with its words: whoever looks at the owner must find why nothing comes.
    /// It is asked at every refusal, and says nothing that is said already.
    pub refused: fn(&Context<'_>, &Key, &str) -> Vec<Action>,
}

/// For controllers whose creations nobody forbids.
pub(crate) fn untold(_: &Context<'_>, _: &Key, _: &str) -> Vec<Action> {
    Vec::new()
}

/// Every controller there is.
pub const CONTROLLERS: &[Controller] = &[
    nodes::CONTROLLER,
    endpoints::CONTROLLER,
    replicaset::CONTROLLER,
    deployment::CONTROLLER,
    pods::CONTROLLER,
    garbage::CONTROLLER,
    namespaces::CONTROLLER,
    accounts::CONTROLLER,
    roles::CONTROLLER,
    quota::CONTROLLER,
    disruption::CONTROLLER,
    events::CONTROLLER,
    tokens::CONTROLLER,
    credentials::CONTROLLER,
];
