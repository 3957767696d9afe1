import type { DoStmt, ExecuteStmt, Node, RangeVar, TransactionStmt, VariableSetStmt, ViewStmt } from 'libpg-query';
import { KEY_TYPE_OID, keyTypeFromPg } from '../../topology/key-codec.js';
import type { KeyspaceName, TableName } from '../../topology/topology.js';
import type { Context } from './analysis.js';
import { plainType, qualifiedName, sourceOf, strings } from './ast.js';
import { commandTag } from './command-tag.js';
import { homeObjectsOf } from './home-ddl.js';
import { HomeObjects } from './home-objects.js';
import { hotTableRefusal, isOwnSetting, OWN_SETTING } from './hot-table.js';
import type { Relation } from './metadata.js';
import { reachHome, reachOf, wholeReached } from './reach.js';
import { beyond } from './registry.js';
import { type Refusal, SETTINGS_OF_FUNCTION, type SessionEffect, type StatementPlan, type Target } from './route.js';
import { splitDdlRefusal } from './split-ddl.js';
import { behindTells } from './telling.js';

type Planner = (statement: Node, context: Context) => StatementPlan;

const ANYWHERE: Target = { kind: 'any', homeOnly: false, referenceReads: [], referenceWrites: [] };
const AT_HOME: Target = { kind: 'any', homeOnly: true, referenceReads: [], referenceWrites: [] };

/** At home, for as long as tables of these keyspaces without a key are there. */
function atHomeWith(whole: Iterable<KeyspaceName>): Target {
  const names = [...whole];
  return names.length === 0 ? AT_HOME : { ...wholeTarget(names), home: true, atHome: names };
}

/** Where the tables of these keyspaces without a key are, all of them. */
function wholeTarget(names: readonly KeyspaceName[]): Extract<Target, { kind: 'keys' }> {
  const [first, ...others] = names.map((keyspace) => ({ keyspace, keys: [[]] }));
  if (first === undefined) throw new RangeError('no keyspace is given');
  const spread = { kind: 'refused', refusal: refusal('this statement uses tables of several shards') } as const;
  return { kind: 'keys', ...first, spread, referenceWrites: [], ...(others.length > 0 ? { also: others } : {}) };
}

/** The keyspaces of a query that uses tables without a key only (and such as only the home shard has); null: it is none. */
function wholeOf(target: Target | undefined): readonly KeyspaceName[] | null {
  if (target?.kind === 'any') return usesReference(target) ? null : [];
  if (target?.kind !== 'keys' || target.referenceReads !== undefined) return null;
  const parts = [{ keyspace: target.keyspace, keys: target.keys }, ...(target.also ?? [])];
  return parts.every(({ keys }) => keys.every((key) => key.length === 0)) ? parts.map((part) => part.keyspace) : null;
}

function sole(what: string, hint?: string): Target {
  return { kind: 'sole', refusal: refusal(`${what} is not supported while data is on several shards`, hint) };
}

function refusal(message: string, hint?: string): Refusal {
  return { sqlstate: '0A000', message, ...(hint === undefined ? {} : { hint }) };
}

/**
 * Plans of everything that is not a query or a change of rows. What is not named here may do anything: it runs when one
 * shard has everything, and is refused when not.
 */
