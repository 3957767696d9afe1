import { writeFileSync } from 'node:fs';
import type { CommandModule } from 'yargs';
import type { DryRun } from '../../migrator/dry-run.js';
import { decodeSpec } from '../../migrator/migration-row.js';
import type { SavedReport } from '../../planner/plan-report.js';
import { PlanStore, type PlanSummary } from '../../planner/plan-store.js';
import type { Catalog } from '../../topology/catalog/catalog.js';
import { ConflictError, UsageError } from '../../topology/errors.js';
import type { KeyspaceName } from '../../topology/topology.js';
import { actor, parseId, withCatalog } from '../command.js';
import type { Config } from '../config.js';
import { type ControlsArgs, controlsOf, controlsOptions } from '../controls-options.js';
import { type GlobalArgs, type JsonArgs, jsonOption, withHelp } from '../options.js';
import { formatTable, printJson, printLine } from '../output.js';
import { specText } from '../progress-line.js';

interface ReportArgs extends JsonArgs {
  readonly html?: string | undefined;
  readonly steps: boolean;
}

interface PlanArgs extends ReportArgs {
  readonly save: boolean;
}

interface IdArgs extends JsonArgs {
  readonly id: string;
}

const ID = { type: 'string', demandOption: true, describe: 'Number of the plan' } as const;
const HTML = {
  type: 'string',
  requiresArg: true,
  describe: 'Also write the report as a self-contained HTML page',
} as const;
const STEPS = { type: 'boolean', default: false, describe: 'Show every step and statement of the migration' } as const;

/** Prints a report in the forms that were asked for. */
async function show(
  catalog: Catalog,
  config: () => Promise<Config>,
  report: SavedReport,
  args: ReportArgs,
): Promise<void> {
  const steps = args.steps && report.proposal !== null ? await stepsOf(catalog, await config(), report) : null;
  if (args.html !== undefined)
    writeReport(args.html, (await import('../../planner/report/html.js')).renderHtml(report));
  if (args.json) return printJson(steps === null ? report : { ...report, dryRun: steps });
  const { renderText } = await import('../../planner/report/text.js');
  const { isTTY, columns } = process.stdout;
  const color = isTTY === true && !process.env.NO_COLOR;
  printLine(renderText(report, isTTY === true && columns > 0 ? { color, width: columns } : { color }));
  if (steps !== null) printLine(`\n${stepsText(steps)}`);
  if (args.html !== undefined) printLine(`\nThe report with its plots: ${args.html}`);
}

function writeReport(file: string, html: string): void {
  try {
    writeFileSync(file, html);
  } catch (error) {
    throw new UsageError(`cannot write "${file}": ${(error as Error).message}`, 'Give another file with --html.');
  }
}

/** What the migrator would do, told by the very steps that do it. */
async function stepsOf(catalog: Catalog, config: Config, report: SavedReport): Promise<DryRun> {
  const spec = (report.proposal as NonNullable<SavedReport['proposal']>).spec;
  const topology = await catalog.loadTopology();
  const keyspace = topology.keyspaces.get(spec.keyspace as KeyspaceName);
  if (keyspace === undefined || topology.epoch.toString() !== report.epoch)
    throw new ConflictError(
      `the plan was made at epoch ${report.epoch}, the topology is at epoch ${topology.epoch}`,
      'Make a new one with "foreshard plan".',
    );
  // Only here: all that a migration does comes with it.
  const [{ dryRun }, { judgeReach }] = await Promise.all([
    import('../../migrator/dry-run.js'),
    import('../judge-reach.js'),
  ]);
  return dryRun(catalog, decodeSpec(keyspace, spec), { ...config.migrator, judgeReach });
}

function stepsText({ findings, steps }: DryRun): string {
  const lines: string[] = ['Steps of the migration'];
  for (const { severity, text, remedy } of findings) lines.push(`  ${severity}: ${text}`, `    remedy: ${remedy}`);
  for (const step of steps) {
    lines.push(`  [${step.state}] ${step.on === '' ? '' : `${step.on}: `}${step.text}`);
    for (const sql of step.sql) lines.push(sql.trim().replace(/^/gm, '      '));
  }
  return lines.join('\n');
}

