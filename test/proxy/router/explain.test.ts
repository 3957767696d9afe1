import { loadModule } from 'libpg-query';
import { beforeAll, describe, expect, it } from 'vitest';
import { explainStatement, explanationText } from '../../../proxy/router/explain.js';
import { makeRouter, SESSION, spreadTopology, texts } from './setting.js';

beforeAll(() => loadModule());

const topology = spreadTopology();
const explain = (sql: string, ...params: string[]) =>
  explainStatement(
    makeRouter(() => topology),
    Buffer.from(sql),
    SESSION,
    params.length > 0 ? texts(...params) : null,
    topology,
  );

describe('explain', () => {
  it('tells template, keys, shard and why', () => {
    expect(explain("SELECT * FROM docs WHERE owner = 'zoe' AND day = $1", '2026-01-02')).toEqual([
      {
        statement: "SELECT * FROM docs WHERE owner = 'zoe' AND day = $1",
        template: 'select * from docs where owner = :str and day = $1',
        command: 'SELECT',
        kind: 'read',
        keys: [{ keyspace: 'docs', from: 'literal 1, $1', value: ['zoe', '2026-01-02'] }],
        route: 'shard',
        shards: ['b'],
        why: 'its key is in range 2 of keyspace docs, which shard b owns',
        pin: null,
        effect: null,
        refusal: null,
      },
    ]);
  });

  it('tells a refusal with its hint, for people too', () => {
    const text = explanationText(explain("SELECT * FROM orders ORDER BY id; LOAD 'x'"));
    expect(text).toContain(
      'route     refused, 0A000: ORDER BY over several shards is not supported yet\nhint      Add tenant_id = …',
    );
    expect(text).toContain(
      'route     any of a, b, c\nwhy       it uses no table\npin       the session keeps its server connection (LOAD)',
    );
    expect(explanationText(explain('SELEC'))).toContain('could not parse');
  });

  it('says that a key is not known when its parameter has no value', () => {
    expect(explain('SELECT * FROM orders WHERE tenant_id = $1')[0]).toMatchObject({
      keys: [{ from: '$1', value: null }],
      route: 'fanout',
    });
  });
});
