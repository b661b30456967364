//! What a process does that is told to end, once and again: this program plays both parts.

use std::{
    env,
    fs::{self, File},
    path::Path,
    process::Command,
    thread,
};

use nestling_testkit::{Process, unique};

use super::*;

/// Set for the process that serves.
const SERVES: &str = "NESTLING_TEST_SERVES";
/// Much more than anything takes on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(120);

/// Runs for the other test: a server whose one handler never comes to its end.
#[tokio::test]
async fn a_server_at_work() {
    if env::var_os(SERVES).is_none() {
        return;
    }
    nestling::service::init_logging();
    let memory = Memory::new();
    let hang = || async {
        tracing::info!("at work");
        pending::<Result<u64, RpcError>>().await
    };
    let server = Server::new("x", Router::new().message_at("hang", hang))
        .listen(&memory)
        .drain_timeout(PATIENCE * 10);
    let client = Client::connect(&memory).await.unwrap();
    // Nobody takes it before the server is there.
    let call = async {
        loop {
            let call = client.send_at::<u64>("hang", &()).timeout(PATIENCE * 10);
            let error = call.await.unwrap_err();
            assert_eq!(error.code, Code::Unavailable, "{error}");
            sleep(SECOND / 100).await;
        }
    };
    tokio::select! {
        ended = server.run() => ended.unwrap(),
        never = call => never,
    }
}

#[test]
fn the_first_signal_drains_and_the_second_ends_at_once() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let log = folder.join(unique("signals"));
    let mut command = Command::new(env::current_exe().unwrap());
    command
        .args(["--exact", "signals::a_server_at_work", "--nocapture"])
        .env(SERVES, "1");
    let mut process = Process::spawn(&command, File::create(&log).unwrap()).unwrap();
    until_it_says(&log, "at work");
    process.terminate();
    until_it_says(&log, "draining");
    assert_eq!(
        process.exited(),
        None,
        "it does not wait for what has begun"
    );
    process.terminate();
    let status = process.wait(PATIENCE).unwrap();
    assert!(!status.success(), "it did not finish, and must not say so");
    assert!(fs::read_to_string(&log).unwrap().contains("CutOff"));
    fs::remove_file(log).unwrap();
}

fn until_it_says(log: &Path, what: &str) {
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        let said = fs::read_to_string(log).unwrap();
        if said.contains(what) {
            return;
        }
        assert!(std::time::Instant::now() < deadline, "not {what:?}: {said}");
        thread::sleep(SECOND / 100);
    }
}
