//! What a kill leaves of the batch that was being written: all or nothing.

use std::path::PathBuf;

use super::*;
use crate::{
    entry::{Position, TagSet},
    layer::Matching,
};

/// How far the log was followed after so many records.
fn followed(records: u64) -> Cursor {
    let position = Position::from_parts(START.0 + records, 0);
    Cursor { position, added: records, epoch: "e".to_owned(), history: "h".to_owned(), ..Cursor::default() }
}

/// The log to which RocksDB writes now.
fn newest_log(folder: &Path) -> PathBuf {
    let files = fs::read_dir(folder.join("db")).unwrap().map(|file| file.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|extension| extension == "log")).max().unwrap()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for file in fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        if file.path().is_dir() {
            copy(&file.path(), &to.join(file.file_name()));
        } else {
            fs::copy(file.path(), to.join(file.file_name())).unwrap();
        }
    }
}

#[test]
fn however_much_of_a_batch_a_kill_leaves_the_cursor_is_not_there_without_the_removals_that_came_with_it() {
    let f = Fixture::new();
    let folder = f.options().path;
    let mut tags = TagSet::default();
    tags.add(b"t").unwrap();
    let removal = TagRemoval { tags, matching: Matching::Any, position: followed(2).position };
    let (store, _) = Store::open(&f.options(), &f.clock, &Arc::default(), None).unwrap();
    // How long the log is after a batch, and the mark of it.
    let apply = |changes: &[Change]| {
        store.apply(START, changes, |_| true).unwrap();
        (fs::metadata(newest_log(&folder)).unwrap().len(), fs::read(folder.join("mark")).unwrap())
    };
    let follow = |records| Change::Follow(Box::new(followed(records)));
    let (begin, mark) = apply(&[Change::Set(entry("k", "v")), follow(1)]);
    let (end, later_mark) = apply(&[Change::Remove(key("k")), Change::RemoveTagged(removal.clone()), follow(2)]);
    assert!(end > begin + 50, "the batch is in the log: {begin} to {end}");
    // Without a flush, as by a kill.
    store.abandon();

    // What is found in a copy whose log ends there, and whether it starts cold.
    let reopened = |end: u64, mark: &[u8]| {
        let torn = tempdir().unwrap();
        copy(&folder, torn.path());
        fs::write(torn.path().join("mark"), mark).unwrap();
        fs::File::options().write(true).open(newest_log(torn.path())).unwrap().set_len(end).unwrap();
        let options = DiskOptions { path: torn.path().to_owned(), ..f.options() };
        let (store, cold) = Store::open(&options, &f.clock, &Arc::default(), None).unwrap();
        let has_key = matches!(store.get(START, b"k"), Ok(Found::Entry(_)));
        let found = (store.cursor().unwrap(), has_key, store.tag_removals(START).unwrap());
        store.abandon();
        (found, cold.is_some())
    };
    for torn in begin..end {
        let before = (Some(followed(1)), true, Vec::new());
        assert_eq!(reopened(torn, &mark), (before, false), "{torn} of {end} bytes");
    }
    // The kill came between the batch and its mark.
    assert_eq!(reopened(end, &mark), ((Some(followed(2)), false, vec![removal]), false));
    // The batch was acknowledged, and its end is gone.
    assert_eq!(reopened(end - 1, &later_mark), ((None, false, Vec::new()), true));
}
