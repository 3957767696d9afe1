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

export interface Client {
  readonly session: Session;
  readonly key: CancelKey;
  /** Agreed protocol version: major in the high 16 bits. */
  readonly protocol: number;
  readonly database: string;
  /** How it is connected. */
  readonly facts: ConnectionFacts;
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
    } while (this.#byId.has(processId));
    return { processId, secret: randomBytes(protocol >= PROTOCOL_3_2 ? SECRET_BYTES : SHORT_SECRET_BYTES) };
  }

  add(client: Client): void {
    this.#byId.set(client.key.processId, client);
  }

  delete(id: number): void {
    this.#byId.delete(id);
  }

  /** The client whose key this is; null for a guess. Takes the same time for every wrong secret of the right length. */
  find(key: CancelKey): Client | null {
    const client = this.#byId.get(key.processId);
    if (client === undefined) return null;
    const { secret } = client.key;
    return secret.length === key.secret.length && timingSafeEqual(secret, key.secret) ? client : null;
  }
}
