import { checkUnite, findSplit, uniteStatements } from '../../topology/catalog/column-split.js';
import { epochAckedByAll } from '../../topology/catalog/leases.js';
import { UsageError } from '../../topology/errors.js';
import type { UniteSpec } from '../../topology/migration.js';
import { type Epoch, shardsOf, type TableName, tableId } from '../../topology/topology.js';
import type { CatalogStatement } from '../action.js';
import { type HalvesWork, removalAction, sitesOf } from '../halves.js';
import { differingHalves } from '../halves-compare.js';
import type { Finding } from '../preflight-finding.js';
import { raiseEpochStatement } from '../ranges.js';
import { beginStatements } from '../turn.js';
import { PreflightRefusal } from './prepare.js';

type Uniting = HalvesWork<UniteSpec>;

/** approved → cleaning: one transaction of the catalog. The table has all values, as both halves of every row are together. */
export async function unite(u: Uniting): Promise<void> {
  u.exec.at('before:unite');
  const { topology, spec } = u;
  const findings = await blockers(u);
  if (findings.length > 0) throw new PreflightRefusal(findings);
  const { keyspace, split } = findSplit(topology, spec.table);
  const epoch = (topology.epoch + 1n).toString();
  u.row = await u.exec.commit(
    u.row,
    [
      ...beginStatements(u.row.id),
      raiseEpochStatement(topology.epoch),
      nothingFollows([spec.keyspace, keyspace.name]),
      ...uniteStatements(topology, spec),
      ...atLast(u, split.hot),
    ],
    'cleaning',
    { facts: { epoch, hot: split.hot, sites: sitesOf(topology, spec, u.row) }, detail: { epoch } },
  );
  u.exec.at('after:unite');
}

/** cleaning → done: when no proxy reads the hot table any more, it goes, with what keeps it like the table. */
export async function cleanUnited(u: Uniting): Promise<void> {
  await u.exec.progress({ note: 'waiting until every proxy serves the new epoch' });
  await u.exec.wait(
    'every proxy serves the new epoch or has lost its lease',
    () => epochAckedByAll(u.catalog.pool, BigInt(u.row.facts.epoch as string) as Epoch),
    { everyMs: 50 },
  );
  for (const shard of u.sites.keys())
    await u.exec.perform(removalAction(shard, u.spec.table, u.row.facts.hot as TableName));
  await u.exec.progress({ note: null });
  u.row = await u.exec.transition(u.row, 'done');
}

const IN_THE_WAY = `SELECT id::text, state FROM foreshard.migration o WHERE spec->>'keyspace' IN ($1, $2) AND (state = 'following'
  OR (state = 'failed' AND EXISTS (SELECT FROM foreshard.migration_cleanup c WHERE c.migration_id = o.id AND c.done_at IS NULL)))`;

const nothingFollows = (keyspaces: readonly string[]): CatalogStatement => ({
  text: 'no migration of the keyspaces has left anything',
  sql: `SELECT WHERE NOT EXISTS (${IN_THE_WAY})`,
  values: keyspaces,
  elseConflict: 'another migration of the keyspaces has left something',
});

async function blockers(u: Uniting): Promise<Finding[]> {
  const { topology, spec } = u;
  const block = (text: string, remedy: string): Finding => ({ severity: 'blocker', text, remedy });
  try {
    checkUnite(topology, spec);
  } catch (error) {
    if (!(error instanceof UsageError)) throw error;
    return [block(error.message, error.hint ?? 'The topology has changed: plan again.')];
  }
  const { split, keyspace } = findSplit(topology, spec.table);
  const findings: Finding[] = [];
  const { rows } = await u.catalog.pool.query<{ id: string; state: string }>(IN_THE_WAY, [
    spec.keyspace,
    keyspace.name,
  ]);
  for (const { id, state } of rows)
    findings.push(
      block(
        state === 'following'
          ? `migration ${id} keeps a replica of the keyspace`
          : `migration ${id} is ${state}, and has left things on its shards`,
        `See "foreshard migrate show ${id}"; then promote, or abort it.`,
      ),
    );
  if (u.exec.dry) return findings;
  // The table is all there is from then on.
  for (const shard of shardsOf(keyspace)) {
    const session = u.sites.get(shard);
    const found = session === undefined ? [] : await differingHalves(u, split, shard, session);
    if (found.length > 0)
      findings.push(
        block(
          `"${tableId(split.hot)}" differs from "${tableId(spec.table)}" on shard "${shard}": ${found.join('; ')}`,
          `Whoever has written past the triggers knows which is right: make it so in both.`,
        ),
      );
  }
  return findings;
}

function atLast({ row, spec }: Uniting, hot: TableName): CatalogStatement[] {
  return [
    {
      text: 'proxies look at the schema again',
      sql: 'UPDATE foreshard.meta SET schema_generation = schema_generation + 1',
      values: [],
      elseConflict: null,
    },
    {
      text: 'audit',
      sql: `INSERT INTO foreshard.audit (actor, action, object, detail) VALUES ('migrator', 'migration.unite', $1, $2)`,
      values: [
        `migration ${row.id}`,
        JSON.stringify({ keyspace: spec.keyspace, table: tableId(spec.table), hot: tableId(hot) }),
      ],
      elseConflict: null,
    },
  ];
}
