import { createChange, type NewChange } from '../migrator/changes/change-requests.js';
import type { Finding } from '../migrator/preflight-finding.js';
import type { Catalog } from '../topology/catalog/catalog.js';
import { UsageError } from '../topology/errors.js';
import type { Keyspace, KeyspaceName, ShardName, Topology } from '../topology/topology.js';
import { dryRunText, findingLines } from './change-text.js';
import { actor, withCatalog } from './command.js';
import { EXIT } from './failure.js';
import type { JsonArgs } from './options.js';
import { printJson, printLine } from './output.js';
import type { SeparationEffects } from './separation-effects.js';

/** Of every command that plans a change. */
export interface PlanChangeArgs extends JsonArgs {
  readonly concurrency: number;
  readonly steps: boolean;
  readonly save: boolean;
}

/** A change, and what is to be said about it as a whole. */
export interface Planned extends Omit<NewChange, 'concurrency'> {
  readonly findings?: readonly Finding[];
  /** For people, above the members. */
  readonly summary?: readonly string[];
  /** For `--json`: what the summary says of statements that will be refused. */
  readonly effects?: SeparationEffects;
}

/** Plans a change on the topology as it is, shows its dry run, and enters it unless something is in its way. */
export function planChange(
  args: PlanChangeArgs,
  plan: (catalog: Catalog, topology: Topology) => Planned | Promise<Planned>,
): Promise<void> {
  if (!Number.isInteger(args.concurrency) || args.concurrency < 1)
    throw new UsageError(`${args.concurrency} cannot be the number of migrations at once`, 'Give 1 or more.');
  return withCatalog(args, async (catalog, config) => {
    const topology = await catalog.loadTopology();
    const { findings = [], summary = [], effects, ...change } = await plan(catalog, topology);
    // Only here: all that a migration does comes with it, and what cannot be planned is known before.
    const [{ dryRunChange }, { judgeReach }, { migrator }] = await Promise.all([
      import('../migrator/changes/dry-run-change.js'),
      import('./judge-reach.js'),
      config(),
    ]);
    const members = await dryRunChange(catalog, topology, change.members, { ...migrator, judgeReach });
    const all = [...findings, ...members.flatMap((m) => m.findings)];
    const isBlocked = all.some((finding) => finding.severity === 'blocker');
    const isSaved = args.save && !isBlocked && members.length > 0;
    const entered = { ...change, concurrency: args.concurrency };
    const id = isSaved ? await createChange(catalog.pool, topology, entered, actor()) : null;
    if (isBlocked) process.exitCode = EXIT.failed;
    if (args.json) {
      const shown = args.steps ? members : members.map(({ steps: _, ...member }) => member);
      const { kind, request } = change;
      return printJson({
        change: id,
        kind,
        request,
        epoch: topology.epoch,
        concurrency: args.concurrency,
        summary,
        findings,
        members: shown,
        ...(effects === undefined ? {} : { effects }),
      });
    }
    for (const line of summary) printLine(line);
    for (const finding of findings) for (const line of findingLines(finding)) printLine(line);
    if (members.length === 0) return printLine('There is nothing to do.');
    printLine(dryRunText(members, args.steps));
    printLine();
    if (id !== null)
      printLine(
        `Change ${id} is planned at epoch ${topology.epoch}: approve it with "foreshard migrate approve ${id}".`,
      );
    else if (isBlocked) printLine('Nothing was planned: it could not be carried out as it is.');
  });
}

/** @throws UsageError */
export function keyspaceNamed(topology: Topology, name: string): Keyspace {
  const keyspace = topology.keyspaces.get(name as KeyspaceName);
  if (keyspace !== undefined) return keyspace;
  throw unknown('keyspace', name, topology.keyspaces.keys());
}

/** @throws UsageError */
export function shardNamed(topology: Topology, name: string): ShardName {
  if (topology.shards.has(name as ShardName)) return name as ShardName;
  throw unknown('shard', name, topology.shards.keys());
}

function unknown(what: string, name: string, known: Iterable<string>): UsageError {
  const names = [...known];
  return new UsageError(
    `there is no ${what} "${name}"`,
    names.length === 0 ? 'There is none yet.' : `There is: ${names.join(', ')}.`,
  );
}
