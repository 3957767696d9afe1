/** The load's shape: one entry per step, repeated when the load lasts longer. */
export interface LoadShape {
  readonly stepMs: number;
  /** Statements per second wanted, by step. */
  readonly rates: readonly number[];
  /** Share of each tenant group, by step. */
  readonly weights: readonly (readonly number[])[];
}

export interface LoadOptions {
  /** Where an application would connect: the proxy. */
  readonly url: string;
  readonly connections: number;
  readonly tenants: number;
  /** Orders that were loaded for each tenant, by tenant from 1 (index 0 unused). */
  readonly loadedOrders: readonly number[];
  readonly shape: LoadShape;
  readonly journalPath: string;
}
