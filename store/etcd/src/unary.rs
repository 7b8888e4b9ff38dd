//! gRPC calls with one message each way, by hand: the calls that are made most.
//!
//! What it saves beside gRPC's general way are buffers of 8 KiB each way and the moving of large futures, a third of an empty call. A request
//! is decoded in the buffer that it was received in; an answer is one piece of exactly its size.

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use tonic::{Request, Response, Status};

/// Bytes before a message: one that says whether it is compressed, and its length.
const HEAD: usize = 5;

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// The body of an answer, of this file's kind or of gRPC's general one.
pub enum Answer {
    Unary { message: Option<Bytes>, ended: bool },
    General(tonic::body::Body),
}

/// Answers a call whose message has at most `limit` bytes.
pub async fn serve<Q, A, F>(
    request: http::Request<Incoming>,
    limit: usize,
    call: impl FnOnce(Request<Q>) -> F,
) -> http::Response<Answer>
where
    Q: prost::Message + Default,
    A: prost::Message,
    F: Future<Output = Result<Response<A>, Status>>,
{
    let answered = async {
        let message = receive(request.into_body(), limit).await?;
        let message = Q::decode(message).map_err(|e| Status::internal(format!("decoding the request: {e}")))?;
        call(Request::new(message)).await
    };
    match answered.await {
        Ok(answer) => {
            let answer = answer.into_inner();
            let len = answer.encoded_len();
            let mut bytes = BytesMut::with_capacity(HEAD + len);
            bytes.put_u8(0);
            bytes.put_u32(len as u32);
            answer.encode_raw(&mut bytes);
            let mut response = http::Response::new(Answer::Unary { message: Some(bytes.freeze()), ended: false });
            let grpc = HeaderValue::from_static("application/grpc");
            response.headers_mut().insert(header::CONTENT_TYPE, grpc);
            response
        }
        Err(status) => status.into_http::<tonic::body::Body>().map(Answer::General),
    }
}

/// The one message of a request.
async fn receive(body: Incoming, limit: usize) -> Result<Bytes, Status> {
    let mut body = pin!(body);
    let mut first = Bytes::new();
    let mut more = BytesMut::new();
    while let Some(frame) = poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        let frame = frame.map_err(|e| Status::cancelled(format!("receiving the request: {e}")))?;
        let Ok(data) = frame.into_data() else { continue };
        if first.is_empty() && more.is_empty() {
            first = data;
        } else {
            more.extend_from_slice(&std::mem::take(&mut first));
            more.extend_from_slice(&data);
        }
        if first.len().max(more.len()) > limit + HEAD {
            return Err(Status::out_of_range(format!("the request is larger than the limit of {limit} bytes")));
        }
        if body.is_end_stream() {
            break;
        }
    }
    let mut message = if more.is_empty() { first } else { more.freeze() };
    let Some([compressed, a, b, c, d]) = message.first_chunk().copied() else {
        return Err(Status::internal("the request holds no message"));
    };
    if compressed != 0 {
        return Err(Status::unimplemented("compressed requests are not supported"));
    }
    let len = u32::from_be_bytes([a, b, c, d]) as usize;
    let message = message.split_off(HEAD);
    match message.len() == len {
        true => Ok(message),
        false => Err(Status::internal("the request does not hold exactly one message")),
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match self.get_mut() {
            Answer::General(body) => Pin::new(body).poll_frame(cx),
            Answer::Unary { message, ended } => {
                if let Some(message) = message.take() {
                    return Poll::Ready(Some(Ok(Frame::data(message))));
                }
                if std::mem::replace(ended, true) {
                    return Poll::Ready(None);
                }
                let mut trailers = HeaderMap::with_capacity(1);
                trailers.insert(GRPC_STATUS, HeaderValue::from_static("0"));
                Poll::Ready(Some(Ok(Frame::trailers(trailers))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Answer::General(body) => body.is_end_stream(),
            Answer::Unary { message, ended } => message.is_none() && *ended,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Answer::General(body) => body.size_hint(),
            Answer::Unary { .. } => SizeHint::default(),
        }
    }
}
