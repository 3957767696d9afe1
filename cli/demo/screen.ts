import { once } from 'node:events';
import { createInterface } from 'node:readline/promises';

/** Before everything that is not a heading. */
const MARGIN = '   ';

interface Output extends NodeJS.WritableStream {
  readonly isTTY?: boolean;
  readonly columns?: number;
}

/** The terminal of the demo: on a terminal one line is kept up to date, elsewhere every change is a line of its own. */
export class Screen {
  private readonly tty: boolean;
  readonly color: boolean;
  private shown = '';
  private muted = false;
  private sections = 0;

  constructor(
    private readonly out: Output = process.stdout,
    env: NodeJS.ProcessEnv = process.env,
  ) {
    this.tty = out.isTTY === true;
    this.color = this.tty && env.NO_COLOR === undefined && env.TERM !== 'dumb';
  }

  /** Nothing is shown any more: the story is being interrupted, and what it still says is of no use. */
  mute(): void {
    this.settle();
    this.muted = true;
  }

  private write(text: string): void {
    if (!this.muted) this.out.write(text);
  }

  section(title: string): void {
    this.settle();
    this.sections++;
    const heading = `${this.sections}. ${title}`;
    this.write(`\n${this.color ? `\x1b[1m${heading}\x1b[0m` : heading}\n`);
  }

  /** Columns for text, beside the margin. */
  get width(): number {
    return this.tty ? Math.max(1, (this.out.columns || 80) - MARGIN.length) : Number.POSITIVE_INFINITY;
  }

  /** A line, or several, that stay. */
  line(text = ''): void {
    this.settle();
    for (const part of text.split('\n')) this.write(part === '' ? '\n' : `${this.wrap(part)}\n`);
  }

  /** With the margin, and broken between words where the terminal would break it anywhere. */
  private wrap(text: string): string {
    // What is there to be copied must stay in one piece, as must tables; and what is coloured is as wide as it should be.
    if (text.length <= this.width || /:\/\/| {2}/.test(text) || text.includes('\x1b')) return MARGIN + text;
    const lines: string[] = [];
    let line = '';
    for (const word of text.split(' ')) {
      if (line !== '' && line.length + 1 + word.length > this.width) {
        lines.push(line);
        line = word;
      } else line = line === '' ? word : `${line} ${word}`;
    }
    return [...lines, line].map((part) => MARGIN + part).join('\n');
  }

  /** What is going on: on a terminal in place of the line before; elsewhere `change`, when it differs from the one before. */
  live(text: string, change: string = text): void {
    if (this.tty) {
      this.shown = text;
      this.write(`\r\x1b[2K${MARGIN}${text.slice(0, Math.max(1, this.width - 1))}`);
    } else if (change !== this.shown) {
      this.shown = change;
      this.write(`${MARGIN}${change}\n`);
    }
  }

  /** The line that was kept up to date ends as this one. */
  settle(text?: string): void {
    if (this.tty && this.shown !== '') {
      if (text === undefined) this.write('\n');
      else this.write('\r\x1b[2K');
    }
    this.shown = '';
    if (text !== undefined) this.write(`${this.wrap(text)}\n`);
  }

  /** Asks the person at the terminal; true for yes; the end of the input (Ctrl-D) is a no. */
  async confirm(question: string, signal: AbortSignal): Promise<boolean> {
    this.settle();
    const lines = createInterface({ input: process.stdin, output: this.out, terminal: false });
    const closed = once(lines, 'close').then(() => 'no');
    try {
      for (;;) {
        const asked = lines.question(`   ${question} [y/n] `, { signal });
        const answer = (await Promise.race([asked, closed])).trim().toLowerCase();
        if (answer === 'y' || answer === 'yes') return true;
        if (answer === 'n' || answer === 'no') return false;
      }
    } finally {
      lines.close();
    }
  }
}
