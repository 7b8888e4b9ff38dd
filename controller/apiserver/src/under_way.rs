//! What is under way on a connection: whoever asks nothing and waits for nothing keeps no place for ever. HTTP/1 has an end for that in the library, HTTP/2 has
//! none: a client that answers pings is alive, and no more.

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use hyper::body::{Body as _, Frame, SizeHint};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::watch;

/// How many requests of one connection are under way. Clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct UnderWay(watch::Sender<usize>);

/// A request that is under way until this is dropped.
#[derive(Debug)]
pub struct Request(watch::Sender<usize>);

impl UnderWay {
    pub fn begin(&self) -> Request {
        self.0.send_modify(|count| *count += 1);
        Request(self.0.clone())
    }

    /// Returns when nothing was under way for `time`.
    pub async fn idle(&self, time: Duration) {
        let mut counts = self.0.subscribe();
        loop {
            if counts.wait_for(|count| *count == 0).await.is_err() {
                return;
            }
            if tokio::time::timeout(time, counts.changed()).await.is_err() {
                return;
            }
        }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count = count.saturating_sub(1));
    }
}

impl Request {
    /// The request is under way as long as its answer grows: a watch, a log, a long list. An answer that is there as a whole is over when it was made: a client
    /// that does not read it has the time of an idle connection for that, and is not waited for.
    pub fn until_told(self, answer: Response) -> Response {
        answer.map(|body| match body.size_hint().exact() {
            Some(_) => body,
            None => Body::new(Growing { body, _request: self }),
        })
    }
}

struct Growing {
    body: Body,
    _request: Request,
}

impl hyper::body::Body for Growing {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::stream;

    /// Whether nothing was under way for a moment, which is long beside what the test itself takes.
    async fn is_idle(under_way: &UnderWay) -> bool {
        let moment = Duration::from_millis(20);
        tokio::time::timeout(10 * moment, under_way.idle(moment)).await.is_ok()
    }

    #[tokio::test]
    async fn a_request_is_under_way_while_its_answer_grows() {
        let under_way = UnderWay::default();
        assert!(is_idle(&under_way).await);
        let (one, two) = (under_way.begin(), under_way.begin());
        assert!(!is_idle(&under_way).await);
        let whole = one.until_told(Response::new(Body::from("all of it")));
        assert!(!is_idle(&under_way).await, "the other one");
        let forever = Body::from_stream(stream::pending::<Result<Bytes, std::convert::Infallible>>());
        let growing = two.until_told(Response::new(forever));
        assert!(!is_idle(&under_way).await);
        drop(growing);
        assert!(is_idle(&under_way).await);
        drop(whole);
        // What comes and goes is not idle.
        let asking = under_way.clone();
        let asks = tokio::spawn(async move {
            loop {
                drop(asking.begin());
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        assert!(!is_idle(&under_way).await);
        asks.abort();
    }
}
