import type { KeyTuple, Position } from '../../topology/key.js';
import type {
  ColumnSplit,
  KeyspaceName,
  RangeReplica,
  ShardName,
  TableName,
  Topology,
} from '../../topology/topology.js';
import type { Pace } from './pace.js';

/**
 * What the router knows of one statement of a template, without its values: plain data, made once per template by
 * parsing, then cached. It depends on which tables are sharded (the registry), not on who owns which range, so a flip does not
 * invalidate it.
 */
export interface StatementPlan {
  readonly kind: 'read' | 'write' | 'ddl' | 'utility';
  /** PostgreSQL's command tag word, upper case: SELECT, INSERT, BEGIN, CREATE TABLE … */
  readonly command: string;
  /** Byte offsets of the statement in its query string, without the semicolon. Of the text the plan was made from: for replays use the ones computed per text. */
  readonly target: Target;
  readonly effect: SessionEffect | null;
  /** Why the session must keep its server connection from here on (temporary table, LISTEN, advisory lock …), or null. */
  readonly pin: string | null;
  /** Calls currval or lastval, itself or in defaults of columns: the answer depends on what the session drew before on its server connection. */
  readonly asksSequences?: 'itself' | 'defaults';
  /** No number of a sequence is drawn by it or by what it sets off, such as defaults and triggers. */
  readonly drawsNothing?: true;
  /** Defaults, triggers or checks that it sets off tell when its transaction began, perhaps; `by-default`: where its text says DEFAULT. */
  readonly setsOffTelling?: 'always' | 'by-default';
  /** What it leaves on its server connection (temporary objects, locks) is known only by asking that afterwards. */
  readonly unsureOfState?: true;
  /** Something that it runs executes texts, which may have changed any setting. */
  readonly executesText?: true;
  /** Shows prepared statements, or uses one in a way that cannot be put in other words. */
  readonly showsPrepared?: true;
  /** DDL that makes temporary objects: other sessions see nothing of it. */
  readonly temporary?: true;
  /** The plan depends on the literals of the text, so that it is not the template's. */
  readonly ofLiterals?: true;
  /** Calls set_config for the transaction alone. */
  readonly setsLocally?: true;
  /** Calls pg_notify. */
  readonly notifies?: true;
  /** Calls pg_listening_channels, which tells of the server connection. */
  readonly showsChannels?: true;
  /** A query that does nothing but read or change rows, and draw numbers of sequences, as far as its session and server connection are concerned. */
  readonly plain?: true;
  /** It may share a server connection with other clients' reads ({@link isLaneSafe}). */
  readonly laneSafe?: true;
  /** It is refused wherever data is. */
  readonly forbidden?: Refusal;
}

/** The reason for which a session is pinned whose server connection listens for it. */
export const LISTENS_ITSELF = 'LISTEN in a function';

/** The reason for which a session is pinned on whose server connection a function has changed settings, perhaps unseen. */
export const SETTINGS_OF_FUNCTION = 'settings of a function';

/** What a target may have besides the key; all of it only matters when data is on several shards. */
export interface TargetExtras {
  /** Reads or writes tables that only the home shard has: the keys must be there too. */
  readonly home?: true;
  /** The sharded table that does so by its triggers, defaults, checks and the like: for words. */
  readonly homeBehind?: string;
  /** Keyspaces without a key, reached through what only the home shard has (a view, a function, DDL): for words. */
  readonly atHome?: readonly KeyspaceName[];
  /** Reference tables read: the shard must have a copy. */
  readonly referenceReads?: readonly TableName[];
  /** Keys of other keyspaces: on the same shard, or refused. */
  readonly also?: readonly { readonly keyspace: KeyspaceName; readonly keys: readonly KeySource[] }[];
  /** An UPDATE gives key columns a value: all keys must be equal, or refused. */
  readonly sameKey?: true;
  /** INSERT: a key that is NULL, or cannot be decoded, is refused in words of its own. */
  readonly inserts?: true;
  /** A query that the home shard can answer when it has the rows of all its sharded tables; or why not. */
  readonly gather?: 'possible' | Refusal;
  /** It is about more than the base half of a table whose columns are split; the hot table's keyspace is in `also`, or among the keyspaces. */
  readonly halves?: Halves;
}

/** A statement about a table whose columns are split, and about more than its base half. On a shard that has both halves of all its rows it is as any other. */
export interface Halves {
  readonly table: TableName;
  readonly split: ColumnSplit;
  /** Of the hot table. */
  readonly keyspace: KeyspaceName;
  /** Of the table. */
  readonly base: KeyspaceName;
  /** What is to be done while its halves are on different shards. */
  readonly apart: /** It is only about the hot half: it goes where that is, with the hot table's name. */
    | { readonly kind: 'hot' }
    /** It reads both: as `gather` says. */
    | { readonly kind: 'gather' }
    | HalvesWrite
    | { readonly kind: 'refused'; readonly refusal: Refusal };
  /** Something that it sets off may reach the table, whichever rows: all halves must be together. */
  readonly behind?: true;
}

