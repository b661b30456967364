// A server that only listens: `node listener.mjs URL --run NAME-NUMBER --events JSON`; `events` are patterns.
//
// Each event is said as it comes: {"event":…,"data":…}

import { EventPattern } from '@nestjs/microservices';

import { run } from './application.mjs';
import { controllerOf } from './handlers.mjs';
import { readArguments, say } from './lines.mjs';
import { transport } from './transports.mjs';

const options = readArguments();
const list = JSON.parse(options.events).map((event) => ({
  decorate: EventPattern,
  pattern: event,
  handle: (data) => say({ event, data }),
}));
const wire = transport(options.url, options.run);
// Nobody may have emitted any of them yet.
await wire.prepare?.(list.map(({ pattern }) => pattern));
await run(controllerOf(list), wire, options);
