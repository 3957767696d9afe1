import { ForeshardError } from '../../topology/errors.js';

/** PostgreSQL's isspace in the C locale. */
const isSpace = (c: string): boolean => c === ' ' || (c >= '\t' && c <= '\r');

/** Splits the `options` start-up parameter into arguments: at white space, a backslash takes the next character as it is (pg_split_opts). */
function splitOptions(options: string): string[] {
  const found: string[] = [];
  let at = 0;
  for (;;) {
    while (at < options.length && isSpace(options.charAt(at))) at++;
    if (at >= options.length) return found;
    let argument = '';
    for (let escaped = false; at < options.length; at++) {
      const c = options.charAt(at);
      if (!escaped && isSpace(c)) break;
      if (!escaped && c === '\\') escaped = true;
      else {
        escaped = false;
        argument += c;
      }
    }
    found.push(argument);
  }
}

/** Switches of process_postgres_switches in PostgreSQL's postgres.c that stand for one setting; with `:` it is their argument. */
const SETTING_OF_SWITCH: Readonly<Record<string, readonly [name: string, value: string]>> = {
  B: ['shared_buffers', ':'],
  F: ['fsync', 'false'],
  N: ['max_connections', ':'],
  O: ['allow_system_table_mods', 'true'],
  P: ['ignore_system_indexes', 'true'],
  S: ['work_mem', ':'],
  W: ['post_auth_delay', ':'],
  e: ['datestyle', 'euro'],
  h: ['listen_addresses', ':'],
  i: ['listen_addresses', '*'],
  k: ['unix_socket_directories', ':'],
  l: ['ssl', 'true'],
  p: ['port', ':'],
  s: ['log_statement_stats', 'true'],
};

/** Those that mean something on a server's own command line only, and those that once did. */
const IGNORED_SWITCHES = 'bCDEjnrTv';
const WITH_ARGUMENT = 'BcCdDfhkNprStvW-';

/** `-f x`: a kind of plan that is not to be used. */
const PLAN_SETTINGS: Readonly<Record<string, string>> = {
  s: 'enable_seqscan',
  i: 'enable_indexscan',
  o: 'enable_indexonlyscan',
  b: 'enable_bitmapscan',
  t: 'enable_tidscan',
  n: 'enable_nestloop',
  m: 'enable_mergejoin',
  h: 'enable_hashjoin',
};

/**
 * The settings in an `options` start-up parameter, in order: `-c a=b`, `-ca=b`, `--a=b`, and PostgreSQL's one-letter switches
 * with what they set. Whether a client may set that is the server's part.
 * @throws ForeshardError 42601, in PostgreSQL's words
 */
export function parseOptions(options: string): [name: string, value: string][] {
  const settings: [string, string][] = [];
  const operands: string[] = [];
  const queue = splitOptions(options);
  for (let argument = queue.shift(); argument !== undefined; argument = queue.shift()) {
    if (argument === '--') operands.push(...queue.splice(0));
    else if (argument.length < 2 || !argument.startsWith('-')) operands.push(argument);
    else
      for (let at = 1; at < argument.length; at++) {
        const letter = argument.charAt(at);
        if (!WITH_ARGUMENT.includes(letter)) settings.push(...settingsOf(letter, '', argument));
        else {
          // The rest of it, or the next.
          const rest = at + 1 < argument.length ? argument.slice(at + 1) : null;
          const value = rest ?? queue.shift();
          if (value === undefined) throw invalidArgument(argument);
          settings.push(...settingsOf(letter, value, rest === null ? value : argument));
          break;
        }
      }
  }
  if (operands[0] !== undefined) throw invalidArgument(operands[0]);
  return settings;
}

/** What one switch sets. */
function settingsOf(letter: string, value: string, argument: string): [name: string, value: string][] {
  const plain = SETTING_OF_SWITCH[letter];
  if (plain !== undefined) return [[plain[0], plain[1] === ':' ? value : plain[1]]];
  if (IGNORED_SWITCHES.includes(letter)) return [];
  switch (letter) {
    case 'c':
    case '-': {
      const equals = value.indexOf('=');
      if (equals < 0) throw new ForeshardError('42601', `${letter === '-' ? '--' : '-c '}${value} requires a value`);
      // ParseLongOption in PostgreSQL's guc.c
      return [[value.slice(0, equals).replaceAll('-', '_'), value.slice(equals + 1)]];
    }
    case 'd':
      return debugSettings(Number.parseInt(value, 10) || 0);
    case 'f': {
      const plan = PLAN_SETTINGS[value.charAt(0)];
      if (plan === undefined) throw invalidArgument(argument);
      return [[plan, 'false']];
    }
    case 't': {
      const statistics = /^pa/.test(value)
        ? 'parser'
        : /^pl/.test(value)
          ? 'planner'
          : /^e/.test(value)
            ? 'executor'
            : null;
      if (statistics === null) throw invalidArgument(argument);
      return [[`log_${statistics}_stats`, 'true']];
    }
    default:
      throw invalidArgument(argument);
  }
}

/** set_debug_options in PostgreSQL's postgres.c, as a client may use it. */
function debugSettings(level: number): [name: string, value: string][] {
  const settings: [string, string][] = [['log_min_messages', level > 0 ? `debug${level}` : 'notice']];
  if (level >= 2) settings.push(['log_statement', 'all']);
  if (level >= 3) settings.push(['debug_print_parse', 'true']);
  if (level >= 4) settings.push(['debug_print_plan', 'true']);
  if (level >= 5) settings.push(['debug_print_rewritten', 'true']);
  return settings;
}

function invalidArgument(argument: string): ForeshardError {
  return new ForeshardError('42601', `invalid command-line argument for server process: ${argument}`, {
    hint: 'Try "postgres --help" for more information.',
  });
}

/** Encodings whose characters may contain ASCII bytes, under all of PostgreSQL's names for them, as clean_encoding_name leaves them. */
const UNSAFE_ENCODINGS: ReadonlySet<string> = new Set([
  ...['sjis', 'mskanji', 'shiftjis', 'win932', 'windows932', 'shiftjis2004'],
  ...['big5', 'win950', 'windows950'],
  ...['gbk', 'win936', 'windows936'],
  ...['uhc', 'win949', 'windows949'],
  ...['gb18030', 'johab'],
]);

/**
 * Refuses a client_encoding in which a byte that looks like a quote or a backslash may be half of a character: routing by
 * bytes would read such SQL differently from the server. Names that PostgreSQL does not know are left to it.
 */
export function checkClientEncoding(encoding: string): void {
  const name = encoding
    .replace(/^'(.*)'$/s, '$1')
    .toLowerCase()
    .replace(/[^a-z0-9]/g, '');
  if (!UNSAFE_ENCODINGS.has(name)) return;
  throw new ForeshardError('22023', `invalid value for parameter "client_encoding": "${encoding}"`, {
    detail: 'Foreshard reads SQL in encodings in which no byte of a multibyte character can be an ASCII character.',
    hint: 'Use client_encoding=UTF8, or EUC_JP, EUC_KR, EUC_CN, EUC_TW or another encoding that PostgreSQL supports on the server side.',
  });
}
