// A server that answers with what it was sent: `node echo.mjs URL --run NAME-NUMBER --pattern PATTERN`.

import { MessagePattern } from '@nestjs/microservices';

import { run } from './application.mjs';
import { controllerOf } from './handlers.mjs';
import { readArguments } from './lines.mjs';
import { transport } from './transports.mjs';

const { pattern, ...options } = readArguments();
const wire = transport(options.url, options.run);
await wire.prepare?.([pattern, `${pattern}.reply`]);
await run(controllerOf([{ decorate: MessagePattern, pattern, handle: (data) => data }]), wire, options);
