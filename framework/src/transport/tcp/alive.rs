//! Whether the other end of a connection is still there, by the clock.

use std::{
    io,
    task::{self, Poll},
    time::Duration,
};

use socket2::{SockRef, TcpKeepalive};
use tokio::{
    net::TcpStream,
    time::{Instant, Interval, MissedTickBehavior, interval_at},
};

/// How often the clock is looked at; everything below is exact to this.
const TICK: Duration = Duration::from_secs(5);
/// Silence after which a ping is sent while calls are in flight.
const SILENT_BUSY: Duration = Duration::from_secs(10);
/// Silence after which a ping is sent otherwise.
const SILENT_IDLE: Duration = Duration::from_secs(30);
/// How long a ping waits for its answer, or for anything else.
const ANSWER: Duration = Duration::from_secs(10);
/// How long the rest of a frame or a preface may take…
const PARTIAL: Duration = Duration::from_secs(30);
/// …and a second more for each of so many bytes that did arrive.
const SLOWEST: usize = 64 * 1024;
/// How long the other end may read nothing of what waits for it.
const STALLED: Duration = Duration::from_secs(60);

/// Silence after which the system looks whether the other machine is there, and how often it asks;
/// what says a wire without pings no more than that. It gives up [`VANISHED`] after the last sign.
const PROBE_AFTER: Duration = Duration::from_secs(20);
const PROBE_EVERY: Duration = Duration::from_secs(10);
const PROBES: u32 = 4;
/// How long what was sent may stay without the other machine's word that it has arrived.
const VANISHED: Duration = Duration::from_secs(60);

/// Switches Nagle's algorithm off, and the system's own watch over a silent peer on.
pub(super) fn set_up(socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let socket = SockRef::from(socket);
    let keepalive = TcpKeepalive::new()
        .with_time(PROBE_AFTER)
        .with_interval(PROBE_EVERY);
    #[cfg(not(windows))]
    let keepalive = keepalive.with_retries(PROBES);
    socket.set_tcp_keepalive(&keepalive)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(VANISHED))?;
    Ok(())
}

/// What is known about the other end.
pub(super) struct Alive {
    tick: Interval,
    heard: Instant,
    pinged: Option<Instant>,
    /// When somebody was first seen waiting since anything was heard.
    waiting: Option<Instant>,
    partial: Option<Instant>,
    stalled: Option<(Instant, usize)>,
}

/// The state of a connection that decides what its silence means.
pub(super) struct Now {
    /// Somebody waits for the other end.
    pub(super) busy: bool,
    /// The other end has said what it has to say at the start.
    pub(super) open: bool,
    /// What can be done about its silence.
    pub(super) remedy: Remedy,
    /// Bytes of a frame, or of a preface, that is not complete.
    pub(super) partial: usize,
    /// Bytes that wait to be written.
    pub(super) unwritten: usize,
}

