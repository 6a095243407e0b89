"""The style sheet of the report: light, dark, narrow and on paper."""

from __future__ import annotations

CSS = """
:root { color-scheme: light dark; --paper: #fff; --card: #f6f7f9; --ink: #1b1f24; --soft: #59636e;
  --rule: #d5dae0;  --c1: #0072b2; --c2: #d55e00; --c3: #009e73; --bad: #b3261e; --bad-paper: #fdecea;
  --sans: system-ui, "Segoe UI", "Helvetica Neue", Roboto, "Noto Sans", "Liberation Sans", "DejaVu Sans", sans-serif;
  --wait: #7a5200; --wait-paper: #fff4db; --shade: rgb(0 0 0 / .22); }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14171a; --card: #1d2126; --ink: #e6e9ec; --soft: #a0a9b2; --rule: #3a414a;
    --c1: #56b4e9; --c2: #f08a3c; --c3: #35c79a; --bad: #ffb4ab; --bad-paper: #40201d;
    --wait: #ffd98a; --wait-paper: #3a2f14; --shade: rgb(255 255 255 / .3); } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 68rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 var(--sans); }
h1 { font-size: 1.05rem; font-weight: 600; color: var(--soft); margin: 0 0 .4rem; }
h2 { font-size: 1.25rem; margin: 2.8rem 0 .8rem; }
h3 { font-size: 1rem; margin: 0 0 .3rem; }
p { margin: .5rem 0; max-width: 46rem; }
.verdict { font-size: 1.45rem; line-height: 1.35; font-weight: 600; max-width: none; margin: 0 0 .8rem; }
.verdict span { display: block; }
.soft { color: var(--soft); }
.banner { padding: .8rem 1rem; border-left: 5px solid; margin: 0 0 1.2rem; max-width: none;
  overflow-wrap: anywhere; font-weight: 600; }
.bad td, .bad th { color: var(--bad); }
.failed { color: var(--bad); background: var(--bad-paper); }
.unfinished { color: var(--wait); background: var(--wait-paper); }
dl { display: flex; flex-wrap: wrap; gap: .5rem 2rem; margin: 0; }
dt { font-size: .8rem; color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
/* The shadow at an edge says that there is more beyond it; the paper covers it where there is not. */
.scroll { overflow-x: auto; background:
  linear-gradient(to right, var(--paper) 40%, transparent) left / 2.5rem 100% no-repeat local,
  linear-gradient(to left, var(--paper) 40%, transparent) right / 2.5rem 100% no-repeat local,
  linear-gradient(to right, var(--shade), transparent) left / .9rem 100% no-repeat scroll,
  linear-gradient(to left, var(--shade), transparent) right / .9rem 100% no-repeat scroll; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .9rem .35rem 0; text-align: right; border-bottom: 1px solid var(--rule);
  vertical-align: top; }
th:last-child, td:last-child { padding-right: 0; }
thead th { font-size: .85rem; color: var(--soft); font-weight: 600; vertical-align: bottom; }
th:first-child, td:first-child, .text td, .text th { text-align: left; font-weight: inherit; }
tbody th { font-weight: 600; }
.text td { overflow-wrap: anywhere; }
.scroll td, .scroll tbody th { white-space: nowrap; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr));
  gap: 1.6rem 2rem; margin: 1.4rem 0; }
figure { margin: 0; min-width: 0; }
figcaption { font-size: .95rem; font-weight: 600; color: var(--ink); margin: 0 0 .3rem; }
svg { display: block; width: 100%; max-width: 36rem; height: auto; color: var(--ink); }
svg * { stroke-linejoin: round; stroke-linecap: butt; }
svg text { font-family: var(--sans); }
code, pre { font: .9em/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
pre { background: var(--card); padding: .8rem 1rem; margin: .5rem 0; border-radius: 6px; 
  white-space: pre-wrap; overflow-wrap: anywhere; }
.sample { border-top: 1px solid var(--rule); padding: 1rem 0 1.4rem; }
.said { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; max-width: none; }
.answers { display: grid; gap: .8rem; margin-top: .8rem; }
@media (min-width: 42rem) { .answers { grid-template-columns: repeat(var(--few), minmax(0, 1fr)); } }
@media (min-width: 66rem) { .answers { grid-template-columns: repeat(var(--many), minmax(0, 1fr)); } }
.answers > div { background: var(--card); border-radius: 6px; padding: .7rem .9rem; min-width: 0; }
.answers h3, .label { font-size: .8rem; font-weight: 600; color: var(--soft); margin: 0 0 .2rem; }
.answers .wanted { background: none; border: 1px dashed var(--rule); }
summary { cursor: pointer; color: var(--soft); margin: 1rem 0 .6rem; }
@media (max-width: 34rem) {
  body { padding: 1rem .8rem 3rem; font-size: 15px; }
  .verdict { font-size: 1.2rem; }
  th, td { padding-right: .6rem; font-size: .8rem; }
  .wraps tbody th, .wraps td:last-child { white-space: normal; }
  thead th { font-size: .75rem; }
  .folds, .folds tbody, .folds td, .folds tbody th { display: block; }
  .folds thead { position: absolute; clip-path: inset(50%); }
  .folds tr { display: grid; grid-template-columns: repeat(3, 1fr); gap: .3rem .8rem; padding: .6rem 0;
    border-bottom: 1px solid var(--rule); }
  .folds td, .folds tbody th { border: 0; padding: 0; text-align: left; font-size: .9rem; }
  .folds tbody th { grid-column: 1 / -1; font-weight: 600; }
  .folds td::before { content: attr(data-head); display: block; font-size: .75rem; color: var(--soft); }
}
@media print { body { max-width: none; } figure, .sample { break-inside: avoid; } }
"""
