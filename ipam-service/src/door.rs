//! The port before the replica serves: whoever knocks is told what it waits for, instead of nothing.

use std::convert::Infallible;
use std::sync::{Arc, OnceLock};

use axum::Router;
use axum::extract::Request;
use axum::response::Response;
use mesh::status::Refusal;
use proto::types::v1::Reason;
use tonic::service::Routes;
use tonic::{Code, Status};
use tower::ServiceExt;

use crate::space::Space;

/// Routes that begin with a refusal. Clones share them.
#[derive(Debug, Clone)]
pub struct Door {
    space: Space,
    open: Arc<OnceLock<Router>>,
}

impl Door {
    /// Closed: everything is refused with the reason why `space` has no shards.
    pub fn new(space: Space) -> Self {
        Self {
            space,
            open: Arc::default(),
        }
    }

    /// What is to be served.
    pub fn routes(&self) -> Routes {
        let door = self.clone();
        let all = tower::service_fn(move |request: Request| door.clone().answer(request));
        Routes::from(Router::new().fallback_service(all))
    }

    /// Lets callers through to `routes` from now on.
    pub fn open(&self, routes: Routes) {
        // A second time changes nothing.
        drop(self.open.set(routes.prepare().into_axum_router()));
    }

    async fn answer(self, request: Request) -> Result<Response, Infallible> {
        match self.open.get() {
            Some(router) => router.clone().oneshot(request).await,
            None => Ok(self.refusal().into_http()),
        }
    }

    fn refusal(&self) -> Status {
        match self.space.refusal() {
            Some(status) => status,
            None => Refusal::new(
                Code::Unavailable,
                Reason::NotReady.as_str_name(),
                "the replica is starting",
            )
            .into_status(),
        }
    }
}
