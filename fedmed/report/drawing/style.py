"""The page's style sheet."""

from markupsafe import Markup

from fedmed.report.drawing.palette import DARK, LIGHT, NUM_COLOURS, NUM_SHADES, shade_colour

_RULES = """
* { box-sizing: border-box; }
html { color-scheme: light dark; -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); line-height: 1.55; font-size: 1rem;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
.page { max-width: 70rem; margin: 0 auto; padding: 1.5rem 1.25rem 4rem; }
p, li, dd, figcaption { max-width: 46rem; overflow-wrap: anywhere; }
a { color: var(--link); }
h1 { font-size: 2rem; line-height: 1.2; margin: .2rem 0 1rem; overflow-wrap: anywhere; }
h2 { font-size: 1.35rem; line-height: 1.3; margin: 0 0 .75rem; }
h3 { font-size: 1.05rem; margin: 1.5rem 0 .5rem; }
section { margin-top: 2.75rem; padding-top: 1.5rem; border-top: 1px solid var(--line); }
.eyebrow { margin: 0; color: var(--muted); font-size: .9rem; }
.banner { margin: 0 0 .75rem; padding: .6rem .9rem; max-width: none; border-left: .3rem solid var(--warn);
  background: var(--warn-paper); color: var(--warn); font-weight: 600; }
.summary { font-size: 1.15rem; max-width: 50rem; }
.contents ul { list-style: none; margin: 1.25rem 0 0; padding: 0; display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; }
.contents p { margin: .75rem 0 0; color: var(--muted); } .contents p + ul { margin-top: .25rem; }
.number { color: var(--muted); font-weight: 400; margin-right: .25rem; }
.first { margin-top: 1rem; padding-top: 1rem; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); gap: .5rem 2rem;
  margin: 0; }
.figures-that-count { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 15rem), 1fr));
  gap: .75rem; }
.figures-that-count p { margin: 0; padding: .75rem 1rem; background: var(--panel); border-top: .2rem solid var(--c0); }
.large { display: block; font-size: 1.9rem; line-height: 1.2; font-variant-numeric: tabular-nums; }
.flow { list-style: none; margin: 0 0 1rem; padding: 0; display: flex; flex-wrap: wrap; gap: .5rem 1.4rem; }
.flow li { position: relative; flex: 1 1 8.5rem; padding: .6rem .8rem; border: 1px solid var(--line); }
.flow li > strong { display: block; font-size: 1.25rem; }
.flow li + li::before { content: "→"; position: absolute; left: -1.25rem; top: .6rem; color: var(--muted); }
.appendix { margin-top: 3.5rem; border-top: .3rem solid var(--line); padding-top: .5rem; }
.skip { position: absolute; left: -100rem; }
.skip:focus { left: 1rem; top: 1rem; padding: .5rem 1rem; background: var(--paper); border: 2px solid var(--link); }
:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
.scroll { overflow-x: auto; margin: 0 0 1rem; background: linear-gradient(to right, var(--paper) 1.5rem, transparent),
    linear-gradient(to left, var(--paper) 1.5rem, transparent) right,
    linear-gradient(to right, var(--shade), transparent),
    linear-gradient(to left, var(--shade), transparent) right;
  background-repeat: no-repeat; background-size: 3rem 100%, 3rem 100%, .9rem 100%, .9rem 100%;
  background-attachment: local, local, scroll, scroll; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--muted); padding-bottom: .4rem; font-size: .9rem; }
caption span { display: inline-block; position: sticky; left: 0; max-width: min(46rem, calc(100vw - 2.5rem)); }
th, td { padding: .4rem .75rem .4rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
thead th { vertical-align: bottom; font-weight: 600; }
tbody th { font-weight: 500; position: sticky; left: 0; background: var(--paper); }
th bdi { display: inline-block; max-width: 16rem; overflow-wrap: break-word; }
td { max-width: 22rem; }
.gaps td bdi { display: inline-block; max-width: 11rem; overflow-wrap: break-word; }
.interval { display: block; white-space: nowrap; color: var(--muted); font-size: .85rem; }
.summary .interval, .figures .interval { display: inline; color: inherit; font-size: inherit; }
.strip { display: block; width: 7rem; height: .8rem; margin-top: .3rem; }
.figures .strip { width: 14rem; }
.counts td { white-space: nowrap; } .alerts td:nth-of-type(1) { min-width: 5.5rem; }
.track { fill: var(--line); } .range { fill: var(--range); } .tick { fill: var(--c0); }
.mix { display: block; width: 12rem; height: 1rem; margin-top: .2rem; }
.mix rect { stroke: var(--paper); stroke-width: .6; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 1.5rem 2rem; }
.grid > * { min-width: 0; }
figure { margin: 0 0 1rem; }
figcaption { color: var(--muted); font-size: .9rem; }
.plot { display: block; width: 100%; height: auto; max-width: 40rem; stroke-linejoin: round; }
.plot text { font-family: inherit; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .15rem 1rem; margin: .25rem 0 .4rem; padding: 0;
  font-size: .9rem; max-width: none; }
.legend li { max-width: 100%; overflow-wrap: anywhere; }
.key { width: 1.5rem; height: .5rem; margin-right: .4rem; vertical-align: middle; }
.series { stroke-width: 3; }
.d1 { stroke-dasharray: 5 3; } .d2 { stroke-dasharray: 2 2; } rect.d1 { opacity: .65; } rect.d2 { opacity: .4; }
.matrix td { text-align: center; color: #14181d; padding: .4rem .5rem; border: 1px solid var(--paper);
  min-width: 4rem; vertical-align: middle; -webkit-print-color-adjust: exact; print-color-adjust: exact; }
.matrix thead th { text-align: center; padding: .4rem; }
.matrix tbody th { text-align: right; vertical-align: middle; border: 0; }
.matrix .num { display: block; font-size: .8rem; }
.small.matrix { font-size: .8rem; min-width: 10rem; }
.small.matrix td, .small.matrix th { min-width: 2.1rem; padding: .15rem .3rem; }
.small.matrix .num { display: inline; font-size: inherit; }
.small.matrix caption { color: var(--ink); overflow-wrap: anywhere; }
.tiles { display: flex; flex-wrap: wrap; gap: .75rem 2rem; align-items: flex-end; } .tiles > * { max-width: 100%; }
.rounds { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: .85rem;
  display: inline-block; min-width: 8rem; }
.rounds span { white-space: nowrap; }
.participation td:last-child { min-width: 14rem; }
.findings { padding-left: 1.2rem; } .findings li { margin-bottom: .5rem; max-width: 52rem; }
td .over { display: block; max-width: 14rem; color: var(--muted); font-size: .85rem; }
p .interval, li .interval { display: inline; color: inherit; font-size: inherit; }
.flag { color: var(--warn); text-decoration: underline; text-underline-offset: .15em; }
.forest th.part { padding-top: 1rem; font-weight: 600; } .forest td { max-width: none; }
.forest .drawn { padding: 0 1.5rem; width: 24rem; min-width: 14rem; position: relative; }
.row { position: absolute; top: 0; left: 1.5rem; width: calc(100% - 3rem); height: 100%; overflow: visible; }
.row path { fill: none; vector-effect: non-scaling-stroke; }
.grid-line { stroke: var(--line); } .reference { stroke: var(--muted); stroke-width: 1.5; stroke-dasharray: 4 3; }
.whisker { stroke: var(--c0); stroke-width: 2; } .dot { stroke: var(--c0); stroke-width: 9; stroke-linecap: round; }
.axis { display: block; position: relative; height: 1.4rem; margin: .2rem 0 0; font-weight: 400; font-size: .85rem; }
.axis span { position: absolute; transform: translateX(-50%); }
.small-plot text { font-size: 10px; fill: var(--ink); } .small-plot path { fill: none; }
.after { fill: var(--c0); } .before { stroke: var(--c3); stroke-width: 1.3; }
.chance { white-space: nowrap; } .symbol { margin-right: .35rem; } .small-figures figure { width: 14rem; }
dt { font-weight: 600; margin-top: .6rem; } dd { margin: 0; }
details { margin: 0 0 1rem; } summary { cursor: pointer; color: var(--link); padding: .3rem 0; }
pre { overflow-x: auto; background: var(--panel); padding: .9rem; font-size: .85rem; line-height: 1.45; }
code { overflow-wrap: anywhere; }
@media (max-width: 40rem) { .wide caption::after { content: "Scroll the table sideways for all columns →";
    display: block; position: sticky; left: 0; width: fit-content; color: var(--link); }
  .flow { flex-direction: column; } .flow li { flex: none; }
  .flow li + li::before { content: "↓"; left: .8rem; top: -1rem;
    font-size: .8rem; background: var(--paper); }
  .page { padding: 1rem 1rem 3rem; }
  th bdi { max-width: 9rem; } .figures .strip { width: 7rem; }
  h1 { font-size: 1.6rem; } .summary { font-size: 1.05rem; } }
@page { margin: 11mm 12mm; }
@media print { html { font-size: 10.5px; } body { line-height: 1.35; }
  .banner { padding: .3rem .6rem; margin-bottom: .4rem; }
  .flow li { padding: .3rem .6rem; } .first ul { margin: .3rem 0; }
  th, td, .matrix td { padding-top: .15rem; padding-bottom: .15rem; } .strip { margin-top: 0; height: .6rem; }
  .alerts td:nth-of-type(1) { min-width: 9rem; } .plot { max-width: 18rem; } td .over { max-width: 22rem; }
  p, li, dd, figcaption, .summary, .findings li, caption span { max-width: none; font-size: 1rem; }
  .first { margin-top: 0; } .first h3 { margin: .7rem 0 .3rem; } .large { font-size: 1.5rem; }
  .wide caption::after { content: none; }
  .contents, .skip { display: none; } .page { max-width: none; padding: 0; }
  section { margin-top: 1rem; padding-top: .8rem; } h3 { margin: .9rem 0 .3rem; } p, ul, figure { margin: .5rem 0; }
  details.printed::details-content { content-visibility: visible; block-size: auto; }
  .printed > summary { display: none; }
  thead { display: table-header-group; break-after: avoid; } th.part { break-after: avoid; }
  tbody th, caption span { position: static; background: none; }
  .small-figures { display: block; } .symbols { break-after: avoid; }
  .small-figures figure { display: inline-block; width: 24%; padding-right: .8rem; vertical-align: top; }
  .row, .symbol, .strip, .mix { -webkit-print-color-adjust: exact; print-color-adjust: exact; }
  figure, tr { break-inside: avoid; } h2, h3, caption { break-after: avoid; }
  .appendix { break-before: page; } .first + nav + section { break-before: page; }
  .scroll { overflow: visible; background: none; } }
"""


def render_style() -> Markup:
    """Return the style sheet: variables for light and dark, the rules, and the colours of classes and shades."""
    light, dark = (_declare(colours) for colours in (LIGHT, DARK))
    series = "\n".join(
        f"line.c{index} {{ stroke: var(--c{index}); }} rect.c{index} {{ fill: var(--c{index}); }} "
        f".s{index} {{ color: var(--c{index}); }}"
        for index in range(NUM_COLOURS)
    )
    shades = "\n".join(f".q{step} {{ background: {shade_colour(step)}; }}" for step in range(NUM_SHADES))
    return Markup(  # noqa: S704  # nothing from outside
        f":root {{ {light} }}\n@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}"
        f"{_RULES}{series}\n{shades}\n"
    )


def _declare(colours: dict[str, str]) -> str:
    return " ".join(f"--{name}: {colour};" for name, colour in colours.items())
