import type { Analyzed } from '../router/route.js';
import type { Lookup } from './name-lookup.js';

/** What a Parse said, shared by all clients that said the same: server connections remember what they prepared by this object. */
export interface PreparedContent {
  readonly sql: Buffer;
  readonly oids: readonly number[];
  /** Prepared by PREPARE: what stands behind the name there. Null: by a Parse. */
  readonly definition: Buffer | null;
  /** Clients' statements and portals that use it. */
  users: number;
  readonly key: string;
}

/** A client's statement, as the client named it. */
export interface ClientStatement {
  readonly content: PreparedContent;
  /** As names are looked up now; see `lookup`. */
  analyzed: Analyzed;
  /** What names meant when it was analysed. PostgreSQL analyses a prepared statement again too when search_path has changed. */
  lookup: Lookup;
}

/** One object per content, for as long as a client uses it. */
export class PreparedContents {
  readonly #byKey = new Map<string, PreparedContent>();

  /** `definition`: of a PREPARE, what stands behind the name. */
  acquire(sql: Buffer, oids: readonly number[], definition: Buffer | null = null): PreparedContent {
    const key =
      definition === null
        ? `${oids.join(',')}\0${sql.toString('latin1')}`
        : `PREPARE\0${definition.toString('latin1')}`;
    let content = this.#byKey.get(key);
    if (!content) {
      content = {
        sql: Buffer.from(sql),
        oids,
        definition: definition === null ? null : Buffer.from(definition),
        users: 0,
        key,
      };
      this.#byKey.set(key, content);
    }
    content.users += 1;
    return content;
  }

  release(content: PreparedContent): void {
    content.users -= 1;
    if (content.users === 0) this.#byKey.delete(content.key);
  }
}
