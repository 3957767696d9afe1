import type { AdminAnswer, AdminRequest, Holds, ShutdownMode } from '../../proxy/admin/siblings.js';
import type { LoginEvent } from '../../proxy/auth/failed-logins.js';
import type { CancelKey } from '../../proxy/clients.js';
import type { ListenOptions } from '../../proxy/listener/listener.js';
import type { Failure } from '../failure.js';
import type { Part } from '../parts.js';

/**
 * A parent may have to do with children of newer code, and refuses those whose messages it would not understand. Raised with every
 * change of the messages.
 */
export const PROTOCOL = 4;

/** The hidden command that such a child runs. */
export const CHILD_COMMAND = 'serve-process';

/** What `foreshard serve` was called with. */
export interface ServeSettings {
  readonly config?: string | undefined;
  readonly catalog?: string | undefined;
  readonly verbose?: boolean | undefined;
  readonly port?: number | undefined;
  readonly workers?: number | undefined;
}

/** What a child has read in the configuration that is its parent's to do. */
export interface Plan {
  readonly workers: number;
  readonly listen: ListenOptions;
  /** How long the clients of a process that is replaced may stay, in ms; 0: for ever. */
  readonly drainTimeoutMs: number;
  readonly logLevel: string;
}

/** One of the processes that serve clients, or the one that runs all else. */
export type Role =
  | { readonly kind: 'proxy'; readonly slot: number; readonly index: number }
  | { readonly kind: 'others'; readonly parts: readonly Part[] };

/** What all that serve clients have in common. */
export interface Shared {
  /** See ProxyOptions. */
  readonly ticketSecret: Uint8Array;
  /** null: nothing has ever been held. */
  readonly holds: Holds | null;
}

export type ToChild =
  | { readonly kind: 'start'; readonly settings: ServeSettings; readonly role: Role }
  /** The parent listens there, and so many processes share the clients: start. */
  | { readonly kind: 'go'; readonly listen: ListenOptions; readonly workers: number; readonly shared: Shared }
  /** To one that has been told to go and is not ready yet: what is held has changed. */
  | { readonly kind: 'hold'; readonly holds: Holds }
  /** With a client's socket. */
  | { readonly kind: 'client' }
  | { readonly kind: 'reload'; readonly id: number }
  | { readonly kind: 'stop'; readonly mode: ShutdownMode; readonly patienceMs: number }
  | { readonly kind: 'cancel'; readonly key: CancelKey }
  /** How a login went in another process. */
  | { readonly kind: 'login'; readonly event: LoginEvent }
  | { readonly kind: 'ask'; readonly id: number; readonly request: AdminRequest }
  /** To its `askSiblings`. */
  | { readonly kind: 'answers'; readonly id: number; readonly answers: readonly AdminAnswer[] }
  /** To its `askReload`: null when it went well. */
  | { readonly kind: 'result'; readonly id: number; readonly failure: Failure | null };

export type FromChild =
  | { readonly kind: 'plan'; readonly protocol: number; readonly plan: Plan }
  | { readonly kind: 'ready' }
  | { readonly kind: 'failed'; readonly failure: Failure }
  /** So many of the sockets that it was given are closed. */
  | { readonly kind: 'gone'; readonly clients: number }
  | { readonly kind: 'reloaded'; readonly id: number; readonly outcome: ReloadOutcome }
  | { readonly kind: 'answer'; readonly id: number; readonly answer: AdminAnswer }
  | FromProxy;

/** What a child wants of its parent at any time. */
export type FromProxy =
  | { readonly kind: 'cancel'; readonly slot: number; readonly key: CancelKey }
  | { readonly kind: 'tellLogin'; readonly event: LoginEvent }
  | { readonly kind: 'askSiblings'; readonly id: number; readonly request: AdminRequest }
  /** What is held there now. */
  | { readonly kind: 'remember'; readonly holds: Holds }
  | { readonly kind: 'askReload'; readonly id: number }
  | { readonly kind: 'askShutdown'; readonly mode: ShutdownMode };

export type ReloadOutcome =
  | {
      readonly kind: 'done';
      readonly plan: Plan;
      /** Planner or migrator have other settings now: theirs is a process to start again. */
      readonly others: boolean;
    }
  | { readonly kind: 'failed'; readonly failure: Failure };
