//! A NestJS client, driven in lines: see `testkit/nestjs/client.mjs`.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use nestling_testkit::{Unavailable, nestjs::App};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::names::Pattern;

/// What a NestJS client says of a call.
#[derive(Debug, Deserialize)]
struct Line {
    id: u64,
    #[serde(flatten)]
    news: News,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "is", content = "what", rename_all = "lowercase")]
pub(crate) enum News {
    Value(Value),
    Undefined,
    Complete,
    /// What a NestJS application sees as the error: any value.
    Error(Value),
    /// An error made by the client itself.
    Exception {
        name: String,
        message: String,
    },
}

type Calls = Arc<Mutex<HashMap<u64, mpsc::UnboundedSender<News>>>>;

/// A running client; its calls may overlap.
pub(crate) struct NestClient {
    app: Mutex<App>,
    calls: Calls,
    next: AtomicU64,
}

impl NestClient {
    /// Starts one, and returns when it is connected. `replies` are the patterns that it will send to.
    pub(crate) fn start(url: &str, run: &str, replies: &str) -> Result<Self, Unavailable> {
        let calls = Calls::default();
        let arguments = [url, "--run", run, "--replies", replies];
        let app = App::start("client.mjs", &arguments, {
            let calls = Arc::clone(&calls);
            move |line| pass_on(&line, &calls)
        })?;
        Ok(Self {
            app: Mutex::new(app),
            calls,
            next: AtomicU64::new(1),
        })
    }

    /// Starts a call: `send` or `emit`. What comes of it arrives in the channel.
    pub(crate) fn start_call(
        &self,
        verb: &str,
        pattern: &Pattern,
        data: &Value,
        headers: &[(&str, &str)],
        take: Option<usize>,
    ) -> mpsc::UnboundedReceiver<News> {
        let (news, receiver) = mpsc::unbounded_channel();
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.calls.lock().unwrap().insert(id, news);
        let headers: Option<HashMap<_, _>> =
            (!headers.is_empty()).then(|| headers.iter().copied().collect());
        // By hand, as the order of a pattern's members is to stay.
        let mut line = format!(
            r#"{{"id":{id},"do":"{verb}","pattern":{},"data":{data}"#,
            pattern.json
        );
        if let Some(headers) = headers {
            line += &format!(r#","headers":{}"#, json!(headers));
        }
        if let Some(take) = take {
            line += &format!(r#","take":{take}"#);
        }
        line += "}";
        let mut app = self.app.lock().unwrap();
        if let Err(error) = app.say(&line) {
            panic!("the NestJS client has ended: {error}\n{}", app.log());
        }
        receiver
    }

    pub(crate) fn log(&self) -> String {
        self.app.lock().unwrap().log()
    }
}

fn pass_on(line: &str, calls: &Calls) {
    match serde_json::from_str::<Line>(line) {
        Ok(Line { id, news }) => {
            let mut calls = calls.lock().unwrap();
            let ended = !matches!(news, News::Value(_) | News::Undefined);
            let heard = calls.get(&id).is_some_and(|call| call.send(news).is_ok());
            if ended || !heard {
                calls.remove(&id);
            }
        }
        Err(error) => eprintln!("the NestJS client said {line:?}: {error}"),
    }
}
