import type { Node, SelectStmt } from 'libpg-query';
import type { KeyType } from '../../topology/key.js';
import type { KeyspaceName } from '../../topology/topology.js';
import { Analysis, type Context, type Occurrence } from './analysis.js';
import { qualifiedName, walk } from './ast.js';
import { castFits, hintFor, keyNames, spreadOfSelect } from './fan-out.js';
import { gatherRefusal } from './gather.js';
import { halvesOf, keyspaceOfHot } from './halves.js';
import { isLaneSafe } from './lane-safety.js';
import { analyzeStatement } from './modify.js';
import type { KeyColumnSource, KeySource, Refusal, Spread, StatementPlan, Target, TargetExtras } from './route.js';
import { setConfigCalls } from './set-config.js';
import { planUtility } from './utility.js';

/** Makes the plan of one statement. Pure: it depends on the tree, the registry and the metadata, never on a literal's value. */
export function planStatement(statement: Node, context: Context): StatementPlan {
  if ('SelectStmt' in statement && !statement.SelectStmt.intoClause) return planQuery(statement, 'SELECT', context);
  if ('InsertStmt' in statement) return planQuery(statement, 'INSERT', context);
  if ('UpdateStmt' in statement) return planQuery(statement, 'UPDATE', context);
  if ('DeleteStmt' in statement) return planQuery(statement, 'DELETE', context);
  if ('MergeStmt' in statement) return planQuery(statement, 'MERGE', context);
  const plan = planUtility(statement, context, planStatement);
  // What it makes (a default, a check) asks from the next statement on, before the schema is read again.
  return plan.kind === 'ddl' && asksSequences(statement, context) ? { ...plan, asksSequences: 'defaults' } : plan;
}

/** Whether currval or lastval is called anywhere in it, or a function that calls them. */
function asksSequences(statement: Node, { metadata }: Context): boolean {
  let found = false;
  walk(statement, {
    func: (call) => {
      const { name } = qualifiedName(call.funcname);
      found ||= name === 'currval' || name === 'lastval' || metadata.functionsNamed(name).some((f) => f.asksSequences);
    },
  });
  return found;
}

function planQuery(statement: Node, command: string, context: Context): StatementPlan {
  const a = new Analysis(context, analyzeStatement);
  analyzeStatement(a, statement, null, null);
  a.checkComplete(statement);
  const select = 'SelectStmt' in statement ? statement.SelectStmt : null;
  const settings = a.setConfigCalls.length === 0 ? [] : setConfigCalls(a.setConfigCalls, statement, context.literals);
  const lasting = settings?.filter((c) => !c.local) ?? [];
  const target = targetOf(a, command, select, statement);
  const pin = a.pin === 'pg_backend_pid' && select !== null && !tellsProcessId(select) ? null : a.pin;
  return {
    kind: a.writes ? 'write' : 'read',
    command,
    target,
    effect: lasting.length === 0 ? null : { kind: 'set-config', calls: lasting },
    pin: pin ?? (settings === null ? 'set_config' : null),
    ...(a.asksSequences
      ? { asksSequences: 'itself' as const }
      : a.defaultsAsk
        ? { asksSequences: 'defaults' as const }
        : {}),
    ...(a.mayDraw ? {} : { drawsNothing: true as const }),
    ...(a.setsOffTelling
      ? { setsOffTelling: 'always' as const }
      : a.defaultsTell
        ? { setsOffTelling: 'by-default' as const }
        : {}),
    ...(a.unsureOfState ? { unsureOfState: true as const } : {}),
    ...(a.executesText ? { executesText: true as const } : {}),
    ...(a.ofLiterals ? { ofLiterals: true as const } : {}),
    ...(settings?.some((c) => c.local) ? { setsLocally: true as const } : {}),
    ...(a.notifies ? { notifies: true as const } : {}),
    ...(a.showsChannels ? { showsChannels: true as const } : {}),
    ...(leavesNothing(a) && a.setConfigCalls.length === 0 && target.kind !== 'sole' ? { plain: true as const } : {}),
    ...(select !== null && leavesNothing(a) && isLaneSafe(statement, context) ? { laneSafe: true as const } : {}),
    ...(a.forbidden === null ? {} : { forbidden: a.forbidden }),
  };
}