export function planUtility(statement: Node, context: Context, plan: Planner): StatementPlan {
  const command = commandTag(statement);
  const make = (kind: StatementPlan['kind'], target: Target, more: Partial<StatementPlan> = {}): StatementPlan => ({
    kind,
    command,
    target,
    effect: null,
    pin: null,
    ...more,
  });

  const ofSplit = splitDdlRefusal(statement, context);
  if (ofSplit !== null) return make('ddl', ANYWHERE, { forbidden: ofSplit });

  if ('TransactionStmt' in statement) return planTransaction(statement.TransactionStmt, make);
  if ('VariableSetStmt' in statement) return planSet(statement.VariableSetStmt, make);
  if ('VariableShowStmt' in statement) return make('utility', ANYWHERE);
  if ('DiscardStmt' in statement)
    return make(
      'utility',
      ANYWHERE,
      statement.DiscardStmt.target === 'DISCARD_ALL' ? { effect: { kind: 'discard-all' } } : {},
    );
  if ('DeallocateStmt' in statement)
    return make('utility', ANYWHERE, { effect: { kind: 'deallocate', name: statement.DeallocateStmt.name || null } });
  if (
    'ConstraintsSetStmt' in statement ||
    'FetchStmt' in statement ||
    'ClosePortalStmt' in statement ||
    'CheckPointStmt' in statement
  )
    return make('utility', ANYWHERE);
  // Every client that listens does so on every shard, so that a transaction may notify where it is.
  if ('ListenStmt' in statement)
    return make('utility', ANYWHERE, {
      effect: { kind: 'listen', channel: statement.ListenStmt.conditionname ?? '' },
    });
  if ('UnlistenStmt' in statement)
    return make('utility', ANYWHERE, {
      effect: { kind: 'unlisten', channel: statement.UnlistenStmt.conditionname || null },
    });
  if ('NotifyStmt' in statement) return make('utility', ANYWHERE);
  if ('LoadStmt' in statement) return make('utility', ANYWHERE, { pin: 'LOAD' });

  if ('PrepareStmt' in statement) {
    const { name, argtypes, query } = statement.PrepareStmt;
    const inner = query && plan(query, context);
    // Only EXECUTE depends on where rows are. Tables of no keyspace are known at home.
    const target = inner && usesHome(inner.target) ? AT_HOME : ANYWHERE;
    return make('utility', target, { effect: { kind: 'prepare', name: name ?? '', oids: typeOids(argtypes) } });
  }
  // The session puts the plan of what was prepared in its place.
  if ('ExecuteStmt' in statement)
    return make('write', sole('EXECUTE of a statement that is not known'), {
      effect: executeEffect(statement.ExecuteStmt, 'execute', context),
    });
  if ('DeclareCursorStmt' in statement) {
    const { query, options } = statement.DeclareCursorStmt;
    const inner = query && plan(query, context);
    if (!inner) return make('utility', sole('DECLARE'));
    // CURSOR_OPT_HOLD in parsenodes.h
    return make(inner.kind, withoutFanOut(inner.target, 'a cursor'), {
      ...setsOff(inner),
      pin: (options ?? 0) & 0x20 ? 'WITH HOLD cursor' : inner.pin,
      ...(inner.forbidden ? { forbidden: inner.forbidden } : {}),
    });
  }
  if ('ExplainStmt' in statement) {
    const { query, options } = statement.ExplainStmt;
    if (query && 'ExecuteStmt' in query)
      return make('write', sole('EXPLAIN EXECUTE of a statement that is not known'), {
        effect: executeEffect(query.ExecuteStmt, 'explain', context),
      });
    const inner = query && plan(query, context);
    if (!inner) return make('utility', sole('EXPLAIN'));
    const runs = (options ?? []).some((o) => 'DefElem' in o && o.DefElem.defname === 'analyze');
    // EXPLAIN without ANALYZE runs nothing, but where it would run is where its plan is made.
    return make(runs ? inner.kind : 'read', withoutFanOut(inner.target, 'EXPLAIN'), {
      pin: runs ? inner.pin : null,
      ...(runs ? setsOff(inner) : {}),
      // EXPLAIN CREATE TABLE AS EXECUTE
      ...(inner.effect?.kind === 'execute' ? { showsPrepared: true } : {}),
      ...(runs && inner.unsureOfState ? { unsureOfState: true } : {}),
      ...(runs && inner.executesText ? { executesText: true } : {}),
      ...(runs && inner.setsLocally ? { setsLocally: true } : {}),
      ...(runs && inner.forbidden ? { forbidden: inner.forbidden } : {}),
    });
  }
  if ('CopyStmt' in statement) {
    const { query, relation, is_from, attlist } = statement.CopyStmt;
    if (query) {
      const inner = plan(query, context);
      return make(inner.kind, withoutFanOut(inner.target, 'COPY of a query'), {
        ...setsOff(inner),
        pin: inner.pin,
        ...(inner.forbidden ? { forbidden: inner.forbidden } : {}),
      });
    }
    const known =
      relation &&
      context.metadata.resolveRelation(relation.schemaname ?? null, relation.relname ?? '', context.searchPath);
    return make(
      is_from ? 'write' : 'read',
      tablesTarget(
        relation ? [relation] : [],
        context,
        is_from ? 'COPY FROM' : 'COPY TO',
        is_from ? 'change' : 'read',
        is_from ? 'Use INSERT with the rows of one key at a time.' : 'Use COPY (SELECT … WHERE key = …) TO.',
      ),
      {
        ...(is_from && known?.asksSequences ? { asksSequences: 'defaults' as const } : {}),
        ...(known ? copyTells(known, is_from === true, attlist, context) : {}),
        ...(is_from && relation ? forbidden([relation], context) : {}),
      },
    );
  }
  if ('TruncateStmt' in statement)
    return make(
      'write',
      tablesTarget(rangeVars(statement.TruncateStmt.relations), context, 'TRUNCATE', 'change'),
      forbidden(rangeVars(statement.TruncateStmt.relations), context),
    );
  if ('LockStmt' in statement)
    return make('write', tablesTarget(rangeVars(statement.LockStmt.relations), context, 'LOCK TABLE', 'change'));

  if ('CreateStmt' in statement && statement.CreateStmt.relation?.relpersistence === 't')
    return temporary([statement.CreateStmt.relation], statement, context, make);
  if ('CreateSeqStmt' in statement && statement.CreateSeqStmt.sequence?.relpersistence === 't')
    return temporary([statement.CreateSeqStmt.sequence], statement, context, make);
  if ('ViewStmt' in statement && statement.ViewStmt.view?.relpersistence === 't') {
    const inner = statement.ViewStmt.query && plan(statement.ViewStmt.query, context);
    const whole = wholeOf(inner?.target);
    if (whole === null) return make('ddl', sole('a temporary view of sharded tables'), { pin: 'temporary view' });
    return withWhole(temporary([statement.ViewStmt.view], null, context, make), whole);
  }
  const into = intoOf(statement);
  if (into) {
    if (into.query && 'ExecuteStmt' in into.query)
      return make('ddl', sole(`${command} from a prepared statement`), {
        effect: executeEffect(into.query.ExecuteStmt, 'create', context),
        pin: into.table.relpersistence === 't' ? 'temporary table' : null,
      });
    const inner = into.query && plan(into.query, context);
    if (into.table.relpersistence !== 't') {
      const name = new HomeObjects(context);
      name.newName(into.table.relname ?? '');
      name.existing(into.table);
      name.eventTriggers();
      // What is refreshed later must be the home shard's alone; a table is filled now.
      const later = 'CreateTableAsStmt' in statement && statement.CreateTableAsStmt.objtype === 'OBJECT_MATVIEW';
      const whole = wholeOf(inner?.target);
      if (inner && whole !== null && whole.length + name.whole.size > 0 && name.problem === null)
        return make('ddl', atHomeWith(new Set([...whole, ...name.whole])), { pin: inner.pin, ...traits(inner) });
      if (inner?.target.kind !== 'any' || name.problem !== null || (later && usesReference(inner.target)))
        return make(
          'ddl',
          sole(
            `${command} ${inner?.target.kind === 'any' ? `with ${name.problem ?? 'reference tables'}` : 'from sharded tables'}`,
          ),
        );
      return make('ddl', { ...inner.target, homeOnly: true }, { pin: inner.pin, ...traits(inner) });
    }
    const whole = inner?.target.kind === 'any' ? [] : wholeOf(inner?.target);
    if (whole === null) return make('write', sole(`${command} from sharded tables`), { pin: 'temporary table' });
    return {
      ...withWhole(temporary([into.table], null, context, make), whole),
      ...(dropsAtCommit(statement) ? { unsureOfState: true } : {}),
    };
  }
  // Functions, types and the like have no other way to be temporary than their schema.
  if (usesTemporarySchema(statement, context) && !changesOnly(statement)) {
    const created = 'CreateStmt' in statement ? statement.CreateStmt.relation : undefined;
    if (created) return temporary([created], statement, context, make);
    return make('ddl', sole(command, 'DDL over several shards comes with a later version.'), {
      pin: 'temporary table',
    });
  }
  const tables = maintained(statement);
  if (tables !== null) {
    const target = tablesTarget(tables, context, command, 'change', 'Run it on each shard directly.');
    if (target.kind === 'keys') return make('write', target);
  }
  const objects = homeObjectsOf(statement, context);
  if (objects !== null) {
    const maintenance = 'VacuumStmt' in statement || 'ReindexStmt' in statement || 'ClusterStmt' in statement;
    const kind = maintenance ? 'write' : 'ddl';
    const viewed = 'ViewStmt' in statement ? viewedBy(statement, context, plan) : [];
    const problem = objects.problem ?? (viewed === null ? 'its query' : null);
    if (problem === null) return make(kind, atHomeWith(new Set([...objects.whole, ...(viewed ?? [])])));
    return make(
      kind,
      sole(
        `${command} with ${problem}, which is not the home shard's alone,`,
        maintenance ? 'Run it on each shard directly.' : 'DDL over several shards comes with a later version.',
      ),
    );
  }
  if ('DoStmt' in statement) {
    const whole = wholeReachedBy(statement.DoStmt, context);
    return make('write', whole === null ? sole('DO', 'Run its statements one by one.') : atHomeWith(whole), {
      unsureOfState: true,
      // Its text is a literal.
      ofLiterals: true,
    });
  }
  if ('CallStmt' in statement) {
    const objects = new HomeObjects(context);
    objects.everything({ FuncCall: statement.CallStmt.funccall });
    const { schema, name } = qualifiedName(statement.CallStmt.funccall?.funcname);
    const procedure = context.metadata.userFunction(schema, name, context.searchPath);
    return make(
      'write',
      objects.problem === null ? atHomeWith(objects.whole) : sole('CALL', 'Run its statements one by one.'),
      {
        unsureOfState: true,
        pin: procedure?.keepsSettings ? SETTINGS_OF_FUNCTION : null,
      },
    );
  }
  if ('VacuumStmt' in statement || 'ReindexStmt' in statement || 'ClusterStmt' in statement)
    return make('utility', sole(command, 'Run it on each shard directly.'));
  return make('ddl', sole(command, 'DDL over several shards comes with a later version.'));
}

