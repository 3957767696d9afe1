import { hostname } from 'node:os';
import { z } from 'zod';
import { networkProblem } from '../proxy/listener/networks.js';
import { urlProblem } from './postgres-url.js';

/**
 * The configuration file, key by key. Every key is described in docs/configuration.md with the same unit and default (a
 * test compares them). `null` as a default means "not set". Secrets are three keys of which at most one is given:
 * the value itself, the name of an environment variable, or a file.
 */
const milliseconds = (defaultMs: number, minimumMs = 1) => z.int().min(minimumMs).max(86_400_000).default(defaultMs);
const count = (value: number, maximum: number) => z.int().min(1).max(maximum).default(value);

const days = (value: number) => z.number().positive().max(36_500).default(value);

const postgresUrl = z.string().superRefine((text, context) => {
  const problem = urlProblem(text);
  if (problem !== null) context.addIssue({ code: 'custom', message: problem });
});

const secretKeys = {
  password: z.string().min(1).optional(),
  passwordEnv: z.string().min(1).optional(),
  passwordFile: z.string().min(1).optional(),
};

type SecretKeys = {
  password?: string | undefined;
  passwordEnv?: string | undefined;
  passwordFile?: string | undefined;
};

function oneSecret(
  value: SecretKeys & { url?: string | undefined; verifier?: string | undefined },
  context: z.RefinementCtx,
): void {
  const given = (['password', 'passwordEnv', 'passwordFile'] as const).filter((key) => value[key] !== undefined);
  if (given.length > 1)
    context.addIssue({
      code: 'custom',
      path: [given[1] as string],
      message: `give one of ${given.join(', ')}, not both`,
    });
  if (given.length > 0 && value.verifier !== undefined)
    context.addIssue({ code: 'custom', path: ['verifier'], message: `give either ${given[0]} or verifier, not both` });
  if (
    given.length > 0 &&
    value.url !== undefined &&
    urlProblem(value.url) === null &&
    new URL(value.url).password !== ''
  )
    context.addIssue({
      code: 'custom',
      path: [given[0] as string],
      message: 'the url already holds a password; give it once',
    });
}

const secret = z
  .strictObject(secretKeys)
  .superRefine(oneSecret)
  .superRefine((value, context) => {
    if (Object.values(value).every((v) => v === undefined))
      context.addIssue({ code: 'custom', message: 'give one of password, passwordEnv, passwordFile' });
  });

const user = z
  .strictObject({
    ...secretKeys,
    verifier: z
      .string()
      .regex(/^SCRAM-SHA-256\$\d+:[A-Za-z0-9+/=]+\$[A-Za-z0-9+/=]+:[A-Za-z0-9+/=]+$/, {
        message: "is not a SCRAM-SHA-256 verifier as in pg_authid.rolpassword ('SCRAM-SHA-256$4096:…')",
      })
      .optional(),
  })
  .superRefine(oneSecret);

/** A URL alone is short for `{ url: … }`. */
const catalog = z.preprocess(
  (value) => (typeof value === 'string' ? { url: value } : value),
  z.strictObject({ url: postgresUrl, ...secretKeys }).superRefine(oneSecret),
);

const listenHost = z.string().min(1);

const listen = z
  .strictObject({
    host: z.union([listenHost, z.array(listenHost).min(1)]).default('127.0.0.1'),
    port: z.int().min(0).max(65_535).default(6432),
    socketDirectory: z.string().min(1).nullable().default(null),
    socketMode: z
      .string()
      .regex(/^0?[0-7]{3}$/, { message: 'is not a file mode in octal digits, in quotes ("0770")' })
      .default('0777'),
    socketGroup: z.string().min(1).nullable().default(null),
    tcpKeepAliveSeconds: z.int().min(0).max(86_400).default(60),
    proxyProtocol: z.enum(['off', 'optional', 'require']).default('off'),
    trustedProxies: z
      .array(
        z.string().superRefine((entry, context) => {
          const problem = networkProblem(entry);
          if (problem !== null) context.addIssue({ code: 'custom', message: problem });
        }),
      )
      .optional(),
  })
  .superRefine((value, context) => {
    if (value.proxyProtocol !== 'off' && (value.trustedProxies ?? []).length === 0)
      context.addIssue({
        code: 'custom',
        path: ['trustedProxies'],
        message: 'list the load balancers whose PROXY headers are taken',
      });
  });

const tls = z
  .strictObject({
    mode: z.enum(['off', 'allow', 'require']).default('off'),
    certFile: z.string().min(1).nullable().default(null),
    keyFile: z.string().min(1).nullable().default(null),
    keyPassphrase: secret.optional(),
    caFile: z.string().min(1).nullable().default(null),
    minVersion: z.enum(['TLSv1.2', 'TLSv1.3']).default('TLSv1.2'),
    ciphers: z.string().min(1).nullable().default(null),
  })
  .superRefine((value, context) => {
    for (const key of ['certFile', 'keyFile'] as const)
      if (value.mode !== 'off' && value[key] === null)
        context.addIssue({ code: 'custom', path: [key], message: `is needed with mode "${value.mode}"` });
  });

