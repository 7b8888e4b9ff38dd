//! The client's side of the OCI distribution protocol, as far as pulling needs it. Whatever a registry sends has a bound before it is read: manifests, tokens and
//! errors come from whoever runs the registry, who may be anybody.
//!
//! Source: OCI Distribution Specification, "Pull"; Distribution's "Token Authentication Specification".

use std::time::Duration;

use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Response, StatusCode, Url};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::Mutex;

use super::registry::Credentials;

/// Bytes of an error's text; more is cut off.
const ERROR_BYTES_MAX: usize = 16 << 10;
/// Bytes of a token and what surrounds it.
const TOKEN_BYTES_MAX: usize = 256 << 10;
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// How long a registry may be silent.
const SILENT_MAX: Duration = Duration::from_secs(60);

/// Why a registry did not give something.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    #[error("asking the registry failed")]
    Transport(#[from] reqwest::Error),
    /// What it said, with the status that it said it by.
    #[error("the registry answers {0}: {1}")]
    Refused(StatusCode, String),
    #[error("the registry sends more than {0} bytes of {1}")]
    TooLong(usize, &'static str),
    #[error("the registry's {0} cannot be read: {1}")]
    Malformed(&'static str, String),
    #[error("writing what the registry sends failed")]
    Write(#[from] std::io::Error),
}

impl Fault {
    /// Whether it means that there is no such image.
    pub fn is_not_found(&self) -> bool {
        let Fault::Refused(status, text) = self else { return false };
        let text = text.to_ascii_lowercase();
        *status == StatusCode::NOT_FOUND || ["not found", "not_found", "unknown"].iter().any(|word| text.contains(word))
    }
}

/// One repository of a registry, and how to sign in there.
pub struct Repository {
    client: reqwest::Client,
    /// `https://registry.example/v2/team/web`
    base: String,
    repository: String,
    credentials: Option<Credentials>,
    authorization: Mutex<Option<HeaderValue>>,
}

impl Repository {
    /// `plain`: without TLS. `authorities`: PEM certificates that are trusted beside those that everybody trusts.
    pub fn new(
        registry: &str,
        repository: &str,
        plain: bool,
        authorities: &[String],
        credentials: Option<Credentials>,
    ) -> Result<Repository, Fault> {
        let certificates: Result<Vec<_>, _> =
            authorities.iter().map(|pem| reqwest::Certificate::from_pem(pem.as_bytes())).collect();
        let client = reqwest::Client::builder()
            .tls_certs_merge(certificates?)
            .connect_timeout(CONNECT_MAX)
            .read_timeout(SILENT_MAX)
            .user_agent(concat!("skiff/", env!("CARGO_PKG_VERSION")))
            .build()?;
        // Where the registry of that name is.
        let host = if registry == "docker.io" { "index.docker.io" } else { registry };
        let scheme = if plain { "http" } else { "https" };
        let base = format!("{scheme}://{host}/v2");
        Ok(Repository { client, base, repository: repository.into(), credentials, authorization: Mutex::default() })
    }

    /// Signs in, where the registry wants that.
    pub async fn sign_in(&self) -> Result<(), Fault> {
        let response = self.client.get(format!("{}/", self.base)).send().await?;
        self.answer_challenge(&response).await
    }

    /// The manifest of a tag or digest, of at most `bytes_max`, as it is.
    pub async fn manifest(&self, reference: &str, accepted: &[&str], bytes_max: usize) -> Result<Vec<u8>, Fault> {
        let response = self.get(&format!("manifests/{reference}"), &accepted.join(", ")).await?;
        read(response, bytes_max, "a manifest").await
    }

    /// Writes a blob. How much of it is taken is for `to` to say.
    pub async fn blob(&self, digest: &str, to: &mut (impl AsyncWrite + Unpin)) -> Result<(), Fault> {
        let mut response = self.get(&format!("blobs/{digest}"), "*/*").await?;
        while let Some(piece) = response.chunk().await? {
            to.write_all(&piece).await?;
        }
        Ok(())
    }

    /// What is at a path below the repository; signs in again where a token has ended.
    async fn get(&self, path: &str, accept: &str) -> Result<Response, Fault> {
        let url = format!("{}/{}/{path}", self.base, self.repository);
        let ask = async || {
            let mut request = self.client.get(&url).header(ACCEPT, accept);
            if let Some(authorization) = self.authorization.lock().await.clone() {
                request = request.header(AUTHORIZATION, authorization);
            }
            request.send().await
        };
        let mut response = ask().await?;
        if response.status() == StatusCode::UNAUTHORIZED && response.headers().contains_key(WWW_AUTHENTICATE) {
            self.answer_challenge(&response).await?;
            response = ask().await?;
        }
        match response.status() {
            status if status.is_success() => Ok(response),
            status => Err(refusal(status, response).await),
        }
    }

    async fn answer_challenge(&self, response: &Response) -> Result<(), Fault> {
        let challenges = response.headers().get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
        let challenges: Vec<&str> = challenges.collect();
        if challenges.is_empty() {
            return Ok(());
        }
        let bearer = challenges.iter().find_map(|text| Challenge::read(text));
        let authorization = match (bearer, &self.credentials) {
            (Some(challenge), _) => Some(self.token(&challenge).await?),
            (None, Some(credentials)) => Some(basic(credentials)?),
            (None, None) => None,
        };
        *self.authorization.lock().await = authorization;
        Ok(())
    }

    /// A token for pulling from this repository.
    async fn token(&self, challenge: &Challenge) -> Result<HeaderValue, Fault> {
        let malformed = |why: String| Fault::Malformed("token server", why);
        let mut url = Url::parse(&challenge.realm).map_err(|error| malformed(error.to_string()))?;
        url.query_pairs_mut().append_pair("scope", &format!("repository:{}:pull", self.repository));
        if !challenge.service.is_empty() {
            url.query_pairs_mut().append_pair("service", &challenge.service);
        }
        let mut request = self.client.get(url);
        if let Some(credentials) = &self.credentials {
            request = request.header(AUTHORIZATION, basic(credentials)?);
        }
        let response = request.send().await?;
        if !response.status().is_success() {
            return Err(refusal(response.status(), response).await);
        }
        let text = read(response, TOKEN_BYTES_MAX, "a token").await?;
        let answer: serde_json::Value =
            serde_json::from_slice(&text).map_err(|error| Fault::Malformed("token", error.to_string()))?;
        let token = ["token", "access_token"].iter().find_map(|name| answer[*name].as_str());
        let token = token.ok_or_else(|| Fault::Malformed("token", "there is none in it".into()))?;
        secret(format!("Bearer {token}"))
    }
}

/// Where a token is to be had: `Bearer realm="https://auth.example/token",service="registry.example"`.
#[derive(Debug, PartialEq, Eq)]
struct Challenge {
    realm: String,
    service: String,
}

impl Challenge {
    fn read(text: &str) -> Option<Challenge> {
        let (scheme, rest) = text.trim().split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let value = |name: &str| {
            let at = rest.find(&format!("{name}=\""))? + name.len() + 2;
            rest[at..].split('"').next().map(String::from)
        };
        Some(Challenge { realm: value("realm")?, service: value("service").unwrap_or_default() })
    }
}

fn basic(credentials: &Credentials) -> Result<HeaderValue, Fault> {
    use base64::Engine as _;
    let pair = format!("{}:{}", credentials.username, credentials.password);
    secret(format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair)))
}

/// A header that shows in no log.
fn secret(text: String) -> Result<HeaderValue, Fault> {
    let value = HeaderValue::from_str(&text);
    let mut value = value.map_err(|_| Fault::Malformed("token", "it has characters that no header may have".into()))?;
    value.set_sensitive(true);
    Ok(value)
}

async fn read(mut response: Response, most: usize, what: &'static str) -> Result<Vec<u8>, Fault> {
    if response.content_length().is_some_and(|length| length > most as u64) {
        return Err(Fault::TooLong(most, what));
    }
    let mut all = Vec::new();
    while let Some(piece) = response.chunk().await? {
        if all.len() + piece.len() > most {
            return Err(Fault::TooLong(most, what));
        }
        all.extend_from_slice(&piece);
    }
    Ok(all)
}

/// The beginning of what it says.
async fn refusal(status: StatusCode, mut response: Response) -> Fault {
    let mut text = Vec::new();
    while text.len() < ERROR_BYTES_MAX
        && let Ok(Some(piece)) = response.chunk().await
    {
        text.extend_from_slice(&piece[..piece.len().min(ERROR_BYTES_MAX - text.len())]);
    }
    // The specification's form names a code and says a word for people.
    let said: Option<String> = serde_json::from_slice::<serde_json::Value>(&text).ok().and_then(|envelope| {
        let errors = envelope["errors"].as_array()?.iter();
        let each = errors.map(|error| {
            format!("{}: {}", error["code"].as_str().unwrap_or_default(), error["message"].as_str().unwrap_or_default())
        });
        Some(each.collect::<Vec<_>>().join("; "))
    });
    Fault::Refused(status, said.unwrap_or_else(|| String::from_utf8_lossy(&text).trim().chars().take(500).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges() {
        let check = |text: &str, expect: Option<(&str, &str)>| {
            let found = Challenge::read(text);
            let found = found.as_ref().map(|c| (c.realm.as_str(), c.service.as_str()));
            assert_eq!(found, expect, "{text}");
        };
        let full =
            r#"Bearer realm="https://auth.example/token",service="registry.example",scope="repository:a/b:pull""#;
        check(full, Some(("https://auth.example/token", "registry.example")));
        check(r#"bearer service="s", realm="r""#, Some(("r", "s")));
        check(r#"Bearer realm="r"#, Some(("r", "")));
        check(r#"Basic realm="r""#, None);
        check("Bearer", None);
        check(r#"Bearer service="s""#, None);
    }
}
