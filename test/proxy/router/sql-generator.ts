/** Random SQL-like texts from a seed: sequences of tricky tokens with tricky separators, and mutations of real statements. */
export class SqlGenerator {
  #state: number;
  readonly #corpus: readonly string[];

  constructor(seed: number, corpus: readonly string[]) {
    this.#state = seed;
    this.#corpus = corpus;
  }

  /** mulberry32, 0 ≤ x < n */
  int(n: number): number {
    this.#state = (this.#state + 0x6d2b79f5) | 0;
    let t = Math.imul(this.#state ^ (this.#state >>> 15), 1 | this.#state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return (((t ^ (t >>> 14)) >>> 0) % n) | 0;
  }

  pick<T>(items: readonly T[]): T {
    return items[this.int(items.length)] as T;
  }

  next(): string {
    return this.int(3) === 0 ? this.#mutation() : this.#sequence();
  }

  #sequence(): string {
    let out = '';
    for (let i = 1 + this.int(12); i > 0; i--) out += this.#token() + this.pick(SEPARATORS);
    return out;
  }

  #mutation(): string {
    let s = this.pick(this.#corpus);
    for (let i = 1 + this.int(3); i > 0; i--) {
      const at = this.int(s.length + 1);
      const kind = this.int(4);
      if (kind === 0) s = s.slice(0, at) + s.slice(at + 1 + this.int(3));
      else if (kind === 1) s = s.slice(0, at) + this.#token() + s.slice(at);
      else if (kind === 2) s = s.slice(0, at) + this.pick(CHARACTERS) + s.slice(at);
      else s = s.slice(0, at) + this.pick(CHARACTERS) + s.slice(at + 1);
    }
    return s.replace(/[\ud800-\udfff]/g, 'ü');
  }

  #token(): string {
    if (this.int(3) === 0) return this.#run(CHARACTERS, 6);
    switch (this.int(8)) {
      case 0:
        return this.#run([...'0123456789_.eExXoObB+-aF'], 9);
      case 1:
        return this.#run([...'+-*/<>=~!@#%^&|`?'], 6);
      case 2:
        return `${this.pick(['', 'E', 'e', 'U&', 'u&', 'X', 'b', 'N', 'n'])}'${this.#run(INSIDE, 8)}'`;
      case 3: {
        const tag = this.pick(['', 'a', 'tag_1', 'é', '1']);
        return `$${tag}$${this.#run([..."a$1 \n'-é"], 8)}$${this.pick([tag, tag, 'b'])}$`;
      }
      default:
        return this.pick(TOKENS);
    }
  }

  #run(characters: readonly string[], most: number): string {
    let s = '';
    for (let i = this.int(most); i >= 0; i--) s += this.pick(characters);
    return s;
  }
}

const CHARACTERS = [
  ...'\'"$\\/*-+.,;:()[]{}<>=~!@#%^&|`? \t\n\r\f\v09axXeEuUbBnN_é𝔘',
  '',
  '--',
  '/*',
  '*/',
  "''",
  '$$',
  '..',
  'U&',
  "E'",
];
const INSIDE = [
  'a',
  'Z',
  '0',
  ' ',
  "''",
  '\\',
  "\\'",
  '\\\\',
  '\\n',
  '\\u0041',
  '\\ud83d\\ude00',
  '\\u12',
  '\\U0001F600',
  '\\x41',
  '\\101',
  '\n',
  'é',
  '--',
  '/*',
  '"',
  '$',
  '\\uD800',
  '\\u0000',
];
const SEPARATORS = [
  '',
  '',
  ' ',
  ' ',
  '\n',
  '\t',
  '\f',
  '\r\n',
  ' -- note\n',
  '/* c */',
  '/* a /* b */ c */',
  '\n\n',
  ',',
  ';',
  '--',
];
const TOKENS = [
  'select',
  'SELECT',
  'from',
  'Orders',
  '_x',
  'a1$b',
  'été',
  'naïve',
  '"Quoted"',
  '"a""b"',
  '""',
  'U&"d\\0061t"',
  'u&"x!0061" uescape \'!\'',
  'N',
  'e',
  'x',
  'b',
  'u',
  'U&',
  'u&a',
  '0',
  '1',
  '42',
  '007',
  '1_000',
  '2147483647',
  '2147483648',
  '99999999999999999999',
  '0x1F',
  '0XFFFFFFFF',
  '0x7fffffff',
  '0o17',
  '0b101',
  '0b12',
  '0o8',
  '0x',
  '0x_f',
  '1.5',
  '1.',
  '.5',
  '1..10',
  '1...3',
  '1e10',
  '1E-5',
  '1e',
  '1e+',
  '1.e5',
  '.5e1',
  '1a',
  '1_',
  '1__0',
  '1_a',
  '$1',
  '$22',
  '$0',
  '$2147483647',
  '$2147483648',
  '$',
  '$a',
  '$$',
  "'plain'",
  "'it''s'",
  "E'a\\nb'",
  "b'01'",
  "X'1f'",
  "N'n'",
  "U&'\\0041'",
  "'first'\n'second'",
  "'a' 'b'",
  '$$body$$',
  '$q$ $$ $q$',
  '::',
  ':=',
  '..',
  '=>',
  '<=',
  '>=',
  '<>',
  '!=',
  '->',
  '->>',
  '#>>',
  '@>',
  '<@',
  '?|',
  '?&',
  '||',
  '|/',
  '!~~*',
  '=-1',
  '+-',
  '*-',
  '@-',
  '~-',
  '<-',
  '-',
  '+',
  '/',
  '*',
  '--x',
  '/*',
  '*/',
  '/* c */',
  '/**/',
  '(',
  ')',
  '[',
  ']',
  '.',
  ',',
  ';',
  ':',
  '{',
  '}',
  '\\',
  '#',
  '&&',
  '%%',
  '^',
  '+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+',
  '@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@',
];
