//! Paths that are not resources: discovery, OpenAPI, health, version, metrics, token keys.

mod discovery;
mod health;
mod openapi;
mod openapi_proto;
mod openapi_v2;
mod paths;

use crate::http::media::{self, Offers, Wanted};
use crate::http::request::Query;
use crate::http::respond;
use crate::state::State;
use axum::response::Response;
use http::HeaderMap;
use http::header::{ACCEPT, HOST};
use serde_json::{Value, json};
use skiff_api::kinds;
use skiff_api::status::Status;
use std::collections::BTreeSet;

/// What is asked of a path.
pub struct Asked<'a> {
    pub path: &'a str,
    /// In small letters.
    pub method: &'a str,
    pub query: &'a Query,
    pub headers: &'a HeaderMap,
    /// The address that the client reached us at.
    pub address: &'a str,
}

impl Asked<'_> {
    fn accept(&self) -> &str {
        self.headers.get(ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default()
    }

    fn wanted(&self, offers: Offers) -> Result<Wanted, Status> {
        let mut wanted =
            media::negotiate(self.accept(), offers).ok_or_else(|| Status::not_acceptable(media::ACCEPTED))?;
        wanted.pretty |= self.query.flag("pretty");
        Ok(wanted)
    }

    fn host(&self) -> &str {
        self.headers.get(HOST).and_then(|v| v.to_str().ok()).unwrap_or(self.address)
    }

    /// A JSON answer in the format that the client wants.
    fn json(&self, value: &Value) -> Result<Response, Status> {
        let wanted = self.wanted(Offers::PlainOnly)?;
        Ok(respond::document(200, value.to_string().into_bytes(), wanted))
    }
}

/// What Skiff says of itself: compatible with the release whose API it serves.
pub fn version() -> Value {
    json!({
        "major": "1",
        "minor": "36",
        "emulationMajor": "1",
        "emulationMinor": "36",
        "minCompatibilityMajor": "1",
        "minCompatibilityMinor": "35",
        "gitVersion": format!("v1.36.0+skiff-{}", env!("CARGO_PKG_VERSION")),
        "gitCommit": option_env!("SKIFF_COMMIT").unwrap_or("unknown"),
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "none (rust)",
        "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, go_arch()),
    })
}

fn go_arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn not_found_page() -> Response {
    respond::response(404, "text/plain; charset=utf-8", "404 page not found\n")
}

pub async fn answer(state: &State, asked: &Asked<'_>) -> Result<Response, Status> {
    let parts: Vec<&str> = asked.path.split('/').filter(|p| !p.is_empty()).collect();
    match parts.as_slice() {
        [] => asked.json(&json!({"paths": paths()})),
        ["healthz" | "livez" | "readyz", ..] => Ok(health::answer(state, asked, parts[0], &parts[1..].join("/"))),
        ["version"] => asked.json(&version()),
        ["metrics"] => {
            let further = state.config.further_metrics.as_ref().map(|write| write.0()).unwrap_or_default();
            let text = format!("{}{}{further}", state.metrics.render(), state.store.store().metrics());
            Ok(respond::response(200, "text/plain; version=0.0.4; charset=utf-8", text))
        }
        ["api"] | ["apis"] | ["api", _] | ["apis", _] | ["apis", _, _] => discovery::answer(state, asked, &parts),
        ["openapi", "v2"] => openapi::v2(asked),
        ["openapi", "v3", rest @ ..] => openapi::v3(asked, &rest.join("/")),
        [".well-known", "openid-configuration"] => asked.json(&json!({
            "issuer": state.config.tokens.issuer(),
            "jwks_uri": format!("https://{}/openid/v1/jwks", advertised(state, asked)),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        })),
        ["openid", "v1", "jwks"] => {
            let accept = asked.accept();
            let fits = accept.is_empty() || accept.contains("*/*") || accept.contains("application/jwk-set+json");
            if !fits {
                let text = "406: Not Acceptable\n\nAvailable representations: application/jwk-set+json";
                return Err(Status::failure(406, "NotAcceptable", text).with_details(Default::default()));
            }
            Ok(respond::response(200, "application/jwk-set+json", state.config.tokens.key_set().to_string()))
        }
        ["skiff", ..] => match &state.config.own_paths {
            Some(own) => asked.json(&(own.0)(asked.method.to_owned(), asked.path.to_owned()).await?),
            None => Ok(not_found_page()),
        },
        _ => Ok(not_found_page()),
    }
}

/// `host:port` that clients are told to use.
fn advertised<'a>(state: &'a State, asked: &'a Asked<'_>) -> &'a str {
    if state.config.advertise.is_empty() { asked.host() } else { &state.config.advertise }
}

/// Every path there is.
fn paths() -> Vec<String> {
    let mut all: BTreeSet<String> = [
        ".well-known/openid-configuration",
        "api",
        "apis",
        "apis/",
        "metrics",
        "openapi/v2",
        "openapi/v3",
        "openapi/v3/",
        "openid/v1/jwks",
        "version",
    ]
    .iter()
    .map(|p| format!("/{p}"))
    .collect();
    for kind in kinds::builtin() {
        if kind.group.is_empty() {
            all.insert(format!("/api/{}", kind.version));
        } else {
            all.insert(format!("/apis/{}", kind.group));
            all.insert(format!("/apis/{}/{}", kind.group, kind.version));
        }
    }
    for root in ["healthz", "livez", "readyz"] {
        all.insert(format!("/{root}"));
        all.extend(health::checks(root).iter().map(|check| format!("/{root}/{check}")));
    }
    all.into_iter().collect()
}
