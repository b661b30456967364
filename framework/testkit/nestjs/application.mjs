// A NestJS microservice around a controller.

import { Module } from '@nestjs/common';
import { NestFactory } from '@nestjs/core';

import { ErrorLogger, onCommand, say } from './lines.mjs';

/** Runs until its input ends; says `{"ready":true,"url":…}` when it can be called. */
export async function run(controller, wire, options) {
  class Application {}
  Module({ controllers: [controller] })(Application);

  const application = await NestFactory.createMicroservice(Application, {
    ...wire.server(options),
    logger: new ErrorLogger(),
  });
  await application.listen();
  const address = await wire.listening(application.unwrap());
  onCommand(() => {});
  process.on('SIGTERM', () => application.close().then(() => process.exit(0)));
  say({ ready: true, url: options.url, ...address });
}
