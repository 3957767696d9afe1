import { type Change, changeState } from '../migrator/changes/change-row.js';
import type { MemberDryRun } from '../migrator/changes/dry-run-change.js';
import type { DryRunStep } from '../migrator/dry-run.js';
import type { Finding } from '../migrator/preflight-finding.js';
import { formatTable } from './output.js';
import { progressLine, specText } from './progress-line.js';

/** `change 7 (split): running, 1 of 3 done`. */
export function changeLine(change: Change): string {
  const done = change.members.filter((m) => m.state === 'done').length;
  return `change ${change.id} (${change.kind}): ${changeState(change)}, ${done} of ${change.members.length} done`;
}

/** Its members, one line each, in their order. */
export function membersText(change: Change): string {
  return formatTable(
    ['position', 'migration', 'what', 'stands'],
    change.members.map((m) => [
      `${m.position}`,
      `${m.id}`,
      specText(m.spec),
      progressLine(m) + (m.error === null ? '' : ` · ${m.error}`),
    ]),
  );
}

/** What a change would do: what is in its way first. */
export function dryRunText(members: readonly MemberDryRun[], steps: boolean): string {
  const lines: string[] = [];
  for (const [i, member] of members.entries()) {
    lines.push(`${i + 1}  ${specText(member.spec)}`);
    for (const finding of member.findings) lines.push(...findingLines(finding));
    if (!steps) continue;
    for (const note of member.notes) lines.push(`   note: ${note}`);
    for (const step of member.steps) lines.push(...stepLines(step));
  }
  return lines.join('\n');
}

export function findingLines({ severity, text, remedy }: Finding): string[] {
  return [`   ${severity}: ${text}`, `     remedy: ${remedy}`];
}

/** One step with its statements. */
function stepLines({ state, on, text, sql }: DryRunStep): string[] {
  const head = `   [${state}] ${on === '' ? '' : `${on}: `}${text}`;
  return [head, ...sql.map((one) => one.trim().replace(/^/gm, '       '))];
}
