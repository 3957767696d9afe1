import { describe, expect, test } from 'vitest';
import { CRASH_POINTS, type CrashPoint } from '../../migrator/crash-points.js';
import type { HalveSpec, MoveSpec, UniteSpec } from '../../topology/migration.js';
import { startMoves } from '../migrator/moves.js';
import { abortOnEntering, rollBackOnReversing } from '../migrator/setting.js';
import { dealt, PASSED_BY_ALL, POINTS, someOf } from './crashes.js';
import { Documents, HALVE, moveOf, UNITE } from './documents.js';
import { type Place, startLives } from './lives.js';

// Columns are split, go, come back, and are united, while a proxy's clients write both halves; migrators die at one place after the other.

const moves = startMoves();
const { s } = moves;
const lives = startLives(moves);
const documents = new Documents(moves);

/** A migration, and where migrators die in it. */
interface Stage {
  readonly spec: HalveSpec | UniteSpec | MoveSpec;
  readonly places?: readonly Place[];
  /** Default: done. */
  readonly end?: 'aborted' | 'rolled_back';
}

async function carryOut({ spec, places = [], end }: Stage): Promise<void> {
  const isBack = end === 'rolled_back';
  const id = await documents.approve(spec);
  await abortOnEntering(s, end === 'aborted' ? 'verifying' : null);
  await rollBackOnReversing(s, isBack);
  for (const place of places) expect([place, await lives.untilCrash(place, isBack)]).toEqual([place, 'SIGKILL']);
  expect([await lives.toTheEnd(id), (await moves.load(id)).error]).toEqual([end ?? 'done', null]);
  await documents.expectAllWell();
  if (end !== undefined && spec.kind === 'move' && spec.to === 'three') await documents.expectNothingOnThird();
}

async function live(stages: readonly Stage[]): Promise<void> {
  await documents.begin();
  for (const stage of stages) await carryOut(stage);
  await documents.end();
}

/** As a migration of columns passes them on its two shards: what is there on the first one is not made again. */
const HALVING: readonly (readonly Place[])[] = [
  [
    'before:halve',
    'recorded:make-halves',
    'after:make-halves',
    'recorded:follow-halves',
    'after:follow-halves',
    'before:fill-halves',
    'within:fill-halves',
    'recorded:follow-halves',
    'before:commit-halves',
  ],
  [
    'recorded:make-halves#2',
    'after:make-halves',
    'recorded:follow-halves#2',
    'after:follow-halves',
    'before:fill-halves#3',
    'within:fill-halves#2',
    'after:follow-halves',
    'recorded:follow-halves#2',
    'after:halve',
  ],
];
const UNITING: readonly (readonly Place[])[] = [
  ['before:unite', 'recorded:undo-halves', 'after:undo-halves#2'],
  ['after:unite', 'after:undo-halves', 'recorded:undo-halves#3'],
];
const UNDOING: readonly (readonly Place[])[] = [
  ['before:halve', 'recorded:undo-halves', 'after:undo-halves#2'],
  ['after:make-halves', 'after:undo-halves', 'recorded:undo-halves'],
  ['within:fill-halves', 'recorded:undo-halves#2', 'after:undo-halves'],
];

/** The destination has had nothing of the table. */
const MAKING: readonly CrashPoint[] = CRASH_POINTS.filter((point) => /:(create-tables|make-half)$/.test(point));
/** A table whose columns are split has no triggers but those that keep its halves the same, and these are not quieted. */
const MOVING: readonly CrashPoint[] = CRASH_POINTS.filter(
  (point) => MAKING.includes(point) || (PASSED_BY_ALL.includes(point) && !/-triggers-/.test(point)),
);
/** Lives in which every place is passed once, in the one move or the other. */
const ROWS = 6;
const thereAndAgain = (row: number): readonly [there: readonly Place[], again: readonly Place[]] => [
  MOVING.filter((point, i) =>
    MAKING.includes(point) ? MAKING.indexOf(point) % ROWS === row : i % (2 * ROWS) === 2 * row,
  ),
  MOVING.filter((point, i) => !MAKING.includes(point) && i % (2 * ROWS) === 2 * row + 1),
];

const WAYS_BACK = dealt(
  CRASH_POINTS.filter((point) => POINTS.onTheWayBack.includes(point) || /:undo-(half|table)$/.test(point)),
  3,
).map(([, row]) => row);
const ABORTS: readonly (readonly Place[])[] = [
  ['after:make-half', 'after:abort-reopen', 'recorded:undo-half'],
  ['recorded:make-half', 'after:undo', 'after:undo-half'],
  ['after:undo#3', 'recorded:undo-table', 'after:undo-table'],
];

const hot = (tenants: 'low' | 'high', from: string, to: string, rest: Omit<Stage, 'spec'> = {}): Stage => ({
  spec: moveOf('hot', tenants, from, to),
  ...rest,
});
const table = (tenants: 'low' | 'high', from: string, to: string, rest: Omit<Stage, 'spec'> = {}): Stage => ({
  spec: moveOf('table', tenants, from, to),
  ...rest,
});

/** Each a row of the places of its kind. */
const LIVES: readonly (readonly [what: string, row: number, stages: readonly Stage[]])[] = [
  ...Array.from({ length: ROWS }, (_, row) => {
    const [there, again] = thereAndAgain(row);
    const stages = [
      { spec: HALVE },
      hot('high', 'two', 'three', { places: there }),
      hot('high', 'three', 'two', { places: again }),
      { spec: UNITE },
    ];
    return ['their columns move there, and come again', row, stages] as const;
  }),
  ...Array.from({ length: ROWS }, (_, row) => {
    const [there, again] = thereAndAgain(row);
    const stages = [
      { spec: HALVE },
      hot('low', 'one', 'two'),
      table('low', 'one', 'three', { places: there }),
      hot('low', 'two', 'three', { places: again }),
      { spec: UNITE },
    ];
    return ['the rest of them moves, and their columns follow', row, stages] as const;
  }),
  ...WAYS_BACK.flatMap((places, row) => {
    const [halve, move] = [UNDOING[row] ?? [], ABORTS[row] ?? []];
    const columns = [
      { spec: HALVE, places: halve, end: 'aborted' },
      { spec: HALVE },
      hot('high', 'two', 'three', { places: move, end: 'aborted' }),
      hot('high', 'two', 'three', { places, end: 'rolled_back' }),
      { spec: UNITE },
    ] as const;
    const rest = [
      { spec: HALVE },
      hot('low', 'one', 'two'),
      table('low', 'one', 'three', { places: move, end: 'aborted' }),
      table('low', 'one', 'three', { places, end: 'rolled_back' }),
      hot('low', 'two', 'one'),
      { spec: UNITE },
    ];
    return [
      ['all is taken back that is done with their columns', row, columns],
      ['all is taken back that is done with the rest of them', row, rest],
    ] as const;
  }),
];

describe('a migrator dies again and again as documents’ columns are split, and', () => {
  test.each(someOf([0, 1], 2))('united at once (%i)', async (row) => {
    await live([
      { spec: HALVE, places: HALVING[row] ?? [] },
      { spec: UNITE, places: UNITING[row] ?? [] },
    ]);
  });

  test.each(someOf(LIVES, LIVES.length))('%s (%i)', async (_what, _row, stages) => {
    await live(stages);
  });
});
