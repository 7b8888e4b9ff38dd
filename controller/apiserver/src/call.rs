//! One request as the verbs see it, from HTTP or from inside, and what comes of it.

use crate::auth::user::UserInfo;
use crate::http::request::{Query, RequestInfo};
use crate::storage::encode::Stored;
use crate::verbs::watch::WatchStream;
use bytes::Bytes;
use serde_json::Value;
use skiff_api::Kind;
use skiff_api::status::Status;
use skiff_store::{Revision, Term};
use std::sync::Arc;

/// A request that has been authenticated and authorized, for a kind that exists.
pub struct Call {
    pub user: UserInfo,
    pub info: RequestInfo,
    pub kind: Arc<Kind>,
    pub query: Query,
    pub body: Body,
    /// Who is recorded as the writer when the request does not say: the first word of the user agent.
    pub agent: String,
    /// Set by work that only the leader may do.
    pub fence: Option<Term>,
    /// What the client is warned of, beside the answer.
    pub warnings: Vec<String>,
}

#[derive(Clone, Debug, Default)]
pub enum Body {
    #[default]
    Empty,
    /// As it came, with its media type (without parameters).
    Raw { bytes: Bytes, media: String },
    /// From inside: already a value.
    Value(Value),
}

impl Call {
    pub fn namespace(&self) -> &str {
        &self.info.namespace
    }

    /// The namespace of the object's key: empty for kinds of the cluster's scope.
    pub fn key_namespace(&self) -> &str {
        if self.kind.namespaced { &self.info.namespace } else { "" }
    }

    pub fn name(&self) -> &str {
        self.info.path_name()
    }

    pub fn warn(&mut self, text: impl Into<String>) {
        let text = text.into();
        if !self.warnings.contains(&text) {
            self.warnings.push(text);
        }
    }

    /// The field manager of this write.
    pub fn manager(&self) -> String {
        match self.query.text("fieldManager") {
            "" => self.agent.clone(),
            named => named.to_string(),
        }
    }

    pub fn dry_run(&self) -> bool {
        self.query.text("dryRun") == "All"
    }

    pub fn not_found(&self) -> Status {
        Status::not_found(&self.kind.group, &self.kind.plural, &self.info.name)
    }

    pub fn conflict(&self, name: &str, detail: &str) -> Status {
        Status::conflict(&self.kind.group, &self.kind.plural, name, detail)
    }
}

/// A whole or partial list, still in its stored form.
pub struct List {
    pub kind: Arc<Kind>,
    pub items: Vec<Stored>,
    pub revision: Revision,
    pub continue_token: String,
    pub remaining: Option<usize>,
}

/// What a call comes to. Failures are [`Status`].
pub enum Answer {
    /// A stored object, or what would have been stored.
    Object {
        code: u16,
        kind: Arc<Kind>,
        object: Stored,
    },
    /// Something made for this answer only: a scale, a review, a success.
    Value {
        code: u16,
        value: Value,
    },
    List(List),
    Watch(Box<WatchStream>),
}

impl Answer {
    pub fn ok(kind: &Arc<Kind>, object: Stored) -> Self {
        Answer::Object { code: 200, kind: kind.clone(), object }
    }

    pub fn success(status: Status) -> Self {
        Answer::Value { code: status.code(), value: status.to_value() }
    }
}
