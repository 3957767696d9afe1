import type { Config } from '../config.js';

/**
 * The configuration of one of several processes on a port. What the file limits for a proxy as a whole is divided among them, at
 * least one each: server connections, clients, and those that are starting up.
 *
 * @param index from 0; the first ones take what does not divide evenly
 */
export function shareOf(config: Config, index: number, workers: number): Config {
  const part = (total: number) => Math.max(1, Math.floor(total / workers) + (index < total % workers ? 1 : 0));
  const { proxy } = config;
  return {
    ...config,
    proxy: {
      ...proxy,
      name: index === 0 ? proxy.name : `${proxy.name}#${index}`,
      pool: {
        ...proxy.pool,
        size: part(proxy.pool.size),
        // 0 is no limit.
        maxPerShard: proxy.pool.maxPerShard === 0 ? 0 : part(proxy.pool.maxPerShard),
      },
      limits: {
        ...proxy.limits,
        maxClients: part(proxy.limits.maxClients),
        maxStartups: part(proxy.limits.maxStartups),
        // On average: a part of a start-up each second is one every few seconds.
        startupsPerSecond: proxy.limits.startupsPerSecond / workers,
      },
    },
  };
}
