//! The servers and callers of the table, each started once and shared by all its cases, and what a case gets of them.

use std::{
    future::Future,
    sync::{Arc, LazyLock},
    thread,
    time::{Duration, Instant},
};

use nestling::{Client, Running, Server};
use nestling_testkit::{
    Kind, Unavailable, broker_or_skip,
    nestjs::{self, App},
    or_skip,
};
use serde_json::Value;
use tokio::{
    runtime::{self, Runtime},
    sync::OnceCell,
    time::{sleep, timeout},
};

use crate::{
    caller::{Caller, Failure, Outcome},
    names::{Names, Pattern},
    needs::Need,
    nest_client::NestClient,
    router::router,
};

/// How long a case may take as a whole; the first of a transport starts its servers and callers.
const CASE_LIMIT: Duration = Duration::from_secs(180);
/// How long one thing may take.
const LIMIT: Duration = Duration::from_secs(60);
/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(10);

/// What servers and callers share has to outlive each single case.
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    let runtime = runtime::Builder::new_multi_thread().enable_all().build();
    runtime.expect("a runtime can be built")
});

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Tcp,
    Nats,
    Redis,
    Kafka,
}

impl Transport {
    /// The transport of a URL.
    pub(crate) fn of(url: &str) -> Self {
        match url.split(':').next() {
            Some("tcp") => Self::Tcp,
            Some("nats") => Self::Nats,
            Some("redis") => Self::Redis,
            Some("kafka") => Self::Kafka,
            _ => panic!("no such transport: {url}"),
        }
    }

    fn broker(self) -> Option<Kind> {
        match self {
            Self::Tcp => None,
            Self::Nats => Some(Kind::Nats),
            Self::Redis => Some(Kind::Redis),
            Self::Kafka => Some(Kind::Kafka),
        }
    }
}

/// Which of the two a caller or a server is made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Nest,
    Nestling,
}

/// Who calls whom.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Half {
    pub(crate) caller: Side,
    pub(crate) server: Side,
}

pub(crate) const REFERENCE: Half = Half {
    caller: Side::Nest,
    server: Side::Nest,
};
pub(crate) const CLIENT: Half = Half {
    caller: Side::Nest,
    server: Side::Nestling,
};
pub(crate) const SERVER: Half = Half {
    caller: Side::Nestling,
    server: Side::Nest,
};
pub(crate) const MIRROR: Half = Half {
    caller: Side::Nestling,
    server: Side::Nestling,
};

/// Runs one case, unless its cell of the table does not have what it needs.
pub(crate) fn run<F: Future<Output = ()>>(
    transport: Transport,
    half: Half,
    case: &str,
    needs: &[Need],
    body: fn(Stage) -> F,
) {
    if let Some((lacks, _)) = needs.iter().find(|(_, has)| !has(transport, half)) {
        eprintln!("off: {transport:?} {half:?} is not `{lacks}`");
        return;
    }
    RUNTIME.block_on(async {
        let Some(stage) = Stage::open(transport, half).await else {
            return;
        };
        let _witness = Witness(stage.place);
        let ended = timeout(CASE_LIMIT, body(stage)).await;
        assert!(ended.is_ok(), "{case} took more than {CASE_LIMIT:?}");
    });
}

/// Runs what is not a case of the table, where servers and callers live.
pub(crate) fn block_on(test: impl Future<Output = ()>) {
    RUNTIME.block_on(async { within("the test", test).await });
}

/// Waits for something that has to come.
pub(crate) async fn within<F: Future>(what: &str, future: F) -> F::Output {
    match timeout(LIMIT, future).await {
        Ok(output) => output,
        Err(_) => panic!("{what} took more than {LIMIT:?}"),
    }
}

/// Looks until there is something to see.
pub(crate) async fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    look: impl Fn() -> F,
) -> T {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "{what} took more than {LIMIT:?}");
        sleep(POLL).await;
    }
}

