import { audit } from '../../migrator/audit/audit.js';
import { Portions } from '../../migrator/audit/portions.js';
import { Catalog } from '../../topology/catalog/catalog.js';
import type { ShardName } from '../../topology/topology.js';

// `foreshard migrate audit --repair --from one` in a process of its own, to be killed: argument is the catalog's URL.
const catalog = await Catalog.connect(process.argv[2] as string);
const findings = await audit(catalog, true, new Portions(false), { shard: 'one' as ShardName, actor: 'test' });
process.stdout.write(JSON.stringify(findings.map(({ kind, outcome }) => [kind, outcome])));
await catalog.close();