const proxy = z.strictObject({
  name: z.string().min(1).default(hostname),
  workers: count(1, 64),
  listen: listen.prefault({}),
  tls: tls.prefault({}),
  auth: z
    .strictObject({
      method: z.enum(['scram-sha-256', 'md5', 'password', 'cert', 'trust']).default('scram-sha-256'),
      hba: z.array(z.string()).nullable().default(null),
      hbaFile: z.string().min(1).nullable().default(null),
      ident: z.array(z.string()).nullable().default(null),
      identFile: z.string().min(1).nullable().default(null),
      users: z.record(z.string().min(1), user).default({}),
      usersFile: z.string().min(1).nullable().default(null),
      query: z
        .strictObject({
          enabled: z.boolean().default(true),
          sql: z.string().min(1).nullable().default(null),
          user: z.string().min(1).nullable().default(null),
          ...secretKeys,
          timeoutMs: milliseconds(5_000),
        })
        .superRefine(oneSecret)
        .prefault({}),
      cacheMs: milliseconds(0, 0),
      failures: z
        .strictObject({
          free: z.int().min(0).max(1_000).default(5),
          delayMs: milliseconds(250, 0),
          maxDelayMs: milliseconds(5_000, 0),
          forgetMs: milliseconds(600_000),
        })
        .prefault({}),
    })
    .prefault({}),
  admin: z
    .strictObject({
      users: z.array(z.string().min(1)).optional(),
      statsUsers: z.array(z.string().min(1)).optional(),
    })
    .prefault({}),
  serverPasswords: z.record(z.string().min(1), secret).default({}),
  pool: z
    .strictObject({
      size: count(20, 10_000),
      maxPerShard: z.int().min(0).max(100_000).default(0),
      idleTimeoutMs: milliseconds(300_000),
      lifetimeMs: milliseconds(3_600_000, 0),
      healthCheckMs: milliseconds(30_000, 0),
      connectTimeoutMs: milliseconds(5_000),
      connectRetryMs: milliseconds(5_000, 0),
      maxConnecting: count(8, 1_000),
      queueTimeoutMs: milliseconds(30_000),
      queueNoticeMs: milliseconds(5_000, 0),
      lanes: z.enum(['auto', 'single', 'off']).default('auto'),
      lanesMax: count(4, 1_000),
      laneDepth: count(512, 10_000),
      laneLateMs: milliseconds(5),
    })
    .prefault({}),
  limits: z
    .strictObject({
      maxClients: count(1_000, 100_000),
      maxStartups: count(500, 100_000),
      startupsPerSecond: z.int().min(0).max(100_000).default(0),
      startupQueueMs: milliseconds(10_000),
      loginTimeoutMs: milliseconds(15_000),
      holdTimeoutMs: milliseconds(30_000),
      gatherBytes: z.int().min(0).max(1_099_511_627_776).default(268_435_456),
      largeMessageBytes: z.int().min(1_048_576).max(68_719_476_736).default(1_073_741_824),
      queryTimeoutMs: milliseconds(0, 0),
      idleTimeoutMs: milliseconds(0, 0),
      idleInTransactionTimeoutMs: milliseconds(0, 0),
      transactionTimeoutMs: milliseconds(0, 0),
      prepareTimeoutMs: milliseconds(60_000, 0),
      drainTimeoutMs: milliseconds(0, 0),
    })
    .prefault({}),
  transactions: z.enum(['several', 'one']).default('several'),
  lease: z.strictObject({ ttlMs: milliseconds(10_000, 1_000) }).prefault({}),
  telemetry: z.strictObject({ flushIntervalMs: milliseconds(5_000, 100) }).prefault({}),
});

const planner = z.strictObject({
  intervalSeconds: z.int().min(1).max(86_400).default(300),
  horizonHours: z.number().positive().max(336).default(24),
  capacityMsPerSecond: z.number().positive().nullable().default(null),
  retention: z
    .strictObject({
      tenSecondsDays: days(1),
      minutesDays: days(14),
      hoursDays: days(400),
      keySamplesDays: days(14),
      templatesDays: days(90),
    })
    .prefault({}),
});

const migrator = z.strictObject({
  pollMs: milliseconds(1_000, 10),
  leaseMs: milliseconds(5_000, 500),
  ackMs: milliseconds(10_000),
  fenceMs: milliseconds(2_000),
  drainMs: milliseconds(2_000),
  maxLagMs: milliseconds(1_000),
  maxFenceTries: count(5, 1_000),
  fenceBackoffMs: milliseconds(2_000),
  wayBackMs: milliseconds(0, 0),
  sampleMs: milliseconds(1_000, 0),
  auditMs: milliseconds(86_400_000, 0),
  removePages: count(128, 1_000_000),
  throttle: z
    .strictObject({
      maxRate: z.number().min(1000).nullable().default(2_000_000),
      maxLagMs: z.number().positive().nullable().default(10_000),
      maxLatencyMs: z.number().positive().nullable().default(100),
    })
    .prefault({}),
});

export const configSchema = z.strictObject({
  catalog,
  database: z.string().min(1).default('app'),
  log: z
    .strictObject({ level: z.enum(['trace', 'debug', 'info', 'warn', 'error', 'silent']).default('info') })
    .prefault({}),
  proxy: proxy.prefault({}),
  planner: planner.prefault({}),
  migrator: migrator.prefault({}),
  shards: z.record(z.string().regex(/^[a-z][a-z0-9_-]{0,39}$/), secret).default({}),
});

/** The file as validated: defaults filled in, secrets still by reference. */
export type ConfigFile = z.output<typeof configSchema>;
