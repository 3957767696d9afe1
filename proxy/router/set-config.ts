import type { FuncCall, Node, SelectStmt } from 'libpg-query';
import { type Literals, sourceOf, targets } from './ast.js';
import type { KeyColumnSource, SetConfigCall } from './route.js';

/**
 * The settings that calls of set_config in a statement change, or null when one of them does not say which setting it changes or
 * for how long. Their values are known only where every call is carried out exactly once: in the target list of a plain SELECT.
 */
export function setConfigCalls(
  calls: readonly FuncCall[],
  statement: Node,
  literals: Literals,
): readonly SetConfigCall[] | null {
  const plain = 'SelectStmt' in statement ? plainCalls(statement.SelectStmt) : null;
  const found: SetConfigCall[] = [];
  for (const call of calls) {
    const [name, value, local] = call.args ?? [];
    const source = textSource(name, literals);
    const isLocal = booleanOf(local);
    if (source === null || isLocal === null) return null;
    found.push({ name: source, value: plain?.has(call) ? textSource(value, literals) : null, local: isLocal });
  }
  return found;
}

/** The calls that are columns of a SELECT which gives one row and does nothing else. */
function plainCalls(select: SelectStmt): ReadonlySet<FuncCall> | null {
  const { targetList, limitOption: _l, op, ...others } = select;
  if ((op !== undefined && op !== 'SETOP_NONE') || Object.values(others).some((v) => v !== undefined && v !== false))
    return null;
  return new Set(targets(targetList).flatMap(({ val }) => (val && 'FuncCall' in val ? [val.FuncCall] : [])));
}

/** A text that stands there or is a parameter. */
function textSource(node: Node | undefined, literals: Literals): KeyColumnSource | null {
  const source = sourceOf(node, literals);
  return source !== null && (source.castType === null || source.castType === 'text') ? source : null;
}

function booleanOf(node: Node | undefined): boolean | null {
  if (node === undefined || !('A_Const' in node) || node.A_Const.boolval === undefined) return null;
  return node.A_Const.boolval.boolval ?? false;
}
