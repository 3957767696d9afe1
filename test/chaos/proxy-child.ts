import { pino } from 'pino';
import { ProxyServer } from '../../proxy/proxy-server.js';
import { Catalog } from '../../topology/catalog/catalog.js';

// A proxy in a process of its own, to be killed: argument is the catalog's URL. It says its port.
const proxy = await ProxyServer.start({
  catalog: await Catalog.connect(process.argv[2] as string),
  name: 'killed',
  listen: { host: '127.0.0.1', port: 0 },
  tls: undefined,
  auth: { method: 'scram-sha-256', users: new Map() },
  serverPasswords: new Map(),
  admin: {},
  pool: { size: 5, idleTimeoutMs: 60_000, connectTimeoutMs: 5_000, queueTimeoutMs: 10_000 },
  limits: { maxClients: 10, loginTimeoutMs: 10_000, holdTimeoutMs: 10_000 },
  lease: { ttlMs: 2_000 },
  telemetry: { flushIntervalMs: 60_000 },
  logger: pino({ level: 'error' }, pino.destination(2)),
});
process.stdout.write(`${proxy.port}\n`);
