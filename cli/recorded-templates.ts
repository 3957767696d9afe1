import { loadModule } from 'libpg-query';
import type { StatementPlan } from '../proxy/router/route.js';
import { Router } from '../proxy/router/router.js';
import { sampleText } from '../proxy/router/sample-text.js';
import type { Catalog } from '../topology/catalog/catalog.js';
import type { Topology } from '../topology/topology.js';
import type { HomeNames } from './home-names.js';
import { TEMPLATE_DAYS } from './template-days.js';

/** A template that clients have sent, and its statements as they are planned in one topology and in another. */
export interface ReplannedTemplate {
  readonly template: string;
  /** In the last days ({@link TEMPLATE_DAYS}). */
  readonly calls: number;
  readonly now: readonly StatementPlan[];
  readonly then: readonly StatementPlan[];
}

/**
 * The recorded templates, those with most calls first, planned as they are now and as they would be then.
 * @returns also the number of those too long, or in a form, that could not be looked at
 */
export async function replanTemplates(
  catalog: Catalog,
  names: HomeNames,
  topology: Topology,
  changed: Topology,
): Promise<{ readonly templates: readonly ReplannedTemplate[]; readonly unread: number }> {
  const [recorded] = await Promise.all([
    catalog.pool.query<{ template: string; calls: string }>(
      `SELECT template, sum(calls) AS calls FROM foreshard.template_stat WHERE hour > now() - $1 * interval '1 day'
        GROUP BY template ORDER BY sum(calls) DESC, template`,
      [TEMPLATE_DAYS],
    ),
    loadModule(),
  ]);
  const plansAt = (world: Topology) => {
    const router = new Router({ topology: () => world, metadata: () => names.metadata });
    return (text: Buffer): readonly StatementPlan[] | null => {
      const analyzed = router.analyze(text, names);
      return analyzed.syntaxError ? null : analyzed.statements.map((statement) => statement.plan);
    };
  };
  const plansNow = plansAt(topology);
  const plansThen = plansAt(changed);
  const templates: ReplannedTemplate[] = [];
  let unread = 0;
  for (const { template, calls } of recorded.rows) {
    const text = Buffer.from(sampleText(template));
    const now = plansNow(text);
    const then = plansThen(text);
    if (now === null || then === null) unread += 1;
    else templates.push({ template, calls: Number(calls), now, then });
  }
  return { templates, unread };
}
