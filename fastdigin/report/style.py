"""The report's style sheet and its one script, inlined into the page."""

from __future__ import annotations

CSS = """
:root { color-scheme: light dark;
  --page: #faf9f6; --card: #ffffff; --ink: #1f2126; --soft: #666a73; --line: #e6e3dc;
  --well: #f1efe9; --s0: #0e7c72; --s1: #c25a0a; --s2: #5a55b8; --s3: #a0326e;
  --good: #0b6b4f; --good-well: #e0f2ea; --shade: 14 124 114; }
@media (prefers-color-scheme: dark) { :root {
  --page: #131519; --card: #1a1d22; --ink: #e9e8e4; --soft: #9ba0aa; --line: #2b2f37;
  --well: #22262d; --s0: #4cc3b5; --s1: #f2a05a; --s2: #a7a2f5; --s3: #ea86bb;
  --good: #7fdcb8; --good-well: #173329; --shade: 76 195 181; } }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
main, .top { max-width: 1240px; margin: 0 auto; padding: 0 28px; }
h1, h2 { font-family: "Iowan Old Style", "Palatino Linotype", Palatino, Georgia, "DejaVu Serif",
  serif; font-weight: 500; letter-spacing: -.01em; line-height: 1.2; text-wrap: balance; }
h1 { font-size: clamp(30px, 4.4vw, 46px); margin: 6px 0 8px; }
h2 { font-size: clamp(24px, 3vw, 32px); margin: 0 0 10px; }
h3 { font-size: 16px; font-weight: 600; line-height: 1.4; margin: 0; flex: 1 1 320px; }
a { color: inherit; }
code { font: 13px/1.4 ui-monospace, "SF Mono", Menlo, Consolas, monospace; color: var(--soft); }
.top { padding-top: 56px; padding-bottom: 20px; }
.eyebrow { font-size: 13px; letter-spacing: .09em; text-transform: uppercase; color: var(--s0);
  font-weight: 600; }
.lead { color: var(--soft); margin: 0; }
.tasks { display: grid; gap: 16px; margin: 30px 0 22px;
  grid-template-columns: repeat(auto-fit, minmax(250px, 1fr)); }
.tasks a { background: var(--card); border: 1px solid var(--line); border-radius: 14px;
  padding: 16px; text-decoration: none; display: grid; gap: 12px; align-content: start; }
.tasks a:hover, .tasks a:focus-visible { border-color: var(--s0); }
.tasks strong { font-weight: 600; }
.tasks small { color: var(--soft); font-size: 14px; display: block; line-height: 1.45; }
.pair { display: grid; grid-template-columns: 1fr auto 1fr; align-items: center; gap: 10px;
  color: var(--soft); }
.pair img, .pair .missing { width: 100%; aspect-ratio: 1; object-fit: cover; border-radius: 8px;
  display: block; }
section { padding: 44px 0 8px; }
section > p { max-width: 76ch; margin: 0 0 12px; }
.read { color: var(--soft); font-size: 15px; max-width: 76ch; margin: 14px 0 0; }
.swatches span { white-space: nowrap; }
.swatch { display: inline-block; width: .75em; height: .75em; border-radius: 3px;
  margin-right: .3em; border: 1px solid var(--soft); }
.tiles { display: flex; flex-wrap: wrap; gap: 12px; margin: 22px 0; }
.tile { flex: 1 1 calc(100% / var(--columns) - 12px); min-width: 0;
  background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  padding: 14px 16px; }
.tile span { font-size: 14px; color: var(--soft); }
.tile b { display: block; font-size: 22px; font-weight: 600; letter-spacing: -.01em;
  line-height: 1.35; }
.tile small { display: block; color: var(--soft); font-size: 13px; line-height: 1.45; }
.tile .track { margin: 8px 6px 10px; }
.track { position: relative; height: 6px; border-radius: 3px; background: var(--well); }
.track i { position: absolute; }
.track .range { top: 0; height: 6px; border-radius: 3px; background: var(--tone, var(--s0));
  opacity: .38; }
.track .from, .track .to { top: -3px; width: 12px; height: 12px; margin-left: -6px;
  border-radius: 50%; border: 2.5px solid var(--tone, var(--s0)); background: var(--card); }
.track .to { background: var(--tone, var(--s0)); }
.track .mark { top: -6px; width: 2px; height: 18px; margin-left: -1px; background: var(--ink);
  border-radius: 1px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 14px;
  padding: 18px 20px 16px; margin: 0 0 16px; content-visibility: auto;
  contain-intrinsic-size: auto 340px; }
.card header { display: flex; flex-wrap: wrap; gap: 6px 12px; align-items: baseline;
  margin-bottom: 14px; }
.badge { font-size: 13px; line-height: 1; padding: 5px 9px; border-radius: 99px;
  background: var(--well); color: var(--soft); white-space: nowrap; }
.badge.good { background: var(--good-well); color: var(--good); }
.body { display: grid; grid-template-columns: minmax(0, 1fr) 292px; gap: 16px 32px; }
.body.wide { grid-template-columns: minmax(0, 1fr); }
.wide .curves { grid-template-columns: repeat(auto-fit, minmax(240px, 1fr)); }
.wide .curve { max-width: 350px; }
.pictures { display: flex; flex-wrap: wrap; gap: 12px; }
.pictures figure { margin: 0; width: 148px; }
.pictures figcaption { font-size: 14px; margin-top: 5px; display: flex; flex-wrap: wrap;
  gap: 0 8px; justify-content: space-between; }
.pictures figcaption span { color: var(--soft); }
.zoom { all: unset; display: block; cursor: zoom-in; border-radius: 8px; width: 100%; }
.zoom:focus-visible { outline: 3px solid var(--s0); outline-offset: 2px; }
.pictures img { width: 100%; height: auto; display: block; border-radius: 8px;
  box-shadow: 0 0 0 1px var(--line); }
.missing { display: grid; place-items: center; aspect-ratio: 1; border-radius: 8px;
  background: var(--well); color: var(--soft); font-size: 14px; }
.curves { display: grid; gap: 12px; align-content: start; }
.curve { width: 100%; height: auto; display: block; }
.curve text { font-size: 11.5px; fill: var(--soft); }
.curve .axis { fill: var(--ink); }
.curve .marked { fill: var(--ink); font-weight: 600; }
.curve .grid { stroke: var(--line); }
.curve .best { stroke: var(--soft); stroke-dasharray: 2 3; }
.curve .line { fill: none; stroke-width: 2.2; stroke-linejoin: round; stroke-linecap: round; }
.curve .dot { stroke: var(--card); stroke-width: 1.5; }
.s0 { stroke: var(--s0); } .s1 { stroke: var(--s1); } .s2 { stroke: var(--s2); }
.s3 { stroke: var(--s3); }
.curve .dot.s0, .curve .name.s0 { fill: var(--s0); }
.curve .dot.s1, .curve .name.s1 { fill: var(--s1); }
.curve .dot.s2, .curve .name.s2 { fill: var(--s2); }
.curve .dot.s3, .curve .name.s3 { fill: var(--s3); }
.curve .name { font-weight: 600; stroke: none; }
.meters { display: flex; flex-wrap: wrap; gap: 14px 36px; margin: 18px 0 14px; }
.meters:empty { display: none; }
.meter { display: grid; grid-template-columns: 1fr auto; gap: 6px 12px; flex: 1 1 240px;
  max-width: 382px; font-size: 14px; }
.meter span { color: var(--soft); } .meter b { font-weight: 600; }
.meter .track { grid-column: 1 / -1; margin: 3px 6px 5px; }
.t1 { --tone: var(--s1); }
.facts { display: flex; flex-wrap: wrap; gap: 8px 26px; margin: 0; font-size: 14px; }
.facts dt { color: var(--soft); font-size: 13px; line-height: 1.3; } .facts dd { margin: 0; }
.note { color: var(--soft); }
.scroll { overflow-x: auto; margin: 0 0 20px; border: 1px solid var(--line);
  border-radius: 12px; background: var(--card); }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { padding: 7px 12px; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); }
tr:last-child > * { border-bottom: 0; }
th { font-weight: 600; }
thead th, caption { color: var(--soft); font-weight: 500; }
caption { text-align: left; padding: 12px 12px 4px; }
tbody th { overflow-wrap: normal; }
.cross { width: auto; min-width: 100%; }
.cross th, .cross td { vertical-align: middle; white-space: nowrap; overflow-wrap: normal; }
.cross td, .cross thead th:not(:first-child) { text-align: center; }
.cross tbody th { font-weight: 500; }
.cross tbody th div { display: flex; align-items: center; gap: 10px; }
.cross img, .cross .missing { width: 40px; height: 40px; object-fit: cover; border-radius: 6px;
  font-size: 0; }
.cross td { background: rgb(var(--shade) / calc(var(--share) * .62)); min-width: 64px; }
.cross td.own { box-shadow: inset 0 0 0 2px rgb(var(--shade)); font-weight: 600; }
footer { color: var(--soft); font-size: 14px; padding: 28px 0 56px; }
dialog { border: 0; border-radius: 16px; padding: 16px; background: var(--card);
  color: var(--ink); max-width: 96vw; }
dialog::backdrop { background: rgb(10 12 15 / .72); }
dialog img { display: block; width: min(88vw, 74vh, 640px); height: auto; border-radius: 8px; }
dialog p { display: flex; gap: 10px; align-items: center; margin: 12px 0 0; }
dialog p b { flex: 1; text-align: center; font-weight: 600; }
dialog button { font: inherit; color: inherit; background: var(--well); border: 0;
  border-radius: 9px; padding: 7px 14px; cursor: pointer; }
@media (max-width: 1000px) {
  .tile { flex-basis: 180px; }
  .body { grid-template-columns: minmax(0, 1fr); }
  .curves { grid-template-columns: repeat(auto-fit, minmax(240px, 1fr)); }
  .curve { max-width: 360px; }
}
@media (max-width: 640px) {
  .curve, .wide .curve { max-width: none; }
  main, .top { padding: 0 16px; } .top { padding-top: 32px; padding-bottom: 8px; }
  .tasks { grid-template-columns: 1fr 1fr; gap: 10px; } .tasks a { padding: 12px; gap: 8px; }
  .pair { gap: 4px; } .tasks small { font-size: 13px; }
  section { padding-top: 34px; }
  .tiles { gap: 8px; } .tile { flex-basis: calc(50% - 8px); padding: 11px 12px; }
  .tile b { font-size: 19px; }
  .card { padding: 14px; contain-intrinsic-size: auto 900px; } .card code { order: 9; }
  h3 { flex-basis: 100%; }
  .pictures { display: grid; grid-template-columns: repeat(3, 1fr); gap: 10px 8px; }
  .pictures figcaption { font-size: 13px; }
  .pictures figure { width: auto; }
  .meter { max-width: none; flex-basis: 100%; } .meters { gap: 12px; margin-top: 14px; }
}
@media print { .card { break-inside: avoid; content-visibility: visible; } body { font-size: 12px; }
  section { padding-top: 20px; } }
"""

# Enlarges a picture; the arrows step through the pictures of its job at the same place, which
# makes small changes visible as motion.
SCRIPT = """
(() => {
  const box = document.querySelector('dialog'), image = box.querySelector('img');
  const label = box.querySelector('b');
  let shown = [], at = 0;
  const show = index => {
    at = (index + shown.length) % shown.length;
    const source = shown[at].querySelector('img');
    image.src = source.src; image.alt = source.alt;
    label.textContent = shown[at].dataset.label;
  };
  document.addEventListener('click', event => {
    const zoom = event.target.closest('.zoom');
    if (zoom) {
      shown = [...zoom.closest('.pictures').querySelectorAll('.zoom')];
      show(shown.indexOf(zoom));
      box.showModal();
    } else if (event.target.dataset.step) {
      show(at + Number(event.target.dataset.step));
    } else if (event.target === box || event.target.dataset.close !== undefined) {
      box.close();
    }
  });
  box.addEventListener('keydown', event => {
    if (event.key === 'ArrowLeft') show(at - 1);
    if (event.key === 'ArrowRight') show(at + 1);
  });
})();
"""
