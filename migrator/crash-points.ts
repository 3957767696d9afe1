/**
 * Places where a test kills the migrator: on either side of every effect that outlives the process. `recorded:` lies between
 * the clean-up record and the object it names, `after:` behind the object, before anything else knows of it.
 */
export const CRASH_POINTS = [
  'before:preflight',
  'after:preflight',
  'recorded:guards-source',
  'after:guards-source',
  'recorded:create-tables',
  'after:create-tables',
  'recorded:guards-destination',
  'after:guards-destination',
  'recorded:create-marker-source',
  'after:create-marker-source',
  'recorded:create-marker-destination',
  'after:create-marker-destination',
  'recorded:create-publication',
  'after:create-publication',
  'recorded:create-slot',
  'after:create-slot',
  'recorded:create-subscription',
  'after:create-subscription',
  'before:copy-wait',
  'after:copy-wait',
  'after:create-indexes',
  'after:analyze',
  'before:verify',
  'after:verify',
  'recorded:serve-replica',
  'after:serve-replica',
  'after:stop-replica',
  'before:hold',
  'after:hold',
  'after:acks',
  'before:fence',
  'after:fence',
  'after:drain',
  'after:flush-progress',
  'after:carry-sequences',
  'before:flip',
  'after:flip',
  'after:open-destination',
  'after:drop-subscription',
  'after:drop-slot',
  'after:drop-publication',
  'after:proxies-acked',
  'before:remove-rows',
  'after:remove-rows',
  'after:drop-guards',
  'recorded:back-create-publication',
  'after:back-create-publication',
  'recorded:back-create-slot',
  'after:back-create-slot',
  'recorded:back-create-subscription',
  'after:back-create-subscription',
  'back-before:hold',
  'back-after:hold',
  'back-after:acks',
  'back-before:fence',
  'back-after:fence',
  'back-after:drain',
  'back-after:flush-progress',
  'back-after:carry-sequences',
  'back-before:flip',
  'back-after:flip',
  'after:back-open-destination',
  'back-after:proxies-acked',
  'back-after:undo',
  'after:abort-reopen',
  'after:undo',
  'before:recut',
  'after:recut',
  'before:separate',
  'after:separate',
] as const;
export type CrashPoint = (typeof CRASH_POINTS)[number];

let passes = 0;

/** Kills this process, as `kill -9` would, when FORESHARD_CRASH_POINT names `point`; `point#2`: when it comes there for the second time. For tests. */
export function crashPoint(point: CrashPoint): void {
  const [name, time = '1'] = (process.env.FORESHARD_CRASH_POINT ?? '').split('#');
  if (name !== point) return;
  passes += 1;
  if (passes === Number(time)) process.kill(process.pid, 'SIGKILL');
}
