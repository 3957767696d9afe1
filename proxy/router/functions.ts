import type { Metadata, UserFunction } from './metadata.js';

/**
 * What the router knows of PostgreSQL's own functions, by name. The names are those of 15 to 18; "immutable" means that
 * every overload in pg_catalog is. Of a function that is in no list the catalog of the home shard says whether it only computes
 * ({@link Metadata.builtin}); one that is volatile is taken for one that may do anything.
 */
const words = (text: string): ReadonlySet<string> => new Set(text.trim().split(/\s+/));

/** Immutable and returning one value: the same on every shard, so allowed when a query fans out. */
const IMMUTABLE = words(`
abs acos acosd acosh area array_append array_cat array_dims array_fill array_length array_lower array_ndims array_position array_positions
array_prepend array_remove array_replace array_reverse array_sort array_upper ascii asin asind asinh atan atan2 atan2d atand atanh
bit_count bit_length box bound_box btrim cardinality casefold cbrt ceil ceiling center char_length character_length chr circle cos cosd cosh cot cotd
crc32 crc32c date_bin decode degrees diagonal diameter div encode erf erfc exp factorial family float4 float8 floor gamma gcd get_bit get_byte
hashbool hashbytea hashchar hashdate hashfloat4 hashfloat8 hashint2 hashint2extended hashint4 hashint4extended hashint8 hashint8extended hashtext hashtextextended
height host hostmask inet_merge inet_same_family initcap int2 int4 int8 is_normalized isclosed isempty isfinite isopen
json_array_length json_extract_path json_extract_path_text json_object json_strip_nulls json_typeof
jsonb_array_length jsonb_extract_path jsonb_extract_path_text jsonb_insert jsonb_object jsonb_path_exists jsonb_path_match jsonb_path_query_array jsonb_path_query_first
jsonb_pretty jsonb_set jsonb_set_lax jsonb_strip_nulls jsonb_typeof justify_days justify_hours justify_interval
lcm left lgamma like like_escape line ln log log10 lower lower_inc lower_inf lpad lseg ltrim macaddr8_set7bit make_date make_interval make_time make_timestamp
masklen md5 min_scale mod multirange netmask network normalize notlike npoints num_nonnulls num_nulls numnode octet_length overlay parse_ident path pclose
pg_size_bytes pg_size_pretty pi point polygon popen position pow power querytree quote_ident radians radius range_merge regexp_count regexp_instr regexp_like regexp_match
regexp_replace regexp_split_to_array regexp_substr repeat replace reverse right round rpad rtrim scale set_bit set_byte set_masklen setweight sha224 sha256 sha384 sha512
sign sin sind sinh slope split_part sqrt starts_with string_to_array strip strpos substr substring tan tand tanh text textcat to_ascii to_bin to_hex to_oct
translate trim_array trim_scale trunc tsquery_phrase ts_delete ts_filter ts_rank ts_rank_cd tsvector_to_array array_to_tsvector unicode_assigned unistr upper upper_inc upper_inf
varchar bpchar width width_bucket isfalse isnotfalse istrue isnottrue bool uuid_extract_timestamp uuid_extract_version`);

/** Without side effects and without looking at tables, but not the same on every shard or at every moment. */
const STABLE = words(`
age array_to_json array_to_string array_sample array_shuffle clock_timestamp concat concat_ws convert convert_from convert_to current_catalog current_database current_query current_role current_schema
current_schemas current_setting current_user date date_add date_part date_subtract date_trunc enum_first enum_last enum_range extract format format_type gen_random_uuid
generate_series generate_subscripts getdatabaseencoding inet_client_addr inet_client_port inet_server_addr inet_server_port json_array_elements json_array_elements_text json_build_array
json_build_object json_each json_each_text json_object_keys json_populate_record json_populate_recordset json_to_record json_to_recordset json_to_tsvector jsonb_array_elements
jsonb_array_elements_text jsonb_build_array jsonb_build_object jsonb_each jsonb_each_text jsonb_object_keys jsonb_path_exists_tz jsonb_path_match_tz jsonb_path_query
jsonb_path_query_array_tz jsonb_path_query_first_tz jsonb_path_query_tz jsonb_populate_record jsonb_populate_record_valid jsonb_populate_recordset jsonb_to_record jsonb_to_recordset
jsonb_to_tsvector length make_timestamptz money now numeric overlaps pg_client_encoding pg_collation_for pg_column_size pg_current_snapshot pg_current_xact_id_if_assigned
pg_input_error_info pg_input_is_valid pg_is_in_recovery pg_postmaster_start_time pg_sleep pg_sleep_for pg_sleep_until pg_typeof phraseto_tsquery plainto_tsquery quote_literal quote_nullable random
random_normal regexp_matches regexp_split_to_table row_to_json session_user statement_timestamp string_to_table system_user time timeofday timestamp timestamptz timetz timezone to_char to_date
to_json to_jsonb to_number to_timestamp to_tsquery to_tsvector transaction_timestamp ts_debug ts_headline ts_lexize ts_parse txid_current_if_assigned unnest
user uuidv4 uuidv7 version websearch_to_tsquery xml xml_is_well_formed xml_is_well_formed_content xml_is_well_formed_document xmlcomment xmlexists xpath xpath_exists
pg_current_xact_id txid_current pg_current_wal_lsn pg_notification_queue_usage uuid_generate_v1 uuid_generate_v1mc uuid_generate_v3 uuid_generate_v4 uuid_generate_v5
crypt digest gen_random_bytes gen_salt hmac similarity word_similarity show_trgm unaccent`);

