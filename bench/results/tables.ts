import { byRound, throughputRatio } from './ratios.js';
import { type CellResult, FORESHARD, type Results, ROUTED, type Sample, WORKERS } from './results.js';
import { type Spread, spreadOf } from './statistics.js';
import { bytesOfOne, isMet, memoryOutcomes, outcomes } from './targets.js';

/** What the tables call a workload. */
const TITLES: Readonly<Record<CellResult['workload'], string>> = {
  select: 'pgbench select-only',
  tpcb: 'pgbench TPC-B',
  key: 'TPC-B restricted to one key',
  orm: 'ORM-like mix',
};

/** `pgbench select-only` and `simple, one shard`. */
export function titleOf({
  workload,
  protocol,
  shards,
}: Pick<CellResult, 'workload' | 'protocol' | 'shards'>): readonly [workload: string, how: string] {
  return [TITLES[workload], `${protocol}, ${shards === 1 ? 'one shard' : 'three shards'}`];
}

/** Cells that differ in nothing but the number of clients. */
export function groupsOf(cells: readonly CellResult[]): CellResult[][] {
  const groups = new Map<string, CellResult[]>();
  for (const cell of cells) {
    const title = titleOf(cell).join(', ');
    groups.set(title, [...(groups.get(title) ?? []), cell]);
  }
  return [...groups.values()];
}

/** Peers of these cells that were measured, in the order in which they came. */
export function peersOf(cells: readonly CellResult[]): string[] {
  const order = ['direct', 'pgbouncer'];
  const rank = (peer: string) => (order.includes(peer) ? order.indexOf(peer) : peer.startsWith(FORESHARD) ? 99 : 50);
  const peers = new Set(cells.flatMap(({ samples }) => samples.map(({ peer }) => peer)));
  return [...peers].sort((a, b) => rank(a) - rank(b) || (a < b ? -1 : 1));
}

/** Median and spread of one figure of a peer. */
export function figureOf(cell: CellResult, peer: string, figure: (sample: Sample) => number | null): Spread | null {
  return spreadOf([...byRound(cell, peer, figure).values()]);
}

/** Columns padded to the same width, the first to the left and the others to the right. */
export function table(head: readonly string[], rows: readonly (readonly string[])[]): string {
  const widths = head.map((text, i) => Math.max(text.length, ...rows.map((row) => (row[i] ?? '').length)));
  const line = (cells: readonly string[]) =>
    cells
      .map((text, i) => (i === 0 ? text.padEnd(widths[i] as number) : text.padStart(widths[i] as number)))
      .join('  ')
      .trimEnd();
  return [line(head), widths.map((width) => '-'.repeat(width)).join('  '), ...rows.map(line)].join('\n');
}

const whole = (value: number) => Math.round(value).toLocaleString('en');
const withSpread = (spread: Spread | null, show: (value: number) => string) =>
  spread === null ? 'n/a' : `${show(spread.median)} (${show(spread.low)}–${show(spread.high)})`;
const ratio = (value: number) => value.toFixed(2);

/** All tables of a run, as they are printed. */
export function renderTables(results: Results): string {
  const parts = groupsOf(results.cells).flatMap((cells) => [throughput(cells), details(cells), absences(cells)]);
  parts.push(memory(results), micro(results), targets(results));
  return parts.filter((part) => part !== '').join('\n\n');
}

function throughput(cells: readonly CellResult[]): string {
  const [first] = cells as [CellResult];
  const peers = peersOf(cells);
  const pairs = peers
    .filter((peer) => peer !== FORESHARD)
    .map((peer): [string, string] => (peer === ROUTED || peer === WORKERS ? [peer, FORESHARD] : [FORESHARD, peer]));
  const rows = cells.map((cell) => [
    String(cell.clients),
    ...peers.map((peer) =>
      withSpread(
        figureOf(cell, peer, ({ tps }) => tps),
        whole,
      ),
    ),
    ...pairs.map(([ours, theirs]) => withSpread(throughputRatio(cell, ours, theirs), ratio)),
  ]);
  const loads = [...new Set(cells.map(({ load }) => (load === 'pgbench' ? 'pgbench' : 'our generator')))].join(' and ');
  const head = ['clients', ...peers, ...pairs.map((pair) => pair.join('/'))];
  return `${titleOf(first).join(', ')}: transactions per second, by ${loads}\n${table(head, rows)}`;
}

