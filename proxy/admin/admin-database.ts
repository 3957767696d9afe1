/** The name of the database that administrators log in to. */
export const ADMIN_DATABASE = 'foreshard_admin';
