import type { CommandModule } from 'yargs';
import { audit } from '../../../migrator/audit/audit.js';
import type { Truth } from '../../../migrator/audit/repair-reference.js';
import { lastAudit } from '../../../migrator/audit/standing-audit.js';
import type { Catalog } from '../../../topology/catalog/catalog.js';
import { UsageError } from '../../../topology/errors.js';
import { actor, withCatalog } from '../../command.js';
import { EXIT } from '../../failure.js';
import { type GlobalArgs, type JsonArgs, jsonOption, withHelp } from '../../options.js';
import { printJson, printLine } from '../../output.js';

interface AuditArgs extends JsonArgs {
  readonly repair: boolean;
  readonly last: boolean;
  readonly from: string | undefined;
}

export const auditCommand: CommandModule<GlobalArgs, AuditArgs> = {
  builder: (y) =>
    withHelp(
      jsonOption(y)
        .option('last', {
          type: 'boolean',
          default: false,
          describe: 'Do not look: show what the migrator has found when it last looked by itself (migrator.auditMs)',
        })
        .option('repair', {
          type: 'boolean',
          default: false,
          describe:
            'Take away what nobody can need any more: objects of migrations that are over, and rows that their owner has as well',
        })
        .option('from', {
          type: 'string',
          describe: 'With --repair: the shard whose copies of reference tables are right; the others are made the same',
        }),
      ['migrate audit', 'Exit code 0: every row is where it belongs, and nothing is left over'],
      ['migrate audit --repair', ''],
      ['migrate audit --repair --from s1', 'Writers of reference tables that differ wait meanwhile'],
    ),
  handler: (args) =>
    withCatalog(args, async (catalog) => {
      if (args.last && args.repair)
        throw new UsageError('what was found earlier cannot be repaired', 'Leave out --last: --repair looks anew.');
      if (args.from !== undefined && !args.repair)
        throw new UsageError('--from says from which shard to repair', 'Give --repair, too.');
      const truth = args.from === undefined ? null : await truthOf(catalog, args.from);
      const last = args.last ? await lastAudit(catalog) : null;
      if (args.last && last === null)
        throw new UsageError(
          'no migrator has audited the shards yet',
          'See migrator.auditMs; or audit now, without --last.',
        );
      if (last !== null && !args.json) printLine(`As of ${last.at.toISOString()}:`);
      const findings = last?.findings ?? (await audit(catalog, args.repair, undefined, truth));
      const open = findings.filter((finding) => finding.outcome !== 'repaired');
      if (args.json) printJson({ ok: open.length === 0, findings });
      else {
        for (const { shard, text, remedy, outcome } of findings) {
          printLine(
            `${outcome === 'open' ? 'FOUND   ' : outcome === 'repaired' ? 'repaired' : 'NOT DONE'} ${shard === '' ? 'catalog' : `shard ${shard}`}: ${text}`,
          );
          if (outcome !== 'repaired') printLine(`         remedy: ${remedy}`);
        }
        printLine(
          open.length === 0
            ? 'Every row is where it belongs, and nothing is left of any migration.'
            : `${open.length} finding(s).`,
        );
      }
      if (open.length > 0) process.exitCode = EXIT.failed;
    }),
};

/** @throws UsageError when there is no such shard */
async function truthOf(catalog: Catalog, name: string): Promise<Truth> {
  const shard = [...(await catalog.loadTopology()).shards.values()].find((s) => s.name === name);
  if (shard === undefined) throw new UsageError(`there is no shard "${name}"`, 'See "foreshard shard list".');
  return { shard: shard.name, actor: actor() };
}