/// Shows what the server has to say of a case that fails.
struct Witness(&'static Place);

impl Drop for Witness {
    fn drop(&mut self) {
        if let Started::Nest(app) = &self.0.server
            && thread::panicking()
        {
            eprintln!("the NestJS server logged:\n{}", app.log());
        }
    }
}

/// What one case gets.
#[derive(Clone)]
pub(crate) struct Stage {
    pub(crate) transport: Transport,
    pub(crate) half: Half,
    pub(crate) names: Names,
    pub(crate) caller: Caller,
    place: &'static Place,
}

impl Stage {
    /// The shared servers and callers of a cell; `None` when there is no such broker, or no NestJS.
    async fn open(transport: Transport, half: Half) -> Option<Self> {
        static SERVERS: [[OnceCell<Option<Place>>; 2]; 4] =
            [const { [const { OnceCell::const_new() }; 2] }; 4];
        static CALLERS: [[[OnceCell<Caller>; 2]; 2]; 4] =
            [const { [const { [const { OnceCell::const_new() }; 2] }; 2] }; 4];

        let server = &SERVERS[transport as usize][half.server as usize];
        let open = || Place::open(transport, half.server);
        let place = server.get_or_init(open).await.as_ref()?;
        let caller = &CALLERS[transport as usize][half.caller as usize][half.server as usize];
        let connect = || connect(half.caller, &place.url, &place.names);
        let caller = caller.get_or_init(connect).await.clone();
        Some(Self {
            transport,
            half,
            names: place.names.clone(),
            caller,
            place,
        })
    }

    /// Where the server is.
    pub(crate) fn url(&self) -> &'static str {
        &self.place.url
    }

    /// A pattern of the server's.
    pub(crate) fn at(&self, name: &str) -> Pattern {
        self.names.at(name)
    }

    /// Sends a message, which is answered.
    pub(crate) async fn send(&self, name: &str, data: Value) -> Value {
        self.send_to(&self.at(name), data).await
    }

    pub(crate) async fn send_to(&self, pattern: &Pattern, data: Value) -> Value {
        match self.caller.send(pattern, &data, &[]).await {
            Ok(value) => value,
            Err(failure) => panic!("{} failed with {failure:?}", pattern.text),
        }
    }

    /// Sends a message with headers, which is answered.
    pub(crate) async fn send_with(
        &self,
        name: &str,
        data: Value,
        headers: &[(&str, &str)],
    ) -> Value {
        let sent = self.caller.send(&self.at(name), &data, headers).await;
        sent.unwrap_or_else(|failure| panic!("{name} failed with {failure:?}"))
    }

    /// Sends a message, which is refused.
    pub(crate) async fn refused(&self, name: &str) -> Failure {
        match self.caller.send(&self.at(name), &Value::from(1), &[]).await {
            Ok(value) => panic!("{name} answered {value}"),
            Err(failure) => failure,
        }
    }

    pub(crate) async fn stream(&self, name: &str, count: u32, take: Option<usize>) -> Outcome {
        let data = Value::from(count);
        self.caller.stream(&self.at(name), &data, take).await
    }

    /// Waits until the server has seen an event of this name that is the wanted one.
    pub(crate) async fn seen(&self, event: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let wanted = &wanted;
        eventually("an event to be seen", || async move {
            let seen = self.send("seen", Value::from(event)).await;
            let all = seen.as_array().expect("a list of events");
            all.iter().find(|event| wanted(&event["data"])).cloned()
        })
        .await
    }

    /// The nestling client of the case, in the cells that have one.
    pub(crate) fn client(&self) -> &Client {
        match &self.caller {
            Caller::Nestling(client) => client,
            Caller::Nest(_) => panic!("the case needs a nestling caller"),
        }
    }

    /// Checks a value that came over the wire. Kafka's records have numbers and booleans as text, and what a program
    /// makes of that depends on what it asks for.
    #[track_caller]
    pub(crate) fn check(&self, got: &Value, expected: &Value) {
        let scalar = expected.is_number() || expected.is_boolean();
        let as_text = self.transport == Transport::Kafka
            && scalar
            && got.as_str() == Some(&expected.to_string());
        assert!(
            as_text || got == expected,
            "{expected} was expected, not {got}"
        );
    }

    #[track_caller]
    pub(crate) fn check_all(&self, got: &[Value], expected: &[Value]) {
        assert_eq!(got.len(), expected.len(), "{got:?}");
        for (got, expected) in got.iter().zip(expected) {
            self.check(got, expected);
        }
    }
}

/// A server with all handlers, and where it is.
pub(crate) struct Place {
    pub(crate) url: String,
    pub(crate) names: Names,
    server: Started,
}

/// What is kept so that it goes on.
enum Started {
    Nest(App),
    Nestling { _server: Running },
}

impl Place {
    async fn open(transport: Transport, side: Side) -> Option<Self> {
        // Everything is found or missing together, so that a run without NestJS says so in every case.
        or_skip(blocking(nestjs::modules).await)?;
        let url = match transport.broker() {
            Some(kind) => blocking(move || broker_or_skip(kind)).await?,
            None => "tcp://127.0.0.1:0".to_owned(),
        };
        Some(match side {
            Side::Nest => Self::nest(url, &[]).await,
            Side::Nestling => Self::nestling(url).await,
        })
    }

    /// A NestJS server of one's own, with options.
    pub(crate) async fn nest(url: String, options: &'static [&'static str]) -> Self {
        Self::program("server.mjs", url, options).await
    }

    /// Another program of the npm project.
    pub(crate) async fn program(
        program: &'static str,
        url: String,
        options: &'static [&'static str],
    ) -> Self {
        let names = Names::new();
        let run = names.run().to_owned();
        let start = move || {
            let mut arguments = vec![&*url, "--run", &run];
            arguments.extend(options);
            App::start(program, &arguments, |line| {
                eprintln!("a NestJS server said {line:?}");
            })
        };
        let app = expect(blocking(start).await);
        let ready: Value = serde_json::from_str(app.ready()).unwrap();
        Self {
            url: ready["url"].as_str().unwrap().to_owned(),
            names,
            server: Started::Nest(app),
        }
    }

    async fn nestling(url: String) -> Self {
        let names = Names::new();
        let server = serve(&url, &names).await;
        let address = server.address().to_owned();
        Self {
            url: match Transport::of(&url) {
                Transport::Tcp => address,
                _ => url,
            },
            names,
            server: Started::Nestling { _server: server },
        }
    }
}

/// A nestling server with all handlers.
pub(crate) async fn serve(url: &str, names: &Names) -> Running {
    let router = router(names, Transport::of(url));
    let server = Server::new(names.run(), router).listen(url);
    let started = within("a server to start", server.start()).await;
    started.expect("a server starts")
}

/// A caller of one's own.
pub(crate) async fn connect(side: Side, url: &str, names: &Names) -> Caller {
    match side {
        Side::Nest => {
            let (url, names) = (url.to_owned(), names.clone());
            let start = move || NestClient::start(&url, names.run(), &names.messages());
            Caller::Nest(Arc::new(expect(blocking(start).await)))
        }
        Side::Nestling => {
            let client = Client::connect(format!("{url}?wire=nest"));
            let client = within("a client to connect", client).await;
            Caller::Nestling(client.expect("a client connects"))
        }
    }
}

/// Starting programs blocks.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work)
        .await
        .expect("the work did not panic")
}

fn expect<T>(started: Result<T, Unavailable>) -> T {
    started.unwrap_or_else(|unavailable| panic!("{unavailable}"))
}
