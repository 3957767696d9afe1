/** Days of recorded statements that are looked at. */
export const TEMPLATE_DAYS = 7;