/** Nothing was found that it does to the session. (A function that is only STABLE counts as a write elsewhere.) */
function leavesNothing(a: Analysis): boolean {
  const { pin, sequence, asksSequences, defaultsAsk, unsureOfState, executesText, notifies, showsChannels } = a;
  return (
    pin === null &&
    !sequence &&
    !asksSequences &&
    !defaultsAsk &&
    !unsureOfState &&
    !executesText &&
    !notifies &&
    !showsChannels
  );
}

/** Whether the server's process id may get out of the statement: a condition, as in a look at pg_stat_activity, does not tell it. */
function tellsProcessId({ whereClause: _, ...rest }: SelectStmt): boolean {
  return JSON.stringify(rest).includes('"pg_backend_pid"');
}

function targetOf(a: Analysis, command: string, select: SelectStmt | null, statement: Node): Target {
  if (a.refusal) return { kind: 'sole', refusal: a.refusal };
  const keyed = a.occurrences.filter((o) => o.table.keyColumns.length > 0);
  if (a.atHomeOnly && keyed.length + a.referenceReads.size + a.referenceWrites.size > 0)
    return { kind: 'sole', refusal: a.atHomeOnly };
  const referenceReads = [...a.referenceReads.values()];
  const referenceWrites = [...a.referenceWrites.values()];
  if (a.occurrences.length === 0 && a.wholeAtHome.size === 0)
    return { kind: 'any', homeOnly: a.home || a.sequence, referenceReads, referenceWrites };
  if (referenceWrites.length > 0) {
    return {
      kind: 'sole',
      refusal: {
        sqlstate: '0A000',
        message: `a statement that writes a reference table and uses sharded tables is not supported on several shards`,
        hint: 'Do it in two statements.',
      },
    };
  }
  const found = halvesOf(a, statement);
  const extras: TargetExtras = {
    ...(found === null ? {} : { halves: found.halves }),
    ...(a.home ? { home: true as const } : {}),
    ...(a.home ? atHomeExtras(a) : {}),
    ...(a.homeBehind !== null ? { homeBehind: a.homeBehind } : {}),
    ...(referenceReads.length > 0 ? { referenceReads } : {}),
    ...(a.sameKey ? { sameKey: true as const } : {}),
    ...(command === 'INSERT' ? { inserts: true as const } : {}),
    ...(select ? { gather: gatherRefusal(a, statement) ?? ('possible' as const) } : {}),
  };
  const shared = sharedParams(a, statement);
  const keys = a.keysOf().map((list, i) => {
    const types = a.context.registry.keyTypes((a.occurrences[i] as Analysis['occurrences'][number]).table);
    return usable(list, types, shared);
  });
  // Where the hot halves are: with the keys of their rows, or anywhere.
  const hot = (found?.occurrences ?? []).map((o) => ({ o, keyspace: keyspaceOfHot(a, o.table) }));
  const behind = found?.behind ?? [];
  const keyspaces = [...new Set([...a.keyspaces(), ...a.wholeAtHome, ...hot.map((h) => h.keyspace), ...behind])];
  if (keys.includes(null)) {
    return {
      kind: 'unpinned',
      keyspaces,
      spread: spreadOf(a, command, select, keys.indexOf(null)),
      referenceWrites,
      ...extras,
    };
  }
  const byKeyspace = new Map<KeyspaceName, Map<string, KeySource>>();
  let sameEverywhere = true;
  let first: string | null = null;
  const add = (keyspace: KeyspaceName, o: Occurrence) => {
    const all = byKeyspace.get(keyspace) ?? new Map<string, KeySource>();
    byKeyspace.set(keyspace, all);
    const list = keys[a.occurrences.indexOf(o)] as readonly KeySource[];
    for (const key of list) all.set(JSON.stringify(key), key);
    for (const set of a.assigned) {
      if (set.occurrence !== o) continue;
      for (const key of list) {
        const changed = key.map((s, c) => (c === set.column ? set.source : s));
        all.set(JSON.stringify(changed), changed);
      }
    }
    const name = JSON.stringify(list);
    if (first !== null && first !== name) sameEverywhere = false;
    first ??= name;
  };
  for (const o of a.occurrences) add(o.table.keyspace, o);
  for (const { o, keyspace } of hot) add(keyspace, o);
  for (const keyspace of behind) if (!byKeyspace.has(keyspace)) byKeyspace.set(keyspace, new Map());
  for (const name of a.wholeAtHome) byKeyspace.set(name, new Map([['[]', []]]));
  const [main, ...others] = [...byKeyspace].map(([keyspace, all]) => ({ keyspace, keys: [...all.values()] }));
  if (!main) throw new Error('no keyspace among sharded tables');
  const several = severalKeys(command, a);
  const spread: Spread = select ? spreadOfSelect(a, select) : { kind: 'refused', refusal: several };
  // Without the joins that fan-out asks for, tables with different keys only belong together on one shard.
  const differing: Spread = {
    kind: 'refused',
    refusal: {
      sqlstate: '0A000',
      message: 'the tables of this statement are restricted to keys on different shards',
      hint: 'Restrict all of them to the keys of one shard.',
    },
  };
  return {
    kind: 'keys',
    keyspace: main.keyspace,
    keys: main.keys,
    spread: spread.kind === 'fanout' || sameEverywhere ? spread : differing,
    referenceWrites,
    ...extras,
    ...(others.length > 0 ? { also: others } : {}),
  };
}

