use std::time::Instant;

use rusqlite::Connection;

use super::{block::tests::row, *};
use crate::store::listing::FlowOrder;

const FORMAT: database::Format = database::Format {
    application_id: 7,
    migrations: &[CATALOG, CHECKSUMS],
    writer_cache_kib: 1_024,
    reader_cache_kib: 1_024,
};

struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn directory(&self) -> PathBuf {
        self.0.path().join("flows")
    }

    fn catalog(&self) -> Arc<Database> {
        Arc::new(Database::open(&self.0.path().join("catalog.db"), &FORMAT).unwrap())
    }

    fn open(&self) -> Flows {
        Flows::open(&self.directory(), self.catalog()).unwrap()
    }

    /// What is stored, whoever asks.
    fn places(&self) -> Vec<(u32, u64)> {
        let every = every_place(&self.catalog(), &self.directory());
        let view = self.open().view();
        let mut shown: Vec<(u32, u64)> = Vec::new();
        for chunk in view.chunks() {
            shown.extend(chunk.columns.host.iter().copied().zip(chunk.columns.seq.iter().copied()));
        }
        for run in &view.runs {
            for block in 0..run.blocks.len() {
                let columns = run.day.read(|reading| reading.columns(run, block, unpack)).unwrap();
                shown.extend(columns.host.into_iter().zip(columns.seq));
            }
        }
        shown.sort_unstable();
        assert_eq!(shown, every, "what is read from outside is the same");
        shown
    }
}

fn every_place(catalog: &Database, directory: &Path) -> Vec<(u32, u64)> {
    let mut every: Vec<_> =
        every(catalog, directory).unwrap().iter().map(|(at, _)| (at.host, at.seq)).collect();
    every.sort_unstable();
    every
}

/// Rows with records that can be read, each with a seq of its own from `first` on.
fn rows(random: &mut fastrand::Rng, first: u64, count: u64) -> Vec<Row> {
    let record = wire::Flow::from(crate::store::conformance::samples::flow("198.51.100.7:443", 1, 2));
    let record = prost::Message::encode_to_vec(&record);
    (first..first + count).map(|seq| Row { seq, record: record.clone(), ..row(random) }).collect()
}

fn commit(flows: &Flows, catalog: &Database, rows: &[Row]) {
    let staged = catalog.write(|transaction| stage(transaction, rows)).unwrap();
    flows.show(staged);
}

fn sorted(rows: &[Row]) -> Vec<(u32, u64)> {
    let mut places: Vec<_> = rows.iter().map(|row| (row.host, row.seq)).collect();
    places.sort_unstable();
    places
}

#[test]
fn each_record_is_there_once_however_many_runs_there_are() {
    let (home, mut random) = (Home::new(), fastrand::Rng::with_seed(1));
    let all = rows(&mut random, 0, 5_000);
    let flows = home.open();
    for some in all.chunks(70) {
        commit(&flows, &flows.shared.catalog, some);
        let view = flows.view();
        let shown: usize = view.chunks().map(|chunk| chunk.columns.rows()).sum::<usize>()
            + view.runs.iter().map(|run| run.rows as usize).sum::<usize>();
        let first = some.last().unwrap().seq + 1;
        assert_eq!(shown as u64, first, "a run takes the place of what is in it at once");
    }
    drop(flows);
    assert_eq!(home.places(), sorted(&all));
    assert!(!home.open().view().runs.is_empty());
}

#[test]
fn a_run_that_the_catalog_has_not_heard_of_yet_is_counted_once() {
    let (home, mut random) = (Home::new(), fastrand::Rng::with_seed(2));
    let all = rows(&mut random, 0, 200);
    let catalog = home.catalog();
    let staged = catalog.write(|transaction| stage(transaction, &all)).unwrap();
    // Killed between the two.
    std::fs::create_dir(home.directory()).unwrap();
    let day = Arc::new(Day::open(&home.directory().join(file_name(20_000, 0))).unwrap());
    let ids: Vec<i64> = staged.0.iter().map(|chunk| chunk.arrived).collect();
    day.add(1, &all.iter().collect::<Vec<_>>(), &ids).unwrap();
    drop((day, catalog));
    assert_eq!(home.open().view().chunks().count(), 0);
    assert_eq!(home.places(), sorted(&all));
    // The next run has another number.
    let more = rows(&mut random, 200, RUN_ROWS as u64);
    let flows = home.open();
    commit(&flows, &flows.shared.catalog, &more);
    let mut state = lock(&flows.shared.state);
    while state.open_rows > 0 {
        state = flows.shared.changed.wait(state).unwrap();
    }
    drop(state);
    drop(flows);
    assert_eq!(home.places(), sorted(&[all, more].concat()));
}

