/** Something that is where it should not be, or not as it should be. */
export interface AuditFinding {
  /** What it is: `slot`, `rows`, `hold` … */
  readonly kind: string;
  /** Shard that has it; empty for the catalog. */
  readonly shard: string;
  /** Its name. */
  readonly object: string;
  readonly text: string;
  /** What to do about it, if not `--repair`. */
  readonly remedy: string;
  /** Takes it away; null: only a person can judge that. To be called at a time when it is still there, or not any more. */
  readonly repair: (() => Promise<void>) | null;
}
