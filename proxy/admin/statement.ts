import { ForeshardError } from '../../topology/errors.js';

/** What one statement in the admin database asks for. */
export type AdminStatement =
  /** Nothing between two semicolons, or only a comment. */
  | { readonly kind: 'empty' }
  | { readonly kind: 'show'; readonly view: string }
  /** One row of one column, that drivers ask for to see whether somebody is there. */
  | { readonly kind: 'constant'; readonly column: string; readonly value: string | number }
  | { readonly kind: 'command'; readonly command: CommandName; readonly arguments: readonly string[] }
  | { readonly kind: 'set'; readonly name: string; readonly value: string }
  /** Accepted because drivers send it, with no more effect than its tag. */
  | { readonly kind: 'ignored'; readonly tag: string }
  | { readonly kind: 'transaction'; readonly tag: 'BEGIN' | 'COMMIT' | 'ROLLBACK' };

/** Commands, with how many arguments they take. */
const COMMANDS = {
  pause: [0, 1],
  resume: [0, 1],
  reconnect: [0, 1],
  kill: [0, 1],
  kill_client: [1, 1],
  disable: [1, 1],
  enable: [1, 1],
  suspend: [0, 0],
  wait_close: [0, 1],
  reload: [0, 0],
  shutdown: [0, 1],
} as const satisfies Readonly<Record<string, readonly [number, number]>>;

export type CommandName = keyof typeof COMMANDS;

/** What PostgreSQL shows under these names, for drivers that ask. */
const PARAMETERS: ReadonlyMap<string, string> = new Map([
  ['client_encoding', 'UTF8'],
  ['server_encoding', 'UTF8'],
  ['datestyle', 'ISO'],
  ['timezone', 'GMT'],
  ['default_transaction_isolation', 'read committed'],
  ['transaction_isolation', 'read committed'],
  ['transaction isolation level', 'read committed'],
  ['transaction_read_only', 'off'],
  ['default_transaction_read_only', 'off'],
  ['standard_conforming_strings', 'on'],
  ['extra_float_digits', '1'],
  ['max_identifier_length', '63'],
]);

/** Settings of a session that drivers set unasked; none has a meaning here. */
const IGNORED_SETTINGS: ReadonlySet<string> = new Set([
  ...PARAMETERS.keys(),
  'application_name',
  'bytea_output',
  'client_min_messages',
  'escape_string_warning',
  'idle_in_transaction_session_timeout',
  'idle_session_timeout',
  'intervalstyle',
  'lock_timeout',
  'names',
  'search_path',
  'session characteristics as transaction',
  'statement_timeout',
  'time zone',
]);

type Token =
  | { readonly kind: 'word'; readonly text: string; readonly lower: string }
  /** "…" */
  | { readonly kind: 'name'; readonly text: string }
  /** '…' */
  | { readonly kind: 'string'; readonly text: string }
  | { readonly kind: 'symbol'; readonly text: string };

const TOKEN =
  /\s+|--[^\n]*|\/\*.*?\*\/|"((?:[^"]|"")*)"|[eE]?'((?:[^']|'')*)'|(\$\d+)|([A-Za-z_\u0080-\uffff][\w$\u0080-\uffff-]*|-?\d[\w.]*)|(.)/gsy;

function tokens(sql: string): Token[] {
  const found: Token[] = [];
  for (const [, name, string, parameter, word, symbol] of sql.matchAll(TOKEN)) {
    if (name !== undefined) found.push({ kind: 'name', text: name.replaceAll('""', '"') });
    else if (string !== undefined) found.push({ kind: 'string', text: string.replaceAll("''", "'") });
    else if (parameter !== undefined)
      throw new ForeshardError('0A000', 'parameters are not supported in the admin database', {
        hint: 'Write the value into the statement.',
      });
    else if (word !== undefined) found.push({ kind: 'word', text: word, lower: word.toLowerCase() });
    else if (symbol !== undefined) found.push({ kind: 'symbol', text: symbol });
  }
  return found;
}

/**
 * The statements of a query text, one or more, divided by semicolons.
 * @throws ForeshardError 42601 for what is not a statement of the admin database, 0A000 for parameters
 */
export function parseStatements(sql: string): AdminStatement[] {
  const statements: Token[][] = [[]];
  for (const token of tokens(sql)) {
    if (token.kind === 'symbol' && token.text === ';') statements.push([]);
    else statements.at(-1)?.push(token);
  }
  const parsed = statements.filter((part) => part.length > 0).map((part) => parseOne(part, sql));
  return parsed.length > 0 ? parsed : [{ kind: 'empty' }];
}

