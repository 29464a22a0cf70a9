"""Style sheets of the reports (light, dark and print), and their one script: tooltips and sortable tables."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --ink: #1b2430; --soft: #5b6675; --rule: #e3e7ec;
  --axis: #8a94a3; --accent: #1f5fbf; --track: #eef1f5; --good: #11734b; --bad: #b3261e;
  --g0: #0b62a8; --g1: #c4500a; --g2: #00805d; --g3: #9b3f92; --g4: #8a6d00; --g5: #00798c; --g6: #b0294d;
  --g7: #555; }
@media (prefers-color-scheme: dark) { :root { --page: #12161c; --card: #1a2028; --ink: #e8edf3; --soft: #a3afbd;
  --rule: #2b343f; --axis: #77828f; --accent: #7fb2ff; --track: #252d37; --good: #58d39b; --bad: #ff8a80;
  --g0: #5cb3ff; --g1: #ff9d57; --g2: #43d3a3; --g3: #e39adb; --g4: #e3c545; --g5: #5ad1e0; --g6: #ff86a3;
  --g7: #bbb; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0; overflow-wrap: anywhere; } h2 { font-size: 18px;
  margin: 0 0 4px; }
p { margin: 4px 0 10px; max-width: 82ch; } .soft, figcaption { color: var(--soft); font-size: 13.5px; }
code { font: 13px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
section { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 18px 20px;
  margin-top: 18px; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 12px; margin-top: 18px; }
.fact { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 12px 16px; }
.fact b { display: block; font-size: 22px; line-height: 1.3; font-weight: 650; font-variant-numeric: tabular-nums; }
.fact span { color: var(--soft); font-size: 13px; }
.badge { display: inline-block; border: 1.5px solid currentColor; border-radius: 99px; padding: 1px 11px;
  font-size: 13px;
  font-weight: 600; vertical-align: 4px; margin-left: 8px; color: var(--soft); }
.badge.finished { color: var(--good); } .badge.died { color: var(--bad); } .badge.running { color: var(--accent); }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(430px, 1fr)); gap: 18px; }
figure { margin: 10px 0 0; } svg { width: 100%; height: auto; display: block; margin: 0 auto; overflow: visible; }
.scroll { overflow-x: auto; }
svg text { fill: var(--ink); font-size: 12px; } svg text.tick, svg text.note { fill: var(--soft); font-size: 11.5px; }
svg text.name { font-weight: 600; } svg text.strong { fill: var(--ink); font-weight: 650; }
.end { text-anchor: end; } .mid { text-anchor: middle; }
.halo { paint-order: stroke; stroke: var(--card); stroke-width: 3.5px; stroke-linejoin: round; }
.grid { stroke: var(--rule); } .axis { stroke: var(--axis); } .rung { stroke: var(--axis); stroke-dasharray: 2 4; }
.g0 { --c: var(--g0); } .g1 { --c: var(--g1); } .g2 { --c: var(--g2); } .g3 { --c: var(--g3); } .g4 {
  --c: var(--g4); }
.g5 { --c: var(--g5); } .g6 { --c: var(--g6); } .g7 { --c: var(--g7); } .gx { --c: var(--accent); }
.gl { --c: var(--ink); }
.curve, .life { stroke: var(--c); fill: none; stroke-width: 1.7; stroke-linejoin: round; }
.life { stroke-width: 4; stroke-linecap: round; opacity: .6; }
.hit { stroke: transparent; fill: none; stroke-width: 11; pointer-events: stroke; }
.dot { fill: var(--c); stroke: var(--card); stroke-width: 1; } .head, .span { fill: var(--c); } .arrow {
  stroke: var(--c); stroke-width: 1.7; }
.middle, .stairs { stroke: var(--soft); fill: none; stroke-width: 1.7; } .ring { fill: none; stroke: var(--ink);
  stroke-width: 1.7; }
.bar { fill: var(--accent); } .range { stroke: var(--ink); } .track { fill: var(--track); }
.over { pointer-events: none; }
.stopped .curve, .stopped .span { opacity: .38; } .stopped .dot { fill: var(--card); stroke: var(--c);
  stroke-width: 1.7; }
.failed .curve { stroke-width: 2.2; opacity: .8; } .best .curve { stroke-width: 3.4; opacity: 1; }
.pointed .curve, .pointed .life { stroke-width: 4; opacity: 1; } .pointed .dot { stroke: var(--ink);
  stroke-width: 2; }
.pointed .span { opacity: 1; stroke: var(--ink); } tr.pointed td { background: var(--track); }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 8px 0 0; padding: 0; list-style: none;
  font-size: 13px; color: var(--soft); }
.legend li { display: flex; align-items: center; gap: 6px; } .legend svg { width: 34px; height: 14px; margin: 0; }
.switch > input { position: absolute; opacity: 0; }
.switch > label { display: inline-block; border: 1px solid var(--rule); padding: 2px 12px; font-size: 13px;
  cursor: pointer; color: var(--soft); }
.switch > label:first-of-type { border-radius: 7px 0 0 7px; } .switch > label:last-of-type {
  border-radius: 0 7px 7px 0; border-left: 0; }
.switch > input:checked + label { background: var(--accent); color: var(--card); border-color: var(--accent); }
.switch > input:focus-visible + label { outline: 2px solid var(--ink); outline-offset: 2px; }
.switch > .lin, .switch > .log { display: none; }
.switch > input:nth-of-type(1):checked ~ .lin, .switch > input:nth-of-type(2):checked ~ .log { display: block; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 5px 10px; border-bottom: 1px solid var(--rule); vertical-align: top;
  white-space: nowrap; }
th { color: var(--soft); font-weight: 600; position: sticky; top: 0; background: var(--card); }
th button { all: unset; cursor: pointer; } th button:focus-visible { outline: 2px solid var(--accent); }
td.n, th.n { text-align: right; } td.wide { white-space: normal; min-width: 32ch; max-width: 48ch;
  overflow-wrap: anywhere; }
tr.best td { font-weight: 650; } .none { color: var(--soft); }
#tip { position: fixed; z-index: 9; pointer-events: none; background: var(--ink); color: var(--card);
  border-radius: 7px;
  padding: 7px 11px; font-size: 12.5px; line-height: 1.45; white-space: pre-line; max-width: 340px; display: none;
  overflow-wrap: anywhere; }
@media (max-width: 560px) { .two { grid-template-columns: 1fr; } main { padding: 16px 10px; } section {
  padding: 14px 12px; } }
@media print { :root { color-scheme: light; --page: #fff; } main { max-width: none; padding: 0; } .switch > label {
  display: none; }
  section, figure, .fact, tr { break-inside: avoid; } section.long { break-inside: auto; } .scroll {
  overflow: visible; }
  table { font-size: 9px; } th, td { padding: 2px 4px; white-space: normal; }
  td.n { white-space: nowrap; } th { position: static; } }
"""