/// What can be done when the other end is silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Remedy {
    /// It would answer a ping.
    Ask,
    /// It knows no pings, but another connection may find somebody who answers.
    Leave,
    /// It may be silent for as long as it likes.
    None,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sign {
    /// Nothing; but buffers that are not used can go.
    Quiet,
    /// Ask.
    Ping,
    /// Start nothing new here.
    Leave,
    /// Give up, because of this.
    Dead(&'static str),
}

impl Alive {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        let mut tick = interval_at(now + TICK, TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            tick,
            heard: now,
            pinged: None,
            waiting: None,
            partial: None,
            stalled: None,
        }
    }

    /// Something arrived, or we did not look because we were busy ourselves.
    pub(super) fn heard(&mut self, now: Instant) {
        self.heard = now;
        self.pinged = None;
        self.waiting = None;
    }

    /// A whole frame was taken, or none is begun.
    pub(super) fn whole(&mut self) {
        self.partial = None;
    }

    /// Ready when it is time to judge.
    pub(super) fn poll_tick(&mut self, cx: &mut task::Context<'_>) -> Poll<Instant> {
        self.tick.poll_tick(cx).map(|_| Instant::now())
    }

    /// What a look at the clock says about the other end.
    pub(super) fn judge(&mut self, now: Instant, state: &Now) -> Sign {
        let since = |then: Instant| now.saturating_duration_since(then);
        if state.partial > 0 || !state.open {
            let begun = *self.partial.get_or_insert(self.heard.min(now));
            let slow = Duration::from_secs((state.partial / SLOWEST) as u64);
            if since(begun) >= PARTIAL + slow {
                return Sign::Dead("the rest of a frame does not arrive");
            }
        } else {
            self.partial = None;
        }
        match self.stalled {
            Some((begun, before)) if before == state.unwritten && before > 0 => {
                if since(begun) >= STALLED {
                    return Sign::Dead("nothing is read there");
                }
            }
            _ => self.stalled = Some((now, state.unwritten)),
        }
        match state.remedy {
            Remedy::Ask => self.ask(now, state.busy),
            Remedy::Leave if state.busy => {
                let waiting = *self.waiting.get_or_insert(now);
                match since(waiting) >= SILENT_BUSY + ANSWER {
                    true => Sign::Leave,
                    false => Sign::Quiet,
                }
            }
            Remedy::Leave | Remedy::None => Sign::Quiet,
        }
    }

    fn ask(&mut self, now: Instant, busy: bool) -> Sign {
        let since = |then: Instant| now.saturating_duration_since(then);
        if let Some(pinged) = self.pinged {
            let dead = since(pinged) >= ANSWER;
            return if dead {
                Sign::Dead("no answer to a ping")
            } else {
                Sign::Quiet
            };
        }
        let patience = if busy { SILENT_BUSY } else { SILENT_IDLE };
        if since(self.heard) < patience {
            return Sign::Quiet;
        }
        self.pinged = Some(now);
        Sign::Ping
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Now = Now {
        busy: false,
        open: true,
        remedy: Remedy::Ask,
        partial: 0,
        unwritten: 0,
    };

    /// What happens, and after how many seconds, when nothing is heard.
    fn silence(state: &Now) -> Vec<(u64, Sign)> {
        let mut alive = Alive::new();
        let start = alive.heard;
        let mut signs = Vec::new();
        for tick in 1..30 {
            let elapsed = tick * TICK;
            let sign = alive.judge(start + elapsed, state);
            if sign != Sign::Quiet {
                signs.push((elapsed.as_secs(), sign));
            }
            if matches!(sign, Sign::Dead(_)) {
                break;
            }
        }
        signs
    }

    #[tokio::test]
    async fn a_silent_peer_is_asked_and_then_given_up() {
        let dead = Sign::Dead("no answer to a ping");
        assert_eq!(silence(&IDLE), [(30, Sign::Ping), (40, dead)]);
        assert_eq!(
            silence(&Now { busy: true, ..IDLE }),
            [(10, Sign::Ping), (20, dead)]
        );
    }

    #[tokio::test]
    async fn a_silent_peer_that_knows_no_pings_is_left_alone() {
        let foreign = Now {
            busy: true,
            remedy: Remedy::None,
            ..IDLE
        };
        assert_eq!(silence(&foreign), []);
        let dead = Sign::Dead("the rest of a frame does not arrive");
        let begun = Now {
            partial: 1,
            ..foreign
        };
        assert_eq!(silence(&begun), [(30, dead)]);
    }

    #[tokio::test]
    async fn who_cannot_be_asked_is_left_when_calls_wait_in_silence() {
        let foreign = Now {
            busy: true,
            remedy: Remedy::Leave,
            ..IDLE
        };
        // First seen waiting at the first tick.
        assert_eq!(silence(&foreign).first(), Some(&(25, Sign::Leave)));
        assert_eq!(
            silence(&Now {
                busy: false,
                ..foreign
            }),
            []
        );
        let mut alive = Alive::new();
        let start = alive.heard;
        for second in 0..60 {
            let now = start + Duration::from_secs(second);
            alive.heard(now);
            assert_eq!(alive.judge(now, &foreign), Sign::Quiet);
        }
    }

    #[tokio::test]
    async fn the_system_watches_a_silent_peer() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let socket = TcpStream::connect(address).await.unwrap();
        set_up(&socket).unwrap();
        assert!(socket.nodelay().unwrap());
        let socket = SockRef::from(&socket);
        assert!(socket.keepalive().unwrap());
        #[cfg(target_os = "linux")]
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(VANISHED));
    }

    #[tokio::test]
    async fn a_frame_that_does_not_end_is_given_up() {
        let dead = Sign::Dead("the rest of a frame does not arrive");
        assert_eq!(
            silence(&Now {
                open: false,
                remedy: Remedy::None,
                ..IDLE
            }),
            [(30, dead)]
        );
        let mut alive = Alive::new();
        let slow = Now {
            partial: 10 * SLOWEST,
            ..IDLE
        };
        let start = alive.heard;
        for second in 0..40 {
            alive.heard(start + Duration::from_secs(second));
            assert_eq!(
                alive.judge(start + Duration::from_secs(second), &slow),
                Sign::Quiet
            );
        }
        assert_eq!(alive.judge(start + Duration::from_secs(40), &slow), dead);
        alive.whole();
        assert_eq!(
            alive.judge(start + Duration::from_secs(40), &IDLE),
            Sign::Quiet
        );
    }

    #[tokio::test]
    async fn a_peer_that_does_not_read_is_given_up() {
        let mut alive = Alive::new();
        let start = Instant::now();
        let stuck = Now {
            unwritten: 5,
            ..IDLE
        };
        for second in 0..60 {
            alive.heard(start + Duration::from_secs(second));
            assert_eq!(
                alive.judge(start + Duration::from_secs(second), &stuck),
                Sign::Quiet
            );
        }
        let end = start + Duration::from_secs(60);
        assert_eq!(
            alive.judge(end, &stuck),
            Sign::Dead("nothing is read there")
        );
    }
}