/** It changes, or locks, both halves: it runs where the base half is, as it came. */
export interface HalvesWrite {
  readonly kind: 'write';
  /** It reads hot columns of rows that are there: they are brought first. */
  readonly brings: boolean;
  /** It only locks. */
  readonly locks: boolean;
  /** Hot columns that its UPDATE gives values, in the order of the split. */
  readonly assigned: readonly string[];
}

/** Where the values of the key come from; resolved per execution. */
export type Target =
  /** Every sharded relation is pinned by these keys. Several keys (IN, several VALUES rows): all must be on one shard, else `spread` says what is possible. */
  | ({
      readonly kind: 'keys';
      readonly keyspace: KeyspaceName;
      readonly keys: readonly KeySource[];
      readonly spread: Spread;
      readonly referenceWrites: readonly TableName[];
    } & TargetExtras)
  /** Sharded relations, not pinned. */
  | ({
      readonly kind: 'unpinned';
      readonly keyspaces: readonly KeyspaceName[];
      readonly spread: Spread;
      readonly referenceWrites: readonly TableName[];
    } & TargetExtras)
  /** Only reference tables (read), or no table at all, or catalogs. `homeOnly`: tables that belong to no keyspace, or catalogs. */
  | {
      readonly kind: 'any';
      readonly homeOnly: boolean;
      readonly referenceReads: readonly TableName[];
      readonly referenceWrites: readonly TableName[];
    }
  /** Not understood well enough to be exact when data is on several shards (DDL, DO, views over sharded tables, unknown functions …). Fine on a sole shard. */
  | { readonly kind: 'sole'; readonly refusal: Refusal };

/** What may be done when the keys are on several shards. */
export type Spread =
  | {
      readonly kind: 'fanout';
      /** Which rows are whose: each shard answers for those of its own, whatever else it has while ranges move. */
      readonly of: OwnedBy;
      /** Only when these values leave every row in: zero or NULL as an OFFSET, NULL as a LIMIT. Else the refusal. */
      readonly uncut?: {
        readonly limit: KeyColumnSource | null;
        readonly offset: KeyColumnSource | null;
        readonly refusal: Refusal;
      };
      /** Its tables are of several keyspaces: only while these have the same layout. */
      readonly together?: true;
    }
  | { readonly kind: 'refused'; readonly refusal: Refusal };

/** Whose rows a table has is seen by its key. */
export interface OwnedBy {
  readonly keyspace: KeyspaceName;
  /** As the statement refers to it. */
  readonly name: string;
  /** In the keyspace's order. */
  readonly keyColumns: readonly string[];
}

export interface Refusal {
  /** 0A000 unless PostgreSQL has a better one. */
  readonly sqlstate: string;
  readonly message: string;
  readonly hint?: string;
}

/** One key: one source per key column. */
export type KeySource = readonly KeyColumnSource[];
export type KeyColumnSource =
  /** The literal with this ordinal among the template's literals; `negated` when a minus sign stands before it. `castType`: pg_type name of an explicit cast, or null. */
  | {
      readonly kind: 'literal';
      readonly ordinal: number;
      readonly negated: boolean;
      readonly castType: string | null;
      /** It is an array (= ANY), and each element is a value; `castType` is that of the elements. */
      readonly array?: true;
    }
  /** Parameter $number, from 1. */
  | {
      readonly kind: 'param';
      readonly number: number;
      readonly castType: string | null;
      /** It is an array (= ANY), and each element is a value; `castType` is that of the elements. */
      readonly array?: true;
      /** It is used elsewhere too, where the server may have taken its type from: only its text form is sure, or an array's binary form. */
      readonly shared?: true;
    };

/** What a statement does to the session, so that the proxy can follow it. */
export type SessionEffect =
  | { readonly kind: 'begin' }
  | { readonly kind: 'commit'; readonly chain: boolean }
  | { readonly kind: 'rollback'; readonly chain: boolean }
  | { readonly kind: 'savepoint' | 'release' | 'rollback-to'; readonly name: string }
  /** SET [SESSION] / SET LOCAL / RESET, replayed as text on another connection. `name` null: RESET ALL. `name` `role`/`session_authorization` included. */
  | { readonly kind: 'set'; readonly name: string | null; readonly local: boolean; readonly reset: boolean }
  /** SET SESSION CHARACTERISTICS: settings under other names, with their values. */
  | { readonly kind: 'set-many'; readonly settings: readonly { readonly name: string; readonly value: string }[] }
  /** Calls of set_config whose setting is written there. `value` null: it has to be asked for. */
  | { readonly kind: 'set-config'; readonly calls: readonly SetConfigCall[] }
  | { readonly kind: 'discard-all' }
  /** PREPARE: its statement is in the text (`prepareParts`). `oids`: declared types. */
  | { readonly kind: 'prepare'; readonly name: string; readonly oids: readonly number[] }
  /** EXECUTE, or EXPLAIN EXECUTE, or CREATE TABLE AS EXECUTE. An argument that is not a constant is null. */
  | {
      readonly kind: 'execute';
      readonly name: string;
      readonly form: 'execute' | 'explain' | 'create';
      readonly args: readonly (KeyColumnSource | 'null' | null)[];
    }
  | { readonly kind: 'listen'; readonly channel: string }
  /** `channel` null: all. */
  | { readonly kind: 'unlisten'; readonly channel: string | null }
  | { readonly kind: 'deallocate'; readonly name: string | null };

