import type { Topology } from '../../topology/topology.js';
import { holdTimeout } from '../live-topology.js';
import type { ClientSession } from './client-session.js';

/** What a client's next statement is placed by: which map was looked at last, and the waits for another, for the end of a hold, or for the schema. */
export class MapWait {
  readonly #client: Pick<ClientSession, 'services' | 'activity'>;
  #waits = false;
  #seen: Topology;

  constructor(client: Pick<ClientSession, 'services' | 'activity'>) {
    this.#client = client;
    this.#seen = client.services.live.current;
  }

  /** Whether the client's next statement waits for the lease, the schema or the end of a hold. */
  get waits(): boolean {
    return this.#waits;
  }

  /** Whether this is the map that was looked at last. */
  hasSeen(topology: Topology): boolean {
    return topology === this.#seen;
  }

  /** The map is looked at. @returns whether it is another than the last time */
  see(topology: Topology): boolean {
    const isNew = topology !== this.#seen;
    this.#seen = topology;
    return isNew;
  }

  /**
   * Resolves when the map, its lease, the holds or the schema have changed; rejects with the signal's reason, or with 57P03 when that takes too long.
   *
   * @param since when the wait began, on performance.now()'s clock: it may be one of several in a row
   */
  async change(signal: AbortSignal, since: number): Promise<void> {
    const { live, holdTimeoutMs } = this.#client.services;
    const waited = performance.now() - since;
    const timeout = new AbortController();
    const timer = setTimeout(
      () => timeout.abort(holdTimeout(live, holdTimeoutMs)),
      Math.max(0, holdTimeoutMs - waited),
    );
    this.#waits = true;
    try {
      await this.#changed(AbortSignal.any([signal, timeout.signal]));
    } finally {
      this.#waits = false;
      clearTimeout(timer);
    }
  }

  /** The same for the schema alone: it comes before long, or is not waited for any more. */
  schema(signal: AbortSignal): Promise<void> {
    return this.#changed(signal);
  }

  #changed(signal: AbortSignal): Promise<void> {
    const { activity, services } = this.#client;
    return activity.waitFor(services.live.changed(signal));
  }
}
