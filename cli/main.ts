#!/usr/bin/env node
import { runCli } from './run.js';

// A reader such as `head` that goes away is no failure.
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code !== 'EPIPE') throw error;
  process.exit(0);
});

await runCli(process.argv.slice(2));
