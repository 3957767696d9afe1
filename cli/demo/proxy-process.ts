import { Proxy } from '../../proxy/proxy.js';
import { Catalog } from '../../topology/catalog/catalog.js';
import { type Failure, failureOf } from '../failure.js';
import { createLogger } from '../logger.js';

export interface ProxySettings {
  readonly catalogUrl: string;
  /** On 127.0.0.1; 0 for any free one. */
  readonly port: number;
  readonly flushIntervalMs: number;
}

/** What the demo tells the process that runs the proxy. */
export type ToProxy = { readonly kind: 'start'; readonly settings: ProxySettings } | { readonly kind: 'stop' };

/** What that process answers. */
export type FromProxy =
  | { readonly kind: 'ready' }
  | { readonly kind: 'listening'; readonly port: number }
  | { readonly kind: 'failed'; readonly failure: Failure };

// The proxy has a process of its own, as in production: the planner's arithmetic does not stand in its clients' way.
let proxy: Proxy | null = null;
let catalog: Catalog | null = null;
process.on('SIGINT', () => undefined);
process.on('disconnect', () => process.exit(0));
process.on('message', (message: ToProxy) => {
  if (message.kind === 'start') void start(message.settings);
  else void stop();
});
tell({ kind: 'ready' });

async function start(settings: ProxySettings): Promise<void> {
  try {
    catalog = await Catalog.connect(settings.catalogUrl);
    proxy = await Proxy.start({
      catalog,
      name: 'demo',
      listen: { host: '127.0.0.1', port: settings.port },
      auth: { method: 'scram-sha-256', users: new Map() },
      serverPasswords: new Map(),
      pool: { size: 20, idleTimeoutMs: 300_000, connectTimeoutMs: 5000, queueTimeoutMs: 30_000 },
      limits: { maxClients: 1000, loginTimeoutMs: 15_000, holdTimeoutMs: 30_000 },
      lease: { ttlMs: 10_000 },
      telemetry: { flushIntervalMs: settings.flushIntervalMs },
      logger: createLogger('error'),
    });
    tell({ kind: 'listening', port: proxy.port });
  } catch (error) {
    tell({ kind: 'failed', failure: failureOf(error) });
  }
}

async function stop(): Promise<void> {
  await proxy?.close();
  await catalog?.close();
  process.disconnect();
}

function tell(message: FromProxy): void {
  process.send?.(message);
}
