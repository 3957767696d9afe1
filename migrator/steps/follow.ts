import type { Move } from '../move.js';
import { noteGeneration, putInService } from '../replica.js';
import { roundTrip } from '../replication.js';
import { Supervisor } from '../supervisor.js';
import { finish, isOfWayBack } from './open.js';
import { checkShapes, refuseNewTables } from './verify.js';

/** How often the destination is looked after, and how often its tables, when nobody has announced a change of them; ms. */
const SUPERVISE_MS = 1000;
const SHAPES_MS = 30_000;

/** following → ready: the destination goes on following, and reads may go there, until somebody has it promoted. */
export async function follow(m: Move): Promise<void> {
  let generation = await checkTables(m);
  await putInService(m, generation);
  if (m.row.facts.inService !== true) m.row = await m.exec.noteFacts(m.row, { inService: true });
  const supervisor = new Supervisor(m);
  let supervisedAt = 0;
  let shapesAt = performance.now();
  await m.exec.wait(
    'somebody has the replica promoted',
    async () => {
      if (m.exec.dry) return true;
      if ((await m.exec.requested()) === 'promote') return true;
      const now = performance.now();
      if (now - supervisedAt < SUPERVISE_MS) return false;
      supervisedAt = now;
      const { lagBytes, note } = await supervisor.check();
      const ms = await roundTrip(m, m.options.maxLagMs);
      const behind = ms === null ? `more than ${m.options.maxLagMs}` : `${Math.ceil(ms)}`;
      await m.exec.progress({ lagBytes, note: note ?? `following, ${behind} ms behind` });
      const announced = await m.catalog.loadTopology();
      if (announced.schemaGeneration === generation && now - shapesAt < SHAPES_MS) return false;
      shapesAt = now;
      const checked = await checkTables(m);
      if (checked !== generation) await noteGeneration(m, checked);
      generation = checked;
      return false;
    },
    { everyMs: 200 },
  );
  await m.exec.progress({ note: null });
  m.row = await m.exec.transition(m.row, 'ready');
}

/**
 * @returns a generation of the schema, as of which, or of a later one, the tables are the same on both sides
 * @throws MigrationFailure when they are not (any more)
 */
async function checkTables(m: Move): Promise<bigint> {
  if (m.exec.dry) return 0n;
  // Read first: what is changed while the tables are looked at belongs to a later one.
  const topology = await m.catalog.loadTopology();
  refuseNewTables(m, topology);
  await checkShapes(m);
  return topology.schemaGeneration;
}

/** A replica that cannot be promoted now is as good a replica as before. */
export async function followOn(m: Move, error: string): Promise<void> {
  // Nobody follows it, and the server would keep all that is written for it.
  await finish(m, 'slot', isOfWayBack(m));
  await finish(m, 'publication', isOfWayBack(m));
  m.row = await m.exec.transition(m.row, 'following', { facts: { fenceTries: 0 }, error, detail: { why: error } });
}
