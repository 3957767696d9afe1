import { ForeshardError } from '../../topology/errors.js';
import type { ShardName } from '../../topology/topology.js';
import { fieldsOfError } from '../wire/error-response.js';
import type { ProcessState } from './process-state.js';
import type { AdminAnswer, AdminRequest } from './siblings.js';
import { viewOf } from './views.js';

/** Commands that change what is held. */
const HOLDING: ReadonlySet<string> = new Set(['pause', 'resume', 'kill', 'disable', 'enable']);

/** What an administrator can see of one process, and do to it. */
export class Administration {
  readonly state: ProcessState;

  constructor(state: ProcessState) {
    this.state = state;
  }

  /** About this process alone. Never rejects: what is wrong is in the answer. */
  async answer(request: AdminRequest): Promise<AdminAnswer> {
    const { slot } = this.state;
    try {
      if (request.kind === 'show') return { kind: 'rows', slot, rows: await viewOf(request.view).rows(this.state) };
      const left = this.#carryOut(request.command, request.arguments[0] ?? null);
      if (HOLDING.has(request.command)) this.state.held(this.state.pools.holds);
      return { kind: 'done', slot, left };
    } catch (error) {
      const { sqlstate, message, hint, detail } = fieldsOfError(error);
      return {
        kind: 'failed',
        slot,
        sqlstate,
        message,
        ...(detail === undefined ? {} : { detail }),
        ...(hint === undefined ? {} : { hint }),
      };
    }
  }

  /** @returns what has yet to come about, see AdminAnswer */
  #carryOut(command: string, argument: string | null): number {
    const { pools } = this.state;
    switch (command) {
      case 'pause':
        return this.#pause(argument);
      // Asked until the answer is 0, see AdminConsole.
      case 'pause_left':
        return this.#servers(this.#shard(argument)).open;
      case 'resume':
        this.#resume(argument);
        return 0;
      case 'reconnect':
        pools.reconnect(this.#shard(argument));
        return 0;
      case 'wait_close':
        return this.#servers(this.#shard(argument)).closing;
      case 'kill':
        this.#kill(argument);
        return 0;
      case 'kill_client':
        this.#killClient(argument);
        return 0;
      case 'disable':
      case 'enable':
        this.#checkDatabase(command, argument);
        pools.disabled = command === 'disable';
        return 0;
      default:
        throw new ForeshardError('0A000', `this process does not know the command "${command}"`, {
          hint: 'Run the same version of Foreshard in all processes.',
        });
    }
  }

  /** A shard by its name; null for the whole database. @throws ForeshardError 3D000 */
  #shard(name: string | null): ShardName | null {
    const { database, shards } = this.state.live.current;
    if (name === null || name === database) return null;
    if (shards.has(name as ShardName)) return name as ShardName;
    throw new ForeshardError('3D000', `no such database: ${name}`, {
      hint: `Name the database, ${database}, or one of its shards: ${[...shards.keys()].join(', ')}.`,
    });
  }

  #pause(argument: string | null): number {
    const { pools } = this.state;
    const shard = this.#shard(argument);
    if (pools.allPaused || (shard !== null && pools.isPaused(shard)))
      throw new ForeshardError('55000', 'already suspended/paused', { hint: 'RESUME first.' });
    // Whoever asked looks again until nothing is left; it resolves, if nothing else, at RESUME.
    void pools.pause(shard);
    return this.#servers(shard).open;
  }

  #resume(argument: string | null): void {
    const { pools, live } = this.state;
    const shard = this.#shard(argument);
    const paused =
      shard === null
        ? pools.allPaused || [...live.current.shards.keys()].some((s) => pools.isPaused(s))
        : pools.isPaused(shard);
    if (!paused)
      throw new ForeshardError(
        '55000',
        argument === null ? 'pooler is not paused/suspended' : `database ${argument} is not paused`,
      );
    pools.resume(shard);
  }

  #kill(argument: string | null): void {
    const { clients, pools } = this.state;
    const shard = this.#shard(argument);
    if (pools.allPaused) throw new ForeshardError('55000', 'already suspended/paused', { hint: 'RESUME first.' });
    for (const { session } of [...clients])
      if (shard === null || session.backends.some((b) => b.shard === shard)) session.close(killed());
    for (const stream of this.state.streams()) if (shard === null || stream.shard === shard) stream.close();
    pools.kill(shard);
  }

  #killClient(argument: string | null): void {
    const { clients, consoles } = this.state;
    const id = Number(argument);
    if (!/^\d+$/.test(argument ?? '') || !Number.isSafeInteger(id))
      throw new ForeshardError('22023', 'invalid client pointer supplied', {
        hint: 'KILL_CLIENT takes the id that SHOW CLIENTS shows.',
      });
    const others = [...consoles, ...this.state.streams()];
    const found = clients.get(id)?.session ?? others.find((other) => other.key.processId === id);
    if (found === undefined)
      throw new ForeshardError('42704', 'client not found', {
        hint: 'SHOW CLIENTS has the ids of those that are there.',
      });
    found.close(killed());
  }

  #checkDatabase(command: string, name: string | null): void {
    if (this.#shard(name) !== null)
      throw new ForeshardError('0A000', `a shard cannot be ${command}d: clients log in to the database`, {
        hint: `${command.toUpperCase()} ${this.state.live.current.database}, or PAUSE ${name}.`,
      });
  }

  /**
   * Server connections, those being opened and those of replication clients included, and those that are closed as soon as they are
   * given back.
   */
  #servers(shard: ShardName | null): { open: number; closing: number } {
    let open = this.state.streams().filter((stream) => shard === null || stream.shard === shard).length;
    let closing = 0;
    for (const pool of this.state.pools.all) {
      if (shard !== null && pool.shard !== shard) continue;
      open += pool.total;
      for (const { closeNeeded } of pool.servers()) if (closeNeeded) closing += 1;
    }
    return { open, closing };
  }
}

const killed = (): ForeshardError => new ForeshardError('57P01', 'terminating connection due to administrator command');
