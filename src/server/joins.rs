//! Who asks to join, by nothing but a token that nobody has looked at yet: so many at once in whole, so many from one source, and none for long. Each holds a request
//! that may never come whole; and one source that sends such requests must not keep all others from joining.

use axum::body::Body;
use http::Response;
use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Until the answer is made.
const TIME_MAX: Duration = Duration::from_secs(10);
/// At once, in whole. Whoever comes then is told to come again, as agents do.
const ALL_MAX: usize = 64;
/// At once from one source: nodes behind one address take turns.
const EACH_MAX: usize = 16;

/// Those under way, by source. Clones are the same.
#[derive(Clone, Default)]
pub struct Joins(Arc<Mutex<HashMap<IpAddr, usize>>>);

struct Place {
    joins: Joins,
    from: IpAddr,
}

impl Joins {
    /// What `answer` comes to, if there is a place and it comes in time. Nobody waits for a place: what was sent already would be kept meanwhile.
    pub async fn bounded(
        &self,
        from: IpAddr,
        answer: impl Future<Output = Result<Response<Body>, Infallible>>,
    ) -> Response<Body> {
        self.within(TIME_MAX, from, answer).await
    }

    async fn within(
        &self,
        time: Duration,
        from: IpAddr,
        answer: impl Future<Output = Result<Response<Body>, Infallible>>,
    ) -> Response<Body> {
        let Some(_place) = self.enter(from) else {
            return tonic::Status::resource_exhausted("too many ask to join at once; try again").into_http();
        };
        match tokio::time::timeout(time, answer).await {
            Ok(Ok(response)) => response,
            Ok(Err(never)) => match never {},
            Err(_) => {
                let why = format!(
                    "joining took more than {time:?}: the request did not come whole, or the store has no leader; try again"
                );
                tonic::Status::deadline_exceeded(why).into_http()
            }
        }
    }

    fn enter(&self, from: IpAddr) -> Option<Place> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (all, theirs) = (counts.values().sum::<usize>(), counts.get(&from).copied().unwrap_or_default());
        if all >= ALL_MAX || theirs >= EACH_MAX {
            return None;
        }
        counts.insert(from, theirs + 1);
        Some(Place { joins: self.clone(), from })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.joins.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(theirs) = counts.get_mut(&self.from) {
            *theirs = theirs.saturating_sub(1);
            if *theirs == 0 {
                counts.remove(&self.from);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;

    fn code(response: &Response<Body>) -> Code {
        tonic::Status::from_header_map(response.headers()).map_or(Code::Ok, |status| status.code())
    }

    #[tokio::test]
    async fn who_asks_to_join_holds_little_and_not_for_long() {
        let soon = Duration::from_millis(500);
        let joins = Joins::default();
        let from = |n: usize| IpAddr::from([192, 0, 2, u8::try_from(n).unwrap_or(u8::MAX)]);
        let good = || async { Ok(Response::new(Body::empty())) };
        let mut held = Vec::new();
        // Requests that do not come whole.
        let mut hold = async |source: usize| {
            for _ in 0..EACH_MAX {
                let (joins, under_way) = (joins.clone(), joins.clone());
                let before: usize = under_way.0.lock().unwrap().values().sum();
                held.push(tokio::spawn(async move { joins.within(soon, from(source), std::future::pending()).await }));
                while under_way.0.lock().unwrap().values().sum::<usize>() == before {
                    tokio::task::yield_now().await;
                }
            }
        };
        hold(0).await;
        assert_eq!(code(&joins.bounded(from(0), good()).await), Code::ResourceExhausted, "at once, not after a wait");
        assert_eq!(code(&joins.bounded(from(1), good()).await), Code::Ok, "others join meanwhile");
        for source in 1..ALL_MAX / EACH_MAX {
            hold(source).await;
        }
        assert_eq!(code(&joins.bounded(from(200), good()).await), Code::ResourceExhausted, "in whole");
        for one in held {
            assert_eq!(code(&one.await.unwrap()), Code::DeadlineExceeded);
        }
        assert_eq!(code(&joins.bounded(from(0), good()).await), Code::Ok);
        assert!(joins.0.lock().unwrap().is_empty());
    }
}
