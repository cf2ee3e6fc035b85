//! `alibi serve`.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use alibi_proto::{
    address::{Address, HostPort},
    command_line::say,
    data_directory::DataDirectory,
    time::Timestamp,
    token::TokenKind,
    transport::{self, Listener},
};
use anyhow::{Context as _, Result, ensure};
use tokio::task::JoinSet;

use super::ServeArgs;
use crate::{
    DATA_FORMAT,
    access::{Access, credential::CredentialId},
    api::{
        Service, enrolment,
        guard::{Guard, Guarded},
    },
    clock,
    fleet::Fleet,
    gate::{self, Keyring},
    open_files,
    rooms::House,
    store::{AGENTS_MAX, Fitted, MAIN_DATABASE, SqliteStore, Store, StoreError},
    turns::Turns,
};

pub(super) const PROGRAM: &str = "alibi";
/// For whoever is at the collector's own machine, in its data directory.
const SOCKET: &str = "alibi.sock";
/// Files that may be open: a connection of each agent, and those of everybody else.
const FILES_WANTED: u64 = AGENTS_MAX as u64 + 4_096;
/// How often what is too old is forgotten.
const FORGET_INTERVAL: Duration = Duration::from_secs(3600);
/// With less room than that a collector keeps nothing long enough to be asked about it.
const RETENTION_BYTES_MIN: u64 = 1 << 30;
/// How often what may wait is written: refusals that were counted, and when credentials were used.
const TICK_INTERVAL: Duration = Duration::from_secs(5);
/// How often connections are held against what may have run out meanwhile.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// A wall clock that gains more than this on the time that passed was set.
const CLOCK_LEAP_MAX: Duration = Duration::from_secs(3600);
/// How long questions under way may take when the collector stops.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(3);

pub(super) async fn serve(arguments: ServeArgs) -> Result<u8> {
    ensure!(
        arguments.retention_bytes.is_none_or(|bytes| bytes >= RETENTION_BYTES_MIN),
        "--retention-bytes is less than {RETENTION_BYTES_MIN} (1GiB), in which there may be no room for a day"
    );
    let stop = transport::stop_signal();
    // Each agent has a connection.
    let open_files_max = open_files::allow_all().unwrap_or(u64::MAX);
    let listener = Listener::bind(&arguments.listen).await?;
    let mut directory = DataDirectory::open(&arguments.data, PROGRAM, DATA_FORMAT)?;
    let opened = Arc::new(SqliteStore::open(&directory.path().join(MAIN_DATABASE))?);
    let store: Arc<dyn Store> = Arc::clone(&opened) as _;
    let mut access = Access::open(directory.path(), clock::now())?;
    access.set_host_lifetime(arguments.certificate_lifetime).context("--certificate-lifetime")?;
    let access = Arc::new(access);
    let keyring = Keyring::new(Arc::clone(&access))?;
    let turns = Turns::default();
    let fleet = Fleet::start(Arc::clone(&store), Arc::clone(&access), Arc::clone(&keyring), turns.clone())?;
    let fleet = Arc::new(fleet);
    directory.keep();

    let address = listener.address()?;
    let advertised = advertised(arguments.advertise, &address);
    let service = Service::new(Arc::clone(&store), Arc::clone(&fleet), Arc::clone(&access), advertised);
    let guard = Guard::new(Arc::clone(&access));
    let enrolment = enrolment::Service::new(Arc::clone(&access), Arc::clone(&fleet), Arc::clone(&guard));
    let analysts = Guarded::new(service.clone().into_server(), guard);
    let house = Arc::new(House::new(
        Arc::clone(&access),
        Arc::clone(&fleet),
        enrolment,
        analysts.clone(),
        open_files_max,
    ));

    let mut tasks = JoinSet::new();
    let local = match listener {
        Listener::Tcp(listener) => {
            let house = Arc::clone(&house) as _;
            tasks.spawn(gate::keep(listener, Arc::clone(&keyring), turns, house, open_files_max));
            let socket = Address::Unix(directory.path().join(SOCKET));
            let bound = if cfg!(unix) { Some(Listener::bind(&socket).await) } else { None };
            bound.and_then(|bound| {
                bound.inspect_err(|error| tracing::warn!(%error, "only who has logged in may ask")).ok()
            })
        }
        local @ Listener::Unix(_) => Some(local),
    };
    if let Some(local) = local {
        tasks.spawn(local.serve_users(analysts));
    }
    tasks.spawn(Arc::clone(&keyring).keep(access.worsened()));
    tasks.spawn(look_again(Arc::clone(&access), fleet, house));
    tasks.spawn(tick(Arc::clone(&access)));
    let kept = Kept {
        age: arguments.retention,
        bytes_max: arguments.retention_bytes,
        audit_age: arguments.audit_retention,
    };
    tasks.spawn(forget(store, access, kept));

    if open_files_max < FILES_WANTED {
        tracing::warn!(
            open_files_max,
            "fewer files may be open than a fleet of {AGENTS_MAX} agents takes: raise `ulimit -n`"
        );
    }
    say_ready(&service, &address, directory.path())?;
    opened.check_beside();
    drop(opened);
    tokio::select! {
        () = stop => tracing::info!("stopping"),
        ended = tasks.join_next() => {
            ended.context("nothing is done any more")?.context("a part of the collector failed")?;
        }
    }
    // Questions under way are let end; what has no end is not waited for.
    let drained = async {
        tasks.abort_all();
        while tasks.join_next().await.is_some() {}
    };
    let _ = tokio::time::timeout(DRAIN_TIMEOUT, drained).await;
    Ok(0)
}