/**
 * Of DO in PL/pgSQL whose text, as far as it can be read, only uses what the home shard has for itself, the keyspaces without a key that must
 * be there; null: it may use others.
 */
function wholeReachedBy({ args }: DoStmt, { metadata, registry }: Context): readonly KeyspaceName[] | null {
  let body: string | null = null;
  for (const arg of args ?? []) {
    if (!('DefElem' in arg) || !arg.DefElem.arg || !('String' in arg.DefElem.arg)) return null;
    const value = arg.DefElem.arg.String.sval ?? '';
    if (arg.DefElem.defname === 'as') body = value;
    else if (arg.DefElem.defname !== 'language' || value !== 'plpgsql') return null;
  }
  const text = body;
  return text === null ? null : wholeReached(metadata, registry, (reach) => reach.body(text));
}

type Make = (kind: StatementPlan['kind'], target: Target, more?: Partial<StatementPlan>) => StatementPlan;

function planTransaction(t: TransactionStmt, make: Make): StatementPlan {
  const effect = (e: SessionEffect) => make('utility', ANYWHERE, { effect: e });
  const name = t.savepoint_name ?? '';
  switch (t.kind) {
    case 'TRANS_STMT_BEGIN':
    case 'TRANS_STMT_START':
      return effect({ kind: 'begin' });
    case 'TRANS_STMT_COMMIT':
      return effect({ kind: 'commit', chain: t.chain ?? false });
    case 'TRANS_STMT_ROLLBACK':
      return effect({ kind: 'rollback', chain: t.chain ?? false });
    case 'TRANS_STMT_SAVEPOINT':
      return effect({ kind: 'savepoint', name });
    case 'TRANS_STMT_RELEASE':
      return effect({ kind: 'release', name });
    case 'TRANS_STMT_ROLLBACK_TO':
      return effect({ kind: 'rollback-to', name });
    default:
      return make('utility', sole('two-phase commit by the client'));
  }
}

