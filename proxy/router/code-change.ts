import { isUtf8 } from 'node:buffer';
import type { Node } from 'libpg-query';
import { qualifiedName, strings } from './ast.js';
import { changesSettings } from './function-settings.js';
import type { Metadata, Relation } from './metadata.js';
import { parse } from './parse.js';

/**
 * What DDL has made that statements run, perhaps unseen, and that leaves something on a server connection or asks what was left there.
 * `names`: of the functions and relations that are concerned; null: there may be any.
 */
export interface CodeChange {
  readonly names: ReadonlySet<string> | null;
}

const ANY: CodeChange = { names: null };

/** Words of what stays with a session. The same in the query for the metadata. */
const STATE =
  /\b(temp|temporary|pg_temp|pg_(try_)?advisory_\w+|listen|hold|execute|prepare|deallocate|discard|dblink\w*)\b/i;
const ASKS = /\b(currval|lastval)\b/i;
/** Other DDL that calls them. */
const IN_EXPRESSIONS = /\b(currval|lastval|set_config)\b/i;
/** Texts that are not looked through. */
const LONG = 64 * 1024;

/** DDL of which it is known what it is about. */
const NAMED = new Set([
  ...[
    'CreateStmt',
    'CreateTableAsStmt',
    'SelectStmt',
    'ViewStmt',
    'AlterTableStmt',
    'IndexStmt',
    'CreateSeqStmt',
    'AlterSeqStmt',
  ],
  ...['CreateTrigStmt', 'RuleStmt', 'CreatePolicyStmt', 'AlterPolicyStmt', 'CreateFunctionStmt', 'AlterFunctionStmt'],
  ...['RenameStmt', 'DropStmt', 'AlterObjectSchemaStmt'],
]);
const HARMLESS = /^(GRANT|REVOKE|COMMENT|SECURITY LABEL|ALTER (OWNER|DEFAULT PRIVILEGES|OBJECT DEPENDS))/;

/**
 * Whether statements that run behind this DDL have to be judged by a schema that was read after it, even while one shard has everything.
 * Most DDL is harmless: what a function, trigger or view leaves nothing on its server connection by, need not be known.
 * @param text of the one statement
 * @param unread whether a text names what was made before and is not in the metadata yet
 */
export function codeChange(
  text: Buffer,
  command: string,
  metadata: Metadata,
  unread: (text: Buffer) => boolean,
): CodeChange | null {
  if (HARMLESS.test(command)) return null;
  const node = isUtf8(text) ? parse(text)?.statements[0]?.node : undefined;
  if (node === undefined || 'CreateExtensionStmt' in node || 'AlterExtensionStmt' in node) return ANY;
  if (text.length <= LONG && !unread(text) && !isSuspect(node, text.toString('utf8'), metadata)) return null;
  return NAMED.has(Object.keys(node)[0] ?? '') ? { names: affected(namesIn(node), metadata) } : ANY;
}

/** Whether the text names one of these, which are in lower case. Words of it are compared, so that it errs towards yes. */
export function namesOneOf(text: Buffer, names: ReadonlySet<string>): boolean {
  return text.length > LONG || mentions(text.toString('utf8'), names);
}

