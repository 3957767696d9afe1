import type pg from 'pg';
import { listSql, loadSql } from '../../sql/load.js';
import { errorCode, explainConnectError, redactUrl } from '../connection.js';
import { CatalogUnavailableError, ForeshardError, UsageError } from '../errors.js';

/** Serialises processes that initialise one catalog at once. Any constant does; these are the letters "fore". */
const INIT_LOCK = 0x666f7265;
/** NULLS NOT DISTINCT and row filters came with PostgreSQL 15. */
export const MIN_SERVER_VERSION = 150000;

interface SchemaStep {
  readonly version: number;
  readonly file: string;
}

function schemaSteps(): SchemaStep[] {
  return listSql('catalog').map((name, i) => {
    const version = Number(/^(\d{3})_/.exec(name)?.[1]);
    if (version !== i + 1) throw new Error(`sql/catalog/${name}: expected a file numbered ${i + 1}`);
    return { version, file: `catalog/${name}` };
  });
}

/** Version of the catalog's schema that this program knows. */
export function currentSchemaVersion(): number {
  return schemaSteps().length;
}

/**
 * Creates the catalog's schema, or brings an older one up to date, in one transaction. Idempotent; processes that do it
 * at the same time wait for one another.
 * @param database the database name that clients will connect to; fixed once the catalog exists
 * @throws ForeshardError when the catalog was made by a newer program or for another database
 */
export async function initCatalog(pool: pg.Pool, database: string): Promise<void> {
  if (database === '' || database.includes('\0') || Buffer.byteLength(database) > 63)
    throw new UsageError(`"${database}" cannot be the name of a database`, 'Use a name of 1 to 63 bytes.');
  let client: pg.PoolClient;
  try {
    client = await pool.connect();
  } catch (error) {
    const { reason, hint } = explainConnectError(error);
    const where = redactUrl(pool.options.connectionString ?? 'its server');
    throw new CatalogUnavailableError(`cannot connect to the catalog at ${where}: ${reason}`, { hint, cause: error });
  }
  try {
    await client.query('BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE');
    await client.query('SELECT pg_advisory_xact_lock($1)', [INIT_LOCK]);
    await applySteps(client, database);
    await client.query('COMMIT');
    client.release();
  } catch (error) {
    // The connection is thrown away, and its transaction with it: nothing half done stays.
    client.release(true);
    if (errorCode(error) !== '42501') throw error;
    throw new ForeshardError('42501', `the catalog cannot be created: ${(error as Error).message}`, {
      hint: 'Let its user CREATE in the database: GRANT CREATE ON DATABASE ... TO ...',
      cause: error,
    });
  }
}

async function applySteps(client: pg.PoolClient, database: string): Promise<void> {
  const found = await client.query<{ version: number; schema: boolean; meta: boolean }>(
    `SELECT current_setting('server_version_num')::int AS version,
            to_regnamespace('foreshard') IS NOT NULL AS schema, to_regclass('foreshard.meta') IS NOT NULL AS meta`,
  );
  const server = found.rows[0];
  if (server === undefined || server.version < MIN_SERVER_VERSION)
    throw new ForeshardError('0A000', 'the catalog needs PostgreSQL 15 or later', { hint: 'Use a newer server.' });
  if (server.schema && !server.meta)
    throw new ForeshardError('42P06', 'the database has a schema "foreshard" that is not a catalog', {
      hint: 'Use another database for the catalog, or rename that schema.',
    });

  let version = 0;
  if (server.meta) {
    const meta = (
      await client.query<{ schema_version: number; database: string }>(
        'SELECT schema_version, database FROM foreshard.meta',
      )
    ).rows[0];
    if (meta === undefined)
      throw new ForeshardError('XX001', 'the catalog is damaged: foreshard.meta is empty', {
        hint: 'Restore it from a backup.',
      });
    if (meta.database !== database)
      throw new ForeshardError('42P04', `this catalog belongs to the database "${meta.database}", not "${database}"`, {
        hint: `Use "${meta.database}", or another catalog database for "${database}".`,
      });
    version = meta.schema_version;
  }

  const steps = schemaSteps();
  if (version > steps.length)
    throw new ForeshardError(
      '0A000',
      `the catalog has schema version ${version}, this program knows only ${steps.length}`,
      {
        hint: 'Run a Foreshard at least as new as the one that made the catalog.',
      },
    );
  for (const step of steps) if (step.version > version) await client.query(loadSql(step.file));
  if (server.meta)
    await client.query('UPDATE foreshard.meta SET schema_version = $1 WHERE schema_version <> $1', [steps.length]);
  else
    await client.query('INSERT INTO foreshard.meta (schema_version, database) VALUES ($1, $2)', [
      steps.length,
      database,
    ]);
}
