//! `alibi serve`.

use std::{
    convert::Infallible,
    sync::Arc,
    time::{Duration, Instant},
};

use alibi_proto::{
    data_directory::DataDirectory,
    transport::{self, Listener},
};
use anyhow::{Context as _, Result};

use super::ServeArgs;
use crate::{
    api::Service,
    clock,
    fleet::Fleet,
    store::{SqliteStore, Store},
};

const PROGRAM: &str = "alibi";
const DATA_FORMAT: u32 = 1;
const DATABASE: &str = "alibi.db";
/// How often what is too old is forgotten.
const FORGET_INTERVAL: Duration = Duration::from_secs(3600);
/// A wall clock that gains more than this on the time that passed was set.
const CLOCK_LEAP_MAX: Duration = Duration::from_secs(3600);
/// How long questions under way may take when the collector stops.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(3);

pub(super) async fn serve(arguments: ServeArgs) -> Result<u8> {
    let stop = transport::stop_signal();
    let listener = Listener::bind(&arguments.listen).await?;
    let mut directory = DataDirectory::open(&arguments.data, PROGRAM, DATA_FORMAT)?;
    let store: Arc<dyn Store> = Arc::new(SqliteStore::open(&directory.path().join(DATABASE))?);
    let fleet = Arc::new(Fleet::start(Arc::clone(&store))?);
    directory.keep();
    tracing::info!(address = %listener.address()?, data = %directory.path().display(), "serving");

    let forgetting = tokio::spawn(forget(Arc::clone(&store), arguments.retention));
    let (stop_serving, stopped) = tokio::sync::oneshot::channel::<Infallible>();
    let router = transport::server().add_service(Service::new(store, fleet).into_server());
    let mut server = tokio::spawn(listener.serve(router, async {
        let _ = stopped.await;
    }));
    tokio::select! {
        () = stop => tracing::info!("stopping"),
        served = &mut server => served.context("the server failed")?.context("cannot serve")?,
    }
    forgetting.abort();
    drop(stop_serving);
    if tokio::time::timeout(DRAIN_TIMEOUT, &mut server).await.is_err() {
        server.abort();
    }
    Ok(0)
}

async fn forget(store: Arc<dyn Store>, retention: Duration) {
    let mut interval = tokio::time::interval(FORGET_INTERVAL);
    let (began, began_at) = (Instant::now(), clock::now());
    loop {
        interval.tick().await;
        let now = clock::now();
        // What is forgotten does not come back, so a clock that leapt ahead must not decide it.
        let expected = began_at.saturating_add(began.elapsed());
        if now.since(expected) > CLOCK_LEAP_MAX {
            tracing::error!(%now, %expected, "the clock was set forward: nothing is forgotten until a restart");
            continue;
        }
        let store = Arc::clone(&store);
        let before = now.saturating_sub(retention);
        match tokio::task::spawn_blocking(move || store.forget(before)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "what is too old could not be forgotten"),
            Err(error) => tracing::error!(%error, "what is too old could not be forgotten"),
        }
    }
}
