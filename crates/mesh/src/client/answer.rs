//! The body of an answer, with the call's deadline on it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::Response;
use hyper::body::{Bytes, Frame, SizeHint};
use tokio::time::{Instant, Sleep};
use tonic::Status;
use tonic::body::Body;

use crate::client::{late, unanswered};

/// A body that fails once the deadline has passed, so that a server that dies between headers and
/// message cannot hang the caller.
pub(super) struct Answer {
    inner: Body,
    deadline: Option<Pin<Box<Sleep>>>,
    target: Arc<str>,
    failed: bool,
}

impl Answer {
    pub(super) fn wrap(
        response: Response<Body>,
        deadline: Option<Instant>,
        target: Arc<str>,
    ) -> Response<Body> {
        response.map(|inner| {
            let deadline = deadline.map(|at| Box::pin(tokio::time::sleep_until(at)));
            Body::new(Self {
                inner,
                deadline,
                target,
                failed: false,
            })
        })
    }
}

impl hyper::body::Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        if this.failed {
            return Poll::Ready(None);
        }
        match Pin::new(&mut this.inner).poll_frame(context) {
            Poll::Ready(Some(Err(error))) => {
                this.failed = true;
                Poll::Ready(Some(Err(unanswered(&this.target, Box::new(error)))))
            }
            Poll::Ready(frame) => Poll::Ready(frame),
            Poll::Pending => {
                let passed = this
                    .deadline
                    .as_mut()
                    .is_some_and(|sleep| sleep.as_mut().poll(context).is_ready());
                if passed {
                    this.failed = true;
                    return Poll::Ready(Some(Err(late(&this.target))));
                }
                Poll::Pending
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.failed || self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
