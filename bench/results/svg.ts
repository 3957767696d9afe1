import { type CellResult, DIRECT, FORESHARD, PGBOUNCER, type Results, ROUTED } from './results.js';
import { figureOf, groupsOf, peersOf, titleOf } from './tables.js';

const PANEL = { width: 300, height: 210, left: 52, top: 46, right: 14, bottom: 34 } as const;
const COLUMNS = 3;
const HEADER = 74;
const FOOTER = 30;

type Colour = readonly [light: string, dark: string];

/** Told apart by eyes that see red and green alike, on white and on black. */
const COLOURS: Readonly<Record<string, Colour>> = {
  [DIRECT]: ['#6b7280', '#9ca3af'],
  [PGBOUNCER]: ['#b45309', '#f59e0b'],
  [FORESHARD]: ['#1d4ed8', '#60a5fa'],
  [ROUTED]: ['#0f766e', '#2dd4bf'],
};
/** Of other peers, in their order. */
const MORE_COLOURS: readonly Colour[] = [
  ['#9d174d', '#f472b6'],
  ['#4d7c0f', '#a3e635'],
  ['#6d28d9', '#c4b5fd'],
  ['#111827', '#f9fafb'],
];

const escaped = (text: string) =>
  text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;').replaceAll('"', '&quot;');
const n = (value: number) => Number(value.toFixed(1)).toString();

/** Throughput over the number of clients, one panel for each workload and protocol. Self-contained, for light and dark. */
export function renderSvg(results: Results): string {
  const groups = groupsOf(results.cells);
  const peers = peersOf(results.cells);
  const rows = Math.ceil(groups.length / COLUMNS);
  const width = COLUMNS * PANEL.width;
  const height = HEADER + rows * PANEL.height + FOOTER;
  const { machine, options, startedAt } = results;
  const colours = (mode: 0 | 1) =>
    coloursOf(peers)
      .map((colour, i) => `.p${i}{stroke:${colour[mode]};fill:${colour[mode]}}`)
      .join('');
  const about = `${machine.processor}, ${machine.cores} cores, Node ${machine.node}; median of rounds (${options.rounds}, of ${options.seconds} s), lowest to highest; ${startedAt.slice(0, 10)}`;
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" role="img" aria-label="Throughput by number of clients" font-family="system-ui, sans-serif">
<style>
.bg{fill:#ffffff}.t{fill:#1f2937}.m{fill:#4b5563}.g{stroke:#e5e7eb}${colours(0)}
@media (prefers-color-scheme: dark){.bg{fill:#0f172a}.t{fill:#e5e7eb}.m{fill:#9ca3af}.g{stroke:#334155}${colours(1)}}
.l{fill:none;stroke-width:2}.w{stroke-width:1;opacity:.6}.g{stroke-width:1}
</style>
<rect class="bg" width="${width}" height="${height}"/>
<text class="t" x="14" y="26" font-size="16" font-weight="600">Transactions per second by number of clients</text>
${legend(peers)}
${groups.map((cells, i) => panel(cells, peers, (i % COLUMNS) * PANEL.width, HEADER + Math.floor(i / COLUMNS) * PANEL.height)).join('\n')}
<text class="m" x="14" y="${height - 12}" font-size="10">${escaped(about)}</text>
</svg>
`;
}

function coloursOf(peers: readonly string[]): Colour[] {
  let others = 0;
  return peers.map((peer) => COLOURS[peer] ?? (MORE_COLOURS[others++ % MORE_COLOURS.length] as Colour));
}

function legend(peers: readonly string[]): string {
  let x = 14;
  return peers
    .map((peer, i) => {
      const at = x;
      x += 34 + peer.length * 7;
      return `<line class="p${i} l" x1="${at}" y1="46" x2="${at + 18}" y2="46"/><text class="t" x="${at + 23}" y="50" font-size="12">${escaped(peer)}</text>`;
    })
    .join('');
}

/** The next of 1, 2, 5, 10, 20 … that is not below. */
export function roundUp(value: number): number {
  const power = 10 ** Math.floor(Math.log10(Math.max(1, value)));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value) as number;
}

function panel(cells: readonly CellResult[], peers: readonly string[], x0: number, y0: number): string {
  const [first] = cells as [CellResult];
  const plot = {
    x: x0 + PANEL.left,
    y: y0 + PANEL.top,
    width: PANEL.width - PANEL.left - PANEL.right,
    height: PANEL.height - PANEL.top - PANEL.bottom,
  };
  const highest = Math.max(1, ...cells.flatMap(({ samples }) => samples.map(({ tps }) => tps)));
  const step = roundUp(highest / 5);
  const lines = Math.ceil(highest / step);
  const top = step * lines;
  const yOf = (tps: number) => plot.y + plot.height * (1 - tps / top);
  // Numbers of clients stand at equal distances: each is several times the one before it.
  const xOf = (i: number) => plot.x + (plot.width * (i + 0.5)) / cells.length;
  const [workload, how] = titleOf(first);
  const out = [
    `<text class="t" x="${x0 + 14}" y="${y0 + 18}" font-size="12" font-weight="600">${escaped(workload)}</text>`,
    `<text class="m" x="${x0 + 14}" y="${y0 + 33}" font-size="11">${escaped(how)}</text>`,
  ];
  for (let line = 0; line <= lines; line++) {
    const value = step * line;
    const y = n(yOf(value));
    out.push(`<line class="g" x1="${plot.x}" y1="${y}" x2="${plot.x + plot.width}" y2="${y}"/>`);
    out.push(
      `<text class="m" x="${plot.x - 6}" y="${n(yOf(value) + 3)}" font-size="10" text-anchor="end">${value.toLocaleString('en')}</text>`,
    );
  }
  for (const [i, { clients }] of cells.entries())
    out.push(
      `<text class="m" x="${n(xOf(i))}" y="${plot.y + plot.height + 14}" font-size="10" text-anchor="middle">${clients}</text>`,
    );
  for (const [p, peer] of peers.entries()) {
    const points: string[] = [];
    for (const [i, cell] of cells.entries()) {
      const spread = figureOf(cell, peer, ({ tps }) => tps);
      if (spread === null) continue;
      const [x, y] = [n(xOf(i)), n(yOf(spread.median))];
      points.push(`${x},${y}`);
      out.push(`<line class="p${p} w" x1="${x}" y1="${n(yOf(spread.low))}" x2="${x}" y2="${n(yOf(spread.high))}"/>`);
      out.push(`<circle class="p${p}" cx="${x}" cy="${y}" r="2.5"/>`);
    }
    if (points.length > 1) out.push(`<polyline class="p${p} l" style="fill:none" points="${points.join(' ')}"/>`);
  }
  return out.join('\n');
}
