//! Names that were looked up, from what the DNS client says when a lookup is over. Pure.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use alibi_proto::name::normal;

use crate::capture::{ObservedResolution, ProcessKey};

/// What the system does not tell of an answer: who gave it.
const NOT_TOLD: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
/// A and AAAA.
const ADDRESS_QUERIES: [u32; 2] = [1, 28];

/// What was learnt from a lookup; none if it gave no address, or was for something else.
pub(super) fn resolution(
    name: &str,
    query_type: u32,
    status: u32,
    results: &str,
    process: Option<ProcessKey>,
) -> Option<ObservedResolution> {
    if status != 0 || !ADDRESS_QUERIES.contains(&query_type) || name.parse::<IpAddr>().is_ok() {
        return None;
    }
    let (mut aliases, mut addresses) = (Vec::new(), Vec::new());
    // `type: 5 alias.example;::ffff:192.0.2.7;2001:db8::1;`
    for result in results.split(';').map(str::trim).filter(|result| !result.is_empty()) {
        if let Ok(address) = result.parse::<IpAddr>() {
            addresses.push(address.to_canonical());
        } else if let Some(("5", alias)) =
            result.strip_prefix("type:").and_then(|typed| typed.trim_start().split_once(' '))
        {
            aliases.push(normal(alias.trim()));
        }
    }
    (!addresses.is_empty()).then(|| ObservedResolution {
        name: normal(name),
        aliases,
        addresses,
        // Neither is told.
        ttl_s: 0,
        server: NOT_TOLD,
        local: NOT_TOLD,
        process,
        network_namespace: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(query_type: u32, status: u32, results: &str) -> Option<(Vec<String>, Vec<IpAddr>)> {
        let found = resolution("Cloud.Example.COM.", query_type, status, results, None)?;
        assert_eq!(found.name, "cloud.example.com");
        Some((found.aliases, found.addresses))
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn addresses_and_aliases_are_told_in_order() {
        let results = "type:  5 Edge.example.net;type: 5 e1.example.org;::ffff:192.0.2.7;2001:db8::1;";
        let aliases = vec!["edge.example.net".to_owned(), "e1.example.org".to_owned()];
        assert_eq!(check(1, 0, results), Some((aliases, vec![ip("192.0.2.7"), ip("2001:db8::1")])));
        assert_eq!(check(28, 0, "192.0.2.7"), Some((vec![], vec![ip("192.0.2.7")])));
    }

    #[test]
    fn a_lookup_without_an_address_says_nothing() {
        for (query_type, status, results) in [
            (1, 9_003, "192.0.2.7;"),
            (1, 0, ""),
            (1, 0, "type: 5 edge.example.net;"),
            (16, 0, "192.0.2.7;"),
            (1, 0, "type: 6 ns.example.net hostmaster.example.net;"),
        ] {
            assert_eq!(check(query_type, status, results), None, "{query_type} {status} {results}");
        }
        assert_eq!(resolution("192.0.2.7", 1, 0, "192.0.2.7;", None), None, "an address is no name");
    }
}
