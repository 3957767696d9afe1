import type { Catalog } from '../../topology/catalog/catalog.js';
import { errorCode } from '../../topology/connection.js';
import { ForeshardError } from '../../topology/errors.js';
import type { ShardName } from '../../topology/topology.js';
import { crashPoint } from '../crash-points.js';
import { clusterPart } from '../names.js';
import { ShardSession } from '../shard-session.js';
import { auditCatalog } from './catalog.js';
import type { AuditFinding } from './finding.js';
import { auditHalves } from './halves.js';
import { AtWork } from './migrations.js';
import { judgeObjects, judgeRemains, ORDER, readObjects } from './objects.js';
import { Portions, STATEMENT_MS } from './portions.js';
import { auditReference } from './reference.js';
import type { Truth } from './repair-reference.js';
import { auditRows } from './rows.js';
import { auditShapes } from './shapes.js';
import { auditTransactions } from './transactions.js';

/** What an audit has found, and what has become of it. */
export type Audited = Omit<AuditFinding, 'repair'> & {
  /** `open`: to be repaired, or a person's to judge. */
  readonly outcome: 'open' | 'repaired' | 'not repaired';
};

/** SQLSTATEs of a repair that cannot be had now: a lock, a deadlock, a time-out, a state that has changed, something that could not be taken away before it. */
const NOT_NOW = new Set(['55P03', '40P01', '57014', '55000', '55006', '2BP01']);
/** None of our statements waits for a lock for longer, ms: others would wait behind it. */
const LOCK_MS = 500;

/**
 * Looks at every shard for what migrations that are over may have left there, for rows on shards that do not own them, and for copies that
 * differ; and at the catalog. Reads only, unless `repair`: then what nobody can need any more is taken away, and it is looked once more.
 * @param portions how tables are gone through
 * @param truth null: nothing is repaired of reference tables
 * @throws AuditInterrupted
 */
export async function audit(
  catalog: Catalog,
  repair: boolean,
  portions = new Portions(false),
  truth: Truth | null = null,
): Promise<Audited[]> {
  const topology = await catalog.loadTopology();
  const sessions = new Map<ShardName, ShardSession>();
  const unreachable: AuditFinding[] = [];
  try {
    for (const shard of topology.shards.values())
      try {
        const session = await ShardSession.open(shard, null);
        sessions.set(shard.name, session);
        await session.query(`SET statement_timeout = ${STATEMENT_MS}; SET lock_timeout = ${LOCK_MS}`);
      } catch (error) {
        if (!(error instanceof ForeshardError)) throw error;
        unreachable.push({
          kind: 'shard',
          shard: shard.name,
          object: shard.name,
          text: `it could not be looked at: ${error.message}`,
          remedy: error.hint ?? 'See that the server runs.',
          repair: null,
        });
      }
    const look = async (how: Portions) => [...unreachable, ...(await lookAround(catalog, sessions, how, truth))];
    const found = await look(portions);
    if (!repair || found.every((finding) => finding.repair === null)) return found.map((f) => outcome(f, 'open'));
    const rank = ({ kind }: AuditFinding) => (ORDER.includes(kind) ? ORDER.indexOf(kind) : ORDER.length);
    const why = new Map<AuditFinding, string>();
    for (const finding of found.toSorted((a, b) => rank(a) - rank(b))) {
      if (finding.repair === null) continue;
      crashPoint('before:audit-repair');
      try {
        await finding.repair();
      } catch (error) {
        // What is in use, or has begun to move, is found again.
        if (!NOT_NOW.has(error instanceof ForeshardError ? error.sqlstate : errorCode(error))) throw error;
        why.set(finding, (error as Error).message);
      }
      crashPoint('after:audit-repair');
    }
    const left = new Set((await look(new Portions(false))).map(identity));
    return found.map((f) => {
      if (!left.has(identity(f))) return outcome(f, 'repaired');
      const reason = why.get(f);
      const text = reason === undefined ? f.text : `${f.text} (not repaired: ${reason})`;
      return outcome({ ...f, text }, f.repair === null ? 'open' : 'not repaired');
    });
  } finally {
    await Promise.all([...sessions.values()].map((session) => session.close()));
  }
}

async function lookAround(
  catalog: Catalog,
  sessions: ReadonlyMap<ShardName, ShardSession>,
  portions: Portions,
  truth: Truth | null,
): Promise<AuditFinding[]> {
  const meta = await catalog.pool.query<{ cluster_id: string }>('SELECT cluster_id FROM foreshard.meta');
  const cluster = clusterPart(meta.rows[0]?.cluster_id ?? '');
  const objects = await Promise.all([...sessions.values()].map((session) => readObjects(session, cluster)));
  const topology = await catalog.loadTopology();
  const atWork = await AtWork.load(catalog, topology);
  const findings = objects.flatMap((found) => judgeObjects(found, atWork));
  findings.push(...judgeRemains(objects, atWork));
  for (const keyspace of topology.keyspaces.values())
    findings.push(...(await auditRows({ catalog, topology, keyspace, sessions, atWork, portions })));
  findings.push(...(await auditHalves({ catalog, topology, sessions, atWork, portions })));
  for (const table of topology.referenceTables.values())
    findings.push(...(await auditReference(table, { catalog, sessions, portions, truth })));
  findings.push(...(await auditShapes(catalog, topology, sessions, atWork)));
  findings.push(...(await auditTransactions(catalog, sessions)));
  findings.push(...(await auditCatalog(catalog, atWork)));
  return findings;
}

const identity = ({ kind, shard, object }: AuditFinding): string => [kind, shard, object].join('\0');

function outcome({ repair: _, ...finding }: AuditFinding, becameOf: Audited['outcome']): Audited {
  return { ...finding, outcome: becameOf };
}