function parseOne([first, ...rest]: readonly Token[], sql: string): AdminStatement {
  if (first?.kind === 'word') {
    const parsed = parseWord(first.lower, rest);
    if (parsed !== null) return parsed;
  }
  throw new ForeshardError('42601', `invalid command '${shorten(sql)}', use SHOW HELP;`, {
    hint: 'SHOW HELP lists what this database understands. Other statements belong to the database that the proxy serves.',
  });
}

function parseWord(verb: string, rest: readonly Token[]): AdminStatement | null {
  const words = rest.map((t) => (t.kind === 'word' ? t.lower : t.text));
  switch (verb) {
    case 'show':
      return parseShow(words);
    case 'select':
      return parseSelect(words);
    case 'set':
      return parseSet(rest);
    case 'begin':
      return { kind: 'transaction', tag: 'BEGIN' };
    case 'start':
      return words[0] === 'transaction' ? { kind: 'transaction', tag: 'BEGIN' } : null;
    case 'commit':
    case 'end':
      return { kind: 'transaction', tag: 'COMMIT' };
    case 'rollback':
    case 'abort':
      return words[0] === 'to' ? null : { kind: 'transaction', tag: 'ROLLBACK' };
    case 'reset':
      return rest.length > 0 ? { kind: 'ignored', tag: 'RESET' } : null;
    case 'discard':
      return rest.length === 1 ? { kind: 'ignored', tag: `DISCARD ${words[0]?.toUpperCase()}` } : null;
    case 'deallocate':
      return rest.length > 0
        ? { kind: 'ignored', tag: words.at(-1) === 'all' ? 'DEALLOCATE ALL' : 'DEALLOCATE' }
        : null;
    case 'unlisten':
      return { kind: 'ignored', tag: 'UNLISTEN' };
    case 'close':
      return words[0] === 'all' ? { kind: 'ignored', tag: 'CLOSE CURSOR ALL' } : null;
    default:
      return parseCommand(verb, rest, words);
  }
}

function parseShow(words: readonly string[]): AdminStatement | null {
  const name = words.join(' ').toLowerCase();
  const value = PARAMETERS.get(name);
  if (value !== undefined) return { kind: 'constant', column: name.replaceAll(' ', '_').replace('_level', ''), value };
  return words.length === 1 ? { kind: 'show', view: name } : null;
}

function parseSelect(words: readonly string[]): AdminStatement | null {
  if (words.length === 1 && /^-?\d{1,9}$/.test(words[0] as string))
    return { kind: 'constant', column: '?column?', value: Number(words[0]) };
  return null;
}

function parseSet(rest: readonly Token[]): AdminStatement | null {
  let words = rest.map((t) => (t.kind === 'word' ? t.lower : t.text));
  let parts = rest;
  if ((words[0] === 'session' && words[1] !== 'characteristics') || words[0] === 'local') {
    words = words.slice(1);
    parts = parts.slice(1);
  }
  for (const fixed of ['time zone', 'session characteristics as transaction', 'names', 'transaction'])
    if (words.join(' ').startsWith(`${fixed} `)) return { kind: 'ignored', tag: 'SET' };
  const name: string[] = [];
  let at = 0;
  while (at < parts.length && words[at] !== '=' && words[at] !== 'to') name.push(words[at++] as string);
  const value = parts.slice(at + 1);
  if (name.length === 0 || value.length === 0) return null;
  const key = name.join('');
  if (IGNORED_SETTINGS.has(key)) return { kind: 'ignored', tag: 'SET' };
  return { kind: 'set', name: key, value: value.map((t) => t.text).join('') };
}

function parseCommand(verb: string, rest: readonly Token[], words: readonly string[]): AdminStatement | null {
  if (!Object.hasOwn(COMMANDS, verb)) return null;
  const command = verb as CommandName;
  const [least, most] = COMMANDS[command];
  if (rest.some((t) => t.kind === 'symbol')) return null;
  if (rest.length < least)
    throw new ForeshardError(
      '42601',
      command === 'kill_client' ? 'invalid client pointer supplied' : 'a database is required',
      {
        hint:
          command === 'kill_client'
            ? 'KILL_CLIENT takes the id that SHOW CLIENTS shows.'
            : `Name a database or a shard: ${verb.toUpperCase()} name.`,
      },
    );
  if (rest.length > most) return null;
  if (command === 'shutdown' && rest.length === 1 && words[0] !== 'wait_for_servers' && words[0] !== 'wait_for_clients')
    return null;
  return { kind: 'command', command, arguments: words };
}

function shorten(sql: string): string {
  const text = sql.trim();
  return text.length > 200 ? `${text.slice(0, 200)}…` : text;
}
