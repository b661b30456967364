//! Reading one record after the other, where somebody has died again and again: the try of each is
//! committed before it begins, so that the one to blame is known by its count.

use std::{
    task::{self, Poll},
    time::Duration,
};

use rdkafka::message::Message as _;

use super::{
    delivery::deliver,
    metadata::MOST_TRIES,
    partition::{PartitionSource, discard},
};
use crate::{
    handler::BoxFuture,
    transport::{Delivery, pending::lock, trials::Trial},
};

/// How many may be unsettled: their counts have to fit into what is committed.
const MOST_TRIED: usize = MOST_TRIES / 2;

/// What is on its way to be tried.
#[derive(Default)]
pub(super) struct Next {
    turn: Option<BoxFuture<'static, Trial>>,
    /// A record whose try is not committed yet.
    noted: Option<Noted>,
}

struct Noted {
    offset: i64,
    attempt: u32,
    delivery: Delivery,
}

impl Next {
    pub(super) fn is_empty(&self) -> bool {
        self.noted.is_none()
    }
}

impl PartitionSource {
    /// Delivers a record, when its turn has come and its try is committed.
    pub(super) fn poll_careful(
        &mut self,
        cx: &mut task::Context<'_>,
        batch: &mut Vec<Delivery>,
    ) -> usize {
        if self.next.noted.is_none() {
            let trials = &self.group.trials;
            let turn = self.next.turn.get_or_insert_with(|| {
                let trials = trials.clone();
                Box::pin(trials.next())
            });
            let Poll::Ready(trial) = turn.as_mut().poll(cx) else {
                return 0;
            };
            self.next.turn = None;
            self.next.noted = self.take_one(trial);
        }
        let is_known = lock(&self.partition.state).offsets.uncommitted().is_none();
        match self.next.noted.take_if(|_| is_known) {
            Some(Noted { delivery, .. }) => {
                batch.push(delivery);
                1
            }
            None => 0,
        }
    }

    /// Takes one record, if there is one.
    fn take_one(&mut self, trial: Trial) -> Option<Noted> {
        let queue = lock(&self.partition.queue);
        let queue = queue.as_ref()?;
        loop {
            if self.partition.is_full(MOST_TRIED) {
                return None;
            }
            let message = match queue.poll(Duration::ZERO)? {
                Ok(message) => message,
                Err(error) => {
                    let (topic, partition) = (&self.partition.topic, self.partition.number);
                    tracing::warn!(topic, partition, %error, "read from Kafka");
                    self.group.mender.hear(&error);
                    continue;
                }
            };
            let offset = message.offset();
            let Some(attempt) = lock(&self.partition.state).offsets.take(offset) else {
                continue;
            };
            let Some(delivery) = deliver(&self.group, &self.partition, &message, attempt) else {
                self.partition.settle(offset);
                continue;
            };
            self.partition.begin_trial(offset, attempt, trial);
            self.group.commit_soon();
            return Some(Noted {
                offset,
                attempt,
                delivery,
            });
        }
    }

    /// Leaves to others what has not begun.
    pub(super) fn untake(&mut self) {
        self.next.turn = None;
        if let Some(Noted {
            offset,
            attempt,
            delivery,
        }) = self.next.noted.take()
        {
            self.partition.end_trial(offset, Some(attempt));
            self.partition.give_back(offset, Duration::ZERO);
            discard(delivery);
        }
    }
}
