//! What the gateway adds: the same request to a service over TCP, through the gateway over HTTP, and to an HTTP server
//! that has the answer itself.
//!
//! Service, gateway and floor are processes of their own. The service has its answer in memory, so that nothing but the
//! way to it is compared.

use std::{process::Command, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use async_trait::async_trait;
use axum::{Json, Router as Http, body::Bytes, http::Request, routing::get};
use bench::load::{self, Measured};
use clap::ValueEnum;
use contracts::product::{Category, ListCategories};
use futures_util::future::pending;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use nestling::{Client, Router, RpcError, Server as Service, transport::Task};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Mutex,
};
use uuid::Uuid;

use crate::{
    run::median,
    serve::{self, Server},
    spec::name,
    usage,
};

const PATH: &str = "/v1/categories";
/// How often each contestant has its turn.
const TURNS: usize = 5;
const TURN: Duration = Duration::from_secs(1);
/// Requests a second where nobody has to wait for another.
const QUIET_RATE: f64 = 1_000.0;
const PATIENCE: Duration = Duration::from_secs(30);

/// What the measurement takes.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// How many requests are in flight, each on a connection of its own where it is HTTP
    #[arg(long, default_value_t = 16, value_name = "N")]
    concurrency: usize,
}

/// What one of the processes is; only this program starts it.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Side {
    #[arg(long)]
    who: Who,
    /// Where the service is.
    #[arg(long, default_value = "")]
    url: String,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Who {
    /// The service, called directly.
    Direct,
    /// axum with the answer at hand.
    Floor,
    /// The gateway, which asks the service.
    Gateway,
}

fn categories() -> Vec<Category> {
    let category = |slug: &str| Category {
        id: Uuid::nil().into(),
        slug: slug.to_owned(),
        name: slug.to_uppercase(),
        parent: None,
        products: 12,
        version: 1,
    };
    vec![category("books"), category("tools")]
}

/// Runs one of the processes until its input ends.
pub(crate) async fn run(side: Side) -> Result<()> {
    match side.who {
        Who::Direct => {
            let router = Router::new()
                .message(|_: ListCategories| async { Ok::<_, RpcError>(categories()) });
            let service = Service::new("product", router).listen("tcp://127.0.0.1:0");
            let running = service.start().await?;
            until_told(running.address()).await
        }
        Who::Floor => {
            let answer = || async { Json(categories()) };
            serve_http(Http::new().route(PATH, get(answer))).await
        }
        Who::Gateway => {
            let url = side.url;
            let urls = gateway::Urls {
                user: url.clone(),
                product: url.clone(),
                order: url.clone(),
                payment: url.clone(),
                review: url.clone(),
                recommendation: url,
            };
            let clients = gateway::Clients::connect(&urls, PATIENCE).await?;
            serve_http(gateway::app(clients)).await
        }
    }
}

async fn serve_http(app: Http) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    let _serving = Task::spawn(async move {
        if let Err(error) = gateway::serve(listener, app, pending(), Duration::ZERO).await {
            eprintln!("{error}");
        }
    });
    until_told(&address).await
}

async fn until_told(url: &str) -> Result<()> {
    serve::answer(url, || Ok(String::new())).await
}

/// Measures and prints what the gateway adds.
pub(crate) async fn measure(options: &Options) -> Result<()> {
    ensure!(options.concurrency > 0, "there is at least one in flight");
    let direct = start(Who::Direct, "")?;
    let service = direct.url.clone();
    let floor = start(Who::Floor, "")?;
    let gateway = start(Who::Gateway, &service)?;
    let mut contestants = Vec::new();
    for (who, server) in [
        (Who::Direct, direct),
        (Who::Floor, floor),
        (Who::Gateway, gateway),
    ] {
        contestants.push(Contestant::connect(who, server, options.concurrency).await?);
    }
    println!(
        "{:<9} {:>9} {:>9} {:>9} {:>12}   {:>12} {:>9}",
        "who", "req/s", "p50 µs", "p99 µs", "server µs", "p50 µs alone", "p99 µs"
    );
    for contestant in &contestants {
        contestant.turn(options.concurrency).await?;
    }
    for _ in 0..TURNS {
        for contestant in &mut contestants {
            let (measured, cpu) = contestant.turn(options.concurrency).await?;
            contestant.turns.push((measured, cpu));
        }
    }
    let mut alone = Vec::new();
    for contestant in &contestants {
        alone.push(contestant.quiet().await?);
    }
    for (contestant, alone) in contestants.iter().zip(&alone) {
        contestant.print(alone);
    }
    let p50 = |who: usize| contestants[who].p50();
    let quiet = |who: usize| micros(&alone[who], 0.5);
    println!(
        "\nThe gateway adds {:.0} µs to the p50 of a direct call with {} in flight, and {:.0} µs at {QUIET_RATE} a second;",
        p50(2) - p50(0),
        options.concurrency,
        quiet(2) - quiet(0)
    );
    println!(
        "to that of HTTP without a hop, {:.0} µs and {:.0} µs.",
        p50(2) - p50(1),
        quiet(2) - quiet(1)
    );
    Ok(())
}