RUN_STYLE = """
:root { --training: #2f7d5b; --data_wait: #b07c00; --compile: #00798c; --snapshot: #5b8fb9; --checkpoint: #0b62a8;
  --evaluation: #8a4fa3; --startup: #6c7a8d; --detection: #b3261e; --restart: #c4500a; --replay: #b0294d;
  --store_wait: #7a5c00; --shutdown: #8b8f97; --idle: #c3cad3; --rest: #3c434d; --on: #fff; --raw: .34; }
@media (prefers-color-scheme: dark) { :root { --training: #4fc08f; --data_wait: #e3c545; --compile: #5ad1e0;
  --snapshot: #9cc7ea; --checkpoint: #5cb3ff; --evaluation: #d3a0ea; --startup: #9aa7b8; --detection: #ff8a80;
  --store_wait: #c9a227; --restart: #ff9d57; --replay: #ff86a3; --shutdown: #aeb4bd; --idle: #46515f;
  --rest: #dfe5ec; --on: #12161c; --raw: .42; } }
.c-training { fill: var(--training); } .c-data-wait { fill: var(--data_wait); } .c-compile { fill: var(--compile); }
.c-snapshot { fill: var(--snapshot); } .c-checkpoint { fill: var(--checkpoint); } .c-startup { fill: var(--startup); }
.c-evaluation { fill: var(--evaluation); } .c-detection { fill: var(--detection); } .c-restart { fill: var(--restart); }
.c-replay { fill: var(--replay); } .c-shutdown { fill: var(--shutdown); } .c-idle { fill: var(--idle); }
.c-store-wait { fill: var(--store_wait); }
.c-idle + text.on { fill: var(--ink); } .c-rest { fill: var(--rest); } .cause { stroke: var(--card); stroke-width: .8; }
svg text.on { fill: var(--on); font-size: 11.5px; font-weight: 600; pointer-events: none; }
.raw { stroke: var(--c); fill: none; stroke-width: 1; opacity: var(--raw); stroke-linejoin: round; }
.band { fill: var(--c); opacity: .27; }
.slice rect { fill: transparent; } .slice:hover rect { fill: var(--ink); opacity: .1; }
.area { fill: var(--c); opacity: .22; } .edge { stroke: var(--c); stroke-width: 2; }
.without { opacity: .3; } .without.restart { fill: var(--bad); } .without.resize { fill: var(--g4); }
.without.startup { fill: var(--startup); } .pause { fill: var(--track); stroke: var(--axis); stroke-width: .8;
  stroke-dasharray: 3 3; } .without.pause { opacity: 1; }
h3 { font-size: 15px; margin: 20px 0 2px; } .facts { grid-template-columns: repeat(auto-fit, minmax(132px, 1fr)); }
.fact b { font-size: 20px; } td.wide { width: 55%; max-width: none; }
.legend + .scroll { margin-top: 14px; } table.short { width: auto; min-width: 260px; }
.life-bar { fill: var(--startup); } .life-bar.finished, .life-bar.running { fill: var(--training); }
.life-bar.failed, .life-bar.died { fill: var(--bad); } .pill { stroke: var(--card); stroke-width: 1; }
.pill.restart { fill: var(--bad); } .pill.resize { fill: var(--g4); } .save { stroke: var(--c); stroke-width: 1.8; }
.badge.failed { color: var(--bad); } .badge.preparing { color: var(--accent); }
.narrow { display: none; } .bar-name { margin: 14px 0 -4px; font-size: 13.5px; color: var(--soft); }
.three { display: grid; grid-template-columns: repeat(auto-fit, minmax(280px, 1fr)); gap: 16px; margin-top: 16px; }
.three svg { max-width: 430px !important; }
details { margin-top: 14px; } summary { cursor: pointer; color: var(--accent); font-size: 14px; }
summary:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; border-radius: 3px; }
.message { white-space: pre-line; overflow-wrap: anywhere; }
.fields { columns: 2; column-gap: 36px; } .fields div { break-inside: avoid; display: flex; gap: 14px;
  justify-content: space-between; border-bottom: 1px solid var(--rule); padding: 3px 0; font-size: 13px; }
.fields dt, .fields dd { margin: 0; overflow-wrap: anywhere; min-width: 0; } .fields dd { text-align: right; }
.fields .default { color: var(--soft); } .fields .set dt, .fields .set dd { font-weight: 650; }
td.url { white-space: normal; overflow-wrap: anywhere; min-width: 26ch; }
@media (max-width: 720px) { .wide-only { display: none; } .narrow { display: block; } .fields { columns: 1; }
  .narrow svg { max-width: 440px !important; } td.wide { min-width: 20ch; } }
@media print { .wide-only { display: block; } .narrow { display: none; } details { break-inside: auto; }
  svg { max-height: 96vh; } }
"""
"""Rules of a run's page besides STYLE: curves, the timeline, and a colour for each cause of goodput."""

