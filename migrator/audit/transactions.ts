import type { Catalog } from '../../topology/catalog/catalog.js';
import { CLEAN_FOR_MS, Decisions, type KnownCoordinator } from '../../topology/catalog/decisions.js';
import { ForeshardError } from '../../topology/errors.js';
import { endPrepared, endSql, type PreparedTransaction, readPrepared } from '../../topology/prepared-transactions.js';
import type { ShardName } from '../../topology/topology.js';
import { crashPoint } from '../crash-points.js';
import type { ShardSession } from '../shard-session.js';
import type { AuditFinding } from './finding.js';

/** Transactions on several shards that are prepared on one and that nobody is about to end. */
export async function auditTransactions(
  catalog: Catalog,
  sessions: ReadonlyMap<ShardName, ShardSession>,
): Promise<AuditFinding[]> {
  const decisions = new Decisions(catalog.pool);
  const unread: AuditFinding[] = [];
  const found = await Promise.all(
    [...sessions.values()].map(async (session) => {
      try {
        return { session, prepared: await readPrepared(session.reader) };
      } catch (error) {
        if (!(error instanceof ForeshardError)) throw error;
        const { name } = session.shard;
        const remedy = error.hint ?? 'See that the server runs.';
        unread.push({ kind: 'shard', shard: name, object: name, text: error.message, remedy, repair: null });
        return { session, prepared: [] };
      }
    }),
  );
  const ids = new Set(found.flatMap(({ prepared }) => prepared.map(({ coordinator }) => coordinator)));
  if (ids.size === 0) return unread;
  // Read later than what is prepared: whoever has prepared it had enrolled before.
  const coordinators = await decisions.known([...ids]);
  const judged = found.flatMap(({ session, prepared }) =>
    prepared.flatMap((one) => judge(session, one, coordinators.get(one.coordinator), decisions) ?? []),
  );
  return [...unread, ...judged];
}

/** Null: its coordinator is about to end it. */
function judge(
  session: ShardSession,
  one: PreparedTransaction,
  coordinator: KnownCoordinator | undefined,
  decisions: Decisions,
): AuditFinding | null {
  const finding = (text: string, remedy: string, repair: AuditFinding['repair']): AuditFinding => ({
    kind: 'prepared transaction',
    shard: session.shard.name,
    object: one.gid,
    text: `prepared transaction "${one.gid}" ${text}`,
    remedy,
    repair,
  });
  if (coordinator === undefined)
    return finding(
      'is of a coordinator that this catalog does not know: of another catalog, or of this one at another time',
      `If no other catalog has this shard: ${endSql(one.gid, 'commit')} if what it wrote on other shards is there, else ${endSql(one.gid, 'rollback')}`,
      null,
    );
  const { id, proxy, fenced, expired } = coordinator;
  if (fenced || expired)
    return finding(
      `is left of proxy "${proxy}", whose lease has ended`,
      'Any proxy that runs ends it as it was decided, as soon as it can; --repair does so now.',
      async () => {
        await decisions.fenceIfExpired(id);
        // The proxy may have come back just now, or all may have been ended. Only what is fenced can be judged.
        if ((await decisions.known([id])).get(id)?.fenced !== true) return;
        crashPoint('within:audit-repair');
        await endPrepared(session.reader, one.gid, (await decisions.isDecided(one)) ? 'commit' : 'rollback');
      },
    );
  if (one.ageMs < CLEAN_FOR_MS) return null;
  return finding(
    `of proxy "${proxy}" has waited ${Math.round(one.ageMs / 60_000)} minutes to be ended`,
    'The log of that proxy says why. When it has ended, or is restarted, another one ends the transaction.',
    null,
  );
}
