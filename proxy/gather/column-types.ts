import { FIRST_NORMAL_OID } from '../router/metadata.js';
import type { FieldDescription } from '../wire/backend.js';

/** Whether rows of the one are rows of the other, as a client reads them. */
export function agree(made: readonly FieldDescription[], wanted: readonly FieldDescription[]): boolean {
  return (
    made.length === wanted.length &&
    made.every(
      ({ typeOid, typeModifier }, i) => typeOid === wanted[i]?.typeOid && typeModifier === wanted[i].typeModifier,
    )
  );
}

/** Whether the binary form of the one is that of the other, as far as types have the same OIDs everywhere. */
export function readAlike(sent: readonly FieldDescription[], taken: readonly FieldDescription[]): boolean {
  return (
    sent.length === taken.length &&
    sent.every(({ typeOid }, i) => {
      const other = taken[i]?.typeOid ?? 0;
      return typeOid === other || (typeOid >= FIRST_NORMAL_OID && other >= FIRST_NORMAL_OID);
    })
  );
}

/** Types that name objects by OIDs, and arrays of them: regproc, regprocedure, regoper, regoperator, regclass, regtype, regconfig, regdictionary, regnamespace, regrole, regcollation (pg_type.dat). */
export const OBJECT_TYPES: ReadonlySet<number> = new Set([
  24, 1008, 2202, 2207, 2203, 2208, 2204, 2209, 2205, 2210, 2206, 2211, 3734, 3735, 3769, 3770, 4089, 4090, 4096, 4097,
  4191, 4192,
]);

/** Whether they are within these types: as elements, fields, bounds, or under a domain. */
export const objectsWithin = (oids: readonly number[]) => `
WITH RECURSIVE within(part) AS (
  SELECT pg_catalog.unnest(ARRAY[${oids.join(', ')}]::pg_catalog.oid[])
  UNION
  SELECT p.part FROM within w JOIN pg_catalog.pg_type t ON t.oid = w.part CROSS JOIN LATERAL (
    SELECT t.typelem UNION ALL SELECT t.typbasetype
    UNION ALL SELECT a.atttypid FROM pg_catalog.pg_attribute a WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
    UNION ALL SELECT r.rngsubtype FROM pg_catalog.pg_range r WHERE t.oid IN (r.rngtypid, r.rngmultitypid)) p(part)
  WHERE p.part <> 0)
SELECT coalesce(pg_catalog.bool_or(part IN (${[...OBJECT_TYPES].join(', ')})), false) FROM within`;
