/** Transaction status bytes of ReadyForQuery. */
export const IDLE = 0x49; // 'I'
export const IN_TRANSACTION = 0x54; // 'T'
export const FAILED = 0x45; // 'E'
