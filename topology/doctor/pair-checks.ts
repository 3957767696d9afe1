import { randomUUID } from 'node:crypto';
import { explainConnectError } from '../connection.js';
import { quoteIdent, quoteLiteral } from '../quote.js';
import { withShard } from '../shard-client.js';
import type { Shard } from '../topology.js';
import { error, type Finding, ok, warning } from './finding.js';
import type { ServerReport } from './server-report.js';

/** Settings that change what a statement answers; a session must find them the same on every shard. */
const ANSWER_SETTINGS = [
  'TimeZone',
  'DateStyle',
  'IntervalStyle',
  'bytea_output',
  'extra_float_digits',
  'standard_conforming_strings',
  'default_text_search_config',
  'default_transaction_isolation',
  'lc_messages',
  'lc_monetary',
  'lc_numeric',
  'lc_time',
  'search_path',
];

export interface Reported {
  readonly shard: Shard;
  readonly report: ServerReport;
}

/** How a shard differs from the home shard in what should be the same everywhere. */
export function compareWithHome(home: Reported, other: Reported): Finding[] {
  const object = `shard ${other.shard.name}`;
  return [
    ...compareEncoding(object, home.report, other.report),
    ...compareCollation(object, home.report, other.report),
    ...compareSettings(object, home.report, other.report),
    ...compareExtensions(object, home, other),
  ];
}

function compareEncoding(object: string, home: ServerReport, other: ServerReport): Finding[] {
  if (home.encoding === other.encoding) return [ok(object, `encoding is ${other.encoding}, as at home`)];
  return [
    error(
      object,
      `encoding is ${other.encoding}, at home it is ${home.encoding}`,
      `create the database anew with ENCODING '${home.encoding}'`,
    ),
  ];
}

function compareCollation(object: string, home: ServerReport, other: ServerReport): Finding[] {
  if (home.collation === other.collation) return [ok(object, 'collation is the same as at home')];
  return [
    warning(
      object,
      `collation is "${other.collation}", at home it is "${home.collation}": texts sort differently`,
      "create the database anew with the home database's locale",
    ),
  ];
}

function compareSettings(object: string, home: ServerReport, other: ServerReport): Finding[] {
  const differing = ANSWER_SETTINGS.filter((name) => home.settings[name] !== other.settings[name]);
  if (differing.length === 0) return [ok(object, 'settings that change answers are the same as at home')];
  return differing.map((name) =>
    warning(
      object,
      `${name} is "${other.settings[name] ?? ''}", at home it is "${home.settings[name] ?? ''}"`,
      `ALTER DATABASE ${quoteIdent(other.database)} SET ${name} = ${quoteLiteral(home.settings[name] ?? '')}`,
    ),
  );
}

function compareExtensions(object: string, home: Reported, other: Reported): Finding[] {
  const findings: Finding[] = [];
  const create = (name: string): string => `CREATE EXTENSION ${quoteIdent(name)}`;
  for (const [name, version] of Object.entries(home.report.extensions)) {
    const there = other.report.extensions[name];
    if (there === undefined)
      findings.push(
        warning(object, `extension "${name}" of the home shard is missing`, `${create(name)} on ${object}`),
      );
    else if (there !== version)
      findings.push(
        warning(
          object,
          `extension "${name}" is ${there}, at home it is ${version}`,
          `ALTER EXTENSION ${quoteIdent(name)} UPDATE where it is older`,
        ),
      );
  }
  for (const name of Object.keys(other.report.extensions))
    if (home.report.extensions[name] === undefined)
      findings.push(
        warning(
          object,
          `extension "${name}" is missing on the home shard`,
          `${create(name)} on shard ${home.shard.name}`,
        ),
      );
  return findings.length > 0 ? findings : [ok(object, 'extensions are the same as at home')];
}

/**
 * Whether `to`'s server can open the replication connection to `from` that a move would need. It is tried with a
 * subscription in a transaction that is rolled back: nothing remains, neither there nor here.
 */
export async function checkReachable(from: Shard, to: Shard): Promise<Finding> {
  const object = `shard ${to.name}`;
  const name = `foreshard_check_${randomUUID().replaceAll('-', '')}`;
  try {
    await withShard(to, async (client) => {
      await client.query('BEGIN');
      await client.query(
        `CREATE SUBSCRIPTION ${name} CONNECTION ${quoteLiteral(from.url)} PUBLICATION ${name}
           WITH (enabled = false, create_slot = false, slot_name = NONE, copy_data = false)`,
      );
      await client.query('ROLLBACK');
    });
    return ok(object, `its server reaches shard ${from.name}`);
  } catch (failure) {
    return error(
      object,
      `its server cannot replicate from shard ${from.name}: ${explainConnectError(failure).reason.trim()}`,
      `make the URL of shard ${from.name} valid from that server too: host and port, a pg_hba.conf line for its database, and a user with REPLICATION and a password`,
    );
  }
}
