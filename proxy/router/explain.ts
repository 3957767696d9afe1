import type { KeyType } from '../../topology/key.js';
import { encodeText } from '../../topology/key-codec.js';
import type { KeyspaceName, ShardName, Topology } from '../../topology/topology.js';
import type { SessionNames } from './analyzed-text.js';
import { readKeys, type Values } from './keys.js';
import type { Analyzed, BoundParams, KeyColumnSource, Refusal, Route, SessionEffect, StatementPlan } from './route.js';
import type { Router } from './router.js';

/** What the router makes of one statement: plain data. */
export interface Explanation {
  readonly statement: string;
  readonly template: string;
  readonly command: string;
  readonly kind: StatementPlan['kind'];
  /** Keys found, in PostgreSQL's text form; null where a value is missing, NULL or not surely one. */
  readonly keys: readonly {
    readonly keyspace: KeyspaceName;
    readonly from: string;
    readonly value: readonly string[] | null;
  }[];
  readonly route: Route['kind'];
  readonly shards: readonly ShardName[];
  readonly why: string;
  readonly pin: string | null;
  readonly effect: SessionEffect | null;
  readonly refusal: Refusal | null;
}

/** Explains every statement of a text. An empty list for a text that PostgreSQL could not parse. */
export function explainStatement(
  router: Router,
  text: Buffer,
  session: SessionNames,
  params: BoundParams | null,
  topology: Topology,
): Explanation[] {
  const analyzed = router.analyze(text, session);
  return analyzed.statements.map((statement, index) => {
    const { plan } = statement;
    const route = router.route(analyzed, index, params, topology);
    return {
      statement: text.toString('utf8', statement.start, statement.end),
      template: analyzed.template,
      command: plan.command,
      kind: plan.kind,
      keys: keysOf(plan, analyzed, params, topology),
      route: route.kind,
      shards: route.kind === 'refused' ? [] : route.kind === 'shard' ? [route.shard] : route.shards,
      why: route.why,
      pin: plan.pin,
      effect: plan.effect,
      refusal: route.kind === 'refused' ? route.refusal : null,
    };
  });
}

function keysOf(
  plan: StatementPlan,
  analyzed: Analyzed,
  params: BoundParams | null,
  topology: Topology,
): Explanation['keys'] {
  const { target } = plan;
  if (target.kind !== 'keys') return [];
  const values: Values = { text: analyzed.text, literal: (ordinal) => analyzed.literals[ordinal], params };
  return [{ keyspace: target.keyspace, keys: target.keys }, ...(target.also ?? [])].flatMap(
    ({ keyspace: name, keys }) =>
      keys.flatMap((source) => {
        if (source.length === 0) return [];
        const keyspace = topology.keyspaces.get(name);
        const from = source.map(words).join(', ');
        if (!keyspace) return [{ keyspace: name, from, value: null }];
        return readKeys(keyspace, source, values).map((read) => ({
          keyspace: name,
          from,
          value: read.kind === 'key' ? read.key.map((s, i) => encodeText(keyspace.keyTypes[i] as KeyType, s)) : null,
        }));
      }),
  );
}

function words(source: KeyColumnSource): string {
  const cast = source.castType === null ? '' : `::${source.castType}${source.array ? '[]' : ''}`;
  if (source.kind === 'param') return `$${source.number}${cast}`;
  return `${source.negated ? 'minus ' : ''}literal ${source.ordinal + 1}${cast}`;
}

const ROUTES = { fanout: 'all of', any: 'any of', shard: 'shard', gather: 'the home shard, with rows of', refused: '' };

/** The explanations for people. */
export function explanationText(explanations: readonly Explanation[]): string {
  if (explanations.length === 0) return 'nothing to run: the text is empty, or PostgreSQL could not parse it\n';
  return explanations
    .map((e) => {
      const lines: [string, string][] = [
        ['statement', e.statement],
        ['template', e.template],
        ['kind', `${e.command}, ${e.kind}`],
      ];
      for (const key of e.keys)
        lines.push([
          'key',
          `${key.keyspace} ${key.value === null ? 'not known' : `(${key.value.join(', ')})`} from ${key.from}`,
        ]);
      if (e.refusal) {
        lines.push(['route', `refused, ${e.refusal.sqlstate}: ${e.refusal.message}`]);
        if (e.refusal.hint) lines.push(['hint', e.refusal.hint]);
      } else lines.push(['route', `${ROUTES[e.route]} ${e.shards.join(', ')}`]);
      lines.push(['why', e.why]);
      if (e.pin) lines.push(['pin', `the session keeps its server connection (${e.pin})`]);
      if (e.effect)
        lines.push([
          'effect',
          Object.entries(e.effect)
            .map(([k, v]) => (k === 'kind' ? String(v) : `${k} ${String(v)}`))
            .join(', '),
        ]);
      return lines
        .map(([name, value]) => `${name.padEnd(10)}${value.replace(/\n/g, `\n${' '.repeat(10)}`)}\n`)
        .join('');
    })
    .join('\n');
}
