//! The memory that requests hold together: their bodies while they are read and answered, and long answers until they were read.
//!
//! Without it, some clients that send bodies or ask for all objects at once, and read slowly, hold as much memory as they like. Upstream bounds the number of
//! requests and weighs them by their work; here the bytes themselves are counted.

use crate::bounds::Bounds;
use axum::body::Body;
use bytes::Bytes;
use futures_util::stream;
use skiff_api::status::Status;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::{CancellationToken, DropGuard};

/// What is counted together.
const UNIT_BYTES: usize = 1024;
/// Answers up to here are not counted.
pub const SMALL_BYTES: usize = 64 << 10;
/// A parsed document takes about as many times the bytes of its text.
pub const PARSED: usize = 8;

/// The budget of a server.
#[derive(Debug)]
pub struct Budget {
    room: Arc<Semaphore>,
    units: usize,
    wait: Duration,
}

/// A part of the budget, given back when this is dropped.
#[derive(Debug, Default)]
pub struct Held(Option<OwnedSemaphorePermit>);

impl Held {
    /// Joins another part to this one.
    pub fn add(&mut self, more: Held) {
        match (&mut self.0, more.0) {
            (Some(have), Some(more)) => have.merge(more),
            (have @ None, more) => *have = more,
            (Some(_), None) => {}
        }
    }

    /// Gives back all but what `bytes` need.
    pub fn keep(&mut self, bytes: usize) {
        if let Some(permit) = &mut self.0 {
            let beyond = permit.num_permits().saturating_sub(bytes.div_ceil(UNIT_BYTES));
            drop(permit.split(beyond));
        }
    }
}

impl Budget {
    pub fn new(bounds: &Bounds) -> Budget {
        let units = (bounds.memory_bytes / UNIT_BYTES).clamp(1, u32::MAX as usize);
        Budget { room: Arc::new(Semaphore::new(units)), units, wait: bounds.memory_wait }
    }

    /// Waits for room for `bytes`; what is larger than all of it has it alone. The client is told to come again (429) when that takes too long.
    pub async fn take(&self, bytes: usize) -> Result<Held, Status> {
        let units = bytes.div_ceil(UNIT_BYTES).min(self.units);
        let room = self.room.clone().acquire_many_owned(u32::try_from(units).unwrap_or(u32::MAX));
        match tokio::time::timeout(self.wait, room).await {
            Ok(Ok(permit)) => Ok(Held(Some(permit))),
            _ => Err(Status::too_many_requests(
                "Too many requests, please try again later: other requests hold the memory that this one needs",
                1,
            )),
        }
    }
}

/// Ends a connection from inside a request.
#[derive(Clone, Debug, Default)]
pub struct Connection(pub CancellationToken);

/// A body of an answer that holds its part of the budget until it was read. A client that takes longer than `within` loses its connection.
pub fn body(bytes: Bytes, held: Held, within: Duration, connection: Connection) -> Body {
    let read = CancellationToken::new();
    let until = read.clone();
    tokio::spawn(async move {
        tokio::select! {
            () = until.cancelled() => {}
            () = tokio::time::sleep(within) => {
                tracing::debug!("an answer was not read in time; its connection ends");
                connection.0.cancel();
            }
        }
    });
    struct Rest {
        bytes: Bytes,
        _held: Held,
        _read: DropGuard,
    }
    let rest = Rest { bytes, _held: held, _read: read.drop_guard() };
    Body::from_stream(stream::unfold(rest, |mut rest| async move {
        let piece = rest.bytes.split_to(rest.bytes.len().min(SMALL_BYTES));
        (!piece.is_empty()).then_some((Ok::<_, std::convert::Infallible>(piece), rest))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt as _;

    fn budget() -> Budget {
        let bounds = Bounds { memory_bytes: 4096, memory_wait: Duration::from_millis(20), ..Bounds::default() };
        Budget::new(&bounds)
    }

    #[tokio::test]
    async fn parts_are_taken_and_given_back() {
        let budget = budget();
        let mut one = budget.take(1).await.unwrap();
        one.add(budget.take(2048).await.unwrap());
        assert_eq!(budget.room.available_permits(), 1);
        let refused = budget.take(2000).await.unwrap_err();
        assert_eq!((refused.code(), refused.details.map(|d| d.retry_after_seconds)), (429, Some(1)));
        one.keep(4096);
        assert_eq!(budget.room.available_permits(), 1, "there is no more to it");
        one.keep(1025);
        assert_eq!(budget.room.available_permits(), 2);
        drop(one);
        let all = budget.take(usize::MAX).await.unwrap();
        assert_eq!(budget.room.available_permits(), 0);
        drop(all);
        assert_eq!(budget.room.available_permits(), 4);
    }

    #[tokio::test]
    async fn an_answer_holds_its_part_until_it_was_read() {
        let budget = budget();
        let text = Bytes::from(vec![b'x'; 3 * SMALL_BYTES + 1]);
        let connection = Connection::default();
        let held = budget.take(text.len()).await.unwrap();
        let mut read = body(text.clone(), held, Duration::from_secs(60), connection.clone());
        let first = read.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!((first.len(), budget.room.available_permits()), (SMALL_BYTES, 0));
        let rest = read.collect().await.unwrap().to_bytes();
        assert_eq!((first.len() + rest.len(), budget.room.available_permits()), (text.len(), 4));
        assert!(!connection.0.is_cancelled());
        let held = budget.take(text.len()).await.unwrap();
        let _unread = body(text, held, Duration::from_millis(1), connection.clone());
        connection.0.cancelled().await;
    }
}
