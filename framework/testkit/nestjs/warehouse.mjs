// The service of `docs/nestjs.md` as it stands there: `node warehouse.mjs URL --run NAME-NUMBER`.

import { readFileSync, writeFileSync } from 'node:fs';

import ts from 'typescript';

import { run } from './application.mjs';
import { readArguments } from './lines.mjs';
import { transport } from './transports.mjs';

const source = readFileSync(new URL('warehouse.ts', import.meta.url), 'utf8');
const { outputText } = ts.transpileModule(source, {
  compilerOptions: {
    target: ts.ScriptTarget.ES2022,
    module: ts.ModuleKind.ESNext,
    experimentalDecorators: true,
    emitDecoratorMetadata: true,
  },
});
const compiled = new URL('warehouse.js', import.meta.url);
writeFileSync(compiled, outputText);
const { Warehouse } = await import(compiled);

const options = readArguments();
await run(Warehouse, transport(options.url, options.run), options);
