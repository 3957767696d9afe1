/** SVG pieces for the HTML report. Colours come from the page's CSS, by class, so that both themes fit. */

const ENTITIES: Readonly<Record<string, string>> = {
  '&': '&amp;',
  '<': '&lt;',
  '>': '&gt;',
  '"': '&quot;',
  "'": '&#39;',
};

/** Text for HTML content and attributes. */
export function escapeHtml(text: string): string {
  return text.replace(/[&<>"']/g, (c) => ENTITIES[c] as string);
}

export interface Scale {
  (value: number): number;
  readonly domain: readonly [number, number];
}

export function linear(domain: readonly [number, number], range: readonly [number, number]): Scale {
  const slope = domain[1] === domain[0] ? 0 : (range[1] - range[0]) / (domain[1] - domain[0]);
  return Object.assign((value: number) => range[0] + (value - domain[0]) * slope, { domain });
}

/** Round numbers from 0 to `max`, about `count` of them. */
export function ticks(max: number, count: number): number[] {
  if (!(max > 0)) return [0];
  const raw = max / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = ([1, 2, 2.5, 5, 10].find((m) => m * power >= raw) as number) * power;
  return Array.from({ length: Math.floor(max / step + 1e-9) + 1 }, (_, i) => i * step);
}

export function n(value: number): string {
  return (Math.round(value * 10) / 10).toString();
}

/** A line through the points; lifted where the distance in x is more than `gap`. */
export function path(xs: readonly number[], ys: readonly number[], gap = Infinity): string {
  return xs
    .map((x, i) => `${i === 0 || x - (xs[i - 1] as number) > gap ? 'M' : 'L'}${n(x)} ${n(ys[i] as number)}`)
    .join('');
}

/** The area between two lines. */
export function band(xs: readonly number[], low: readonly number[], high: readonly number[]): string {
  const there = xs.map((x, i) => `${i === 0 ? 'M' : 'L'}${n(x)} ${n(high[i] as number)}`);
  const back = [...xs.keys()].reverse().map((i) => `L${n(xs[i] as number)} ${n(low[i] as number)}`);
  return `${there.join('')}${back.join('')}Z`;
}
