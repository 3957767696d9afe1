/** On either side of an action of this name: with its clean-up records only, and when it is done and nobody else knows of it. */
const around = <N extends string>(name: N) => [`recorded:${name}`, `after:${name}`] as const;
/** The same of one whose statements stand for themselves; and behind each of them but the last. */
const aroundEach = <N extends string>(name: N) => [`recorded:${name}`, `within:${name}`, `after:${name}`] as const;

/**
 * Places where a test kills the migrator: on either side of every effect that outlives the process, in the order in which a move passes them. `recorded:`
 * lies between the clean-up record and the object it names, `after:` behind the object, before anything else knows of it.
 */
export const CRASH_POINTS = [
  'before:preflight',
  'after:preflight',
  ...around('guards-source'),
  ...around('pace-source'),
  ...around('guard-table-source'),
  ...around('create-schema'),
  ...around('create-function'),
  ...around('create-type'),
  ...around('create-sequence'),
  ...around('create-tables'),
  ...around('create-triggers'),
  ...around('quiet-triggers-destination'),
  ...around('guards-destination'),
  ...around('pace-destination'),
  ...around('guard-table-destination'),
  ...around('pace-table'),
  ...around('create-marker-source'),
  ...around('create-marker-destination'),
  ...around('create-publication'),
  ...around('create-slot'),
  ...around('set-pace'),
  ...around('create-subscription'),
  ...around('empty-tables'),
  'after:forget-copy',
  'before:copy-wait',
  'after:copy-wait',
  ...around('create-index'),
  'after:create-indexes',
  ...around('analyze-table'),
  'after:analyze',
  'after:stop-following',
  'after:follow-again',
  'before:verify',
  'after:verify',
  'recorded:repair',
  'before:replace-rows',
  'after:replace-rows',
  'after:repair-rows',
  'before:compare-again',
  'after:repair',
  'recorded:serve-replica',
  'after:serve-replica',
  'before:stop-replica',
  'after:stop-replica',
  'before:hold',
  'recorded:hold',
  'after:hold',
  'after:acks',
  'before:fence',
  ...around('wait-at-gate'),
  'after:fence',
  'after:reopen-gate',
  'after:drop-hold',
  'after:drain',
  'after:flush-progress',
  'after:carry-sequences',
  'after:advance-slot',
  'before:flip',
  'after:flip',
  ...around('open-destination'),
  ...around('assert-source'),
  ...aroundEach('undo-subscription'),
  'after:drop-subscription',
  ...around('undo-slot'),
  'after:drop-slot',
  ...around('undo-publication'),
  'after:drop-publication',
  ...around('assert-destination'),
  'after:proxies-acked',
  ...around('quiet-triggers-source'),
  'before:remove-rows',
  'after:remove-rows',
  ...around('restore-triggers-destination'),
  ...around('restore-triggers-source'),
  ...aroundEach('undo-marker'),
  ...around('undo-guard-table'),
  ...aroundEach('undo-guards'),
  'after:drop-guards',
  ...around('back-guard-arrival'),
  ...around('back-create-publication'),
  ...around('back-create-slot'),
  ...around('back-create-subscription'),
  'back-after:reopen-gate',
  'back-after:drop-hold',
  'back-before:hold',
  'back-recorded:hold',
  'back-after:hold',
  'back-after:acks',
  'back-before:fence',
  ...around('back-wait-at-gate'),
  'back-after:fence',
  'back-after:drain',
  'back-after:flush-progress',
  'back-after:carry-sequences',
  'back-before:flip',
  'back-after:flip',
  ...around('back-open-destination'),
  ...around('back-assert-source'),
  'back-after:proxies-acked',
  'back-after:undo',
  'after:abort-reopen',
  ...around('undo-table'),
  ...around('undo-sequence'),
  ...around('undo-type'),
  ...around('undo-function'),
  ...around('undo-schema'),
  'after:undo',
  'before:recut',
  'after:recut',
  'before:separate',
  'after:separate',
] as const;
export type CrashPoint = (typeof CRASH_POINTS)[number];

type Around<P> = P extends `recorded:${infer N}` ? (`after:${N}` extends CrashPoint ? N : never) : never;
type Turned<N> = N extends `back-${infer M}` ? M : never;
/** What has a place on either side, on the way there or back. */
export type NamedByPoints = Around<CrashPoint> | Turned<Around<CrashPoint>>;

let passes = 0;

/** Kills this process, as `kill -9` would, when FORESHARD_CRASH_POINT names `point`; `point#2`: when it comes there for the second time. For tests. */
export function crashPoint(point: CrashPoint): void {
  const [name, time = '1'] = (process.env.FORESHARD_CRASH_POINT ?? '').split('#');
  if (name !== point) return;
  passes += 1;
  if (passes === Number(time)) process.kill(process.pid, 'SIGKILL');
}
