import type { LoginEvent } from '../auth/failed-logins.js';
import type { CancelKey } from '../clients.js';

/** A value in a row of a view: as JSON has it, a bigint as text. */
export type AdminValue = string | number | boolean | null;

/** What one process asks another, or itself. Answered at once: whoever waits for something to come about asks again. */
export type AdminRequest =
  /** The rows of a view, of the answering process alone. */
  | { readonly kind: 'show'; readonly view: string }
  | {
      readonly kind: 'command';
      /** Lower case: `pause`, `resume`, `kill` … */
      readonly command: string;
      /** Database, shard, client's id or setting; as the command defines it. */
      readonly arguments: readonly string[];
    };

/** Plain JSON. `slot`: the process that answers, see `ProxyOptions.slot`. */
export type AdminAnswer =
  | { readonly kind: 'rows'; readonly slot: number; readonly rows: readonly (readonly AdminValue[])[] }
  /** `left`: of what the command wants, so much has yet to come about (connections still in use after a PAUSE, say). */
  | { readonly kind: 'done'; readonly slot: number; readonly left: number }
  | {
      readonly kind: 'failed';
      readonly slot: number;
      readonly sqlstate: string;
      readonly message: string;
      readonly detail?: string;
      readonly hint?: string;
    }
  /** Written by `Siblings.ask` for a process that did not answer in time: it is left out, and named in a notice. */
  | { readonly kind: 'silent'; readonly slot: number };

/** What PAUSE, KILL and DISABLE hold until RESUME and ENABLE. Plain JSON. */
export interface Holds {
  readonly disabled: boolean;
  /** Shards that are new, too. */
  readonly all: boolean;
  readonly shards: Readonly<Record<string, boolean>>;
}

/** The other processes that share this proxy's port. */
export interface Siblings {
  /** Asks every other living process. Never rejects: one that does not answer in time is `silent`. */
  ask(request: AdminRequest): Promise<readonly AdminAnswer[]>;
  /** Hands a cancel request to the process that has the client. Nobody is told what came of it. */
  cancel(slot: number, key: CancelKey): void;
  /** Tells every other process how a login went; see FailedLogins. */
  tellLogin(event: LoginEvent): void;
  /** What a process that takes the place of one of them is to hold from its start. */
  remember(holds: Holds): void;
}

export type ShutdownMode = 'now' | 'wait_for_servers' | 'wait_for_clients';

/** What the process around a proxy can do for an administrator; given by whoever runs it. */
export interface ProcessControl {
  /** Reads the configuration again, in all processes. Rejects with what is wrong with it; then nothing has changed. */
  reload(): Promise<void>;
  /** Ends all processes. Returns at once. */
  shutdown(mode: ShutdownMode): void;
}