function planSet(set: VariableSetStmt, make: Make): StatementPlan {
  const name = set.name ?? null;
  const local = set.is_local ?? false;
  const effect = (reset: boolean): SessionEffect => ({ kind: 'set', name, local, reset });
  switch (set.kind) {
    case 'VAR_RESET_ALL':
      return make('utility', ANYWHERE, { effect: { kind: 'set', name: null, local: false, reset: true } });
    case 'VAR_RESET':
    case 'VAR_SET_DEFAULT':
      return make('utility', ANYWHERE, { effect: effect(true) });
    case 'VAR_SET_MULTI':
      if (name === 'SESSION CHARACTERISTICS')
        return make('utility', ANYWHERE, { effect: { kind: 'set-many', settings: characteristics(set) } });
      // Another transaction's snapshot is one of its own shard. The rest lasts as long as the transaction.
      return make(
        'utility',
        ANYWHERE,
        name === 'TRANSACTION' ? { effect: { kind: 'set', name: 'transaction', local: true, reset: false } } : {},
      );
    default:
      // It sets the connection's generator of random numbers.
      if (name?.toLowerCase() === 'seed') return make('utility', ANYWHERE, { pin: 'setseed' });
      if (name !== null && isOwnSetting(name)) return make('utility', ANYWHERE, { forbidden: OWN_SETTING });
      if (name !== null && OF_TRANSACTION.has(name.toLowerCase()))
        return make('utility', ANYWHERE, { effect: { kind: 'set', name, local: true, reset: false } });
      return make('utility', ANYWHERE, { effect: effect(false) });
  }
}

