import { pino } from 'pino';
import { Migrator } from '../../migrator/migrator.js';
import type { MigratorOptions } from '../../migrator/options.js';
import { Catalog } from '../../topology/catalog/catalog.js';

// A migrator in a process of its own, to be killed: arguments are the catalog's URL and options, as JSON. It removes rows a page at a time, as from large tables.
const catalog = await Catalog.connect(process.argv[2] as string);
const controller = new AbortController();
process.once('SIGTERM', () => controller.abort());
const options = JSON.parse(process.argv[3] ?? '{}') as Partial<MigratorOptions>;
const logger = pino({ level: 'warn' });
await new Migrator({ catalog, logger, pollMs: 50, leaseMs: 1000, removePages: 1, ...options }).run(controller.signal);
await catalog.close();
