import type { Node } from 'libpg-query';

/** Command tags (cmdtaglist.h) of nodes whose name does not say it. */
const TAGS: Readonly<Record<string, string>> = {
  CreateStmt: 'CREATE TABLE',
  CreateTableAsStmt: 'CREATE TABLE AS',
  CreateSeqStmt: 'CREATE SEQUENCE',
  CreateSchemaStmt: 'CREATE SCHEMA',
  CreateExtensionStmt: 'CREATE EXTENSION',
  CreateFunctionStmt: 'CREATE FUNCTION',
  CreateTrigStmt: 'CREATE TRIGGER',
  CreateRoleStmt: 'CREATE ROLE',
  CreateEnumStmt: 'CREATE TYPE',
  CompositeTypeStmt: 'CREATE TYPE',
  CreateDomainStmt: 'CREATE DOMAIN',
  CreatedbStmt: 'CREATE DATABASE',
  DropdbStmt: 'DROP DATABASE',
  ViewStmt: 'CREATE VIEW',
  IndexStmt: 'CREATE INDEX',
  RuleStmt: 'CREATE RULE',
  RefreshMatViewStmt: 'REFRESH MATERIALIZED VIEW',
  AlterTableStmt: 'ALTER TABLE',
  RenameStmt: 'ALTER TABLE',
  AlterSeqStmt: 'ALTER SEQUENCE',
  TruncateStmt: 'TRUNCATE TABLE',
  LockStmt: 'LOCK TABLE',
  SecLabelStmt: 'SECURITY LABEL',
  ImportForeignSchemaStmt: 'IMPORT FOREIGN SCHEMA',
  CommentStmt: 'COMMENT',
  DeclareCursorStmt: 'DECLARE CURSOR',
  ClosePortalStmt: 'CLOSE CURSOR',
  VariableShowStmt: 'SHOW',
  ConstraintsSetStmt: 'SET CONSTRAINTS',
  CheckPointStmt: 'CHECKPOINT',
};

const TRANSACTION_TAGS: Readonly<Record<string, string>> = {
  BEGIN: 'BEGIN',
  START: 'START TRANSACTION',
  COMMIT: 'COMMIT',
  ROLLBACK: 'ROLLBACK',
  SAVEPOINT: 'SAVEPOINT',
  RELEASE: 'RELEASE',
  ROLLBACK_TO: 'ROLLBACK',
  PREPARE: 'PREPARE TRANSACTION',
  COMMIT_PREPARED: 'COMMIT PREPARED',
  ROLLBACK_PREPARED: 'ROLLBACK PREPARED',
};

/** The command tag word or words, upper case, as the server will give it (without row counts). */
export function commandTag(statement: Node): string {
  const kind = Object.keys(statement)[0] ?? '';
  if ('TransactionStmt' in statement)
    return TRANSACTION_TAGS[(statement.TransactionStmt.kind ?? '').replace('TRANS_STMT_', '')] ?? 'TRANSACTION';
  if ('VariableSetStmt' in statement) return statement.VariableSetStmt.kind?.startsWith('VAR_RESET') ? 'RESET' : 'SET';
  if ('DiscardStmt' in statement) return (statement.DiscardStmt.target ?? '').replace('_', ' ');
  if ('DropStmt' in statement)
    return `DROP ${(statement.DropStmt.removeType ?? '').replace('OBJECT_', '').replace('MATVIEW', 'MATERIALIZED VIEW').replaceAll('_', ' ')}`;
  if ('FetchStmt' in statement) return statement.FetchStmt.ismove ? 'MOVE' : 'FETCH';
  if ('VacuumStmt' in statement) return statement.VacuumStmt.is_vacuumcmd ? 'VACUUM' : 'ANALYZE';
  if ('GrantStmt' in statement) return statement.GrantStmt.is_grant ? 'GRANT' : 'REVOKE';
  if ('GrantRoleStmt' in statement) return statement.GrantRoleStmt.is_grant ? 'GRANT ROLE' : 'REVOKE ROLE';
  if ('SelectStmt' in statement) return 'SELECT';
  return (
    TAGS[kind] ??
    kind
      .replace(/Stmt$/, '')
      .replace(/([a-z])([A-Z])/g, '$1 $2')
      .toUpperCase()
  );
}