#[test]
fn a_file_goes_once_there_is_nothing_in_it_to_be_shown() {
    let (home, mut random) = (Home::new(), fastrand::Rng::with_seed(3));
    let catalog = home.catalog();
    std::fs::create_dir(home.directory()).unwrap();
    let mut all = Vec::new();
    for (number, day) in [(1, 20_000), (2, 20_001), (3, 20_002)] {
        let file = Arc::new(Day::open(&home.directory().join(file_name(day, 0))).unwrap());
        let mut some = rows(&mut random, number * 10, 10);
        for row in &mut some {
            row.first = number * 100;
            row.last = number * 100;
        }
        let run = file.add(number as i64, &some.iter().collect::<Vec<_>>(), &[]).unwrap();
        catalog.write(|transaction| enter(transaction, &run, &[])).unwrap();
        all.push(some);
    }
    let flows = home.open();
    flows.forget(100).unwrap();
    assert_eq!(flows.view().runs.len(), 3);
    flows.forget(101).unwrap();
    assert_eq!(flows.view().runs.len(), 2);
    // The newest stays, whatever is in it: it may be added to.
    flows.forget(1_000).unwrap();
    drop(flows);
    assert_eq!(home.places(), sorted(&all[2]));
    assert_eq!(
        std::fs::read_dir(home.directory()).unwrap().flatten().count(),
        1 + 2,
        "and what SQLite has beside it"
    );
}

/// Three runs in two files, each of ten rows at a time of its own: 100, 200 and 300.
fn three_runs(home: &Home) -> [PathBuf; 2] {
    let mut random = fastrand::Rng::with_seed(4);
    let catalog = home.catalog();
    std::fs::create_dir(home.directory()).unwrap();
    let paths = [20_000, 20_001].map(|day| home.directory().join(file_name(day, 0)));
    for (number, path) in [(1, &paths[0]), (2, &paths[0]), (3, &paths[1])] {
        let mut some = rows(&mut random, number * 10, 10);
        for row in &mut some {
            (row.first, row.last, row.host) = (number * 100, number * 100, 1);
        }
        let day = Arc::new(Day::open(path).unwrap());
        let run = day.add(number as i64, &some.iter().collect::<Vec<_>>(), &[]).unwrap();
        catalog.write(|transaction| enter(transaction, &run, &[])).unwrap();
    }
    paths
}

/// How many records there are, and the times of those that cannot be read.
fn found(view: &View) -> (usize, Vec<u64>) {
    let everything = Sweep::all();
    let asked = Asked {
        sweep: &everything,
        spans: &Spans::of([(1, Span::EVER)]),
        limit: 1_000,
        is_meant: &|_, _| true,
    };
    let (mut found, lost) = view.search(&asked);
    let times = |lost: Vec<Lost>| {
        let mut times: Vec<u64> = lost.iter().map(|lost| lost.times.first).collect();
        times.sort_unstable();
        times
    };
    let found = (found.remove(&1).unwrap_or_default().rows.len(), times(lost));
    // Whoever visits them all is told the same.
    let mut visited = 0;
    let which = Which::Swept(&everything, &|_, _| true);
    let lost = view.visit(&which, &Spans::of([(1, Span::EVER)]), &mut |_, _| visited += 1);
    assert_eq!((visited, times(lost)), found);
    for order in [FlowOrder::Newest, FlowOrder::Oldest, FlowOrder::MostBytes] {
        let page = view.list(&mut Listed {
            sweep: &everything,
            spans: asked.spans,
            order,
            after: None,
            limit: 1_000,
            records_max: u64::MAX,
            until: Instant::now() + Duration::from_secs(60),
            wants: &mut |_, _| Ok(true),
        });
        let page = page.unwrap();
        assert_eq!((page.rows.len(), times(page.lost)), found, "{order:?}");
    }
    found
}

