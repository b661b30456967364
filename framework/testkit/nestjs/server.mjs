// A server with a handler for every behaviour: `node server.mjs URL --run NAME-NUMBER [--wildcards]`.

import { run } from './application.mjs';
import { controllerOf, handlers, topics } from './handlers.mjs';
import { readArguments } from './lines.mjs';
import { transport } from './transports.mjs';

const options = readArguments();
const wire = transport(options.url, options.run);
const list = handlers(wire, options);
await wire.prepare?.(topics(list));
await run(controllerOf(list), wire, options);
