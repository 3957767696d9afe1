import type { CommandModule } from 'yargs';
import { redactUrl } from '../../topology/connection.js';
import { positionToJson } from '../../topology/key-codec.js';
import { type ShardedTable, type Topology, tableId } from '../../topology/topology.js';
import { withCatalog } from '../command.js';
import { type GlobalArgs, type JsonArgs, jsonOption, withHelp } from '../options.js';
import { formatTable, printJson, printLine } from '../output.js';

const showCommand: CommandModule<GlobalArgs, JsonArgs> = {
  command: 'show',
  describe: 'Show shards, keyspaces, tables and ranges at the current epoch',
  builder: (y) => withHelp(jsonOption(y), ['topology show --json', 'As one JSON document']),
  handler: (args) =>
    withCatalog(args, async (catalog) => {
      const topology = await catalog.loadTopology();
      if (args.json) printJson(topologyJson(topology));
      else printLine(topologyText(topology));
    }),
};

export const topologyCommand: CommandModule<GlobalArgs, GlobalArgs> = {
  builder: (y) => withHelp(y.command(showCommand).demandCommand(1, 'a command is needed: show'), ['topology show', '']),
  handler: () => undefined,
};

/** The topology as data; bounds in PostgreSQL's text form, passwords left out. */
function topologyJson(topology: Topology): unknown {
  return {
    epoch: topology.epoch,
    database: topology.database,
    shards: [...topology.shards.values()].map((s) => ({ ...s, url: redactUrl(s.url) })),
    keyspaces: [...topology.keyspaces.values()].map((k) => ({
      name: k.name,
      method: k.method,
      keyTypes: k.keyTypes,
      tables: k.tables.map((t) => ({ table: tableId(t), keyColumns: t.keyColumns, ...splitJson(t) })),
      ranges: k.ranges.map((r) => ({
        id: r.id,
        lo: positionToJson(k, r.lo),
        hi: positionToJson(k, r.hi),
        shard: r.shard,
      })),
    })),
    referenceTables: [...topology.referenceTables.values()].map((t) => ({ table: tableId(t), shards: t.shards })),
  };
}

function topologyText(topology: Topology): string {
  const parts = [`Database "${topology.database}", epoch ${topology.epoch}`];
  const { shards, keyspaces, referenceTables } = topology;
  parts.push(
    shards.size === 0
      ? 'No shards yet. Add the first with "foreshard shard add".'
      : formatTable(
          ['shard', 'home', 'capacity ms/s', 'url'],
          [...shards.values()].map((s) => [
            s.name,
            s.home ? 'yes' : '',
            s.capacityMsPerSecond?.toString() ?? '',
            redactUrl(s.url),
          ]),
        ),
  );
  for (const k of keyspaces.values()) {
    const tables = k.tables.map((t) => `  ${tableId(t)} (${t.keyColumns.join(', ')})${splitText(t)}`);
    const bound = (position: readonly string[] | null, infinity: string) =>
      position === null ? infinity : position.join(', ');
    parts.push(
      [
        `Keyspace ${k.name}: ${k.method} (${k.keyTypes.join(', ')})`,
        ...(tables.length === 0 ? ['  no tables yet'] : tables),
        formatTable(
          ['from', 'to', 'shard'],
          k.ranges.map((r) => [
            bound(positionToJson(k, r.lo), '-infinity'),
            bound(positionToJson(k, r.hi), 'infinity'),
            r.shard,
          ]),
        ).replace(/^/gm, '  '),
      ].join('\n'),
    );
  }
  if (referenceTables.size > 0)
    parts.push(
      formatTable(
        ['reference table', 'shards'],
        [...referenceTables.values()].map((t) => [tableId(t), t.shards.join(', ')]),
      ),
    );
  return parts.join('\n\n');
}

/** Nothing of most tables; of one whose columns are split, or of that which has them, what it is. */
function splitJson({ split, halfOf }: ShardedTable): object {
  if (split !== undefined) return { split: { ...split, hot: tableId(split.hot) } };
  return halfOf === undefined ? {} : { halfOf: tableId(halfOf) };
}

function splitText({ split, halfOf }: ShardedTable): string {
  if (split !== undefined) return `, of which ${split.columns.join(', ')} are in ${tableId(split.hot)}`;
  return halfOf === undefined ? '' : `, columns of ${tableId(halfOf)}`;
}
