/**
 * The strongly connected components of a directed graph, given as who follows whom (Kosaraju's algorithm; without recursion, because a queue for one
 * row may be as long as there are connections).
 */
export function strongComponents(next: ReadonlyMap<string, readonly string[]>): string[][] {
  const order = visit(next.keys(), next, new Set()).flat();
  const before = new Map<string, string[]>();
  for (const [from, list] of next) {
    for (const to of list) {
      const known = before.get(to);
      if (known === undefined) before.set(to, [from]);
      else known.push(from);
    }
  }
  return visit(order.reverse(), before, new Set());
}

/** From each root what was not visited before, in the order in which it is left. */
function visit(
  roots: Iterable<string>,
  next: ReadonlyMap<string, readonly string[]>,
  visited: Set<string>,
): string[][] {
  const trees: string[][] = [];
  for (const root of roots) {
    if (visited.has(root)) continue;
    visited.add(root);
    const left: string[] = [];
    const path = [{ node: root, at: 0 }];
    for (let top = path.at(-1); top !== undefined; top = path.at(-1)) {
      const to = next.get(top.node)?.[top.at];
      top.at += 1;
      if (to === undefined) {
        left.push(top.node);
        path.pop();
      } else if (!visited.has(to)) {
        visited.add(to);
        path.push({ node: to, at: 0 });
      }
    }
    trees.push(left);
  }
  return trees;
}
