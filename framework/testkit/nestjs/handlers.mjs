// The handlers of the server, by pattern: each has one behaviour that nestling has to understand.

import { Controller } from '@nestjs/common';
import { Ctx, EventPattern, KafkaRetriableException, MessagePattern, Payload, RpcException } from '@nestjs/microservices';
import { concat, concatMap, delay, EMPTY, from, NEVER, of, throwError, timer } from 'rxjs';

/** The patterns are strings behind `run.`, except for those of another type, which have it inside. */
export function handlers({ scheme, metadata, destination }, { run, wildcards }) {
  const seen = [];
  const record = (event) => (data, context) => {
    seen.push({ event, data, metadata: metadata(context), destination: destination(context) });
  };
  const at = (name) => `${run}.${name}`;

  const plain = [
    message(at('echo'), (data) => data),
    message(at('double'), (number) => Number(number) * 2),
    message(at('is_even'), (number) => Number(number) % 2 === 0),
    message(at('greet'), async ({ name }) => `Hello, ${name}!`),
    message(at('null'), () => null),
    message(at('undefined'), () => undefined),
    message(at('silent'), () => NEVER),
    message(at('note'), (data, context) => {
      record('note')(data, context);
      return data;
    }),
    message(at('headers'), (_, context) => metadata(context)),

    message(at('stream.none'), () => EMPTY),
    message(at('stream.tick'), (count) => from(upTo(count))),
    message(at('stream.time'), (count) => from(upTo(count)).pipe(concatMap((value) => of(value).pipe(delay(10))))),
    message(at('stream.late'), (count) => concat(from(upTo(count)), timer(30).pipe(concatMap(() => EMPTY)))),
    message(at('stream.fails'), (count) => concat(from(upTo(count)), throwError(() => coded()))),
    message(at('stream.open'), (count) => concat(from(upTo(count)), NEVER)),

    message(at('error.string'), () => fail(new RpcException('boom'))),
    message(at('error.object'), () => fail(new RpcException({ reason: 'broken', at: [1, 2] }))),
    message(at('error.number'), () => fail(new RpcException(5))),
    message(at('error.empty'), () => fail(new RpcException())),
    message(at('error.coded'), () => fail(coded())),
    message(at('error.plain'), () => fail(new Error('a secret'))),
    message(at('error.stream'), () => throwError(() => new RpcException('boom'))),

    event(at('event.happened'), record('event.happened')),
    event(at('event.kept'), record('event.kept')),
    event(at('event.fails'), (data, context) => {
      record('event.fails')(data, context);
      // Kafka would bring it again; elsewhere it is gone.
      return scheme === 'kafka' ? undefined : fail(new Error('an event handler failed'));
    }),
    message(numberOf(run), (data) => data),
    message(at('seen'), (name) => seen.filter((entry) => entry.event === name)),
  ];
  if (scheme === 'kafka') {
    return [...plain, ...kafkaRecords(at)];
  }
  const typed = [
    message({ cmd: at('sum') }, (numbers) => numbers.reduce((sum, number) => sum + number, 0)),
    // Not in the order in which NestJS sorts keys, and with everything that it escapes.
    message({ z: 1, run, a: { y: 'q"uote\\', b: true, n: null }, B: [2, 'x'] }, (data) => data),
    message(at('zażółć.😀'), (data) => data),
    event({ kind: at('user'), type: 'created' }, record('user.created')),
  ];
  const clock = message(at('time.us.*'), (_, context) => ({ destination: destination(context) }));
  switch (scheme) {
    case 'nats':
      return [...plain, ...typed, clock, event(at('audit.>'), record('audit'))];
    case 'redis':
      // Its wildcards are for all patterns or none, and an asterisk is not the only one of them.
      return wildcards ? [clock] : [...plain, ...typed];
    default:
      return [...plain, ...typed];
  }
}

/** The names of the topics that the handlers listen to. */
export function topics(list) {
  return list.map(({ pattern }) => `${pattern}`);
}

/** A controller with one method for each handler, decorated by hand as there is no compiler to do it. */
export function controllerOf(list) {
  class Handlers {}
  Controller()(Handlers);
  list.forEach(({ decorate, pattern, handle }, index) => {
    const name = `handler${index}`;
    const descriptor = { value: handle, writable: true, configurable: true };
    Object.defineProperty(Handlers.prototype, name, descriptor);
    decorate(pattern)(Handlers.prototype, name, descriptor);
    Payload()(Handlers.prototype, name, 0);
    Ctx()(Handlers.prototype, name, 1);
  });
  return Handlers;
}

/** What a Kafka handler gets besides its value, and what it can give besides one. */
function kafkaRecords(at) {
  let attempts = 0;
  return [
    message(at('kafka.record'), (value, context) => {
      const { key, headers } = context.getMessage();
      return { value: { key, value, trace: headers['x-trace'] ?? null } };
    }),
    message(at('kafka.keyed'), (value) => ({ key: 'the-key', value, headers: { 'x-reply': 'yes' } })),
    message(at('kafka.type'), (value) => typeof value),
    message(at('kafka.retriable'), () => {
      attempts += 1;
      return attempts < 3 ? fail(new KafkaRetriableException('not yet')) : `attempt ${attempts}`;
    }),
  ];
}

function message(pattern, handle) {
  return { decorate: MessagePattern, pattern, handle };
}

function event(pattern, handle) {
  return { decorate: EventPattern, pattern, handle };
}

/** An error as a nestling service sends it. */
function coded() {
  const details = { id: 7, tags: ['a', 'ż'] };
  return new RpcException({ status: 'error', message: 'no such user', code: 'NOT_FOUND', details });
}

function fail(error) {
  throw error;
}

function upTo(count) {
  return Array.from({ length: Number(count) }, (_, index) => index + 1);
}

/** A pattern that is a number, and the run's own: it ends in the number of the run. */
function numberOf(run) {
  return Number(/\d+$/.exec(run));
}
