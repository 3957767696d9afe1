import { BACKEND } from '../wire/message-types.js';
import type { Backend } from './backend.js';

/**
 * One reply that a server owes us, in the order in which we asked. The queue of these is what lets the proxy add
 * messages of its own (a Parse on a new connection, a BEGIN replayed) and leave others out without the client seeing it.
 */
export interface Expectation {
  /**
   * `batch`: several messages with their Sync, sent and answered as one. `syncs`: the answers to Syncs that were sent into a COPY FROM STDIN which has
   * failed, however many they are.
   */
  readonly kind:
    | 'parse'
    | 'bind'
    | 'describe'
    | 'execute'
    | 'close'
    | 'query'
    | 'batch'
    | 'function'
    | 'sync'
    | 'syncs'
    | 'local';
  /** Nothing of this reply is for the client. */
  readonly internal: boolean;
  /** An error here is not the client's either: whoever sent it sees to it. */
  readonly quiet?: true;
  /** `parse`: what this, and the bind and the execute behind it, are answered when all is well. */
  readonly ahead?: Buffer;
  /** `local`: what the client gets when its turn comes, although no server was asked; nothing if absent. */
  readonly bytes?: Buffer;
  /** An error here is ours, forced on the server so that its transaction fails as the client is told: this goes to the client instead. */
  readonly replacement?: Buffer;
  /** Called once when it has succeeded. */
  readonly done?: () => void;
  /** Called once when it failed or was skipped after an earlier error. */
  readonly undo?: () => void;
  /** Called with every statement's CommandComplete or EmptyQueryResponse. */
  readonly completed?: (frame: Buffer, empty: boolean) => void;
  /** Called with the server's ErrorResponse. */
  readonly failed?: (frame: Buffer) => void;
  /** What of a reply, or of an error, goes to the client; null: nothing. Asked after the callbacks above. */
  readonly tell?: (type: number, frame: Buffer) => Buffer | null;
  /** Whether rows that come now are not for the client. */
  readonly muted?: () => boolean;
  /** Called with every whole reply that is not an error. */
  readonly replied?: (type: number, frame: Buffer) => void;
  /** `internal`: the rows. */
  readonly rows?: (slice: Buffer) => void;
}

/**
 * Who a backend works for at the moment: a session, a fan-out, or a lane. The bytes that it is given may be borrowed (see READ_MEMORY): they are good until
 * the call returns, or until `onRead` does for those that have it. So they are for the callbacks of an expectation.
 */
export interface BackendOwner {
  /** What it has asked for, or its transaction, reads or writes rows that could be moved. Default: false. */
  readonly rowsAtStake?: boolean;
  /** Takes whole answers from the beginning of what has come, while none is begun. @returns how many bytes it took */
  onChunk?(chunk: Buffer): number;
  /** A whole message for the client (not for internal expectations). */
  onReply(backend: Backend, type: number, frame: Buffer, expectation: Expectation | null): void;
  /** DataRow or CopyData bytes for the client: whole messages or part of one. */
  onData(backend: Backend, slice: Buffer, expectation: Expectation): void;
  /** The server waits for CopyData. */
  onCopyIn(backend: Backend, frame: Buffer, expectation: Expectation): void;
  /** The owner has been told of all that was read. */
  onRead?(): void;
  /**
   * A COPY FROM STDIN has failed into which Syncs were sent, and the server has answered `answered` of them, a Query's end included. If
   * there are any, `onReady` follows, once. If not, everything up to the next Sync is to be skipped; no longer by the server.
   */
  onSyncsAnswered?(backend: Backend, answered: number): void;
  /** ReadyForQuery; `internal` when the client did not ask for it. */
  onReady(backend: Backend, status: number, internal: boolean, frame: Buffer): void;
  /** The connection is gone; `error` says why. Outstanding expectations are lost. */
  onLost(backend: Backend, error: Error): void;
  /** The server can take more after `write` returned false. */
  onWritable(backend: Backend): void;
}

/** Whether a message of this type is the last of the reply. */
export function endsReply(kind: Expectation['kind'], type: number): boolean {
  switch (kind) {
    case 'parse':
      return type === BACKEND.ParseComplete;
    case 'bind':
      return type === BACKEND.BindComplete;
    case 'close':
      return type === BACKEND.CloseComplete;
    case 'describe':
      // ParameterDescription comes first for a statement; what ends it is the row description or its absence.
      return type === BACKEND.RowDescription || type === BACKEND.NoData;
    case 'execute':
      return (
        type === BACKEND.CommandComplete || type === BACKEND.EmptyQueryResponse || type === BACKEND.PortalSuspended
      );
    default:
      return false; // query, function, sync: ReadyForQuery ends them
  }
}