SCRIPT = """
"use strict";
// Titles are read by those who have no pointer; to one, they are shown at once and in full.
const tip = document.body.appendChild(document.createElement("div"));
tip.id = "tip";
for (const mark of document.querySelectorAll("g.mark")) {
  const title = mark.querySelector("title");
  if (title) { mark.tip = title.textContent; mark.setAttribute("aria-label", mark.tip); title.remove(); }
}
const all = [...document.querySelectorAll("[data-trial]")];
let now = null;
document.addEventListener("pointerover", event => {
  const closest = what => event.target.closest ? event.target.closest(what) : null;
  const mark = closest("g.mark"), ofTrial = closest("[data-trial]"), trial = ofTrial ? ofTrial.dataset.trial : null;
  if (trial !== now) { for (const each of all) each.classList.toggle("pointed", each.dataset.trial === trial);
  now = trial; }
  tip.textContent = mark && mark.tip || "";
  tip.style.display = tip.textContent ? "block" : "none";
});
document.addEventListener("pointermove", event => {
  const right = event.clientX + 16 + tip.offsetWidth > innerWidth,
  low = event.clientY + 16 + tip.offsetHeight > innerHeight;
  tip.style.left = (right ? event.clientX - 12 - tip.offsetWidth : event.clientX + 16) + "px";
  tip.style.top = (low ? event.clientY - 12 - tip.offsetHeight : event.clientY + 16) + "px";
});
for (const head of document.querySelectorAll("table.sorted th")) {
  const button = document.createElement("button");
  button.textContent = head.textContent;
  head.replaceChildren(button);
  button.addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending", body = head.closest("table").tBodies[0];
    for (const each of head.parentNode.children) each.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const value = row => row.cells[head.cellIndex].dataset.v ?? row.cells[head.cellIndex].textContent;
    const compare = (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === "" || y === "") return (x === "") - (y === "");
      return (up ? 1 : -1) * (isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y);
    };
    body.append(...[...body.rows].sort(compare));
  });
}
"""
