// A NestJS microservice: `node server.mjs URL --run NAME-NUMBER [--wildcards]`.
//
// Says `{"ready":true,"url":…}` when it can be called.

import { Module } from '@nestjs/common';
import { NestFactory } from '@nestjs/core';

import { controllerOf, handlers, topics } from './handlers.mjs';
import { ErrorLogger, onCommand, readArguments, say } from './lines.mjs';
import { transport } from './transports.mjs';

const options = readArguments();
const wire = transport(options.url, options.run);
const list = handlers(wire, options);
await wire.prepare?.(topics(list));

class Application {}
Module({ controllers: [controllerOf(list)] })(Application);

const application = await NestFactory.createMicroservice(Application, {
  ...wire.server(options),
  logger: new ErrorLogger(),
});
await application.listen();
const address = await wire.listening(application.unwrap());
onCommand(() => {});
process.on('SIGTERM', () => application.close().then(() => process.exit(0)));
say({ ready: true, url: options.url, ...address });
