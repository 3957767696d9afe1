import { pino } from 'pino';
import { Migrator } from '../../migrator/migrator.js';
import { Catalog } from '../../topology/catalog/catalog.js';

// A migrator in a process of its own, to be killed: argument is the catalog's URL.
const catalog = await Catalog.connect(process.argv[2] as string);
const controller = new AbortController();
process.once('SIGTERM', () => controller.abort());
const wayBackMs = Number(process.argv[3] ?? 0);
await new Migrator({ catalog, logger: pino({ level: 'warn' }), pollMs: 50, leaseMs: 1000, wayBackMs }).run(
  controller.signal,
);
await catalog.close();
