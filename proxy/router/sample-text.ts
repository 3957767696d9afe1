/** A literal of each kind, for the word that stands for it in a template. */
const LITERALS: Readonly<Record<string, string>> = {
  str: "''",
  int: '1',
  num: '1.5',
  bit: "B'1'",
  hex: "X'1'",
  any: "''",
};

/** Names in quotes, strings, and the words. */
const TOKEN = /"(?:[^"]|"")*"|'(?:[^']|'')*'|::|:(str|int|num|bit|hex|any)\b/g;

/** A text of which this is the template ({@link Analyzed.template}), to see how such texts are planned. */
export function sampleText(template: string): string {
  return template.replace(TOKEN, (found, kind: string | undefined) =>
    kind === undefined ? found : (LITERALS[kind] as string),
  );
}
