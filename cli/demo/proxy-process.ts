import { defaultConfig } from '../config.js';
import { type Failure, failureOf } from '../failure.js';
import { createLogger } from '../logger.js';
import { type Services, startServices } from '../serve.js';

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
let services: Services | null = null;
process.on('SIGINT', () => undefined);
process.on('disconnect', () => process.exit(0));
process.on('message', (message: ToProxy) => {
  if (message.kind === 'start') void start(message.settings);
  else void stop();
});
tell({ kind: 'ready' });

async function start({ catalogUrl, port, flushIntervalMs }: ProxySettings): Promise<void> {
  try {
    const config = defaultConfig(catalogUrl);
    services = await startServices(
      {
        ...config,
        proxy: { ...config.proxy, name: 'demo', listen: { host: '127.0.0.1', port }, telemetry: { flushIntervalMs } },
      },
      { only: ['proxy'], logger: createLogger('error') },
    );
    tell({ kind: 'listening', port: services.proxy?.port ?? port });
  } catch (error) {
    tell({ kind: 'failed', failure: failureOf(error) });
  }
}

async function stop(): Promise<void> {
  await services?.stop();
  process.disconnect();
}

function tell(message: FromProxy): void {
  process.send?.(message);
}