/** They last as long as the transaction, however they are set. */
const OF_TRANSACTION: ReadonlySet<string> = new Set([
  'transaction_isolation',
  'transaction_read_only',
  'transaction_deferrable',
]);

/** SET SESSION CHARACTERISTICS AS TRANSACTION …: the defaults of transactions (ExecSetVariableStmt in PostgreSQL's guc_funcs.c). */
function characteristics(set: VariableSetStmt): { name: string; value: string }[] {
  return (set.args ?? []).flatMap((node) => {
    if (!('DefElem' in node)) return [];
    const { defname, arg } = node.DefElem;
    const constant = arg && 'A_Const' in arg ? arg.A_Const : undefined;
    const value = constant?.sval?.sval ?? (constant?.ival?.ival ? 'on' : 'off');
    return [{ name: `default_${defname}`, value }];
  });
}

function executeEffect(
  { name, params }: ExecuteStmt,
  form: 'execute' | 'explain' | 'create',
  { literals }: Context,
): SessionEffect {
  const args = (params ?? []).map((node) => {
    if ('A_Const' in node && node.A_Const.isnull) return 'null' as const;
    return sourceOf(node, literals);
  });
  return { kind: 'execute', name: name ?? '', form, args };
}

function usesHome(target: Target): boolean {
  return target.kind === 'any' ? target.homeOnly : target.kind !== 'sole' && target.home === true;
}

function usesReference(target: Target): boolean {
  return target.kind === 'any' && target.referenceReads.length + target.referenceWrites.length > 0;
}

function setsOff({ setsOffTelling }: StatementPlan): Partial<StatementPlan> {
  return setsOffTelling === undefined ? {} : { setsOffTelling };
}

/** What a COPY sets off: the defaults of columns that it does not name, and triggers. */
function copyTells(
  relation: Relation,
  isFrom: boolean,
  columns: readonly Node[] | undefined,
  { metadata, registry }: Context,
): Partial<StatementPlan> {
  const given = columns === undefined ? (relation.columns ?? []) : strings(columns);
  const reach = reachOf(metadata, registry);
  const tells = behindTells({ metadata, reach }, relation, isFrom ? 'insert' : 'read', given);
  return tells === null ? {} : { setsOffTelling: tells };
}

