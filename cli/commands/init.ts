import pg from 'pg';
import type { CommandModule } from 'yargs';
import { Catalog } from '../../topology/catalog/catalog.js';
import { initCatalog } from '../../topology/catalog/schema.js';
import { errorCode, explainConnectError, redactUrl } from '../../topology/connection.js';
import { CatalogUnavailableError } from '../../topology/errors.js';
import { quoteIdent } from '../../topology/quote.js';
import { openCatalog } from '../command.js';
import { type GlobalArgs, type JsonArgs, jsonOption, withHelp } from '../options.js';
import { printJson, printLine } from '../output.js';
import { readConfig } from '../read-config.js';

interface InitArgs extends JsonArgs {
  readonly database?: string | undefined;
}

export const initCommand: CommandModule<GlobalArgs, InitArgs> = {
  builder: (y) =>
    withHelp(
      jsonOption(y).option('database', {
        type: 'string',
        requiresArg: true,
        describe: 'Database name that clients will connect to; default: "database" of the configuration, app',
      }),
      ['init --catalog postgresql://postgres@db1/foreshard --database shop', 'A catalog for the database "shop"'],
    ),
  handler: async (args) => {
    const config = readConfig(args);
    const createdDatabase = await ensureDatabase(config.catalogUrl);
    const pool = Catalog.pool(config.catalogUrl);
    try {
      await initCatalog(pool, args.database ?? config.database);
    } finally {
      await pool.end();
    }
    const catalog = await openCatalog(config);
    try {
      const { database, epoch } = await catalog.loadTopology();
      if (args.json) printJson({ catalog: redactUrl(config.catalogUrl), database, epoch, createdDatabase });
      else
        printLine(
          `The catalog in ${redactUrl(config.catalogUrl)} is ready, for the database "${database}" (epoch ${epoch}).`,
        );
    } finally {
      await catalog.close();
    }
  },
};

/** Creates the catalog's database when the server has none of that name. @returns whether it did */
async function ensureDatabase(catalogUrl: string): Promise<boolean> {
  const exists = await tryConnect(catalogUrl, async () => true);
  if (exists) return false;
  const url = new URL(catalogUrl);
  const name = decodeURIComponent(url.pathname.slice(1));
  url.pathname = '/postgres';
  await tryConnect(url.href, async (client) => {
    try {
      await client.query(`CREATE DATABASE ${quoteIdent(name)}`);
    } catch (error) {
      // Somebody else may have made it in this very moment: 42P04, or 23505 from the index of pg_database.
      if (!['42P04', '23505'].includes(errorCode(error)))
        throw new CatalogUnavailableError(
          `cannot create the catalog's database "${name}": ${(error as Error).message}`,
          {
            hint: `Create it yourself: CREATE DATABASE ${quoteIdent(name)}.`,
            cause: error,
          },
        );
    }
    return true;
  });
  return true;
}

/** Runs `work` on a connection to `url`; false when the database does not exist. */
async function tryConnect(url: string, work: (client: pg.Client) => Promise<boolean>): Promise<boolean> {
  const client = new pg.Client({
    connectionString: url,
    connectionTimeoutMillis: 10_000,
    application_name: 'foreshard',
  });
  try {
    await client.connect();
  } catch (error) {
    if (errorCode(error) === '3D000') return false;
    const { reason, hint } = explainConnectError(error);
    throw new CatalogUnavailableError(`cannot use the catalog at ${redactUrl(url)}: ${reason}`, { hint, cause: error });
  }
  try {
    return await work(client);
  } finally {
    await client.end();
  }
}
