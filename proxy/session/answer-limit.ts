import { ForeshardError } from '../../topology/errors.js';
import type { Backend } from '../backend/backend.js';

/** After `ms` without an answer the server is given up, and its connection closed. @returns ends the wait */
export function limitAnswer(backend: Backend, ms: number): () => void {
  const timer = setTimeout(() => {
    if (!backend.quiet)
      backend.destroy(new ForeshardError('08006', `shard "${backend.shard}" has not answered for ${ms} ms`));
  }, ms);
  return () => clearTimeout(timer);
}

/**
 * For `work` that a server has nothing to wait for, such as a ROLLBACK: it is answered at once. `ms`: how long a new connection may take. One that takes
 * longer is given up: its transaction is lost, and others are not kept waiting.
 */
export async function answeredAtOnce<T>(backend: Backend, ms: number, work: () => Promise<T>): Promise<T> {
  const answered = limitAnswer(backend, ms);
  try {
    return await work();
  } finally {
    answered();
  }
}
