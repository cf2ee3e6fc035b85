//! Where a running agent is reached: by whom on this machine, and by the collector.

use std::path::Path;

use alibi_proto::{
    address::Address,
    transport::{self, ListenError, Listener},
};
use anyhow::{Context as _, Result, ensure};
use tokio::sync::watch;

use crate::{
    enrolment::Enrolment,
    link::{Link, serve_on_port},
};

/// What is bound.
pub(super) struct Doors {
    /// For this machine: whoever reaches it may ask.
    local: Option<Listener>,
    /// For the collector, which proves that it is.
    port: Option<tokio::net::TcpListener>,
}

impl Doors {
    /// Binds what was asked for.
    pub(super) async fn open(listen: Option<&Address>) -> Result<Self, ListenError> {
        let Some(address) = listen else { return Ok(Self { local: None, port: None }) };
        let listener = Listener::bind(address).await?;
        Ok(match listener {
            Listener::Tcp(port) if !address.is_local() => Self { local: None, port: Some(port) },
            local => Self { local: Some(local), port: None },
        })
    }

    /// With a socket for this machine, if there is no other door for it. Local commands do without: they read the ring then.
    pub(super) async fn or_socket(mut self, path: &Path) -> Self {
        if self.local.is_none() && cfg!(unix) {
            let bound = Listener::bind(&Address::Unix(path.to_owned())).await;
            self.local = bound
                .inspect_err(|error| tracing::warn!(%error, "local commands read the ring themselves"))
                .ok();
        }
        self
    }

    /// Strangers are served nothing, so there must be somebody who is none.
    pub(super) fn check(&self, directory: &Path) -> Result<()> {
        ensure!(
            self.port.is_none() || Enrolment::load(directory)?.is_some(),
            "--listen is an address that others can reach, where the collector must prove itself, and this host is not \
             enrolled: `alibi-agent enroll TOKEN`, or listen on a loopback address or unix:/path"
        );
        Ok(())
    }

    /// Where it serves; the port rather than the socket.
    pub(super) fn address(&self) -> Result<Option<String>> {
        match &self.port {
            Some(port) => Ok(Some(port.local_addr().context("no address")?.to_string())),
            None => self.local_address(),
        }
    }

    /// Where it serves this machine.
    pub(super) fn local_address(&self) -> Result<Option<String>> {
        Ok(self.local.as_ref().map(Listener::address).transpose()?.map(|address| address.to_string()))
    }

    /// Serves, and calls home unless there is a port for the collector, until `stop` says so.
    pub(super) async fn serve(self, link: Link, stop: watch::Receiver<bool>) -> Result<()> {
        let service = link.service.clone();
        let local = async {
            let Some(listener) = self.local else { return Ok(()) };
            let mut stop = stop.clone();
            let router = transport::server().add_service(service.clone().into_server());
            let stopped = async move {
                let _ = stop.wait_for(|stop| *stop).await;
            };
            listener.serve(router, stopped).await
        };
        let home = async {
            match self.port {
                Some(port) => {
                    let directory = link.directory.clone();
                    tokio::join!(
                        serve_on_port(port, &directory, service.clone(), stop.clone()),
                        link.renew(stop.clone())
                    );
                }
                None => link.run(stop.clone()).await,
            }
        };
        let (served, ()) = tokio::join!(local, home);
        Ok(served?)
    }
}
