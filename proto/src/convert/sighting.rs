//! Names, executables and links.

use super::{
    ConvertError, Result, address_from_wire, address_to_wire, bad, endpoint, endpoint_to_wire,
    optional_process, sha256, uid,
};
use crate::{
    executable::{ExecutableRecord, ExecutableSighting, Package, Signature, SignatureStatus, VersionInfo},
    id::ConnectionUid,
    link::LinkRecord,
    name::{NameResolution, NameSource, RemoteName, ServerNameRecord},
    time::Timestamp,
    wire,
};

super::enumeration!(NameSource, "name_source", Dns, Sni);
super::enumeration!(ExecutableSighting, "sighting", Run, Written);
super::enumeration!(SignatureStatus, "signature.status", Trusted, Untrusted, Invalid, Unsigned, NotChecked);

impl From<RemoteName> for wire::RemoteName {
    fn from(name: RemoteName) -> Self {
        Self { name: name.name, source: name.source.to_wire() }
    }
}

impl TryFrom<wire::RemoteName> for RemoteName {
    type Error = ConvertError;

    fn try_from(name: wire::RemoteName) -> Result<Self> {
        Ok(Self { name: name.name, source: NameSource::from_wire(name.source)? })
    }
}

impl From<NameResolution> for wire::NameResolved {
    fn from(resolution: NameResolution) -> Self {
        Self {
            time_ns: resolution.at.as_nanos(),
            name: resolution.name,
            aliases: resolution.aliases,
            addresses: resolution.addresses.into_iter().map(address_to_wire).collect(),
            ttl_s: resolution.ttl_s,
            server: endpoint_to_wire(resolution.server),
            process_uid: resolution.process.map(|uid| uid.as_bytes().to_vec()),
            network_namespace: resolution.network_namespace,
        }
    }
}

impl TryFrom<wire::NameResolved> for NameResolution {
    type Error = ConvertError;

    fn try_from(resolved: wire::NameResolved) -> Result<Self> {
        let address = |bytes: &Vec<u8>| address_from_wire("name.addresses", bytes);
        Ok(Self {
            at: Timestamp::from_nanos(resolved.time_ns),
            name: resolved.name,
            aliases: resolved.aliases,
            addresses: resolved.addresses.iter().map(address).collect::<Result<_>>()?,
            ttl_s: resolved.ttl_s,
            server: endpoint("name.server", resolved.server)?,
            process: optional_process("name.process_uid", resolved.process_uid.as_ref())?,
            network_namespace: resolved.network_namespace,
        })
    }
}

impl From<ServerNameRecord> for wire::ServerName {
    fn from(hello: ServerNameRecord) -> Self {
        Self {
            time_ns: hello.at.as_nanos(),
            connection_uid: hello.connection.map(|uid| uid.as_bytes().to_vec()),
            name: hello.name,
            local: endpoint_to_wire(hello.local),
            remote: endpoint_to_wire(hello.remote),
            network_namespace: hello.network_namespace,
        }
    }
}

impl TryFrom<wire::ServerName> for ServerNameRecord {
    type Error = ConvertError;

    fn try_from(hello: wire::ServerName) -> Result<Self> {
        let connection = |bytes: Vec<u8>| uid("server_name.connection_uid", &bytes);
        Ok(Self {
            at: Timestamp::from_nanos(hello.time_ns),
            connection: hello.connection_uid.map(connection).transpose()?.map(ConnectionUid::from_bytes),
            name: hello.name,
            local: endpoint("server_name.local", hello.local)?,
            remote: endpoint("server_name.remote", hello.remote)?,
            network_namespace: hello.network_namespace,
        })
    }
}

impl From<Package> for wire::Package {
    fn from(package: Package) -> Self {
        let Package { name, version, source } = package;
        Self { name, version, source }
    }
}

impl From<wire::Package> for Package {
    fn from(package: wire::Package) -> Self {
        let wire::Package { name, version, source } = package;
        Self { name, version, source }
    }
}

