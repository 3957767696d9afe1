import type { Backend } from '../backend/backend.js';
import type { Pool } from '../backend/pool.js';
import { SILENT_OWNER } from '../backend/silent-owner.js';
import { say } from './server-settings.js';
import { forNobody } from './settings.js';

/** Gives a connection back, for the next client or for none: with nothing in force that would end it or must not be seen meanwhile. */
export function giveBack(backend: Backend, pool: Pool): void {
  const clean = backend.reusable ? forNobody(backend.settings) : null;
  if (clean === null) {
    pool.release(backend);
    return;
  }
  const { settings } = backend;
  backend.attach(SILENT_OWNER);
  say(backend, settings, clean.sql)
    .then(() => (settings === null ? backend.refreshSearchPath() : undefined))
    .then(
      () => {
        backend.settings = clean.to;
        pool.release(backend);
      },
      () => pool.discard(backend),
    );
}