/// How the collector is reached, as far as that can be said: an address that stands for all says nothing.
fn advertised(told: Option<HostPort>, listening: &Address) -> Option<HostPort> {
    let listening = match listening {
        Address::Tcp(address) if !address.is_unspecified() => Some(address.clone()),
        _ => None,
    };
    told.or(listening)
}

/// Says where it serves, and, the first time, how the first admin logs in.
fn say_ready(service: &Service, address: &Address, data: &std::path::Path) -> Result<()> {
    tracing::info!(%address, data = %data.display(), "serving");
    match service.first_admin(TokenKind::User) {
        Ok(Some(token)) => {
            say("The first admin logs in, once and within a day, with")?;
            say(format_args!("    alibi login {token}"))?;
        }
        Ok(None) => {}
        Err(status) => tracing::warn!(
            why = status.message(),
            "no token for the first admin; `alibi --collector unix:{}` is one, too",
            data.join(SOCKET).display()
        ),
    }
    Ok(())
}

/// Ends the connections of those who may have none any more: at once where somebody was revoked, soon where something ran out.
async fn look_again<A>(access: Arc<Access>, fleet: Arc<Fleet>, house: Arc<House<A>>) {
    let mut worsened = access.worsened();
    loop {
        let _ = tokio::time::timeout(LOOK_INTERVAL, worsened.changed()).await;
        let now = clock::now();
        fleet.look_again(now);
        house.visiting().end_unless(|credential| access.is_good(CredentialId(credential), now));
    }
}

async fn tick(access: Arc<Access>) {
    let mut interval = tokio::time::interval(TICK_INTERVAL);
    loop {
        interval.tick().await;
        let access = Arc::clone(&access);
        match tokio::task::spawn_blocking(move || access.tick(clock::now())).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "what may wait could not be written"),
            Err(error) => tracing::error!(%error, "what may wait could not be written"),
        }
    }
}

/// What is kept.
#[derive(Clone, Copy)]
struct Kept {
    age: Duration,
    bytes_max: Option<u64>,
    audit_age: Duration,
}

async fn forget(store: Arc<dyn Store>, access: Arc<Access>, kept: Kept) {
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
        let (store, access) = (Arc::clone(&store), Arc::clone(&access));
        let forgotten = tokio::task::spawn_blocking(move || {
            store.forget(now.saturating_sub(kept.age))?;
            kept.bytes_max.map_or(Ok(()), |bytes_max| make_room(&*store, bytes_max, now))?;
            access.audit().prune(now.saturating_sub(kept.audit_age), now)
        });
        match forgotten.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "what is too old could not be forgotten"),
            Err(error) => tracing::error!(%error, "what is too old could not be forgotten"),
        }
    }
}

/// Forgets the oldest days where everything takes too much room, and says so.
fn make_room(store: &dyn Store, bytes_max: u64, now: Timestamp) -> Result<(), StoreError> {
    let Fitted { bytes, forgotten_before } = store.forget_to_fit(bytes_max, now)?;
    if let Some(before) = forgotten_before {
        tracing::warn!(%before, bytes, bytes_max, "the oldest days were forgotten to make room (--retention-bytes)");
    }
    if bytes > bytes_max {
        tracing::error!(
            bytes,
            bytes_max,
            "there is more than --retention-bytes allows, and nothing older than a day that could go: allow more"
        );
    }
    Ok(())
}
