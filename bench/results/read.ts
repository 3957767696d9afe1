import { readFileSync } from 'node:fs';
import { UsageError } from '../../topology/errors.js';
import { type Results, resultsSchema } from './results.js';

/** @throws {UsageError} */
export function readJson(file: string): unknown {
  try {
    return JSON.parse(readFileSync(file, 'utf8'));
  } catch (error) {
    throw new UsageError(`${file} cannot be read: ${(error as Error).message}`);
  }
}

/** The JSON of a run. @throws {UsageError} */
export function readResults(file: string): Results {
  const parsed = resultsSchema.safeParse(readJson(file));
  if (!parsed.success)
    throw new UsageError(`${file} is not the JSON of a run: ${parsed.error.issues[0]?.path.join('.')}`);
  return parsed.data;
}
