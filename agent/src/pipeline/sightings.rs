//! Names and executables on their way through.

use alibi_proto::{
    event::EventKind,
    executable::ExecutableRecord,
    flow::{Direction, Protocol},
    name::{NameResolution, ServerNameRecord},
    time::{Moment, Timestamp},
};

use super::{Pipeline, names::Asking};
use crate::capture::{ObservedExecutable, ObservedResolution, ObservedServerName};

impl Pipeline {
    pub(super) fn name_resolved(&mut self, observed: ObservedResolution, at: Timestamp, now: Moment) {
        for address in &observed.addresses {
            self.names.resolved(observed.network_namespace, *address, &observed.name);
        }
        let resolution = NameResolution {
            at,
            name: observed.name,
            aliases: observed.aliases,
            addresses: observed.addresses,
            ttl_s: observed.ttl_s,
            server: observed.server,
            process: observed.process.map(|process| self.uid(process)),
            network_namespace: observed.network_namespace,
        };
        self.push(now, EventKind::NameResolved(Box::new(resolution)));
    }

    pub(super) fn server_name(&mut self, observed: ObservedServerName, at: Timestamp, now: Moment) {
        self.heed_hello(&observed, at, now);
        if let (Some(name), Direction::Outbound) = (&observed.name, observed.direction) {
            let ends = Asking::Ends(observed.network_namespace, observed.local, observed.remote);
            let asking = observed.socket.map_or(ends, Asking::Socket);
            self.names.asked(asking, name);
        }
        let hello = ServerNameRecord {
            at,
            connection: observed
                .socket
                .map(|socket| self.boot.connection(Protocol::Tcp, observed.remote, socket)),
            name: observed.name,
            local: observed.local,
            remote: observed.remote,
            network_namespace: observed.network_namespace,
        };
        self.push(now, EventKind::ServerName(Box::new(hello)));
    }

    pub(super) fn executable_seen(&mut self, observed: ObservedExecutable, at: Timestamp, now: Moment) {
        let executable = ExecutableRecord {
            at,
            path: observed.path,
            file: observed.file,
            sha256: observed.sha256,
            first_on_host: observed.first_on_host,
            package: observed.package,
            sighting: observed.sighting,
            process: observed.process.map(|process| self.uid(process)),
            problem: observed.problem,
            signature: observed.signature,
            version: observed.version,
        };
        self.push(now, EventKind::ExecutableSeen(Box::new(executable)));
    }
}
