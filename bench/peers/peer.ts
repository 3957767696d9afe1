/** Where a pooler finds its server, and what it is to be. */
export interface PeerSettings {
  /** Where it listens on 127.0.0.1. */
  readonly port: number;
  /** A port for whatever else it wants to listen on. */
  readonly otherPort: number;
  readonly serverPort: number;
  readonly database: string;
  readonly user: string;
  readonly password: string;
  readonly poolSize: number;
  readonly maxClients: number;
  /** Its own folder, which it may write to. */
  readonly folder: string;
  /** Its version, such as "1.23.1". */
  readonly version: string;
}

/** How to start a pooler of another house. */
export interface Peer {
  /** As in the tables. Its program is looked for under `program`. */
  readonly name: string;
  readonly program: string;
  /** What makes it print its version. */
  readonly versionArgs: readonly string[];
  /** Files that it reads, by name, to be put into its folder. */
  files(settings: PeerSettings): Readonly<Record<string, string>>;
  /** Its arguments. It must stay in the foreground. */
  args(settings: PeerSettings): readonly string[];
  /** Whether it keeps named statements apart in transaction mode. */
  hasPreparedStatements(version: string): boolean;
  /** What ends it, the gentlest first. */
  readonly stopSignals: readonly NodeJS.Signals[];
}
