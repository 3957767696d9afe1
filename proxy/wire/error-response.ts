import { ForeshardError } from '../../topology/errors.js';
import { MessageBuilder } from './message-builder.js';
import { MessageReader } from './message-reader.js';
import { BACKEND } from './message-types.js';

/** What an ErrorResponse or a NoticeResponse says. Names are those of PostgreSQL's documentation ("Error and Notice Message Fields"). */
export interface ErrorFields {
  /** ERROR, FATAL, PANIC; WARNING, NOTICE, DEBUG, INFO, LOG. Not localised. */
  readonly severity: string;
  readonly sqlstate: string;
  readonly message: string;
  readonly detail?: string;
  readonly hint?: string;
  /** In characters, from 1, in the query string as the client sent it. */
  readonly position?: number;
  readonly internalPosition?: number;
  readonly internalQuery?: string;
  readonly where?: string;
  readonly schema?: string;
  readonly table?: string;
  readonly column?: string;
  readonly dataType?: string;
  readonly constraint?: string;
  readonly file?: string;
  readonly line?: number;
  readonly routine?: string;
}

/** Whether whoever said it ends the connection. */
export function isFatal({ severity }: ErrorFields): boolean {
  return severity === 'FATAL' || severity === 'PANIC';
}

type TextField = Exclude<keyof ErrorFields, 'severity' | 'position' | 'internalPosition' | 'line'>;
type NumberField = 'position' | 'internalPosition' | 'line';

/** Field codes in the order in which PostgreSQL's elog.c sends them; S and V, both the severity, come before. */
const FIELDS: readonly (
  | { readonly code: string; readonly key: TextField; readonly numeric: false }
  | { readonly code: string; readonly key: NumberField; readonly numeric: true }
)[] = [
  { code: 'C', key: 'sqlstate', numeric: false },
  { code: 'M', key: 'message', numeric: false },
  { code: 'D', key: 'detail', numeric: false },
  { code: 'H', key: 'hint', numeric: false },
  { code: 'W', key: 'where', numeric: false },
  { code: 's', key: 'schema', numeric: false },
  { code: 't', key: 'table', numeric: false },
  { code: 'c', key: 'column', numeric: false },
  { code: 'd', key: 'dataType', numeric: false },
  { code: 'n', key: 'constraint', numeric: false },
  { code: 'P', key: 'position', numeric: true },
  { code: 'p', key: 'internalPosition', numeric: true },
  { code: 'q', key: 'internalQuery', numeric: false },
  { code: 'F', key: 'file', numeric: false },
  { code: 'L', key: 'line', numeric: true },
  { code: 'R', key: 'routine', numeric: false },
];
const FIELD_OF_CODE = new Map(FIELDS.map((field) => [field.code, field]));

/** A zero byte would end the field early: it is shown instead. */
const withoutNul = (value: string): string => value.replaceAll('\0', '\\0');

function encodeFields(type: number, fields: ErrorFields): Buffer {
  const builder = new MessageBuilder(type, 256);
  builder.byte(0x53).text(withoutNul(fields.severity)); // S
  builder.byte(0x56).text(withoutNul(fields.severity)); // V
  for (const { code, key } of FIELDS) {
    const value = fields[key];
    if (value !== undefined) builder.byte(code.charCodeAt(0)).text(withoutNul(String(value)));
  }
  return builder.byte(0).finish();
}

export function encodeErrorResponse(fields: ErrorFields): Buffer {
  return encodeFields(BACKEND.ErrorResponse, fields);
}

/** As PostgreSQL answers clients of protocol 2, which it no longer speaks: the letter and a line of text. */
export function encodeErrorOfProtocol2(fields: ErrorFields): Buffer {
  return Buffer.from(`E${fields.severity}:  ${withoutNul(fields.message)}\n\0`);
}

export function encodeNoticeResponse(fields: ErrorFields): Buffer {
  return encodeFields(BACKEND.NoticeResponse, fields);
}

/** Fields of an ErrorResponse or a NoticeResponse. Unknown field codes are skipped, as the protocol asks. */
export function decodeErrorFields(message: Buffer): ErrorFields {
  const reader = new MessageReader(message);
  const found: Partial<Record<keyof ErrorFields, string | number>> = {};
  for (let code = reader.byte(); code !== 0; code = reader.byte()) {
    const value = reader.text();
    const letter = String.fromCharCode(code);
    if (letter === 'V') found.severity = value;
    else if (letter === 'S') found.severity ??= value;
    else {
      const field = FIELD_OF_CODE.get(letter);
      if (field !== undefined) found[field.key] = field.numeric ? Number(value) : value;
    }
  }
  reader.end();
  return { severity: 'ERROR', sqlstate: 'XX000', message: '', ...found } as ErrorFields;
}

/** What the client is told of an error raised in the proxy; anything that is not a ForeshardError is an internal error. */
export function fieldsOfError(error: unknown, severity: 'ERROR' | 'FATAL' = 'ERROR'): ErrorFields {
  if (error instanceof ServerError) return { ...error.fields, severity };
  if (error instanceof ForeshardError)
    return {
      severity,
      sqlstate: error.sqlstate,
      message: error.message,
      ...(error.detail === undefined ? {} : { detail: error.detail }),
      ...(error.hint === undefined ? {} : { hint: error.hint }),
    };
  return {
    severity,
    sqlstate: 'XX000',
    message: `internal error in the proxy: ${error instanceof Error ? error.message : String(error)}`,
  };
}

/** A server's ErrorResponse as an exception that keeps all of its fields. */
export class ServerError extends ForeshardError {
  readonly fields: ErrorFields;

  constructor(fields: ErrorFields) {
    super(fields.sqlstate, fields.message, {
      ...(fields.hint === undefined ? {} : { hint: fields.hint }),
      ...(fields.detail === undefined ? {} : { detail: fields.detail }),
    });
    this.fields = fields;
  }
}