#[test]
fn what_is_damaged_is_told_and_all_else_is_found() {
    let home = Home::new();
    let [first, _] = three_runs(&home);
    let edit = |sql: &str| {
        let connection = Connection::open(&first).unwrap();
        connection.execute_batch(sql).unwrap();
    };
    assert_eq!(found(&home.open().view()), (30, vec![]));
    edit("UPDATE block SET records = x'0101' WHERE id = 1");
    assert_eq!(found(&home.open().view()), (20, vec![100]));
    edit("UPDATE block SET columns = x'07' WHERE id = 2");
    assert_eq!(found(&home.open().view()), (10, vec![100, 200]));
    edit("DELETE FROM block WHERE id = 1");
    assert_eq!(found(&home.open().view()), (10, vec![100, 200]));
}

#[test]
fn a_file_that_cannot_be_read_is_put_aside_and_told_until_it_is_forgotten() {
    let home = Home::new();
    let [first, second] = three_runs(&home);
    std::fs::write(&first, "dear diary\n".repeat(1_000)).unwrap();
    for _ in 0..2 {
        let flows = home.open();
        assert_eq!(found(&flows.view()), (10, vec![100, 200]));
        let view = flows.view();
        assert!(
            view.lost[0].why.contains("flows-020000.db is missing, or cannot be read"),
            "{:?}",
            view.lost
        );
    }
    assert!(!first.exists() && first.with_extension("db.damaged-1").exists());
    std::fs::remove_file(&second).unwrap();
    let flows = home.open();
    assert_eq!(found(&flows.view()), (0, vec![100, 200, 300]));
    flows.forget(200).unwrap();
    assert!(first.with_extension("db.damaged-1").exists());
    flows.forget(201).unwrap();
    assert!(!first.with_extension("db.damaged-1").exists());
    assert_eq!(found(&flows.view()), (0, vec![300]));
    drop(flows);
    assert_eq!(found(&home.open().view()), (0, vec![300]));
}

/// Whatever byte of a file of a day is another one: each record that was there is found, or its time is told as lost, and nothing
/// is found that was not there.
#[test]
fn a_byte_that_changes_in_a_file_is_the_same_answer_or_a_gap() {
    let home = Home::new();
    let [first, _] = three_runs(&home);
    // All of it in one file, and nothing of it in the write-ahead log.
    Connection::open(&first).unwrap().execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    let whole = std::fs::read(&first).unwrap();
    let catalog = std::fs::read(home.0.path().join("catalog.db")).unwrap();
    let mut random = fastrand::Rng::with_seed(5);
    let (mut gaps, mut same) = (0, 0);
    for at in (0..whole.len()).filter(|at| at % 37 == 0 || (whole[*at] != 0 && at % 3 == 0)) {
        let mut changed = whole.clone();
        changed[at] ^= if random.bool() { 1 << random.u8(..8) } else { random.u8(1..) };
        clear(&home);
        std::fs::write(&first, changed).unwrap();
        std::fs::write(home.0.path().join("catalog.db"), &catalog).unwrap();
        let flows = home.open();
        let view = flows.view();
        let mut by_time: Vec<u64> = Vec::new();
        let all = view.each(
            &Spans::of([(1, Span::EVER)]),
            |_, run| (0..run.blocks.len()).collect(),
            |source, columns| {
                let rows: Vec<usize> = (0..columns.rows()).collect();
                source.records(&rows)?;
                by_time.extend(&columns.first);
                Ok(())
            },
        );
        for (time, want) in [(100, 10), (200, 10), (300, 10)] {
            let there = by_time.iter().filter(|first| **first == time).count();
            let is_told = all.iter().any(|lost| lost.times.first <= time && lost.times.until >= time);
            assert!(there == want || (is_told && there == 0), "byte {at}: {there} of {time}, {all:?}");
        }
        assert!(by_time.len() <= 30, "byte {at}");
        *(if all.is_empty() { &mut same } else { &mut gaps }) += 1;
        // A question is answered so, too.
        let (rows, lost) = found(&view);
        assert!(rows == 30 || !lost.is_empty(), "byte {at}: {rows}");
    }
    assert!(gaps > 300 && same > 100, "{gaps} gaps, {same} the same");
}

