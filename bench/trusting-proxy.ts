import pino from 'pino';
import { type ProxyOptions, ProxyServer } from '../proxy/proxy-server.js';
import { Catalog } from '../topology/catalog/catalog.js';

/** A proxy with room for all clients of a benchmark, which asks nobody for a password; in the process that calls. */
export async function startTrustingProxy(
  catalogUrl: string,
  options: {
    readonly name: string;
    readonly logLevel: string;
    readonly tls?: ProxyOptions['tls'];
    /** Of the servers' users; default: that of the catalog's. */
    readonly serverPasswords?: ProxyOptions['serverPasswords'];
    /** Over the defaults. */
    readonly pool?: Partial<ProxyOptions['pool']>;
  },
): Promise<ProxyServer> {
  return ProxyServer.start({
    catalog: await Catalog.connect(catalogUrl),
    name: options.name,
    listen: { host: '127.0.0.1', port: 0 },
    tls: options.tls,
    auth: { method: 'trust', users: new Map() },
    serverPasswords: options.serverPasswords ?? new Map([['postgres', new URL(catalogUrl).password]]),
    pool: { size: 20, idleTimeoutMs: 60_000, connectTimeoutMs: 5000, queueTimeoutMs: 60_000, ...options.pool },
    limits: { maxClients: 100_000, loginTimeoutMs: 60_000, holdTimeoutMs: 10_000 },
    lease: { ttlMs: 60_000 },
    telemetry: { flushIntervalMs: 60_000 },
    logger: pino({ level: options.logLevel }, pino.destination(2)),
  });
}
