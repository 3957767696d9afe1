/** Units of time as PostgreSQL's settings have them (GUC_UNIT_TIME in guc.c); ms. */
const UNITS: Readonly<Record<string, number>> = { us: 0.001, ms: 1, s: 1000, min: 60_000, h: 3_600_000, d: 86_400_000 };

/** The largest value of a setting of PostgreSQL. */
const MOST_MS = 2_147_483_647;

/** Reads `500ms`, `1.5 s`, `2min`, or a number of milliseconds, as PostgreSQL reads its settings. @returns whole ms, or null when it is none */
export function parseDuration(text: string): number | null {
  const match = /^\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-z]*)\s*$/.exec(text);
  const unit = match?.[2] === '' ? 1 : UNITS[match?.[2] ?? ''];
  if (match === null || unit === undefined) return null;
  const ms = Math.round(Number(match[1]) * unit);
  return ms <= MOST_MS ? ms : null;
}
