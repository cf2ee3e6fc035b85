//! Who asked about this host, as the collector sends it: bounded, and in order.

use alibi_proto::{time::Timestamp, wire};
use tonic::Status;

use crate::owner::Entry;

/// Entries in one message.
const ENTRIES_MAX: usize = 256;
/// Bytes of each word.
const WORD_BYTES_MAX: usize = 256;

/// The entries of this collector.
///
/// # Errors
/// When they break the contract.
pub(super) fn entries(request: wire::AskedRequest, collector: &str) -> Result<Vec<Entry>, Status> {
    let count = request.entries.len();
    if count > ENTRIES_MAX {
        return Err(Status::invalid_argument(format!(
            "{count} entries: at most {ENTRIES_MAX} are taken at once"
        )));
    }
    let entries: Vec<Entry> =
        request.entries.into_iter().map(|asked| entry(asked, collector)).collect::<Result<_, _>>()?;
    match entries.windows(2).find(|pair| pair[0].seq >= pair[1].seq) {
        Some(pair) => {
            Err(Status::invalid_argument(format!("entry {} is not in order of `seq`", pair[1].seq)))
        }
        None => Ok(entries),
    }
}

fn entry(asked: wire::Asked, collector: &str) -> Result<Entry, Status> {
    let wire::Asked { seq, at_ns, who, role, action } = asked;
    if seq == 0 {
        return Err(Status::invalid_argument("an entry has no `seq`: the first is 1"));
    }
    for (what, word) in [("who", &who), ("role", &role), ("action", &action)] {
        if word.len() > WORD_BYTES_MAX {
            let bytes = word.len();
            let problem =
                format!("`{what}` of entry {seq} has {bytes} bytes: at most {WORD_BYTES_MAX} are taken");
            return Err(Status::invalid_argument(problem));
        }
    }
    Ok(Entry { collector: collector.to_owned(), seq, at: Timestamp::from_nanos(at_ns), who, role, action })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(seq: u64) -> wire::Asked {
        wire::Asked { seq, at_ns: 1_000, who: "jdoe".into(), role: "analyst".into(), action: "who".into() }
    }

    fn check(entries: Vec<wire::Asked>, wanted: Result<usize, &str>) {
        match (super::entries(wire::AskedRequest { entries }, "c:1"), wanted) {
            (Ok(taken), Ok(count)) => assert_eq!(taken.len(), count),
            (Err(status), Err(wanted)) => {
                assert_eq!(status.code(), tonic::Code::InvalidArgument);
                assert!(status.message().contains(wanted), "no `{wanted}` in: {}", status.message());
            }
            (got, wanted) => panic!("{got:?} and not {wanted:?}"),
        }
    }

    #[test]
    fn only_what_keeps_to_the_contract_is_taken() {
        let long = "x".repeat(257);
        check(vec![], Ok(0));
        check(vec![asked(1), asked(7)], Ok(2));
        check((1..=256).map(asked).collect(), Ok(256));
        check((1..=257).map(asked).collect(), Err("257 entries: at most 256"));
        check(vec![asked(0)], Err("no `seq`"));
        check(vec![asked(2), asked(2)], Err("entry 2 is not in order"));
        check(vec![asked(2), asked(1)], Err("entry 1 is not in order"));
        check(vec![wire::Asked { who: long.clone(), ..asked(1) }], Err("`who` of entry 1 has 257 bytes"));
        check(vec![wire::Asked { role: long.clone(), ..asked(1) }], Err("`role`"));
        check(vec![wire::Asked { action: long, ..asked(1) }], Err("`action`"));
    }
}
