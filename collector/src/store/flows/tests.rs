use super::{block::tests::row, *};

const FORMAT: database::Format = database::Format {
    application_id: 7,
    migrations: &[CATALOG],
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
    let day = Arc::new(Day::open(&home.directory().join(file_name(20_000))).unwrap());
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
        let file = Arc::new(Day::open(&home.directory().join(file_name(day))).unwrap());
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
    let paths = [20_000, 20_001].map(|day| home.directory().join(file_name(day)));
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
    let everything = Sweep {
        remotes: vec![
            (Remote::of([0; 4].into()), Remote::of([255; 4].into())),
            (Remote::of([0; 16].into()), Remote::of([255; 16].into())),
        ],
        ..Sweep::default()
    };
    let asked = Asked {
        sweep: &everything,
        spans: &Spans::of([(1, Span::EVER)]),
        limit: 1_000,
        is_meant: &|_, _| true,
    };
    let (mut found, lost) = view.search(&asked);
    let mut times: Vec<u64> = lost.iter().map(|lost| lost.times.first).collect();
    times.sort_unstable();
    (found.remove(&1).unwrap_or_default().rows.len(), times)
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
