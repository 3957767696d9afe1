/** The page's style: everything in the page itself, both colour schemes, no fonts or scripts from elsewhere. */
export const STYLE = `
:root{color-scheme:light dark;--ink:#1a2330;--soft:#5b6878;--faint:#e6eaef;--page:#f5f7f9;--card:#fff;--line:#d5dbe2;
--history:#64748b;--forecast:#1668c7;--band:#1668c733;--capacity:#c62828;--moves:#0f8a6c;--stays:#9aa7b6;--warn:#a35c00;--warnbg:#fff4e0;--future:#1668c70a}
@media (prefers-color-scheme:dark){:root{--ink:#e6ebf1;--soft:#98a5b4;--faint:#26303b;--page:#10161d;--card:#18202a;--line:#303c49;
--history:#8b9bb0;--forecast:#5aa9ff;--band:#5aa9ff33;--capacity:#ff6b6b;--moves:#34c79f;--stays:#5b6a7b;--warn:#ffbf66;--warnbg:#33270f;--future:#5aa9ff0d}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1080px;margin:0 auto;padding:36px 24px 56px}
header p.meta{margin:0;color:var(--soft);font-size:13px}
h1{font-size:27px;line-height:1.25;margin:4px 0 12px;letter-spacing:-.01em}
h2{font-size:17px;margin:0 0 4px}
p{margin:0 0 10px}
.lead{font-size:16px;max-width:88ch}
.card{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:20px 22px;margin-top:18px}
.card>p.sub{color:var(--soft);font-size:13.5px;margin-bottom:12px;max-width:110ch}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(160px,1fr));gap:12px;margin-top:20px}
.tile{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:13px 16px}
.tile b{display:block;font-size:18px;line-height:1.3;font-variant-numeric:tabular-nums}
.tile span{display:block;color:var(--soft);font-size:12.5px}
.tile.alert b{color:var(--capacity)}
.two{display:grid;grid-template-columns:1fr 1fr;gap:18px}
.two>.card{min-width:0}
@media (max-width:820px){.two{grid-template-columns:1fr}}
svg{display:block;width:100%;height:auto;font:12px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
svg .grid{stroke:var(--line);stroke-width:1}svg .faint{stroke:var(--faint)}
svg .tick,svg .label{fill:var(--soft)}svg .tick{font-size:11.5px;font-variant-numeric:tabular-nums}
svg .future{fill:var(--future)}svg .band{fill:var(--band)}
svg .history{fill:none;stroke:var(--history);stroke-width:1.3;stroke-linejoin:round}
svg .forecast{fill:none;stroke:var(--forecast);stroke-width:2.2;stroke-linejoin:round}
svg .capacity{stroke:var(--capacity);stroke-width:1.6;stroke-dasharray:7 4}svg .capacity-label{fill:var(--capacity);font-weight:600;paint-order:stroke;stroke:var(--card);stroke-width:4px}
svg .now{stroke:var(--soft);stroke-width:1}svg .start{stroke:var(--moves);stroke-width:2}
svg .crossing{fill:var(--capacity);stroke:var(--card);stroke-width:2}
svg .moves{fill:var(--moves)}svg .stays{fill:var(--stays)}
svg .split{stroke:var(--ink);stroke-width:1.6;stroke-dasharray:3 3}svg .split-label{fill:var(--ink);font-weight:600}
.legend{display:flex;flex-wrap:wrap;gap:6px 18px;margin:10px 0 0;padding:0;list-style:none;color:var(--soft);font-size:12.5px}
.legend i{display:inline-block;width:18px;height:10px;margin-right:6px;border-radius:2px;vertical-align:-1px}
.scroll{overflow-x:auto}
table{width:100%;border-collapse:collapse;font-size:14px;font-variant-numeric:tabular-nums}
th{font-weight:600;color:var(--soft);font-size:12.5px}
th,td{text-align:left;padding:6px 10px 6px 0;border-bottom:1px solid var(--faint);vertical-align:top}
tr:last-child td{border-bottom:0}
.num{text-align:right;padding-right:0;padding-left:14px;white-space:nowrap}
tr.chosen td{font-weight:600}
tfoot td{font-weight:600;border-top:1px solid var(--line)}
.warn{background:var(--warnbg);border-color:var(--warn);color:var(--ink)}.warn h2{color:var(--warn)}
ul{margin:6px 0 0;padding-left:20px}
code{font:13px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;background:var(--faint);border-radius:4px;padding:1px 5px;overflow-wrap:anywhere}
footer{margin-top:26px;color:var(--soft);font-size:12.5px;overflow-wrap:anywhere}
`.replaceAll('\n', '');
