// One JSON value a line: commands on standard input, news on standard output. Logs are for standard error.

import { createInterface } from 'node:readline';

import { ConsoleLogger } from '@nestjs/common';

/** Writes one line. */
export function say(message) {
  process.stdout.write(`${JSON.stringify(message)}\n`);
}

/** Calls `act` with each command, and ends the process when there are no more: whoever gave them is gone. */
export function onCommand(act) {
  const lines = createInterface({ input: process.stdin });
  lines.on('line', (line) => act(JSON.parse(line)));
  lines.on('close', () => process.exit(0));
}

/** NestJS's logger, off standard output. */
export class ErrorLogger extends ConsoleLogger {
  printMessages(messages, context, logLevel) {
    super.printMessages(messages, context, logLevel, 'stderr');
  }
}

/** Reads `URL --name value --flag` from the command line. */
export function readArguments() {
  const [url, ...rest] = process.argv.slice(2);
  const options = {};
  for (let at = 0; at < rest.length; at += 1) {
    const name = rest[at].replace(/^--/, '');
    const hasValue = at + 1 < rest.length && !rest[at + 1].startsWith('--');
    options[name] = hasValue ? rest[(at += 1)] : true;
  }
  return { url, ...options };
}
