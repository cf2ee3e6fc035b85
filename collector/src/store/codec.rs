//! Between the words of the domain and SQLite's integers and bytes. What cannot be read back is damage, never a panic.

use std::net::IpAddr;

use alibi_proto::{
    coverage::Facet,
    id::{HostId, ProcessUid},
    time::Timestamp,
    wire,
};
use prost::Message;

use crate::store::StoreError;

pub(super) fn damaged(what: &'static str, problem: impl ToString) -> StoreError {
    StoreError::Damaged { what, problem: problem.to_string() }
}

/// Reads a message back into the domain.
pub(super) fn decode<W, D>(what: &'static str, bytes: &[u8]) -> Result<D, StoreError>
where
    W: Message + Default,
    D: TryFrom<W, Error: ToString>,
{
    let message = W::decode(bytes).map_err(|error| damaged(what, error))?;
    D::try_from(message).map_err(|error| damaged(what, error.to_string()))
}

/// SQLite's integers are signed: what does not fit is refused, and never wraps.
pub(super) fn signed(what: &'static str, value: u64) -> Result<i64, StoreError> {
    i64::try_from(value).map_err(|_| StoreError::OutOfRange { what, value })
}

pub(super) fn unsigned(what: &'static str, value: i64) -> Result<u64, StoreError> {
    u64::try_from(value).map_err(|_| damaged(what, format!("{value} is negative")))
}

pub(super) fn time(what: &'static str, nanos: i64) -> Result<Timestamp, StoreError> {
    unsigned(what, nanos).map(Timestamp::from_nanos)
}

pub(super) fn optional_time(what: &'static str, nanos: Option<i64>) -> Result<Option<Timestamp>, StoreError> {
    nanos.map(|nanos| time(what, nanos)).transpose()
}

pub(super) fn process_uid(bytes: &[u8]) -> Result<ProcessUid, StoreError> {
    sixteen("process uid", bytes).map(ProcessUid::from_bytes)
}

pub(super) fn host_id(bytes: &[u8]) -> Result<HostId, StoreError> {
    sixteen("host id", bytes).map(HostId::from_bytes)
}

pub(super) fn sixteen(what: &'static str, bytes: &[u8]) -> Result<[u8; 16], StoreError> {
    bytes.try_into().map_err(|_| damaged(what, format!("it has {} bytes, not 16", bytes.len())))
}

pub(super) fn hash(what: &'static str, bytes: &[u8]) -> Result<[u8; 32], StoreError> {
    bytes.try_into().map_err(|_| damaged(what, format!("it has {} bytes, not 32", bytes.len())))
}

pub(super) fn limit(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

pub(super) fn facet_number(facet: Facet) -> i32 {
    wire::Facet::from(facet) as i32
}

/// An address as it is stored: in one order with all others of its family, and apart from the other family.
pub(super) fn address_key(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => [&[4], address.octets().as_slice()].concat(),
        IpAddr::V6(address) => [&[6], address.octets().as_slice()].concat(),
    }
}

/// An address as [`address_key`] stores it.
pub(super) fn address(key: &[u8]) -> Result<IpAddr, StoreError> {
    let four = |bytes: &[u8]| <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from);
    let six = |bytes: &[u8]| <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from);
    match key {
        [4, bytes @ ..] => four(bytes),
        [6, bytes @ ..] => six(bytes),
        _ => None,
    }
    .ok_or_else(|| damaged("address", format!("it has {} bytes", key.len())))
}
