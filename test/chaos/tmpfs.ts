import { spawnSync } from 'node:child_process';
import { chmodSync, closeSync, mkdirSync, openSync, rmSync, statfsSync, writeSync } from 'node:fs';
import { join } from 'node:path';

const SIZE_MB = 400;
const PIECE = Buffer.alloc(1 << 20, 1);

/** A small disk in memory, to be full when it is wanted. Needs root, on Linux. */
export class Tmpfs {
  readonly dir: string;

  private constructor(dir: string) {
    this.dir = dir;
  }

  /** @returns null when there can be none, having said why */
  static mount(dir: string, log: (text: string) => void): Tmpfs | null {
    mkdirSync(dir);
    const { error, status, stderr } = spawnSync(
      'mount',
      ['-t', 'tmpfs', '-o', `size=${SIZE_MB}m,mode=0755`, 'tmpfs', dir],
      {
        encoding: 'utf8',
      },
    );
    if (status === 0) {
      chmodSync(join(dir, '..'), 0o711);
      return new Tmpfs(dir);
    }
    log(`no disk that can be filled: ${error?.message ?? stderr.trim()}`);
    return null;
  }

  /** Leaves no room at all. */
  fill(): void {
    const file = openSync(join(this.dir, 'ballast'), 'a');
    try {
      for (const piece of [PIECE, PIECE.subarray(0, 4096)]) while (wrote(file, piece));
    } finally {
      closeSync(file);
    }
  }

  get freeBytes(): number {
    const { bavail, bsize } = statfsSync(this.dir);
    return bavail * bsize;
  }

  free(): void {
    rmSync(join(this.dir, 'ballast'), { force: true });
  }

  unmount(): void {
    const { status, stderr } = spawnSync('umount', [this.dir], { encoding: 'utf8' });
    if (status !== 0) throw new Error(`cannot unmount ${this.dir}: ${stderr.trim()}`);
  }
}

/** @returns false when the disk is full */
function wrote(file: number, piece: Buffer): boolean {
  try {
    return writeSync(file, piece) === piece.length;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOSPC') return false;
    throw error;
  }
}
