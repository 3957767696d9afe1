import type { CommandModule } from 'yargs';
import { UsageError } from '../../topology/errors.js';
import { withCatalog } from '../command.js';
import type { Explained, ExplainedStatement } from '../explain.js';
import { type GlobalArgs, type JsonArgs, jsonOption, withHelp } from '../options.js';
import { printJson, printLine } from '../output.js';

interface ExplainArgs extends JsonArgs {
  readonly sql: string;
  readonly params?: string | undefined;
}

export const explainCommand: CommandModule<GlobalArgs, ExplainArgs> = {
  builder: (y) =>
    withHelp(
      jsonOption(y)
        .positional('sql', { type: 'string', demandOption: true, describe: 'One or several statements' })
        .option('params', { type: 'string', requiresArg: true, describe: 'Values of $1, $2, … as a JSON array' }),
      ['explain "SELECT * FROM orders WHERE tenant_id = 42"', ''],
      ["explain 'SELECT * FROM orders WHERE tenant_id = $1' --params '[42]'", ''],
    ),
  handler: (args) =>
    withCatalog(args, async (catalog) => {
      const params = parseParams(args.params);
      // Only here: the parser takes its time to load.
      const { explain } = await import('../explain.js');
      const explained = await explain(await catalog.loadTopology(), args.sql, params);
      if (args.json) printJson(explained);
      else printLine(explainedText(explained));
    }),
};

function parseParams(text: string | undefined): (string | null)[] {
  if (text === undefined) return [];
  let values: unknown;
  try {
    values = JSON.parse(text);
  } catch {
    values = null;
  }
  if (!Array.isArray(values) || values.some((v) => v !== null && !['string', 'number', 'boolean'].includes(typeof v)))
    throw new UsageError(
      '--params is not a JSON array of values',
      `Write it as '[42, "abc", null]'; integers beyond 2^53 as strings.`,
    );
  return values.map((value: string | number | boolean | null) => (value === null ? null : String(value)));
}

function explainedText({ template, epoch, statements }: Explained): string {
  const lines = [`template  ${template}`, `epoch     ${epoch}`];
  if (statements.length === 0) lines.push('route     none: there is no statement in it');
  for (const statement of statements) {
    if (statements.length > 1) lines.push('', statement.sql);
    lines.push(...statementText(statement));
  }
  return lines.join('\n');
}

function statementText(s: ExplainedStatement): string[] {
  const lines = [`kind      ${s.kind} (${s.command})`];
  if (s.keySources.length > 0) lines.push(`key from  ${s.keySources.join('; ')}`);
  for (const { keyspace, position } of s.touches)
    lines.push(`touches   keyspace ${keyspace}: ${position === null ? 'anywhere' : position.join(', ')}`);
  const shards = s.shards.join(', ');
  if (s.route === 'gather') lines.push(`route     gather: rows of ${shards}, on the home shard`);
  else if (s.refusal === null) lines.push(`route     ${s.route}: ${shards}`);
  else {
    lines.push(`route     refused: ${s.refusal.sqlstate} ${s.refusal.message}`);
    if (s.refusal.hint !== null) lines.push(`hint      ${s.refusal.hint}`);
  }
  lines.push(`why       ${s.why}`);
  if (s.pins !== null) lines.push(`pins      ${s.pins}`);
  return lines;
}