const AGGREGATES = words(`
any_value array_agg avg bit_and bit_or bit_xor bool_and bool_or corr count covar_pop covar_samp cume_dist dense_rank every json_agg json_agg_strict json_object_agg json_object_agg_strict
json_object_agg_unique json_object_agg_unique_strict jsonb_agg jsonb_agg_strict jsonb_object_agg jsonb_object_agg_strict jsonb_object_agg_unique jsonb_object_agg_unique_strict max min mode
percent_rank percentile_cont percentile_disc range_agg range_intersect_agg rank regr_avgx regr_avgy regr_count regr_intercept regr_r2 regr_slope regr_sxx regr_sxy regr_syy stddev stddev_pop
stddev_samp string_agg sum var_pop var_samp variance xmlagg first_value lag last_value lead nth_value ntile row_number`);

/** They read tables that are named in a value, or run a query given as text: nobody can see which. */
const READS_BY_NAME = words(`
query_to_xml query_to_xmlschema query_to_xml_and_xmlschema table_to_xml table_to_xmlschema table_to_xml_and_xmlschema schema_to_xml schema_to_xmlschema schema_to_xml_and_xmlschema
database_to_xml database_to_xmlschema database_to_xml_and_xmlschema cursor_to_xml cursor_to_xmlschema ts_stat ts_rewrite
pg_relation_size pg_table_size pg_total_relation_size pg_indexes_size pg_database_size pg_tablespace_size currtid2`);

/** What of a session only one server connection can hold; the value is the reason that is shown. */
const PINS: ReadonlyMap<string, string> = new Map([
  ...[
    'pg_advisory_lock',
    'pg_advisory_lock_shared',
    'pg_try_advisory_lock',
    'pg_try_advisory_lock_shared',
    'pg_advisory_unlock',
    'pg_advisory_unlock_shared',
    'pg_advisory_unlock_all',
  ].map((name) => [name, 'session advisory lock'] as const),
  ['set_config', 'set_config'],
  ['setseed', 'setseed'],
  ['pg_backend_pid', 'pg_backend_pid'],
  ...['dblink_connect', 'dblink_connect_u', 'dblink_open', 'dblink_send_query'].map(
    (name) => [name, 'dblink'] as const,
  ),
  ['pg_replication_origin_session_setup', 'replication origin'],
]);

/** They say or set something of the connection, whichever it is. */
const ANYWHERE_PINS = words('set_config setseed pg_backend_pid');

/** They act, but only on what the home shard keeps for everybody, or on the transaction. */
const HOME_ACTIONS = words(`
pg_export_snapshot lo_open lo_close lo_creat lo_create lo_lseek lo_lseek64 lo_tell lo_tell64 lo_truncate lo_truncate64 loread lowrite lo_get lo_put lo_from_bytea lo_unlink
pg_advisory_xact_lock pg_advisory_xact_lock_shared pg_try_advisory_xact_lock pg_try_advisory_xact_lock_shared`);

/** They act on the transaction, or tell of the session, wherever it runs. */
const ANYWHERE_ACTIONS = words('pg_notify pg_listening_channels');

/** Sequences are each shard's own. What currval and lastval give depends on what the connection did before. */
const SEQUENCES: ReadonlyMap<string, { readonly prior: boolean }> = new Map([
  ['nextval', { prior: false }],
  ['setval', { prior: false }],
  ['currval', { prior: true }],
  ['lastval', { prior: true }],
]);