/** What else the session must know of a query that is part of a statement. */
function traits(inner: StatementPlan): Partial<StatementPlan> {
  return {
    ...(inner.asksSequences ? { asksSequences: inner.asksSequences } : {}),
    ...setsOff(inner),
    ...(inner.unsureOfState ? { unsureOfState: true as const } : {}),
    ...(inner.executesText ? { executesText: true as const } : {}),
    ...(inner.setsLocally ? { setsLocally: true as const } : {}),
    ...(inner.showsPrepared ? { showsPrepared: true as const } : {}),
    ...(inner.notifies ? { notifies: true as const } : {}),
    ...(inner.showsChannels ? { showsChannels: true as const } : {}),
    ...(inner.forbidden ? { forbidden: inner.forbidden } : {}),
  };
}

/** The keyspaces without a key that a view's query uses; null: it is not the home shard's. */
function viewedBy(
  { ViewStmt: { query } }: { ViewStmt: ViewStmt },
  context: Context,
  plan: Planner,
): readonly KeyspaceName[] | null {
  return wholeOf(query && plan(query, context).target);
}

/** With tables without a key, a temporary object is made where all is: at home. */
function withWhole(plan: StatementPlan, whole: readonly KeyspaceName[]): StatementPlan {
  return whole.length === 0 || plan.target.kind === 'sole' ? plan : { ...plan, target: atHomeWith(whole) };
}

/** The tables that a statement of maintenance names; null: it is another, or names none. */
function maintained(statement: Node): RangeVar[] | null {
  if ('VacuumStmt' in statement) {
    const tables = (statement.VacuumStmt.rels ?? []).flatMap((rel) =>
      'VacuumRelation' in rel && rel.VacuumRelation.relation ? [rel.VacuumRelation.relation] : [],
    );
    return tables.length > 0 ? tables : null;
  }
  const relation =
    'ReindexStmt' in statement
      ? statement.ReindexStmt.relation
      : 'ClusterStmt' in statement
        ? statement.ClusterStmt.relation
        : undefined;
  return relation ? [relation] : null;
}

/** Types that keys may have; what another name stands for nobody here knows. */
function typeOids(types: readonly Node[] | undefined): number[] {
  return (types ?? []).map((node) => {
    const type = 'TypeName' in node ? plainType(node.TypeName) : null;
    const known = type === null ? null : keyTypeFromPg(type);
    return known === null ? UNKNOWN_TYPE : KEY_TYPE_OID[known];
  });
}

/** No type has it. */
const UNKNOWN_TYPE = 0xffffffff;

function withoutFanOut(target: Target, what: string): Target {
  if (target.kind !== 'keys' && target.kind !== 'unpinned') return target;
  const refused = refusal(`${what} over several shards is not supported yet`, 'Restrict it to one sharding key.');
  const gathered = target.gather === undefined ? {} : { gather: refused };
  const { halves } = target;
  const isHot = halves?.apart.kind === 'hot' && what === 'EXPLAIN';
  const halved =
    halves === undefined || isHot || halves.apart.kind === 'refused'
      ? {}
      : { halves: { ...halves, apart: { kind: 'refused' as const, refusal: ofHalves(what) } } };
  if (target.spread.kind !== 'fanout') return { ...target, ...gathered, ...halved };
  return { ...target, ...gathered, ...halved, spread: { kind: 'refused', refusal: refused } };
}

/** Nobody changes a hot table by its own name. */
function forbidden(
  tables: readonly RangeVar[],
  { metadata, registry, searchPath }: Context,
): Pick<StatementPlan, 'forbidden'> {
  for (const { schemaname, relname } of tables) {
    const isSharded = (table: TableName) => registry.sharded(table) !== null;
    const relation = metadata.resolveRelation(schemaname || null, relname ?? '', searchPath, isSharded);
    const sharded = relation && registry.sharded(relation);
    if (sharded?.halfOf) return { forbidden: hotTableRefusal(sharded, sharded.halfOf) };
  }
  return {};
}

