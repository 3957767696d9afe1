import type { KeyScalar, KeyType } from '../../topology/key.js';

/** A small reproducible generator: sfc32 of PractRand. */
export class Random {
  #a: number;
  #b = 0x9e3779b9;
  #c = 0x243f6a88;
  #d = 1;

  constructor(seed: number) {
    this.#a = seed | 0;
    for (let i = 0; i < 16; i++) this.uint32();
  }

  uint32(): number {
    const t = (((this.#a + this.#b) | 0) + this.#d) | 0;
    this.#d = (this.#d + 1) | 0;
    this.#a = this.#b ^ (this.#b >>> 9);
    this.#b = (this.#c + (this.#c << 3)) | 0;
    this.#c = (((this.#c << 21) | (this.#c >>> 11)) + t) | 0;
    return t >>> 0;
  }

  below(n: number): number {
    return this.uint32() % n;
  }

  int64(): bigint {
    return BigInt.asIntN(64, (BigInt(this.uint32()) << 32n) | BigInt(this.uint32()));
  }

  pick<T>(items: readonly T[]): T {
    return items[this.below(items.length)] as T;
  }
}

const I64_MAX = 2n ** 63n - 1n;
const I64_MIN = -(2n ** 63n);

/** Values where implementations go wrong; always part of a test. */
export const EDGES: Readonly<Record<KeyType, readonly KeyScalar[]>> = {
  int2: [-32768n, -1n, 0n, 1n, 32767n],
  int4: [-2147483648n, -1n, 0n, 1n, 2147483647n],
  int8: [
    I64_MIN,
    -4294967297n,
    -4294967296n,
    -2147483649n,
    -1n,
    0n,
    1n,
    2147483648n,
    4294967295n,
    4294967296n,
    I64_MAX,
  ],
  uuid: ['0'.repeat(32), 'f'.repeat(32), `8${'0'.repeat(31)}`, `7${'f'.repeat(31)}`],
  text: [
    '',
    ' ',
    'a',
    '\\',
    "'",
    '"',
    '{}',
    ',',
    'NULL',
    utf8('é'),
    utf8('€'),
    utf8('😀'),
    utf8('\uFFFF'),
    'x'.repeat(1500),
  ],
  varchar: ['', 'a', 'a\\b', "'", utf8('é'), utf8('€'), utf8('😀'), 'x'.repeat(1025)],
  // −infinity, first day, around the epochs, leap days, last day, infinity
  date: [-2147483648n, -2451545n, -730120n, -730119n, -10957n, -1n, 0n, 59n, 60n, 2145031948n, 2147483647n],
  timestamp: [I64_MIN, -211813488000000000n, -1n, 0n, 1n, 9223371331199999999n, I64_MAX],
  timestamptz: [I64_MIN, -211813488000000000n, -1n, 0n, 1n, 9223371331199999999n, I64_MAX],
};

function utf8(text: string): string {
  return Buffer.from(text, 'utf8').toString('latin1');
}

/** A random scalar of any magnitude the type allows. */
export function randomScalar(type: KeyType, random: Random): KeyScalar {
  switch (type) {
    case 'int2':
      return BigInt((random.uint32() << 16) >> 16);
    case 'int4':
      return BigInt(random.uint32() | 0);
    case 'int8':
      return random.int64() >> BigInt(random.below(64));
    case 'uuid': {
      let hex = '';
      for (let i = 0; i < 4; i++) hex += random.uint32().toString(16).padStart(8, '0');
      return hex;
    }
    case 'text':
    case 'varchar':
      return randomText(random, type === 'varchar');
    case 'date':
      return random.below(4) === 0 ? BigInt(random.below(2145031949)) : BigInt(random.below(2451545 * 2)) - 2451545n;
    case 'timestamp':
    case 'timestamptz': {
      const span = 9223371331200000000n + 211813488000000000n;
      if (random.below(2) === 0) return (random.int64() >> 8n) % 3_000_000_000_000_000n;
      return (BigInt.asUintN(64, random.int64()) % span) - 211813488000000000n;
    }
  }
}

/** 0 to 64 characters, mostly ASCII, some of every UTF-8 length. A varchar key never ends in a blank (see decodeText). */
function randomText(random: Random, varchar: boolean): string {
  const length = random.below(65);
  let text = '';
  const ascii = random.below(2) === 0;
  for (let i = 0; i < length; i++) text += String.fromCodePoint(randomCodePoint(random, ascii));
  if (varchar) text = text.trimEnd();
  return utf8(text);
}

function randomCodePoint(random: Random, ascii: boolean): number {
  const width = ascii ? 0 : random.below(4);
  if (width === 0) return 1 + random.below(0x7f);
  if (width === 1) return 0x80 + random.below(0x780);
  if (width === 2) {
    const point = 0x800 + random.below(0xf800);
    return point >= 0xd800 && point <= 0xdfff ? 0x20ac : point;
  }
  return 0x10000 + random.below(0x100000);
}
