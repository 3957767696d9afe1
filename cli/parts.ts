/** What `foreshard serve` can run, together or apart. */
export const PARTS = ['proxy', 'planner', 'migrator'] as const;
export type Part = (typeof PARTS)[number];
