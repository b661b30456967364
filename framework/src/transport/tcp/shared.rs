//! What the connections of a listener share.

use std::{
    collections::HashSet,
    net::SocketAddr,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use bytestring::ByteString;

use super::Settings;
use crate::transport::{Subscription, Wire, nest::Routes, pending::lock};

/// The most envelopes that may be read ahead of the handlers, so that control frames behind them
/// are seen.
const AHEAD: usize = 1024;
const LEAST_AHEAD: usize = 64;
/// Patterns without a handler that are told apart in the log.
const MOST_UNKNOWN: usize = 64;

/// Limits, routes, and what has been said in the log.
pub(super) struct Shared {
    pub(super) max_frame: usize,
    pub(super) max_payload: usize,
    /// How many envelopes may wait.
    pub(super) ahead: usize,
    /// What NestJS applications can reach; `None` where they are not spoken to.
    pub(super) routes: Option<Routes>,
    foreigner_seen: AtomicBool,
    unknown: Mutex<HashSet<ByteString>>,
}

impl Shared {
    pub(super) fn new(settings: &Settings, subscription: &Subscription) -> Self {
        let is_native_only = settings.wire == Some(Wire::Native);
        Self {
            max_frame: settings.max_frame,
            max_payload: settings.max_payload(),
            ahead: subscription.max_in_flight.clamp(LEAST_AHEAD, AHEAD),
            routes: (!is_native_only).then(|| Routes::new(subscription)),
            foreigner_seen: AtomicBool::new(false),
            unknown: Mutex::default(),
        }
    }

    /// The other end does not speak the native wire: here NestJS is told from noise.
    pub(super) fn refuse_foreigner(&self, peer: SocketAddr) {
        if self.foreigner_seen.swap(true, Ordering::Relaxed) {
            tracing::debug!(%peer, "closing TCP connection: it does not speak the native wire");
        } else {
            tracing::warn!(%peer, "closing TCP connection: it does not speak the native wire, the only one here");
        }
    }

    /// An event that nobody handles: a warning for the first of its pattern.
    pub(super) fn lose_event(&self, peer: SocketAddr, pattern: &ByteString) {
        let mut unknown = lock(&self.unknown);
        if unknown.len() < MOST_UNKNOWN && !unknown.contains(pattern) {
            // A copy of its own, or it would keep all that arrived with it.
            unknown.insert(ByteString::from(&**pattern));
            drop(unknown);
            tracing::warn!(%peer, %pattern, "event lost: nobody here handles it");
        } else {
            drop(unknown);
            tracing::debug!(%peer, %pattern, "event lost: nobody here handles it");
        }
    }
}