function details(cells: readonly CellResult[]): string {
  const rows = cells.flatMap((cell) =>
    peersOf([cell]).map((peer) => {
      const at = (q: 'p50' | 'p99' | 'p999') =>
        figureOf(cell, peer, ({ latencyMs }) => latencyMs?.[q] ?? null)?.median.toFixed(2) ?? 'n/a';
      const cpu = figureOf(cell, peer, ({ cpuUsPerTransaction }) => cpuUsPerTransaction);
      const shown = cpu === null ? '' : withSpread(cpu, (value) => value.toFixed(1));
      return [`${cell.clients} ${peer}`, at('p50'), at('p99'), at('p999'), shown];
    }),
  );
  return table(['clients, peer', 'p50 ms', 'p99 ms', 'p99.9 ms', 'its own CPU, µs/transaction'], rows);
}

function absences(cells: readonly CellResult[]): string {
  const lines = cells.flatMap(({ clients, absent }) =>
    absent.map(({ peer, reason }) => ({ text: `${peer}: ${reason}`, clients })),
  );
  const texts = [...new Set(lines.map(({ text }) => text))];
  return texts
    .map((text) => {
      const where = lines.filter((line) => line.text === text).map(({ clients }) => clients);
      return `n/a at ${where.join(', ')} clients: ${text}`;
    })
    .join('\n');
}

function memoryTargets(found: Results['memory']): string[] {
  const measured = memoryOutcomes(found);
  return measured.map(({ what, most, bytes, unit }) => {
    const shown = (value: number) => (value / unit.bytes).toFixed(1);
    return `Target: ${what} at most ${shown(most)} ${unit.name}: ${shown(bytes)} ${bytes <= most ? 'met' : 'MISSED'}`;
  });
}

function memory({ memory: found }: Results): string {
  if (found.length === 0) return '';
  const mb = (bytes: number) => (bytes / 1e6).toFixed(1);
  const rows = found.map(({ peer, bytesBefore, bytesWith, ...more }) => [
    peer,
    mb(bytesBefore),
    mb(bytesWith),
    (bytesOfOne({ bytesWith, ...more }) / 1024).toFixed(1),
  ]);
  const head = ['', 'alone, MB', 'with them, MB', 'each, KiB'];
  const title = `Memory with ${whole(found[0]?.idleClients ?? 0)} idle clients`;
  return [title, table(head, rows), ...memoryTargets(found)].join('\n');
}

function micro({ micro: found }: Results): string {
  if (found.length === 0) return '';
  const rows = found.map(({ task, contender, us }) => [
    `${task}: ${contender}`,
    withSpread(us, (value) => value.toFixed(2)),
  ]);
  return `Microbenchmarks\n${table(['', 'µs a call'], rows)}`;
}

function targets(results: Results): string {
  const all = outcomes(results);
  const measured = all.filter((outcome) => outcome.ratio !== null);
  const met = measured.filter(isMet).length;
  const rows = all.map((outcome) => [
    `${outcome.cell} ${outcome.ours}/${outcome.against}`,
    ratio(outcome.least),
    withSpread(outcome.ratio, ratio),
    outcome.ratio === null ? outcome.reason : isMet(outcome) ? 'met' : 'MISSED',
  ]);
  const head = ['target', 'least', 'measured', ''];
  return `Targets: ${met} of ${measured.length} that were measured are met, ${all.length - measured.length} were not measured\n${table(head, rows)}`;
}
