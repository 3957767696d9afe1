/** Messages up to this size are held without asking: every client may have a few of them. */
export const LARGE_MESSAGE_BYTES = 1024 * 1024;

interface Request {
  readonly bytes: number;
  readonly granted: () => void;
}

/**
 * What all clients of a process together may have the proxy hold of messages larger than a megabyte. Whoever does not fit in
 * waits, first come, first served.
 */
export class MessageBudget {
  #limit: number;
  #used = 0;
  readonly #requests = new Set<Request>();

  /** @param limit in bytes */
  constructor(limit: number) {
    this.#limit = limit;
  }

  get limit(): number {
    return this.#limit;
  }

  get used(): number {
    return this.#used;
  }

  /** Clients that wait. */
  get waiting(): number {
    return this.#requests.size;
  }

  reload(limit: number): void {
    this.#limit = limit;
    this.#grant();
  }

  /** @returns null: granted at once; otherwise `granted` is called once it is, unless what is returned is called before */
  request(bytes: number, granted: () => void): (() => void) | null {
    if (this.#requests.size === 0 && this.#fits(bytes)) {
      this.#used += bytes;
      return null;
    }
    const request = { bytes, granted };
    this.#requests.add(request);
    return () => {
      this.#requests.delete(request);
      this.#grant();
    };
  }

  /** `bytes` of what was granted are held no more. */
  release(bytes: number): void {
    this.#used -= bytes;
    this.#grant();
  }

  // One that is alone is let in whatever its size: the limit may have been lowered since it was asked.
  #fits(bytes: number): boolean {
    return this.#used === 0 || this.#used + bytes <= this.#limit;
  }

  #grant(): void {
    for (const request of this.#requests) {
      if (!this.#fits(request.bytes)) return;
      this.#requests.delete(request);
      this.#used += request.bytes;
      request.granted();
    }
  }
}