export interface SetConfigCall {
  readonly name: KeyColumnSource;
  readonly value: KeyColumnSource | null;
  /** Until the end of the transaction. */
  readonly local: boolean;
}

/**
 * A literal or parameter as the lexer found it, in byte offsets of the query text. `backslash`: a plain string with a backslash in it,
 * while standard_conforming_strings is off.
 */
export interface LiteralToken {
  readonly kind:
    | 'string'
    | 'estring'
    | 'ustring'
    | 'dollar'
    | 'integer'
    | 'float'
    | 'bit'
    | 'hex'
    | 'backslash'
    /** NULL, true and false where they are a column of an INSERT's row. */
    | 'null'
    | 'boolean';
  readonly start: number;
  readonly end: number;
}

/** One statement of an analysed query string. */
export interface AnalyzedStatement {
  readonly plan: StatementPlan;
  /** Byte offsets of the statement in this text, for replaying it alone. */
  readonly start: number;
  readonly end: number;
}

/** A query string, looked up by its template. */
export interface Analyzed {
  /** Normalised text with literals lifted out; the name under which load is counted. */
  readonly template: string;
  /** The text the client sent (bytes as received). */
  readonly text: Buffer;
  readonly literals: readonly LiteralToken[];
  /** Empty for an empty query. */
  readonly statements: readonly AnalyzedStatement[];
  /** How fast executions of the template were. */
  readonly pace: Pace;
  /** standard_conforming_strings. */
  readonly conforming: boolean;
  /** PostgreSQL could not parse it: send it to any server, which will say so in its own words. */
  readonly syntaxError: boolean;
  /** The same text, analysed again for another schema, or other sharded tables ({@link Router.refresh}). */
  again?: Analyzed | undefined;
}

/** Where a read that may share a server connection goes, at one topology. Its own footprint, see `Footprint`. */
export interface LaneRoute {
  /** As in `Analyzed`. */
  readonly template: string;
  readonly pace: Pace;
  readonly topology: Topology;
  readonly shard: ShardName;
  readonly touches: readonly Touch[];
  readonly everything: boolean;
  readonly writesReference: false;
  /** `shard` is not the owner, but has a replica. */
  readonly replica?: RangeReplica;
}

/** Values of a Bind, for key extraction. */
export interface BoundParams {
  /** Type OIDs given in Parse; 0 or missing when left to the server. */
  readonly oids: readonly number[];
  /** Format codes as in Bind, expanded to one per parameter: 0 text, 1 binary. */
  readonly formats: readonly number[];
  /** null for SQL NULL; missing, although there is a format: not known (yet). */
  readonly values: readonly (Buffer | null)[];
}

/** A place that an execution touches; for load counts and for holds. `position` null: anywhere in the keyspace. */
export interface Touch {
  readonly keyspace: KeyspaceName;
  readonly position: Position | null;
  /** The key at that position, when there is one. */
  readonly key?: KeyTuple;
}

/** Where one execution goes, at one epoch. */
export type Route =
  | {
      readonly kind: 'shard';
      readonly shard: ShardName;
      readonly touches: readonly Touch[];
      readonly writes: boolean;
      readonly writesReference: boolean;
      readonly why: string;
      /** It is sent with the name of the hot table in place of the table's (`Router.hotText`). */
      readonly hot?: Halves;
    }
  /** It writes, or locks, both halves of rows: `shard` has the base half, `hotShard`, which is another one, the hot half. */
  | {
      readonly kind: 'halves';
      readonly shard: ShardName;
      readonly hotShard: ShardName;
      readonly halves: Halves & { readonly apart: HalvesWrite };
      /** Of both keyspaces. */
      readonly touches: readonly Touch[];
      readonly writes: true;
      readonly writesReference: false;
      readonly why: string;
    }
  /** Any of these shards; the first is preferred, a shard already leased is better still. */
  | {
      readonly kind: 'any';
      readonly shards: readonly ShardName[];
      readonly touches: readonly Touch[];
      readonly writes: boolean;
      readonly writesReference: boolean;
      readonly why: string;
    }
  | {
      readonly kind: 'fanout';
      readonly shards: readonly ShardName[];
      /** By shard, the condition that is true of the rows that it owns. */
      readonly own: ReadonlyMap<ShardName, string>;
      readonly touches: readonly Touch[];
      readonly writes: false;
      readonly writesReference: false;
      readonly why: string;
    }
  /** The home shard answers it, from its own tables and from rows of these shards. */
  | {
      readonly kind: 'gather';
      readonly shards: readonly ShardName[];
      readonly touches: readonly Touch[];
      readonly writes: false;
      readonly writesReference: false;
      readonly why: string;
    }
  | { readonly kind: 'refused'; readonly refusal: Refusal; readonly why: string };