/// Takes away all that is not a whole file of the store.
fn clear(home: &Home) {
    for entry in std::fs::read_dir(home.directory()).unwrap().chain(std::fs::read_dir(home.0.path()).unwrap())
    {
        let path = entry.unwrap().path();
        let name = path.to_string_lossy();
        if ["-wal", "-shm"].iter().any(|end| name.ends_with(end)) || name.contains(".damaged-") {
            std::fs::remove_file(&path).unwrap();
        }
    }
}

#[test]
fn where_the_file_of_today_is_damaged_another_one_is_begun() {
    let (home, mut random) = (Home::new(), fastrand::Rng::with_seed(6));
    let all = rows(&mut random, 0, 2 * RUN_ROWS as u64);
    let flows = home.open();
    let sealed = |flows: &Flows, some: &[Row]| {
        commit(flows, &flows.shared.catalog, some);
        let mut state = lock(&flows.shared.state);
        while state.open_rows > 0 {
            state = flows.shared.changed.wait(state).unwrap();
        }
    };
    sealed(&flows, &all[..RUN_ROWS]);
    let first = flows.view().runs[0].day.path.clone();
    Connection::open(&first).unwrap().execute_batch("DROP TABLE run").unwrap();
    sealed(&flows, &all[RUN_ROWS..]);
    let second = flows.view().runs[1].day.path.clone();
    assert!(second != first && second.to_string_lossy().ends_with("-1.db"), "{}", second.display());
    drop(flows);
    let flows = home.open();
    let view = flows.view();
    assert_eq!((view.runs.len(), view.lost.len()), (1, 1));
    assert_eq!(view.runs[0].rows, RUN_ROWS as u64);
}

#[test]
fn a_file_of_a_newer_version_stays_where_it_is_and_is_a_gap() {
    let home = Home::new();
    let [first, _] = three_runs(&home);
    let edit = |sql: &str| Connection::open(&first).unwrap().execute_batch(sql).unwrap();
    edit("PRAGMA user_version = 99; PRAGMA wal_checkpoint(TRUNCATE)");
    let view = home.open().view();
    assert_eq!(found(&view), (10, vec![100, 200]));
    assert!(view.lost[0].why.contains("was written by a newer version"), "{:?}", view.lost);
    assert!(first.exists());
    edit("PRAGMA user_version = 3; PRAGMA wal_checkpoint(TRUNCATE)");
    assert_eq!(found(&home.open().view()), (30, vec![]));
}

#[test]
fn what_came_and_is_damaged_in_the_catalog_is_a_gap_of_its_time_until_that_is_forgotten() {
    let (home, mut random) = (Home::new(), fastrand::Rng::with_seed(7));
    for (at, time) in [(0, 100), (10, 200), (20, 300)] {
        let mut some = rows(&mut random, at, 10);
        some.iter_mut().for_each(|row| (row.first, row.last, row.host) = (time, time, 1));
        home.catalog().write(|transaction| stage(transaction, &some)).unwrap();
    }
    assert_eq!(found(&home.open().view()), (30, vec![]));
    let edit = |sql: &str| {
        Connection::open(home.0.path().join("catalog.db")).unwrap().execute_batch(sql).unwrap();
    };
    edit("UPDATE arrived SET records = zeroblob(length(records)) WHERE id = 1");
    edit("UPDATE arrived SET checksum = checksum + 1 WHERE id = 2");
    for _ in 0..2 {
        assert_eq!(found(&home.open().view()), (10, vec![100, 200]));
    }
    let flows = home.open();
    flows.forget(201).unwrap();
    drop(flows);
    assert_eq!(found(&home.open().view()), (10, vec![]));
    // Where its times are damaged, too, it may have been at any time.
    edit("UPDATE arrived SET checksum = checksum + 1, until = 100000");
    assert_eq!(found(&home.open().view()), (0, vec![0]));
}
