/**
 * Fills unknown steps (NaN: no proxy was counting) so that models can be fitted: with the mean of the same time one season
 * before and after where known, else by a straight line between the neighbours. Leading unknown steps are cut off.
 */
export function fillGaps(values: Float64Array, periods: readonly number[]): { values: Float64Array; unknown: number } {
  let start = 0;
  while (start < values.length && Number.isNaN(values[start])) start++;
  const filled = values.slice(start);
  const isUnknown = filled.map((v) => (Number.isNaN(v) ? 1 : 0));
  const unknown = isUnknown.reduce((a, b) => a + b, 0);
  if (unknown === 0) return { values: filled, unknown };
  const known = (i: number): number | null =>
    i >= 0 && i < filled.length && isUnknown[i] === 0 ? (filled[i] as number) : null;
  for (let i = 0; i < filled.length; i++) {
    if (isUnknown[i] === 0) continue;
    for (const p of [...periods].reverse()) {
      const seasons = [known(i - p), known(i + p)].filter((v) => v !== null);
      if (seasons.length === 0) continue;
      filled[i] = seasons.reduce((a, b) => a + b, 0) / seasons.length;
      break;
    }
    if (!Number.isNaN(filled[i])) continue;
    let [left, right] = [i - 1, i + 1];
    while (left >= 0 && isUnknown[left] === 1) left--;
    while (right < filled.length && isUnknown[right] === 1) right++;
    const a = known(left) ?? (known(right) as number);
    const b = known(right) ?? a;
    filled[i] = a + ((b - a) * (i - left)) / (right - left);
  }
  return { values: filled, unknown };
}
