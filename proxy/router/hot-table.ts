import type { TableName } from '../../topology/topology.js';
import type { Refusal } from './route.js';

/** What is said to whoever changes a hot table by its own name. */
export function hotTableRefusal(hot: TableName, of: TableName): Refusal {
  return {
    sqlstate: '0A000',
    message: `"${hot.table}" has columns of "${of.table}", and is not to be changed by its own name`,
    hint: `Change "${of.table}": "${hot.table}" follows.`,
  };
}