impl From<Signature> for wire::Signature {
    fn from(signature: Signature) -> Self {
        Self {
            status: signature.status.to_wire(),
            reason: signature.reason,
            subject: signature.subject,
            issuer: signature.issuer,
            certificate_sha256: signature.certificate_sha256.map(|sha256| sha256.as_bytes().to_vec()),
            identifier: signature.identifier,
            team: signature.team,
        }
    }
}

impl TryFrom<wire::Signature> for Signature {
    type Error = ConvertError;

    fn try_from(signature: wire::Signature) -> Result<Self> {
        Ok(Self {
            status: SignatureStatus::from_wire(signature.status)?,
            reason: signature.reason,
            subject: signature.subject,
            issuer: signature.issuer,
            certificate_sha256: sha256(
                "signature.certificate_sha256",
                signature.certificate_sha256.as_ref(),
            )?,
            identifier: signature.identifier,
            team: signature.team,
        })
    }
}

impl From<VersionInfo> for wire::VersionInfo {
    fn from(version: VersionInfo) -> Self {
        let VersionInfo { company, product, description, file_version, original_file_name } = version;
        Self { company, product, description, file_version, original_file_name }
    }
}

impl From<wire::VersionInfo> for VersionInfo {
    fn from(version: wire::VersionInfo) -> Self {
        let wire::VersionInfo { company, product, description, file_version, original_file_name } = version;
        Self { company, product, description, file_version, original_file_name }
    }
}

impl From<ExecutableRecord> for wire::ExecutableSeen {
    fn from(executable: ExecutableRecord) -> Self {
        Self {
            time_ns: executable.at.as_nanos(),
            path: executable.path,
            file: executable.file.map(Into::into),
            sha256: executable.sha256.map(|sha256| sha256.as_bytes().to_vec()),
            first_on_host: executable.first_on_host,
            package: executable.package.map(Into::into),
            sighting: executable.sighting.to_wire(),
            process_uid: executable.process.map(|uid| uid.as_bytes().to_vec()),
            problem: executable.problem,
            signature: executable.signature.map(Into::into),
            version: executable.version.map(Into::into),
        }
    }
}

impl TryFrom<wire::ExecutableSeen> for ExecutableRecord {
    type Error = ConvertError;

    fn try_from(seen: wire::ExecutableSeen) -> Result<Self> {
        if seen.sha256.is_none() && seen.problem.is_none() {
            return bad("executable.problem", "is missing beside a missing sha256");
        }
        Ok(Self {
            at: Timestamp::from_nanos(seen.time_ns),
            path: seen.path,
            file: seen.file.map(Into::into),
            sha256: sha256("executable.sha256", seen.sha256.as_ref())?,
            first_on_host: seen.first_on_host,
            package: seen.package.map(Into::into),
            sighting: ExecutableSighting::from_wire(seen.sighting)?,
            process: optional_process("executable.process_uid", seen.process_uid.as_ref())?,
            problem: seen.problem,
            signature: seen.signature.map(TryInto::try_into).transpose()?,
            version: seen.version.map(Into::into),
        })
    }
}

impl From<LinkRecord> for wire::LinkChanged {
    fn from(link: LinkRecord) -> Self {
        Self {
            time_ns: link.at.as_nanos(),
            interface: link.interface,
            index: link.index,
            present: link.present,
            up: link.up,
            running: link.running,
            addresses: link.addresses,
            default_gateways: link.default_gateways,
            network_namespace: link.network_namespace,
        }
    }
}

impl From<wire::LinkChanged> for LinkRecord {
    fn from(link: wire::LinkChanged) -> Self {
        Self {
            at: Timestamp::from_nanos(link.time_ns),
            interface: link.interface,
            index: link.index,
            present: link.present,
            up: link.up,
            running: link.running,
            addresses: link.addresses,
            default_gateways: link.default_gateways,
            network_namespace: link.network_namespace,
        }
    }
}
