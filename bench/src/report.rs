//! What was measured, as it is written to a file and shown on the terminal.

mod page;
mod table;

use std::{fs, path::Path};

use anyhow::{Context, Result};
use bench::load::Measured;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::{
    matrix::Options,
    spec::{Spec, Who, Wire, name},
};

pub(crate) use table::{print, print_heading, verdicts};

/// Everything, with what is needed to repeat it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) commit: String,
    pub(crate) machine: String,
    pub(crate) command: String,
    pub(crate) date: String,
    pub(crate) rows: Vec<Row>,
}

/// One contestant on one row.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Row {
    /// `tcp bincode request`.
    pub(crate) name: String,
    pub(crate) transport: String,
    pub(crate) wire: String,
    pub(crate) codec: String,
    pub(crate) workload: String,
    pub(crate) who: String,
    /// Bytes of JSON.
    pub(crate) payload: usize,
    pub(crate) concurrency: usize,
    pub(crate) connections: usize,
    /// Processes that answer.
    pub(crate) replicas: usize,
    /// What is promised.
    pub(crate) guarantee: String,
    /// Messages a second, the median of the turns.
    pub(crate) throughput: f64,
    pub(crate) turns: Vec<f64>,
    pub(crate) messages: u64,
    pub(crate) errors: u64,
    pub(crate) first_error: Option<String>,
    pub(crate) latency: Latency,
    /// Microseconds of processor time a message.
    pub(crate) usage: Usage,
    /// Bytes, of the server.
    pub(crate) peak_memory: u64,
    pub(crate) open: Vec<OpenLoop>,
}

impl Row {
    pub(crate) fn new(
        spec: Spec,
        who: Who,
        payload: usize,
        concurrency: usize,
        options: &Options,
    ) -> Self {
        let wire = match spec.wire {
            Wire::Native => "native",
            Wire::Nest => "nest",
        };
        Self {
            name: spec.to_string(),
            transport: name(&spec.transport),
            wire: wire.to_owned(),
            codec: name(&spec.codec),
            workload: name(&spec.workload),
            who: name(&who),
            payload,
            concurrency,
            connections: options.connections,
            replicas: options.replicas,
            guarantee: spec.transport.guarantee(spec.workload).to_owned(),
            throughput: 0.0,
            turns: Vec::new(),
            messages: 0,
            errors: 0,
            first_error: None,
            latency: Latency::default(),
            usage: Usage::default(),
            peak_memory: 0,
            open: Vec::new(),
        }
    }

    /// Whether both are the same measurement, whoever it was made of.
    pub(crate) fn is_beside(&self, other: &Self) -> bool {
        let place = |row: &Self| (row.payload, row.concurrency, row.connections, row.replicas);
        self.name == other.name && place(self) == place(other)
    }
}

/// Microseconds.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Latency {
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
    pub(crate) max: f64,
    /// Latencies at more and more nines, for a plot: 1 − 10^−x.
    pub(crate) curve: Vec<(f64, f64)>,
}

impl Latency {
    pub(crate) fn of(histogram: &Histogram<u64>) -> Self {
        const STEPS_PER_NINE: u32 = 8;
        const NINES: u32 = 5;
        let at = |quantile: f64| histogram.value_at_quantile(quantile) as f64 / 1000.0;
        let nines =
            (0..=NINES * STEPS_PER_NINE).map(|step| f64::from(step) / f64::from(STEPS_PER_NINE));
        let curve = nines
            .take_while(|nines| 10_f64.powf(-nines) * histogram.len() as f64 >= 1.0)
            .map(|nines| (nines, at(1.0 - 10_f64.powf(-nines))))
            .collect();
        Self {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: histogram.max() as f64 / 1000.0,
            curve,
        }
    }
}

/// Processor time: seconds while it is measured, microseconds a message in a [`Row`].
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Usage {
    pub(crate) client: f64,
    pub(crate) server: f64,
    pub(crate) broker: f64,
}

impl Usage {
    fn zip(&self, other: &Self, join: impl Fn(f64, f64) -> f64) -> Self {
        Self {
            client: join(self.client, other.client),
            server: join(self.server, other.server),
            broker: join(self.broker, other.broker),
        }
    }

    pub(crate) fn since(&self, before: &Self) -> Self {
        self.zip(before, |now, before| now - before)
    }

    pub(crate) fn add(&mut self, other: &Self) {
        *self = self.zip(other, |one, other| one + other);
    }

    pub(crate) fn per_message(&self, messages: u64) -> Self {
        self.zip(self, |seconds, _| seconds * 1e6 / messages.max(1) as f64)
    }
}

/// Latencies at a fixed rate.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct OpenLoop {
    /// Of the throughput that the closed loop found.
    pub(crate) share: f64,
    /// Messages a second.
    pub(crate) rate: f64,
    pub(crate) errors: u64,
    pub(crate) latency: Latency,
}

impl OpenLoop {
    pub(crate) fn new(share: f64, rate: f64, measured: &Measured) -> Self {
        Self {
            share,
            rate,
            errors: measured.errors,
            latency: Latency::of(&measured.latency),
        }
    }
}

impl Report {
    pub(crate) fn read(file: &Path) -> Result<Self> {
        let text = fs::read(file).with_context(|| format!("read {}", file.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("understand {}", file.display()))
    }

    /// Writes `bench.json` and `bench.html` into a folder.
    pub(crate) fn write(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        let json = serde_json::to_string_pretty(self)?;
        fs::write(folder.join("bench.json"), &json)?;
        fs::write(folder.join("bench.html"), page::page(&json))?;
        Ok(())
    }
}