function summaryJson(plan: PlanSummary): unknown {
  const { id, hash, status, epoch, createdAt, expiresAt, decidedBy, decidedAt, migration, verdict, spec } = plan;
  return { id, hash, status, epoch, createdAt, expiresAt, decidedBy, decidedAt, migration, verdict, spec };
}

const listCommand: CommandModule<GlobalArgs, JsonArgs> = {
  command: 'list',
  describe: 'List plans, newest first',
  builder: (y) => withHelp(jsonOption(y), ['plan list', '']),
  handler: (args) =>
    withCatalog(args, async (catalog) => {
      const plans = await new PlanStore(catalog.pool).listPlans();
      if (args.json) return printJson(plans.map(summaryJson));
      if (plans.length === 0) return printLine('No plans yet. Make one with "foreshard plan".');
      printLine(
        formatTable(
          ['id', 'status', 'epoch', 'what', 'migration', 'created'],
          plans.map((p) => [
            `${p.id}`,
            p.status,
            `${p.epoch}`,
            specText(p.spec),
            p.migration === null ? '' : `${p.migration.id} (${p.migration.state})`,
            p.createdAt.toISOString(),
          ]),
        ),
      );
    }),
};

const showCommand: CommandModule<GlobalArgs, IdArgs & ReportArgs> = {
  command: 'show <id>',
  describe: 'Show the report of a plan',
  builder: (y) =>
    withHelp(jsonOption(y).positional('id', ID).option('html', HTML).option('steps', STEPS), [
      'plan show 1 --html report.html',
      '',
    ]),
  handler: (args) =>
    withCatalog(args, async (catalog, config) => {
      const { id, hash, status, expiresAt, report } = await new PlanStore(catalog.pool).showPlan(
        parseId(args.id, 'plan'),
      );
      const plan = { id: id.toString(), hash, status, expiresAt: expiresAt.getTime() };
      await show(catalog, config, { ...report, plan }, args);
    }),
};

const approveCommand: CommandModule<GlobalArgs, IdArgs & ControlsArgs> = {
  command: 'approve <id>',
  describe: 'Approve a plan: its migration starts at once',
  builder: (y) =>
    withHelp(
      controlsOptions(jsonOption(y).positional('id', ID), { auto: true }),
      ['plan approve 1', 'Goes the whole way by itself'],
      ['plan approve 1 --no-auto', 'Copies and compares, then waits for "foreshard migrate flip"'],
      ['plan approve 1 --flip-window "02:00-04:00 Europe/Vienna"', 'Flips by itself, at night'],
    ),
  handler: (args) =>
    withCatalog(args, async (catalog) => {
      const id = parseId(args.id, 'plan');
      const migration = await new PlanStore(catalog.pool).approve(id, actor(), controlsOf(args));
      if (args.json) printJson({ id, status: 'approved', migration });
      else printLine(`Plan ${id} is approved. Follow its migration with "foreshard migrate watch ${migration}".`);
    }),
};

const rejectCommand: CommandModule<GlobalArgs, IdArgs> = {
  command: 'reject <id>',
  describe: 'Reject a plan',
  builder: (y) => withHelp(jsonOption(y).positional('id', ID), ['plan reject 1', '']),
  handler: (args) =>
    withCatalog(args, async (catalog) => {
      const id = parseId(args.id, 'plan');
      await new PlanStore(catalog.pool).reject(id, actor());
      if (args.json) printJson({ id, status: 'rejected' });
      else printLine(`Plan ${id} is rejected.`);
    }),
};

export const planCommand: CommandModule<GlobalArgs, PlanArgs> = {
  builder: (y) =>
    withHelp(
      jsonOption(y)
        .option('html', HTML)
        .option('steps', STEPS)
        .option('save', {
          type: 'boolean',
          default: true,
          describe: 'Enter the proposal, so that it can be approved; --no-save leaves that out',
        })
        .command(listCommand)
        .command(showCommand)
        .command(approveCommand)
        .command(rejectCommand),
      ['plan --html report.html', 'A dry run, with plots'],
      ['plan approve 1', 'Carry it out'],
    ),
  handler: (args) =>
    withCatalog(args, async (catalog, config) => {
      // Only here: the forecasting library takes its time to load.
      const { createPlanner } = await import('../create-planner.js');
      await show(catalog, config, await createPlanner(catalog, await config()).plan({ save: args.save }), args);
    }),
};
