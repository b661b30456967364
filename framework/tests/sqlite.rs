//! Databases that several replicas have open.
#![cfg(feature = "sqlx")]
#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, in its helpers too"
)]

use std::{fs, path::Path};

use nestling::sqlite;
use nestling_testkit::unique;
use tokio::task::JoinSet;

const REPLICAS: usize = 4;
/// Enough for the moment to be met in which one makes the file and another opens it.
const FILES: usize = 25;

#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_start_together_can_all_open_a_new_database() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(unique("sqlite"));
    fs::create_dir(&folder).unwrap();
    for number in 0..FILES {
        let file = folder.join(format!("{number}.db"));
        let mut opening = JoinSet::new();
        for _ in 0..REPLICAS {
            opening.spawn(sqlite::open(file.clone()));
        }
        while let Some(opened) = opening.join_next().await {
            opened.unwrap().unwrap().close().await;
        }
    }
    fs::remove_dir_all(folder).unwrap();
}