export type FunctionClass =
  /** The same answer for the same arguments everywhere. */
  | { readonly kind: 'immutable' }
  /** No side effect, no table; but not the same everywhere. */
  | { readonly kind: 'stable' }
  | { readonly kind: 'aggregate' }
  /** Reads the catalogs, which the home shard answers for. */
  | { readonly kind: 'catalog' }
  /** Acts on the session or on the home shard. `pin`: why the session must keep its connection. */
  | { readonly kind: 'session'; readonly pin: string | null; readonly home: boolean }
  | { readonly kind: 'sequence'; readonly prior: boolean }
  | { readonly kind: 'unknown' };

/** What the function may do that this name, with or without a schema, stands for. */
export function classifyFunction(
  schema: string | null,
  name: string,
  searchPath: readonly string[],
  metadata: Metadata,
): FunctionClass {
  if (schema === null || schema !== 'pg_catalog') {
    const user = metadata.userFunction(schema, name, searchPath);
    // An overload of the user's own may be a better match than PostgreSQL's: then only what both are counts.
    if (user !== null && !user.immutable) {
      if (isKnownNative(name, user)) return { kind: 'stable' };
      return { kind: 'unknown' };
    }
    if (user !== null && schema !== null) return { kind: 'immutable' };
    if (schema !== null) return { kind: 'unknown' };
    if (user !== null && metadata.builtin(name) === null && !isBuiltin(name)) return { kind: 'immutable' };
  }
  return classifyBuiltin(name, metadata);
}

/** A function of an extension, in C, of which it is known that it has no side effect and reads no table. */
export function isKnownNative(name: string, { native }: UserFunction): boolean {
  return native && STABLE.has(name);
}

function isBuiltin(name: string): boolean {
  return (
    IMMUTABLE.has(name) ||
    STABLE.has(name) ||
    AGGREGATES.has(name) ||
    PINS.has(name) ||
    SEQUENCES.has(name) ||
    READS_BY_NAME.has(name) ||
    HOME_ACTIONS.has(name) ||
    ANYWHERE_ACTIONS.has(name) ||
    name.startsWith('pg_')
  );
}

export function classifyBuiltin(name: string, metadata: Metadata): FunctionClass {
  if (IMMUTABLE.has(name)) return { kind: 'immutable' };
  if (STABLE.has(name)) return { kind: 'stable' };
  if (AGGREGATES.has(name)) return { kind: 'aggregate' };
  if (READS_BY_NAME.has(name)) return { kind: 'unknown' };
  const sequence = SEQUENCES.get(name);
  if (sequence) return { kind: 'sequence', prior: sequence.prior };
  const pin = PINS.get(name);
  if (pin !== undefined) {
    return { kind: 'session', pin, home: !ANYWHERE_PINS.has(pin) };
  }
  if (ANYWHERE_ACTIONS.has(name)) return { kind: 'session', pin: null, home: false };
  if (HOME_ACTIONS.has(name)) return { kind: 'session', pin: null, home: true };
  // What psql, drivers and monitoring ask: pg_get_…, pg_table_is_visible, has_table_privilege, obj_description, to_regclass …
  if (
    /^(pg_get_|pg_stat_get_|pg_has_role$|has_\w+_privilege$|to_reg\w+$|obj_description$|col_description$|shobj_description$|oidvectortypes$|acl\w+$|makeaclitem$|row_security_active$|txid_|pg_snapshot_|pg_lock_status$|pg_show_|pg_cursor$|pg_prepared_statement$|pg_timezone_|pg_available_|pg_\w+_is_visible$|pg_encoding_to_char$|pg_char_to_encoding$|pg_relation_is_|pg_column_is_|pg_index|pg_tablespace_|pg_describe_object$|pg_identify_object|pg_options_to_table$|pg_sequence_parameters$|pg_my_temp_schema$|pg_is_other_temp_schema$|pg_blocking_pids$|pg_conf_load_time$|pg_partition_|pg_trigger_depth$|regclass$|name$|oid$)/.test(
      name,
    )
  )
    return { kind: 'catalog' };
  switch (metadata.builtin(name)) {
    case 'pure':
      return { kind: 'immutable' };
    case 'stable':
      return { kind: 'stable' };
    case 'catalog':
      return { kind: 'catalog' };
    default:
      return { kind: 'unknown' };
  }
}
