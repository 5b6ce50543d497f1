//! The OpenAPI on HTTP: every path of one server, GET and POST.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::StatusCode;
use hyper::body::Frame;

use crate::sim::Sim;

/// Largest body that is read.
///
/// Reason: the longest legal request is a few kilobytes; this bounds memory.
const MAX_BODY: usize = 1 << 20;

impl Sim {
    /// The OpenAPI: ECS and VPC, any host name, path `/`.
    pub fn openapi_router(&self) -> Router {
        Router::new().fallback(serve).with_state(self.clone())
    }
}

async fn serve(State(sim): State<Sim>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let Ok(body) = to_bytes(body, MAX_BODY).await else {
        return StatusCode::PAYLOAD_TOO_LARGE.into_response();
    };
    match sim.answer(http::Request::from_parts(head, body)).await {
        Some(answer) => answer.map(Body::from),
        None => Response::new(Body::new(Lost)),
    }
}

/// A body that fails before its first byte, so that the server closes the connection without having answered.
#[derive(Debug)]
struct Lost;

impl hyper::body::Body for Lost {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        Poll::Ready(Some(Err(io::ErrorKind::ConnectionAborted.into())))
    }
}
