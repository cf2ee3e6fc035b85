//! Whoever is asked to slow down does so, and asks again. Nothing was done of what was refused so.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::Bytes;
use tonic::body::Body;
use tower::{Service, ServiceExt as _};

use crate::api::guard::RETRY_PUSHBACK;

/// How long is waited for one answer, altogether.
const PATIENCE: Duration = Duration::from_secs(20);

/// A way to a collector, on which whoever asks too often waits.
#[derive(Clone, Debug)]
pub(super) struct Patient<S>(pub(super) S);

type Problem = Box<dyn std::error::Error + Send + Sync>;

impl<S> Service<Request<Body>> for Patient<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Into<Problem> + Send,
{
    type Response = Response<Body>;
    type Error = Problem;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Problem>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Problem>> {
        self.0.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let clone = self.0.clone();
        // The one that is ready, as tower wants it.
        let mut service = std::mem::replace(&mut self.0, clone);
        Box::pin(async move {
            let (head, body) = request.into_parts();
            // A question is small.
            let body = body.collect().await?.to_bytes();
            let mut waited = Duration::ZERO;
            loop {
                let request = Request::from_parts(head.clone(), whole(body.clone()));
                let answer = service.call(request).await.map_err(Into::into)?;
                let Some(wait) = asked_to_wait(&answer).filter(|wait| waited + *wait <= PATIENCE) else {
                    return Ok(answer);
                };
                tokio::time::sleep(wait).await;
                waited += wait;
                service.ready().await.map_err(Into::into)?;
            }
        })
    }
}

fn whole(body: Bytes) -> Body {
    Body::new(http_body_util::Full::new(body))
}

fn asked_to_wait(answer: &Response<Body>) -> Option<Duration> {
    let wait = answer.headers().get(RETRY_PUSHBACK)?.to_str().ok()?;
    wait.parse().ok().map(Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        sync::{Arc, Mutex},
    };

    use super::*;
    use crate::store::lock;

    /// Asks for so many milliseconds of patience, one after the other; what was asked each time.
    async fn asks(pushbacks: &[&'static str]) -> (usize, bool) {
        let left = Arc::new(Mutex::new(pushbacks.to_vec()));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (left_there, asked_there) = (Arc::clone(&left), Arc::clone(&asked));
        let service = tower::service_fn(move |request: Request<Body>| {
            let (left, asked) = (Arc::clone(&left_there), Arc::clone(&asked_there));
            async move {
                let body = request.into_body().collect().await.unwrap().to_bytes();
                lock(&asked).push(body);
                let mut answer = Response::new(Body::empty());
                let mut left = lock(&left);
                if !left.is_empty() {
                    answer.headers_mut().insert(RETRY_PUSHBACK, left.remove(0).parse().unwrap());
                }
                Ok::<_, Infallible>(answer)
            }
        });
        let mut patient = Patient(service);
        let request = Request::new(whole(Bytes::from_static(b"who")));
        let answer = patient.ready().await.unwrap().call(request).await.unwrap();
        let asked = std::mem::take(&mut *lock(&asked));
        assert!(asked.iter().all(|body| *body == "who"));
        (asked.len(), answer.headers().contains_key(RETRY_PUSHBACK))
    }

    #[tokio::test]
    async fn who_is_asked_to_slow_down_asks_the_same_again() {
        assert_eq!(asks(&[]).await, (1, false));
        assert_eq!(asks(&["1", "20"]).await, (3, false));
    }

    #[tokio::test]
    async fn patience_has_an_end() {
        assert_eq!(asks(&["1", "20000"]).await, (2, true));
        assert_eq!(asks(&["3600000"]).await, (1, true));
        assert_eq!(asks(&["-1"]).await, (1, true), "which means that it is not to be tried again");
    }
}