/** Of keyspaces without a key, those that must be at home: it reaches them through what is there, or uses them with it. */
function atHomeExtras(a: Analysis): TargetExtras {
  const direct = a.occurrences.filter((o) => o.table.keyColumns.length === 0).map((o) => o.table.keyspace);
  const names = new Set([...a.wholeAtHome, ...direct]);
  return names.size > 0 ? { atHome: [...names] } : {};
}

function severalKeys(command: string, a: Analysis): Refusal {
  return {
    sqlstate: '0A000',
    message: `${command} of rows on several shards is not supported yet`,
    hint: command === 'INSERT' ? `Insert the rows of each ${keyNames(a)} by a statement of its own.` : hintFor(a),
  };
}

function spreadOf(a: Analysis, command: string, select: SelectStmt | null, missing: number): Spread {
  if (select) return spreadOfSelect(a, select);
  const o = a.occurrences[missing];
  const table = o?.table.table ?? '';
  const columns = o?.table.keyColumns.join(', ') ?? '';
  return {
    kind: 'refused',
    refusal: {
      sqlstate: '0A000',
      message: `${command} does not say which ${columns} of "${table}" it is about, and data is on several shards`,
      hint: hintFor(a),
    },
  };
}

/**
 * The keys whose sources can be compared with the key column by value: a cast to another family of types would compare
 * something else (`'5 '::bpchar`, a timestamp against a timestamptz key).
 */
function usable(
  keys: readonly KeySource[] | null,
  types: readonly KeyType[],
  shared: ReadonlySet<number>,
): readonly KeySource[] | null {
  if (keys === null) return null;
  const mark = (s: KeyColumnSource): KeyColumnSource =>
    s.kind === 'param' && (s.castType === null || s.array) && shared.has(s.number) ? { ...s, shared: true } : s;
  for (const key of keys)
    for (let i = 0; i < key.length; i++) {
      const type = types[i];
      const cast = key[i]?.castType;
      if (type === undefined || (cast && !castFits(type, cast))) return null;
    }
  return keys.map((key) => key.map(mark));
}

/**
 * Parameters that also stand where they meet something else than key columns of one type: the server takes a type from the
 * first place, whatever the others are.
 */
function sharedParams(a: Analysis, statement: Node): ReadonlySet<number> {
  const places = new Map<number, number>();
  walk(statement, { param: (n) => places.set(n, (places.get(n) ?? 0) + 1) });
  const shared = new Set<number>();
  for (const [n, count] of places) {
    const use = a.paramUses.get(n) ?? a.arrayUses.get(n);
    if (use && (use.type === null || use.count < count)) shared.add(n);
  }
  return shared;
}
