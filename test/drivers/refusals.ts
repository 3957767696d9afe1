/** Something a driver or an ORM does that several shards refuse today. */
export interface Refusal {
  readonly driver: string;
  /** What the application does. */
  readonly what: string;
  /** What the error says, or its beginning. */
  readonly message: string;
  readonly remedy: string;
}

export const REFUSALS: readonly Refusal[] = [];

export function refusalsOf(driver: string): readonly Refusal[] {
  return REFUSALS.filter((r) => r.driver === driver);
}
