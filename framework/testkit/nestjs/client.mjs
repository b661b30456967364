// A NestJS client: `node client.mjs URL --run NAME-NUMBER [--replies JSON]`; `replies` are the patterns that it will send
// to, which Kafka has to know before it connects.
//
// Commands, each with an `id` of its own:
//
//     {"id":1,"do":"send","pattern":…,"data":…,"headers":{…},"take":2}   take: unsubscribe after so many values
//     {"id":1,"do":"emit","pattern":…,"data":…,"headers":{…}}
//     {"id":1,"do":"close"}
//
// Each is answered with any number of values, and then with what ended it:
//
//     {"id":1,"is":"value","what":…}
//     {"id":1,"is":"undefined"}                                   a value that JSON cannot say
//     {"id":1,"is":"complete"}
//     {"id":1,"is":"error","what":…}                              an error that is a plain value
//     {"id":1,"is":"exception","what":{"name":…,"message":…}}     one that is an `Error`

import { AsyncLocalStorage } from 'node:async_hooks';

import { Logger } from '@nestjs/common';
import { ClientProxyFactory } from '@nestjs/microservices';
import { from, take } from 'rxjs';

import { ErrorLogger, onCommand, readArguments, say } from './lines.mjs';
import { transport } from './transports.mjs';

// A client logs by itself, before it is connected.
Logger.overrideLogger(new ErrorLogger());

const { url, run, replies = '[]' } = readArguments();
const wire = transport(url, `${run}-client`);
const client = ClientProxyFactory.create(wire.client());
const metadata = new AsyncLocalStorage();
client.setOnDispatchHook((packet) => {
  const entries = metadata.getStore();
  if (entries) {
    packet.metadata = entries;
  }
});

const patterns = JSON.parse(replies);
if (wire.prepare && patterns.length > 0) {
  await wire.prepare(patterns.map((pattern) => `${pattern}.reply`));
  patterns.forEach((pattern) => client.subscribeToResponseOf(pattern));
}
await client.connect();
onCommand(execute);
say({ ready: true });

function execute(command) {
  const { id, headers } = command;
  const attached = headers ? wire.attach(command.data, headers) : { data: command.data };
  metadata.run(attached.metadata, () => {
    start(command, attached.data).subscribe({
      next: (value) => say(value === undefined ? { id, is: 'undefined' } : { id, is: 'value', what: value }),
      complete: () => say({ id, is: 'complete' }),
      error: (error) => say({ id, ...describe(error) }),
    });
  });
}

function start({ do: verb, pattern, take: count }, data) {
  switch (verb) {
    case 'send': {
      const values = client.send(pattern, data);
      return count === undefined ? values : values.pipe(take(count));
    }
    case 'emit':
      return client.emit(pattern, data);
    case 'close':
      return from(client.close() ?? []);
    default:
      throw new Error(`no such command: ${verb}`);
  }
}

function describe(error) {
  if (error instanceof Error) {
    return { is: 'exception', what: { name: error.constructor.name, message: error.message } };
  }
  return { is: 'error', what: error ?? null };
}
