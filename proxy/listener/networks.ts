import { BlockList, isIPv4, isIPv6 } from 'node:net';

/** Whether an address is among `entries`. @throws RangeError when an entry is neither an address nor a network */
export function trustList(entries: readonly string[]): (address: string) => boolean {
  const list = new BlockList();
  for (const entry of entries) {
    const problem = networkProblem(entry);
    if (problem !== null) throw new RangeError(problem);
    const [address = '', bits] = entry.split('/');
    const family = isIPv4(address) ? 'ipv4' : 'ipv6';
    if (bits === undefined) list.addAddress(address, family);
    else list.addSubnet(address, Number(bits), family);
  }
  return (address) => list.check(address, isIPv4(address) ? 'ipv4' : 'ipv6');
}

/** Why `entry` is not an address or a network such as 10.0.0.0/8, or null. */
export function networkProblem(entry: string): string | null {
  const [address = '', bits, ...more] = entry.split('/');
  const most = isIPv4(address) ? 32 : isIPv6(address) ? 128 : null;
  if (most === null || more.length > 0) return `"${entry}" is not an IP address or a network (10.0.0.0/8)`;
  if (bits !== undefined && !(/^\d{1,3}$/.test(bits) && Number(bits) <= most))
    return `"${entry}" is not a network: expected a prefix of 0 to ${most} bits`;
  return null;
}
