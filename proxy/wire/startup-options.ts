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

/**
 * The settings in an `options` start-up parameter: `-c a=b`, `-ca=b`, `--a=b`, in order. PostgreSQL's one-letter switches that
 * are shorthands for settings or for debugging are refused.
 */
export function parseOptions(options: string): [name: string, value: string][] {
  const settings: [string, string][] = [];
  const queue = splitOptions(options);
  for (let argument = queue.shift(); argument !== undefined; argument = queue.shift()) {
    let assignment: string;
    let shown: string;
    if (argument.startsWith('--') && argument.length > 2) {
      assignment = argument.slice(2);
      shown = `--${assignment}`;
    } else if (argument.startsWith('-c')) {
      const value = argument.length > 2 ? argument.slice(2) : queue.shift();
      if (value === undefined) throw invalidArgument(argument);
      assignment = value;
      shown = `-c ${assignment}`;
    } else throw invalidArgument(argument);
    const equals = assignment.indexOf('=');
    if (equals < 0) throw new ForeshardError('42601', `${shown} requires a value`);
    // ParseLongOption in PostgreSQL's guc.c
    settings.push([assignment.slice(0, equals).replaceAll('-', '_'), assignment.slice(equals + 1)]);
  }
  return settings;
}

function invalidArgument(argument: string): ForeshardError {
  return new ForeshardError('42601', `invalid command-line argument for server process: ${argument}`, {
    hint: 'Foreshard takes settings only: -c name=value or --name=value.',
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
