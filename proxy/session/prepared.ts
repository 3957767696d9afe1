import type { Analyzed } from '../router/route.js';
import { decodeRowDescription } from '../wire/backend.js';
import { BACKEND } from '../wire/message-types.js';
import type { HotStatement } from './hot-statement.js';
import type { Lookup } from './name-lookup.js';

/** What a Parse said, shared by all clients that said the same: server connections remember what they prepared by this object. */
export interface PreparedContent {
  readonly sql: Buffer;
  readonly oids: readonly number[];
  /** Prepared by PREPARE: what stands behind the name there. Null: by a Parse. */
  readonly definition: Buffer | null;
  /** Clients' statements and portals that use it. */
  users: number;
  /** The RowDescription that came last, and its shape: nearly always the next one is the same. */
  described: { readonly frame: Buffer; readonly shape: string } | null;
  readonly key: string;
}

/** A client's statement, as the client named it. */
export interface ClientStatement {
  readonly content: PreparedContent;
  /** As names are looked up now; see `lookup`. */
  analyzed: Analyzed;
  /** What names meant when it was analysed. PostgreSQL analyses a prepared statement again too when search_path has changed. */
  lookup: Lookup;
  /** The columns that the client was told last, and at which version of the schema; null: it was told none. */
  told: { readonly shape: string; readonly version: number } | null;
  /** PREPARE as the client sent it, and how many characters stood there before what follows the name. Null: prepared by Parse. */
  readonly source: { readonly text: Buffer; readonly before: number } | null;
  /** It is more than a Parse that has yet to be sent. */
  made: boolean;
  /** The unnamed statement before it, as long as the server may yet skip its Parse. */
  replaced: ClientStatement | null;
  /** Its Parse was not done: it was never there. */
  undone: boolean;
  released: boolean;
  /** As it was last said to a hot table; null: it never was. */
  hot: HotStatement | null;
}

/** What a client must know of a result to read its rows, from a RowDescription or NoData. Object ids differ from shard to shard. */
export function shapeOf(type: number, frame: Buffer): string {
  if (type !== BACKEND.RowDescription) return '';
  return decodeRowDescription(frame)
    .map((f) => [f.name, f.typeOid < FIRST_NORMAL_OBJECT_ID ? f.typeOid : '', f.typeLength, f.typeModifier].join('\0'))
    .join('\x01');
}

/** As `shapeOf`, for drivers that have every execution described. */
export function shapeFor(content: PreparedContent, type: number, frame: Buffer): string {
  if (type !== BACKEND.RowDescription) return '';
  if (content.described?.frame.equals(frame) !== true)
    content.described = { frame: Buffer.from(frame), shape: shapeOf(type, frame) };
  return content.described.shape;
}

/** FirstNormalObjectId in PostgreSQL's transam.h: from here on types are the database's own. */
const FIRST_NORMAL_OBJECT_ID = 16_384;

/** A text without any means the same with standard_conforming_strings on and off. */
export const BACKSLASH = 0x5c;

/** One object per content, for as long as a client uses it. */
export class PreparedContents {
  readonly #byKey = new Map<string, PreparedContent>();
  #version = 0;

  /** Grows when the schema has changed: what servers prepared before may be for another one. */
  get version(): number {
    return this.#version;
  }

  /** DDL has been done, or committed. */
  schemaChanged(): void {
    this.#version += 1;
  }

  /** `definition`: of a PREPARE, what stands behind the name. `conforming`: standard_conforming_strings, with which backslashes mean something else. */
  acquire(sql: Buffer, oids: readonly number[], definition: Buffer | null = null, conforming = true): PreparedContent {
    const reading = conforming || !sql.includes(BACKSLASH) ? '' : 'off\0';
    const key =
      definition === null
        ? `${reading}${oids.join(',')}\0${sql.toString('latin1')}`
        : `${reading}PREPARE\0${definition.toString('latin1')}`;
    let content = this.#byKey.get(key);
    if (!content) {
      content = {
        sql: Buffer.from(sql),
        oids,
        definition: definition === null ? null : Buffer.from(definition),
        users: 0,
        described: null,
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
