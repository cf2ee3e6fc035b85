use alibi_proto::{
    host::SourceDescription,
    id::{Epoch, HostId},
    time::Timestamp,
};

use super::*;
use crate::{
    link::LinkState,
    owner::Entry,
    recorder::labels_of,
    ring::{Options, Ring},
};

const HOST: HostId = HostId::from_bytes([1; 16]);

/// A publisher, and what it publishes from.
struct Published {
    publisher: Publisher,
    link: watch::Sender<LinkStatus>,
    progress: watch::Sender<Progress>,
    asked: WhoAsked,
    directory: tempfile::TempDir,
}

impl Published {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (data, public) = (directory.path().join("data"), directory.path().join("public"));
        fs::create_dir(&data).unwrap();
        let (ring, _) =
            Ring::open(&data.join("ring"), Options::default(), HOST, Epoch(1), labels_of).unwrap();
        let source = SourceDescription { name: "test".into(), facets: Vec::new(), caveat: None };
        let facts = Facts {
            host: HOST,
            name: "laptop".into(),
            boot_id: "boot".into(),
            pid: 1,
            process_start: None,
            started: Timestamp::ZERO,
            serves: None,
            source,
            period: Duration::from_secs(1),
            ring_bytes_max: 1 << 20,
            own_rules: Vec::new(),
        };
        let (progress, progress_seen) = watch::channel(Progress::default());
        let (link, link_seen) = watch::channel(LinkStatus::default());
        let asked = WhoAsked::in_memory();
        let view = ring.view();
        let seen = Seen { progress: progress_seen, view, link: link_seen, asked: asked.clone() };
        let publisher = Publisher::new(facts, seen, &data, Some(&public));
        Self { publisher, link, progress, asked, directory }
    }

    fn path(&self, place: &str) -> PathBuf {
        self.directory.path().join(place).join(FILE)
    }

    /// What stands in both places.
    fn text(&self) -> String {
        let [private, public] = ["data", "public"].map(|place| fs::read_to_string(self.path(place)).unwrap());
        assert_eq!(private, public);
        private
    }
}

#[test]
fn it_is_written_for_everybody_and_whole() {
    let mut published = Published::new();
    published.publisher.publish(None);
    assert!(Status::parse(published.text().as_bytes()).is_ok());
    let in_public = fs::read_dir(published.directory.path().join("public")).unwrap();
    assert_eq!(in_public.count(), 1, "nothing unfinished is left");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&published.path("public")), 0o644);
        assert_eq!(mode(published.path("public").parent().unwrap()), 0o755);
    }
}

#[test]
fn it_is_written_again_when_there_is_news_or_it_gets_old() {
    let mut published = Published::new();
    published.publisher.publish(None);
    let mut before = published.text();
    let mut check = |published: &mut Published, is_written: bool| {
        published.publisher.publish(None);
        let after = published.text();
        assert_eq!(after != before, is_written, "{after}");
        before = after;
    };
    check(&mut published, false);
    published.progress.send_modify(|progress| progress.watermark = Some(Timestamp::from_secs(1)));
    check(&mut published, true);
    published.progress.send_modify(|progress| progress.watermark = Some(Timestamp::from_secs(2)));
    check(&mut published, false);
    published.progress.send_modify(|progress| progress.trouble = Some("full".into()));
    check(&mut published, true);
    let entry = Entry {
        collector: "c:1".into(),
        seq: 1,
        at: Timestamp::ZERO,
        who: "jdoe".into(),
        role: "analyst".into(),
        action: "who".into(),
    };
    published.asked.take(vec![entry]);
    check(&mut published, true);
    published.link.send_replace(LinkStatus::Enrolled {
        collector: "c:1".to_owned(),
        certificate_until: Timestamp::from_secs(1),
        state: LinkState::Refused { why: "it is another host".to_owned() },
    });
    check(&mut published, true);
    check(&mut published, false);
    let age = WRITTEN_AT_LEAST - LOOKED_EACH;
    let written = published.publisher.written.as_mut().unwrap();
    written.written_boot_ns -= u64::try_from(age.as_nanos()).unwrap();
    check(&mut published, true);
}

#[test]
fn a_place_that_cannot_be_written_keeps_nobody_from_the_other() {
    let mut published = Published::new();
    fs::remove_dir(published.directory.path().join("public")).unwrap();
    published.publisher.publish(None);
    assert!(published.path("data").exists() && !published.path("public").exists());
    fs::create_dir(published.directory.path().join("public")).unwrap();
    published.publisher.publish(Some("it was stopped"));
    assert!(published.text().contains("it was stopped"));
}

#[test]
fn the_last_word_is_that_it_ended() {
    let published = Published::new();
    let [private, public] = ["data", "public"].map(|place| published.path(place));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let (ended, hears_of_end) = oneshot::channel();
        let running = tokio::spawn(published.publisher.run(hears_of_end));
        ended.send("the source can look no longer".to_owned()).unwrap();
        running.await.unwrap();
    });
    for path in [private, public] {
        let status = Status::parse(&fs::read(path).unwrap()).unwrap();
        let now = sys::now();
        let reason = status.why_not_running(now, "boot", |_, _| false).unwrap();
        assert!(reason.ends_with("the source can look no longer"), "{reason}");
    }
}