function mentions(text: string, names: ReadonlySet<string>): boolean {
  const sql = text.toLowerCase();
  if (sql.includes('u&"')) return true;
  for (const word of sql.match(WORDS) ?? []) if (names.has(word)) return true;
  // Names in quotes need not be words; in other encodings they are not what they seem.
  for (const name of names) if (!/^\w+$/.test(name) && (/[^ -~]|"/.test(name) || sql.includes(name))) return true;
  return false;
}

const WORDS = /[\p{L}\p{N}_$]+/gu;

function isSuspect(node: Node, sql: string, metadata: Metadata): boolean {
  if (/\bu&['"]/i.test(sql)) return true;
  if ('CreateFunctionStmt' in node) {
    const { name } = qualifiedName(node.CreateFunctionStmt.funcname);
    // What only computed may do anything from now on.
    if (metadata.functionsNamed(name).some((f) => f.immutable)) return true;
    let body = sql;
    for (const option of node.CreateFunctionStmt.options ?? []) {
      if (!('DefElem' in option)) continue;
      const { defname, arg } = option.DefElem;
      if (defname === 'language' && arg && 'String' in arg) {
        const language = arg.String.sval ?? '';
        if (language === 'c' || language === 'internal') return false;
        if (language !== 'sql' && language !== 'plpgsql') return true;
      }
      if (defname === 'as' && arg && 'List' in arg) body = strings(arg.List.items).join('\n');
    }
    if (STATE.test(body) || ASKS.test(body) || changesSettings(body)) return true;
  } else if ('AlterFunctionStmt' in node || IN_EXPRESSIONS.test(sql)) return true;
  const named = new Set(sql.match(WORDS) ?? []);
  for (const word of [...named]) named.add(word.toLowerCase());
  for (const [, quoted] of sql.matchAll(/"((?:[^"]|"")+)"/g)) named.add((quoted as string).replaceAll('""', '"'));
  const relations = relationsOf(metadata);
  for (const name of named) {
    if (isSuspectFunction(name, metadata)) return true;
    for (const { asksSequences, calls, fires } of relations.get(name) ?? [])
      if (asksSequences || [...calls, ...fires].some((f) => isSuspectFunction(f, metadata))) return true;
  }
  return false;
}

function isSuspectFunction(name: string, metadata: Metadata): boolean {
  return metadata.functionsNamed(name).some((f) => f.stateful || f.asksSequences || f.keepsSettings || f.executes);
}

/** What the DDL is about. */
function namesIn(node: Node): ReadonlySet<string> {
  if ('CreateFunctionStmt' in node) return new Set([qualifiedName(node.CreateFunctionStmt.funcname).name]);
  // They name functions and relations in lists of strings.
  const lists =
    'DropStmt' in node || 'RenameStmt' in node || 'AlterFunctionStmt' in node || 'AlterObjectSchemaStmt' in node;
  const names = new Set<string>();
  collect(node, (key, value) => {
    if (key === 'relname' || key === 'newname' || (lists && key === 'sval')) names.add(value);
  });
  return names;
}

function collect(value: unknown, found: (key: string, value: string) => void, key = ''): void {
  if (typeof value === 'string') found(key, value);
  else if (typeof value === 'object' && value !== null)
    for (const [k, inner] of Object.entries(value)) collect(inner, found, Array.isArray(value) ? key : k);
}

/** These, the functions whose texts name them, and the relations that run them or are parts of them; in lower case. */
function affected(names: ReadonlySet<string>, metadata: Metadata): ReadonlySet<string> {
  const lower = (all: Iterable<string>) => new Set([...all].map((name) => name.toLowerCase()));
  const found = lower(names);
  for (let last: ReadonlySet<string> = found; last.size > 0; ) {
    const more = [...metadata.functionNames].filter(
      (f) => !found.has(f.toLowerCase()) && metadata.functionsNamed(f).some(({ body }) => mentions(body, last)),
    );
    last = lower(more);
    for (const name of last) found.add(name);
  }
  const tables = [...metadata.relations.values()].filter(
    ({ calls, fires, parents }) =>
      [...calls, ...fires].some((f) => found.has(f.toLowerCase())) || parents.some((p) => names.has(p.table)),
  );
  for (const { table } of tables) found.add(table.toLowerCase());
  return found;
}

const byName = new WeakMap<Metadata, Map<string, Relation[]>>();

function relationsOf(metadata: Metadata): ReadonlyMap<string, readonly Relation[]> {
  let all = byName.get(metadata);
  if (all === undefined) {
    all = new Map();
    for (const relation of metadata.relations.values()) {
      const same = all.get(relation.table);
      if (same === undefined) all.set(relation.table, [relation]);
      else same.push(relation);
    }
    byName.set(metadata, all);
  }
  return all;
}