fn start(who: Who, url: &str) -> Result<Server> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["side", "--who", &name(&who), "--url", url]);
    Server::launch(&command).with_context(|| format!("start {who:?}"))
}

struct Contestant {
    who: Who,
    server: Server,
    callers: Vec<Arc<dyn Asks>>,
    turns: Vec<(Measured, f64)>,
}

impl Contestant {
    async fn connect(who: Who, server: Server, concurrency: usize) -> Result<Self> {
        let mut callers: Vec<Arc<dyn Asks>> = Vec::new();
        match who {
            Who::Direct => callers.push(Arc::new(Client::connect(&*server.url).await?)),
            Who::Floor | Who::Gateway => {
                for _ in 0..concurrency {
                    callers.push(Arc::new(Browser::connect(&server.url).await?));
                }
            }
        }
        Ok(Self {
            who,
            server,
            callers,
            turns: Vec::new(),
        })
    }

    fn act(&self) -> impl Fn(usize) -> Acting + Clone + Send + Sync + 'static {
        let callers = self.callers.clone();
        move |number| {
            let caller = Arc::clone(&callers[number % callers.len()]);
            Box::pin(async move {
                let asked = caller.ask().await;
                asked.map(|()| 1).map_err(|error| format!("{error:#}"))
            })
        }
    }

    /// What a turn has shown, and the processor seconds that the server took for it.
    async fn turn(&self, concurrency: usize) -> Result<(Measured, f64)> {
        let before = usage::cpu_seconds(self.server.pid())?;
        let measured = load::closed(concurrency, TURN, self.act()).await;
        check(&measured)?;
        let cpu = usage::cpu_seconds(self.server.pid())? - before;
        Ok((measured, cpu))
    }

    /// The same at a rate that leaves everybody at rest.
    async fn quiet(&self) -> Result<Measured> {
        let measured = load::open(QUIET_RATE, 3 * TURN, self.act()).await;
        check(&measured)?;
        Ok(measured)
    }

    /// The median of the turns, in microseconds.
    fn p50(&self) -> f64 {
        let of_turns = self.turns.iter().map(|(measured, _)| micros(measured, 0.5));
        median(&of_turns.collect::<Vec<_>>())
    }

    fn print(&self, alone: &Measured) {
        let of_turns = |value: fn(&Measured) -> f64| {
            let values = self.turns.iter().map(|(measured, _)| value(measured));
            median(&values.collect::<Vec<_>>())
        };
        let messages: u64 = self
            .turns
            .iter()
            .map(|(measured, _)| measured.messages)
            .sum();
        let cpu: f64 = self.turns.iter().map(|(_, cpu)| cpu).sum();
        println!(
            "{:<9} {:>9.0} {:>9.0} {:>9.0} {:>12.1}   {:>12.0} {:>9.0}",
            name(&self.who),
            of_turns(Measured::throughput),
            self.p50(),
            of_turns(|measured| micros(measured, 0.99)),
            1e6 * cpu / messages.max(1) as f64,
            micros(alone, 0.5),
            micros(alone, 0.99),
        );
    }
}

fn check(measured: &Measured) -> Result<()> {
    let error = measured.first_error.as_deref().unwrap_or_default();
    ensure!(measured.errors == 0, "{} errors: {error}", measured.errors);
    Ok(())
}

fn micros(measured: &Measured, quantile: f64) -> f64 {
    measured.latency.value_at_quantile(quantile) as f64 / 1000.0
}

type Acting = futures_util::future::BoxFuture<'static, Result<u32, String>>;

#[async_trait]
trait Asks: Send + Sync {
    async fn ask(&self) -> Result<()>;
}

#[async_trait]
impl Asks for Client {
    async fn ask(&self) -> Result<()> {
        let answer = self.send(ListCategories {}).await?;
        ensure!(answer.len() == 2, "{} categories", answer.len());
        Ok(())
    }
}

/// One HTTP connection that is kept.
struct Browser {
    sender: Mutex<SendRequest<Empty<Bytes>>>,
    address: String,
    _connection: Task,
}

impl Browser {
    async fn connect(address: &str) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let connection = Task::spawn(async move {
            if let Err(error) = connection.await {
                eprintln!("{error}");
            }
        });
        Ok(Self {
            sender: Mutex::new(sender),
            address: address.to_owned(),
            _connection: connection,
        })
    }
}

#[async_trait]
impl Asks for Browser {
    async fn ask(&self) -> Result<()> {
        let request = Request::get(PATH).header("host", &self.address);
        let request = request.body(Empty::new())?;
        let mut sender = self.sender.lock().await;
        sender.ready().await?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        ensure!(status.is_success() && body.starts_with(b"[{"), "{status}");
        Ok(())
    }
}
