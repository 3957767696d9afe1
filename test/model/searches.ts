/** One search of the model in docs/model/flip.pml: what it is set to, and what is to be found. */
export interface Search {
  readonly name: string;
  /** Of the model; see the beginning of flip.pml. */
  readonly settings: Readonly<Record<string, number>>;
  /** Precautions that are left out: WITHOUT_… */
  readonly without: readonly string[];
  /** `end`: whether every run ends, the processes being treated fairly. `safety`: all the rest. */
  readonly property: 'safety' | 'end';
  /** `bits`: two bits for each state by its hash; states are missed, so that finding nothing proves less. */
  readonly store: 'states' | 'bits';
  readonly expected: 'holds' | 'violated';
  /** Small enough for the tests. */
  readonly small: boolean;
}

function search(name: string, settings: Readonly<Record<string, number>>, others: Partial<Search> = {}): Search {
  return {
    name,
    settings,
    without: [],
    property: 'safety',
    store: 'states',
    expected: 'holds',
    small: true,
    ...others,
  };
}

const full: Partial<Search> = { small: false };

/** What must hold. Together they vary everything; everything at once is too much for one search. */
export const CONFIGURATIONS: readonly Search[] = [
  search('1 proxy, 2 migrators, a session past the proxies', { PROXIES: 1, LAPSES: 0 }),
  search('1 proxy whose lease ends, a session past the proxies', { PROXIES: 1, LAPSES: 1, MIGRATORS: 1 }),
  search('1 proxy, 2 migrators of which one wakes', { PROXIES: 1, LAPSES: 0, AWAKENINGS: 1 }),
  search('2 proxies', { PROXIES: 2, LAPSES: 0, MIGRATORS: 1, PAST: 0 }),
  search('end: 1 proxy, 2 migrators', { PROXIES: 1, LAPSES: 0, PAST: 0 }, { property: 'end' }),
  search(
    'end: 1 proxy whose lease ends, a second fence',
    { PROXIES: 1, LAPSES: 1, MIGRATORS: 1, PAST: 0, TRIES: 1 },
    { property: 'end' },
  ),
  search(
    '1 proxy, 2 migrators of which one wakes, a second fence',
    { PROXIES: 1, LAPSES: 0, AWAKENINGS: 1, TRIES: 1 },
    full,
  ),
  search('1 proxy whose lease ends, 2 migrators', { PROXIES: 1, LAPSES: 1 }, full),
  search(
    '1 proxy whose lease ends, 2 operations, a second fence',
    { PROXIES: 1, LAPSES: 1, MIGRATORS: 1, TRIES: 1, OPERATIONS: 2 },
    full,
  ),
  search('1 proxy whose lease ends twice', { PROXIES: 1, LAPSES: 2, MIGRATORS: 1 }, full),
  search('2 proxies, a lease ends', { PROXIES: 2, LAPSES: 1, MIGRATORS: 1, PAST: 0 }, full),
  search(
    '2 proxies, one client, a lease ends, a session past them',
    { PROXIES: 2, CLIENTS: 1, LAPSES: 1, MIGRATORS: 1 },
    full,
  ),
  search('2 proxies, 2 migrators', { PROXIES: 2, LAPSES: 0, PAST: 0 }, { ...full, store: 'bits' }),
  search('3 proxies, one client, a session past them', { PROXIES: 3, CLIENTS: 1, LAPSES: 0, MIGRATORS: 1 }, full),
];

const ONE: Readonly<Record<string, number>> = { PROXIES: 1, LAPSES: 0, MIGRATORS: 1 };
const LAPSE: Readonly<Record<string, number>> = { PROXIES: 1, LAPSES: 1, MIGRATORS: 1 };
const REPLACED: Readonly<Record<string, number>> = { PROXIES: 1, LAPSES: 0 };
const WAKES: Readonly<Record<string, number>> = { PROXIES: 1, LAPSES: 0, AWAKENINGS: 1 };

function mutation(settings: Readonly<Record<string, number>>, ...without: string[]): Search {
  return search(`without ${without.join(', ')}`, settings, { without, expected: 'violated' });
}

/** Precautions that another one makes up for: what was left out must not be found. docs/model/README.md says why each is there. */
export const SECOND_LOCKS: readonly Search[] = [
  { ...mutation(ONE, 'WAITING_FOR_PROXIES'), expected: 'holds' },
  { ...mutation(LAPSE, 'EPOCH_ACKNOWLEDGED'), expected: 'holds' },
];

/** Each leaves out one precaution (or one with its second lock), and must be found out. */
export const MUTATIONS: readonly Search[] = [
  mutation(REPLACED, 'FENCE'),
  mutation(REPLACED, 'WAITING_FOR_WRITERS'),
  mutation(REPLACED, 'LOCK_BEFORE_GATE'),
  mutation(REPLACED, 'DRAIN'),
  mutation(REPLACED, 'FLIP_BEFORE_OPEN'),
  mutation(REPLACED, 'ENDING_CONNECTIONS'),
  mutation(REPLACED, 'LEASE_AT_HOLD'),
  mutation(REPLACED, 'TIMEOUT_IN_FLIP'),
  mutation(WAKES, 'LEASE_AFTER_CONNECTING'),
  mutation(ONE, 'HOLDING'),
  mutation(ONE, 'WAITING_FOR_TRANSACTIONS'),
  mutation(ONE, 'WAITING_FOR_PROXIES', 'ACKS_AT_FLIP'),
  mutation(ONE, 'HOLD_AT_FLIP'),
  mutation(ONE, 'CHECK_AT_COMMIT'),
  mutation(ONE, 'RELEASE_AFTER_COMMIT'),
  mutation(LAPSE, 'ACKS_AT_FLIP'),
  mutation(LAPSE, 'EARLIER_END'),
  mutation(LAPSE, 'REGISTER_FIRST'),
  mutation(LAPSE, 'LOADS_IN_ORDER'),
  mutation(LAPSE, 'ONE_RENEWAL'),
  mutation(LAPSE, 'LEASE_AT_ANSWER'),
  mutation(LAPSE, 'CLOSING_SESSIONS'),
];
