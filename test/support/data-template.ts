import { randomBytes } from 'node:crypto';
import {
  chownSync,
  closeSync,
  constants,
  copyFileSync,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  renameSync,
  statSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import { EmbeddedCluster } from '../../deploy/embedded/cluster.js';
import { Supervisor } from '../../deploy/embedded/supervisor.js';
import { withClient } from './client.js';

/** XLP_LONG_HEADER in PostgreSQL's xlog_internal.h, the second field of a page of WAL; the system identifier follows the short header, of 24 bytes. */
const XLP_LONG_HEADER = 0x0002;
const XLP_SYSID_AT = 24;

/** The reflected polynomial of CRC-32C, which is what pg_control is checked by. */
const CRC_32C = 0x82f63b78;

/** By the directory of the server's programs. */
const templates = new Map<string | undefined, Promise<string>>();

/** What servers can do without: processes that read ahead, which those before 18 do not have. */
export function settingsOf(binDir: string | undefined): Readonly<Record<string, string>> {
  return binDir === undefined ? { io_method: 'sync' } : {};
}

/**
 * A cluster in a new directory below `base`, as initdb would have made it, but for the superuser's password, which all of them share. It is a copy of the one that initdb has made
 * for the first who asked in this run, for a tenth of its time.
 * @param base the run's own directory @returns what to start a server in
 */
export async function copyTemplate(base: string, binDir: string | undefined): Promise<string> {
  const made = templates.get(binDir) ?? makeTemplate(base, binDir);
  templates.set(binDir, made);
  const template = await made;
  const dir = await Supervisor.shared().makeTemporary(base, 'cluster-', 0o711);
  copyTree(template, join(dir, 'cluster'));
  setSystemIdentifier(join(dir, 'cluster', 'data'));
  return dir;
}

async function makeTemplate(base: string, binDir: string | undefined): Promise<string> {
  const template = join(base, `template${(binDir ?? '').replaceAll('/', '-')}`);
  if (existsSync(template)) return template;
  const dir = await Supervisor.shared().makeTemporary(base, 'new-', 0o711);
  const cluster = await EmbeddedCluster.start({
    dir,
    settings: { fsync: 'off', ...settingsOf(binDir) },
    ...(binDir === undefined ? {} : { binDir }),
  });
  await withClient(cluster.url(), async (c) => {
    // Tests log in as the superuser thousands of times, and hash the password as often as is said here; before 16 nobody can say so.
    if (binDir === undefined) await c.query('SET scram_iterations = 64');
    await c.query(`ALTER ROLE postgres PASSWORD ${c.escapeLiteral(cluster.password)}`);
  });
  await cluster.stop();
  try {
    renameSync(join(dir, 'cluster'), template);
  } catch (error) {
    // Another worker has been faster.
    if ((error as NodeJS.ErrnoException).code !== 'ENOTEMPTY') throw error;
  }
  await Supervisor.shared().remove(dir);
  return template;
}

/** With owners, which only root can and must give. */
function copyTree(from: string, to: string): void {
  const { mode, uid, gid } = statSync(from);
  mkdirSync(to, { mode });
  for (const entry of readdirSync(from, { withFileTypes: true })) {
    const [source, target] = [join(from, entry.name), join(to, entry.name)];
    if (entry.isDirectory()) {
      copyTree(source, target);
      continue;
    }
    copyFileSync(source, target, constants.COPYFILE_FICLONE);
    if (uid !== 0 && process.getuid?.() === 0) chownSync(target, uid, gid);
  }
  if (process.getuid?.() === 0) chownSync(to, uid, gid);
}

/** Servers with one identifier would pass for one: subscribers would take each other's slots. It is in pg_control, and in the first page of each file of WAL. */
function setSystemIdentifier(data: string): void {
  const identifier = randomBytes(8);
  // It is read as a signed number, too.
  identifier.writeUInt8(identifier.readUInt8(7) & 0x7f, 7);
  const controlFile = join(data, 'global', 'pg_control');
  const control = readFileSync(controlFile);
  const crcAt = findCrc(control);
  control.set(identifier, 0);
  control.writeUInt32LE(crc32c(control.subarray(0, crcAt)), crcAt);
  writeFileSync(controlFile, control);
  const wal = join(data, 'pg_wal');
  for (const name of readdirSync(wal)) {
    if (!/^[0-9A-F]{24}$/.test(name)) continue;
    const file = openSync(join(wal, name), 'r+');
    const header = Buffer.alloc(4);
    readSync(file, header, 0, header.length, 0);
    if ((header.readUInt16LE(2) & XLP_LONG_HEADER) !== 0)
      writeSync(file, identifier, 0, identifier.length, XLP_SYSID_AT);
    closeSync(file);
  }
}

/** Where the checksum of ControlFileData is, its last field, before which each version has others. */
function findCrc(control: Buffer): number {
  for (let at = 8; at < 512; at += 4) if (crc32c(control.subarray(0, at)) === control.readUInt32LE(at)) return at;
  throw new Error('pg_control has no checksum where one was looked for');
}

function crc32c(bytes: Buffer): number {
  let crc = 0xffffffff;
  for (const byte of bytes) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? CRC_32C : 0);
  }
  return ~crc >>> 0;
}
