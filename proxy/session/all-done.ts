/** Waits for all of these, whatever becomes of some: nothing goes on behind a failure. @throws what the first of them in order has failed with */
export async function allDone<const T extends readonly Promise<unknown>[]>(
  works: T,
): Promise<{ -readonly [K in keyof T]: Awaited<T[K]> }> {
  await Promise.allSettled(works);
  return Promise.all(works);
}
