"""What a run's report looks like beside what all reports do: curves, lanes, and a colour for each cause of seconds."""

from __future__ import annotations

STYLE = """
:root { --training: #2f7d5b; --data_wait: #b07c00; --compile: #00798c; --snapshot: #5b8fb9; --checkpoint: #0b62a8;
  --evaluation: #8a4fa3; --startup: #6c7a8d; --detection: #b3261e; --restart: #c4500a; --replay: #b0294d;
  --shutdown: #8b8f97; --idle: #c3cad3; --rest: #3c434d; --on: #fff; --raw: .34; }
@media (prefers-color-scheme: dark) { :root { --training: #4fc08f; --data_wait: #e3c545; --compile: #5ad1e0;
  --snapshot: #9cc7ea; --checkpoint: #5cb3ff; --evaluation: #d3a0ea; --startup: #9aa7b8; --detection: #ff8a80;
  --restart: #ff9d57; --replay: #ff86a3; --shutdown: #aeb4bd; --idle: #46515f; --rest: #dfe5ec; --on: #12161c;
  --raw: .42; } }
.c-training { fill: var(--training); } .c-data-wait { fill: var(--data_wait); } .c-compile { fill: var(--compile); }
.c-snapshot { fill: var(--snapshot); } .c-checkpoint { fill: var(--checkpoint); } .c-startup { fill: var(--startup); }
.c-evaluation { fill: var(--evaluation); } .c-detection { fill: var(--detection); } .c-restart { fill: var(--restart); }
.c-replay { fill: var(--replay); } .c-shutdown { fill: var(--shutdown); } .c-idle { fill: var(--idle); }
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
