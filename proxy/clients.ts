import { randomBytes, randomInt, timingSafeEqual } from 'node:crypto';
import type { ConnectionFacts } from './auth/peer.js';
import type { Session } from './session/session.js';
import { PROTOCOL_3_2 } from './wire/frontend.js';

/** What BackendKeyData says. */
export interface CancelKey {
  /** The client's id, told as its process id: unique among the processes that share a port. */
  readonly processId: number;
  /** 4 bytes; 32 for clients of protocol 3.2 and later. */
  readonly secret: Buffer;
}

/** The two ends of a client's connection, for whoever looks. */
export interface Peer {
  /** `unix` over a Unix socket. */
  readonly address: string;
  readonly port: number;
  readonly localAddress: string;
  readonly localPort: number;
  /** Protocol and cipher; empty in the clear. */
  readonly tls: string;
}

export interface Client {
  readonly session: Session;
  readonly key: CancelKey;
  /** Agreed protocol version: major in the high 16 bits. */
  readonly protocol: number;
  readonly database: string;
  /** How it is connected. */
  readonly facts: ConnectionFacts;
  readonly peer: Peer;
  /** ms since 1970. */
  readonly connectedAt: number;
}

/** Processes that can share a port: an id tells by its high bits which of them has the client. */
export const PROCESS_SLOTS = 128;
const SLOT_BITS = 24;
/**
 * Ids begin here, beyond the process ids of servers (at most 2^22 on Linux), so that in a notification nobody takes another's
 * process for himself.
 */
const FIRST_ID = 1 << 23;
const SECRET_BYTES = 32;
const SHORT_SECRET_BYTES = 4;

/** The process that has, or had, the client with this id. */
export function slotOf(processId: number): number {
  return processId >>> SLOT_BITS;
}

/** The logged-in clients of one process. */
export class Clients implements Iterable<Client> {
  readonly #slot: number;
  readonly #byId = new Map<number, Client>();
  /** Ids of those who are not clients: they have logged in to the admin database. */
  readonly #others = new Set<number>();
  #next = randomInt(FIRST_ID, 1 << SLOT_BITS);

  /** @param slot this process among those that share the port, from 0 */
  constructor(slot: number) {
    this.#slot = slot;
  }

  get size(): number {
    return this.#byId.size;
  }

  [Symbol.iterator](): Iterator<Client> {
    return this.#byId.values();
  }

  get(id: number): Client | undefined {
    return this.#byId.get(id);
  }

  /** A key that no client of this process has. */
  newKey(protocol: number): CancelKey {
    let processId: number;
    do {
      this.#next = this.#next + 1 < 1 << SLOT_BITS ? this.#next + 1 : FIRST_ID;
      processId = this.#slot * (1 << SLOT_BITS) + this.#next;
    } while (this.#byId.has(processId) || this.#others.has(processId));
    return { processId, secret: randomBytes(protocol >= PROTOCOL_3_2 ? SECRET_BYTES : SHORT_SECRET_BYTES) };
  }

  /** Nobody else gets this id until `forgo`. */
  reserve(id: number): void {
    this.#others.add(id);
  }

  forgo(id: number): void {
    this.#others.delete(id);
  }

  add(client: Client): void {
    this.#byId.set(client.key.processId, client);
  }

  /** @returns whether it was there */
  delete(id: number): boolean {
    return this.#byId.delete(id);
  }

  /** The client whose key this is; null for a guess. Takes the same time for every wrong secret of the right length. */
  find(key: CancelKey): Client | null {
    const client = this.#byId.get(key.processId);
    return client !== undefined && sameSecret(client.key, key) ? client : null;
  }
}

/** Takes the same time for every wrong secret of the right length. */
export function sameSecret({ secret }: CancelKey, guess: CancelKey): boolean {
  return secret.length === guess.secret.length && timingSafeEqual(secret, guess.secret);
}
