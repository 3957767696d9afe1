/** The step-by-step median of several forecasts; of two, their mean. */
export function medianOf(forecasts: readonly Float64Array[]): Float64Array {
  const first = forecasts[0];
  if (first === undefined) return new Float64Array(0);
  return first.map((_, i) => {
    const column = forecasts.map((f) => f[i] as number).sort((a, b) => a - b);
    const mid = column.length >> 1;
    return column.length % 2 === 1
      ? (column[mid] as number)
      : ((column[mid - 1] as number) + (column[mid] as number)) / 2;
  });
}
