import { beforeAll, expect, test } from 'vitest';
import type { EmbeddedCluster } from '../../../deploy/embedded/cluster.js';
import { NotificationListener, type Subscriber } from '../../../proxy/backend/notification-listener.js';
import { ServerConnection } from '../../../proxy/backend/server-connection.js';
import type { ShardName } from '../../../topology/topology.js';
import { startTestCluster } from '../../support/cluster.js';

let cluster: EmbeddedCluster;

beforeAll(async () => {
  cluster = await startTestCluster();
});

async function listen(): Promise<NotificationListener> {
  const url = new URL(cluster.url());
  const connection = await ServerConnection.connect({
    shard: 's1',
    host: '127.0.0.1',
    port: cluster.port,
    user: decodeURIComponent(url.username),
    database: 'postgres',
    auth: { password: decodeURIComponent(url.password) },
  });
  return new NotificationListener('s1' as ShardName, 'UTF8', connection, () => undefined);
}

const nobody: Subscriber = { notified: () => undefined, listenerLost: () => undefined };

test('whoever waits for a listener that is closed is told so', async () => {
  const listener = await listen();
  await listener.subscribe(nobody, 'x');
  listener.unsubscribe(nobody, 'x');
  const barrier = listener.barrier();
  const subscribed = listener.subscribe(nobody, 'y');
  listener.close();
  await expect(barrier).rejects.toMatchObject({ sqlstate: '08006' });
  await expect(subscribed).rejects.toMatchObject({ sqlstate: '08006' });
  await expect(listener.barrier()).rejects.toMatchObject({ sqlstate: '08006' });
});
