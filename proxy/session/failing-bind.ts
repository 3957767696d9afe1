import { encodeBind } from '../wire/frontend.js';

/** No such statement: bound to make a server fail its transaction, so that the client's is really the state it was told. */
export const FAILING_BIND = encodeBind({
  portal: '',
  statement: 'foreshard_refused',
  formats: [],
  values: [],
  resultFormats: [],
});
