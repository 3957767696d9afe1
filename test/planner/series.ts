/** A small seeded generator of normal deviates (Box–Muller over mulberry32): the same noise in every run. */
function noise(seed: number): () => number {
  let state = seed;
  const uniform = () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4_294_967_296;
  };
  return () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
}

/** Hourly load with a day and a week in it, and multiplicative noise: mean about `level`. */
export function hourly(hours: number, level: number, sigma: number, seed = 1): Float64Array {
  const next = noise(seed);
  return Float64Array.from({ length: hours }, (_, t) => {
    const day = 1 + 0.6 * Math.sin((2 * Math.PI * t) / 24);
    const week = Math.floor(t / 24) % 7 < 5 ? 1.1 : 0.7;
    return level * day * week * Math.exp(sigma * next());
  });
}
