// A NestJS client: `node client.mjs URL --run NAME-NUMBER [--replies JSON]`; `replies` are the patterns that it will send
// to, which Kafka has to know before it connects.
//
// Commands, each with an `id` of its own:
//
//     {"id":1,"do":"send","pattern":…,"data":…,"headers":{…},"take":2}   take: unsubscribe after so many values
//     {"id":1,"do":"emit","pattern":…,"data":…,"headers":{…}}
//     {"id":1,"do":"close"}
//
// Each is answered with any number of `{"id":1,"value":…}` (`"undefined":true` for one that JSON cannot say), and then
// with `{"id":1,"complete":true}`, `{"id":1,"error":…}` for an error that is a plain value, or
// `{"id":1,"exception":{"name":…,"message":…}}` for one that is an `Error`.

import { AsyncLocalStorage } from 'node:async_hooks';

import { ClientProxyFactory } from '@nestjs/microservices';
import { from, take } from 'rxjs';

import { onCommand, readArguments, say } from './lines.mjs';
import { transport } from './transports.mjs';

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
      next: (value) => say(value === undefined ? { id, undefined: true } : { id, value }),
      complete: () => say({ id, complete: true }),
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
    return { exception: { name: error.constructor.name, message: error.message } };
  }
  return { error: error === undefined ? null : error };
}
