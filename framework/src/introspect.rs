//! What every service answers about itself: `<service>.svc.ping`, `.info` and `.health`.

use std::{
    fmt,
    future::Future,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures_util::future::{join, join_all};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use crate::{
    context::Context, error::RpcError, extract::Payload, handler::BoxFuture, router::Router,
};

/// How long one check may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// Which service this is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Info {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The process that answered.
    pub process: u32,
    /// The transport the question came by.
    pub transport: String,
    /// When the process started, in milliseconds since 1970.
    pub started_at: u64,
}

/// Whether a service can work.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Health {
    /// It answers.
    pub live: bool,
    /// All its checks pass.
    pub ready: bool,
    /// What was checked.
    pub checks: Vec<Check>,
    /// What was measured.
    #[serde(default)]
    pub gauges: Vec<Gauge>,
}

/// One thing that was checked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// What.
    pub name: String,
    /// Why it fails, without details; none when it passes.
    pub error: Option<String>,
}

/// One thing that was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Gauge {
    /// What, and in which unit where that is not plain: `outbox.waiting`.
    pub name: String,
    /// How much.
    pub value: f64,
}

impl Gauge {
    /// `value` of what is called `name`.
    pub fn new(name: impl Into<String>, value: f64) -> Self {
        Self {
            name: name.into(),
            value,
        }
    }
}

type Measure = Arc<dyn Fn() -> BoxFuture<'static, Result<Vec<Gauge>, RpcError>> + Send + Sync>;
type Probe = Arc<dyn Fn() -> BoxFuture<'static, Result<(), RpcError>> + Send + Sync>;

/// The handlers of a service's questions about itself.
///
/// ```
/// use nestling::Introspection;
///
/// let router = Introspection::new("user", "1.0.0").check("database", || async { Ok(()) }).router();
/// ```
#[derive(Clone)]
pub struct Introspection {
    name: &'static str,
    version: &'static str,
    checks: Vec<(&'static str, Probe)>,
    measures: Vec<Measure>,
}

impl Introspection {
    /// For the service of this name and version, without checks.
    pub fn new(name: &'static str, version: &'static str) -> Self {
        Self {
            name,
            version,
            checks: Vec::new(),
            measures: Vec::new(),
        }
    }

    /// Adds something without which the service cannot work.
    #[must_use]
    pub fn check<F, Fut>(mut self, name: &'static str, probe: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), RpcError>> + Send + 'static,
    {
        self.checks
            .push((name, Arc::new(move || Box::pin(probe()))));
        self
    }

    /// Adds something to be measured whenever somebody asks for the service's health, which does not
    /// depend on it. What cannot be measured is left out.
    #[must_use]
    pub fn gauges<F, Fut>(mut self, measure: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Vec<Gauge>, RpcError>> + Send + 'static,
    {
        self.measures.push(Arc::new(move || Box::pin(measure())));
        self
    }

    /// The handlers.
    pub fn router(self) -> Router {
        let started_at = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let started_at = u64::try_from(started_at.as_millis()).unwrap_or_default();
        let Self {
            name,
            version,
            checks,
            measures,
        } = self;
        let pattern = |verb: &str| format!("{name}.svc.{verb}");
        let asked = Arc::new((checks, measures));
        Router::new()
            .message_at(
                pattern("ping"),
                |Payload(ping): Payload<serde_json::Value>| async move { Ok::<_, RpcError>(ping) },
            )
            .message_at(pattern("info"), move |cx: Context| async move {
                Ok::<_, RpcError>(Info {
                    name: name.to_owned(),
                    version: version.to_owned(),
                    process: std::process::id(),
                    transport: cx.transport().to_owned(),
                    started_at,
                })
            })
            .message_at(pattern("health"), move || {
                let asked = Arc::clone(&asked);
                async move {
                    let (checks, measures) = &*asked;
                    Ok::<_, RpcError>(health(checks, measures).await)
                }
            })
    }
}

async fn health(checks: &[(&'static str, Probe)], measures: &[Measure]) -> Health {
    let checks = join_all(checks.iter().map(async |(name, probe)| {
        let error = within_patience(probe()).await.err().map(|error| {
            tracing::warn!(check = name, ?error, "not ready");
            error.message
        });
        Check {
            name: (*name).to_owned(),
            error,
        }
    }));
    let gauges = join_all(measures.iter().map(async |measure| {
        within_patience(measure()).await.unwrap_or_else(|error| {
            tracing::warn!(?error, "a gauge cannot be read");
            Vec::new()
        })
    }));
    let (checks, gauges) = join(checks, gauges).await;
    Health {
        live: true,
        ready: checks.iter().all(|check| check.error.is_none()),
        checks,
        gauges: gauges.concat(),
    }
}

async fn within_patience<T>(
    work: impl Future<Output = Result<T, RpcError>>,
) -> Result<T, RpcError> {
    timeout(PATIENCE, work)
        .await
        .unwrap_or_else(|_| Err(RpcError::deadline_exceeded("the check took too long")))
}

impl fmt::Debug for Introspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Introspection")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}