function ofHalves(what: string): Refusal {
  return refusal(
    `${what} of a statement about columns that are on different shards is not supported`,
    'Name columns of one half only, or bring the hot half back.',
  );
}

/** Statements on whole tables: at home if only the home shard has them; those without a key where they are. */
function tablesTarget(
  tables: readonly RangeVar[],
  context: Context,
  what: string,
  use: 'read' | 'change',
  hint?: string,
): Target {
  const { metadata, registry } = context;
  const objects = new HomeObjects(context);
  const whole = new Set<KeyspaceName>();
  let others = 0;
  for (const table of tables) {
    const relation = objects.find(table.schemaname || null, table.relname ?? '');
    const sharded = relation && registry.sharded(relation);
    if (
      sharded?.keyColumns.length === 0 &&
      !reachOf(metadata, beyond(registry, sharded.keyspace)).relation(relation as Relation, use)
    ) {
      whole.add(sharded.keyspace);
      if (reachHome(metadata, registry).relation(relation as Relation, use)) others++;
    } else {
      objects.existing(table, use);
      others++;
    }
  }
  if (objects.problem === null && whole.size > 0 && others === 0) return wholeTarget([...whole]);
  return objects.problem === null && tables.length > 0
    ? atHomeWith(new Set([...whole, ...objects.whole]))
    : sole(`${what} of sharded tables, reference tables or views`, hint);
}

/** A temporary object lives on the session's own connection, at home; one that hides a sharded table would mislead the router. */
function temporary(tables: readonly RangeVar[], statement: Node | null, context: Context, make: Make): StatementPlan {
  const more = {
    pin: 'temporary table',
    ...(tables.every((t) => t.relpersistence === 't') ? { temporary: true as const } : {}),
    ...(statement !== null && dropsAtCommit(statement) ? { unsureOfState: true as const } : {}),
  };
  // Whatever the path is now: it may be another one while the table is there.
  const hiding = tables.find((t) => context.registry.names.has(t.relname ?? ''));
  if (hiding)
    return make(
      'ddl',
      sole(`a temporary table named like the sharded or reference table "${hiding.relname}"`, 'Give it another name.'),
      more,
    );
  const others = new HomeObjects(context);
  others.everything(statement);
  return make(
    'ddl',
    others.problem === null
      ? atHomeWith(others.whole)
      : sole('a temporary table that refers to sharded or reference tables'),
    more,
  );
}

/** CREATE TABLE AS and SELECT INTO. */
function intoOf(statement: Node): { readonly table: RangeVar; readonly query: Node | null } | null {
  if ('CreateTableAsStmt' in statement) {
    const { into, query } = statement.CreateTableAsStmt;
    return into?.rel ? { table: into.rel, query: query ?? null } : null;
  }
  if ('SelectStmt' in statement && statement.SelectStmt.intoClause?.rel) {
    const { intoClause, ...select } = statement.SelectStmt;
    return { table: intoClause.rel as RangeVar, query: { SelectStmt: select } };
  }
  return null;
}

function dropsAtCommit(statement: Node): boolean {
  return /"(oncommit|onCommit)":"ONCOMMIT_DROP"/.test(JSON.stringify(statement));
}

/** It makes nothing that could be temporary and is not already. */
function changesOnly(statement: Node): boolean {
  return /^(Drop|AlterTable|Rename|AlterSeq|Index|Comment|Grant|Vacuum|Reindex|Cluster|CreateTrig)Stmt$/.test(
    Object.keys(statement)[0] ?? '',
  );
}

/** Whether something may be created in the session's temporary schema. */
function usesTemporarySchema(statement: Node, context: Context): boolean {
  if (/^pg_temp(_\d+)?$/.test(context.searchPath[0] ?? '')) return true;
  return /"pg_temp(_\d+)?"/.test(JSON.stringify(statement));
}

function rangeVars(nodes: readonly Node[] | undefined): RangeVar[] {
  return (nodes ?? []).flatMap((n) => ('RangeVar' in n ? [n.RangeVar] : []));
}
