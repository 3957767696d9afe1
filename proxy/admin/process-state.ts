import type { Catalog } from '../../topology/catalog/catalog.js';
import type { Backend } from '../backend/backend.js';
import type { Client, Clients } from '../clients.js';
import type { LiveTopology } from '../live-topology.js';
import type { Pools } from '../pools.js';
import type { Replicas } from '../replicas.js';
import type { Stream } from '../replication.js';
import type { Router } from '../router/router.js';
import { Activity } from '../session/activity.js';
import type { TemplateStats } from '../telemetry/template-stats.js';
import type { AdminSession } from './session.js';
import type { Holds } from './siblings.js';

/** One line of SHOW CONFIG. Never a secret. */
export interface ConfigEntry {
  readonly key: string;
  readonly value: string | null;
  readonly default: string | null;
  /** A RELOAD changes it. */
  readonly changeable: boolean;
}

/** What is configured, as SHOW DATABASES has it. */
export interface Limits {
  readonly maxClients: number;
  /** Server connections per shard and user, and per shard, at most; 0: no limit. */
  readonly poolSize: number;
  readonly maxPerShard: number;
  /** 0: for ever. */
  readonly serverLifetimeMs: number;
}

/** What the views of one process are made from. */
export interface ProcessState {
  readonly slot: number;
  readonly clients: Clients;
  readonly consoles: ReadonlySet<AdminSession>;
  /** Replication clients, each with a server connection of its own. */
  readonly streams: () => readonly Stream[];
  readonly pools: Pools;
  readonly live: LiveTopology;
  readonly replicas: Replicas;
  readonly router: Router;
  readonly templates: TemplateStats;
  /** Connections that are logging in. */
  readonly loggingIn: () => number;
  readonly catalog: Catalog;
  readonly limits: () => Limits;
  readonly config: () => readonly ConfigEntry[];
  /** Of clients that have gone. */
  readonly gone: Activity;
  /** Pins: by reason, how often since the start. */
  readonly pins: ReadonlyMap<string, number>;
  /** Numbers the server connections, each for as long as it lives. */
  readonly ids: ServerIds;
  readonly averages: () => readonly number[];
  /** To be told when what is paused or disabled has changed. */
  readonly held: (holds: Holds) => void;
}

const SLOT_BITS = 24;

/** A number for each server connection, unique among the processes on a port. */
export class ServerIds {
  readonly #base: number;
  readonly #known = new WeakMap<Backend | Stream, number>();
  #next = 0;

  constructor(slot: number) {
    this.#base = slot * (1 << SLOT_BITS);
  }

  of(backend: Backend | Stream): number {
    let id = this.#known.get(backend);
    if (id === undefined) {
      this.#next += 1;
      id = this.#base + this.#next;
      this.#known.set(backend, id);
    }
    return id;
  }
}

/** Which client each server connection works for. */
export function clientsByBackend(clients: Iterable<Client>): Map<Backend, Client> {
  const owners = new Map<Backend, Client>();
  for (const client of clients) for (const backend of client.session.backends) owners.set(backend, client);
  return owners;
}

/** Sums of all clients since the process started. */
export function totalActivity({ clients, gone }: Pick<ProcessState, 'clients' | 'gone'>): Activity {
  const total = new Activity();
  total.add(gone);
  for (const { session } of clients) total.add(session.activity);
  return total;
}
