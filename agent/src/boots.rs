//! Where in the ring each boot of the host begins: events carry the boot clock, which means nothing without its boot.
//!
//! Kept in the data directory, beside the ring, which remembers in which boot it was written last. What is kept is believed
//! only if that is the last boot in it: else a boot is missing between them.

use std::{fs, path::Path};

use alibi_proto::{
    clock::BootBegin,
    data_directory::write_whole,
    id::{Epoch, Seq},
};
use serde::{Deserialize, Serialize};

const FILE: &str = "boots.json";

/// Boots that are kept; events before the oldest are of no known boot.
pub const BOOTS_MAX: usize = 64;

#[derive(Default, Serialize, Deserialize)]
struct Kept {
    epoch: u64,
    boots: Vec<Begin>,
}

#[derive(Serialize, Deserialize)]
struct Begin {
    boot_id: String,
    first_seq: u64,
}

/// The number of a boot, as the ring knows it. Only ever compared: 32 bits of it are enough to tell one boot from the next.
pub fn number(boot_id: &str) -> u64 {
    crc32c::crc32c(boot_id.as_bytes()).into()
}

/// A run begins in this boot, with event `next` of the ring, which was written last in the boot of the number `last_written`.
/// Where each boot begins, in order.
pub fn enter(
    directory: &Path,
    boot_id: &str,
    epoch: Epoch,
    next: Seq,
    last_written: Option<u64>,
) -> Vec<BootBegin> {
    let path = directory.join(FILE);
    let kept: Kept =
        fs::read(&path).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
    let whole = kept.epoch == epoch.0
        && kept.boots.last().is_some_and(|last| Some(number(&last.boot_id)) == last_written);
    let mut boots = if whole { kept.boots } else { Vec::new() };
    if boots.last().is_none_or(|last| last.boot_id != boot_id) {
        boots.push(Begin { boot_id: boot_id.to_owned(), first_seq: next.0 });
        boots.drain(..boots.len().saturating_sub(BOOTS_MAX));
    }
    let kept = Kept { epoch: epoch.0, boots };
    let written = serde_json::to_vec(&kept).map_err(Into::into).and_then(|text| write_whole(&path, &text));
    if let Err(error) = written {
        tracing::warn!(%error, "the next run will not know in which boot this one recorded");
        // One that lacks this boot must not be taken for whole.
        let _ = fs::remove_file(&path);
    }
    let begin = |begin: Begin| BootBegin { boot_id: begin.boot_id, first: Seq(begin.first_seq) };
    kept.boots.into_iter().map(begin).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const EPOCH: Epoch = Epoch(5);

    fn entered(directory: &Path, boot: &str, next: u64, last: Option<&str>) -> Vec<(String, u64)> {
        let begins = enter(directory, boot, EPOCH, Seq(next), last.map(number));
        begins.into_iter().map(|begin| (begin.boot_id, begin.first.0)).collect()
    }

    #[test]
    fn boots_follow_on_each_other_and_runs_do_not_count() {
        let directory = tempfile::tempdir().unwrap();
        let entered = |boot, next, last| entered(directory.path(), boot, next, last);
        assert_eq!(entered("a", 1, None), [("a".into(), 1)]);
        assert_eq!(entered("a", 9, Some("a")), [("a".into(), 1)], "the agent was started again");
        assert_eq!(entered("b", 20, Some("a")), [("a".into(), 1), ("b".into(), 20)]);
    }

    #[test]
    fn what_may_lack_a_boot_is_not_believed() {
        let directory = tempfile::tempdir().unwrap();
        let entered = |boot, next, last| entered(directory.path(), boot, next, last);
        entered("a", 1, None);
        assert_eq!(entered("c", 20, Some("b")), [("c".into(), 20)], "the ring was written in another boot");
        assert_eq!(entered("d", 30, None), [("d".into(), 30)], "nobody knows in which boot it was written");
        let anew = enter(directory.path(), "d", Epoch(6), Seq(1), Some(number("d")));
        assert_eq!(anew, [BootBegin { boot_id: "d".into(), first: Seq(1) }], "another ring");
        fs::write(directory.path().join(FILE), "{").unwrap();
        assert_eq!(entered("d", 40, Some("d")), [("d".into(), 40)]);
    }

    #[test]
    fn the_oldest_are_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let mut begins = Vec::new();
        for boot in 0..100_u64 {
            let last = boot.checked_sub(1).map(|boot| format!("boot {boot}"));
            begins = entered(directory.path(), &format!("boot {boot}"), boot * 2 + 1, last.as_deref());
        }
        assert_eq!(begins.len(), BOOTS_MAX);
        assert_eq!(begins[0], ("boot 36".to_owned(), 73));
    }
}
