//! The word that a server drains, and how a source's task hears it: [`Stop`].

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{self, Poll, Waker},
};

use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// Says once, to all who listen, that the server drains.
#[derive(Clone, Debug, Default)]
pub(super) struct Stop {
    said: Arc<AtomicBool>,
    token: CancellationToken,
}

impl Stop {
    pub(super) fn say(&self) {
        self.said.store(true, Ordering::Release);
        self.token.cancel();
    }

    pub(super) async fn said(&self) {
        self.token.cancelled().await;
    }

    pub(super) fn listen(&self) -> Listener {
        Listener {
            said: Arc::clone(&self.said),
            waiting: Box::pin(self.token.clone().cancelled_owned()),
            wakes: None,
        }
    }
}

/// Listens for one task, which asks whenever it is woken: a token would lock what all sources share each
/// time, and so it is only asked to wake the task, once.
pub(super) struct Listener {
    said: Arc<AtomicBool>,
    waiting: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Whom it wakes.
    wakes: Option<Waker>,
}

impl Listener {
    pub(super) fn poll(&mut self, cx: &mut task::Context<'_>) -> Poll<()> {
        if self.said.load(Ordering::Acquire) {
            return Poll::Ready(());
        }
        let is_known = |waker: &Waker| waker.will_wake(cx.waker());
        if self.wakes.as_ref().is_some_and(is_known) {
            return Poll::Pending;
        }
        self.wakes = Some(cx.waker().clone());
        self.waiting.as_mut().poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::AtomicUsize,
        task::{Context, Wake},
    };

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn the_task_that_asked_last_is_woken_and_hears_it() {
        let stop = Stop::default();
        let mut listener = stop.listen();
        let (earlier, later) = (Arc::<Woken>::default(), Arc::<Woken>::default());
        let wakers = [&earlier, &earlier, &later, &later].map(|woken| Waker::from(woken.clone()));
        for waker in &wakers {
            assert!(listener.poll(&mut Context::from_waker(waker)).is_pending());
        }
        stop.say();
        let count = |woken: &Woken| woken.0.load(Ordering::Relaxed);
        assert_eq!((count(&earlier), count(&later)), (0, 1));
        let mut again = Context::from_waker(&wakers[0]);
        assert!(listener.poll(&mut again).is_ready());
    }
}
