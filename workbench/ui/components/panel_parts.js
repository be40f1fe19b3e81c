"use strict";
/* Parts of a panel that are plain HTML: tables, colour scales, bars. Each takes its piece of the payload. */
window.WorkbenchParts = window.WorkbenchParts || {};
window.WorkbenchParts.parts = ({ el, number }) => {
  function table(spec) {
    const head = el("tr", {}, ...spec.columns.map((c, i) =>
      el("th", { scope: "col", class: i ? "wb-number" : "" },
        c.tone ? el("i", { class: `wb-dot wb-fill-${c.tone}` }) : null, document.createTextNode(c.text))));
    const rows = spec.rows.map((row) => el("tr", {}, ...row.map((cell, i) =>
      el(i ? "td" : "th", { class: i ? "wb-number" : "", scope: i ? null : "row", text: cell, title: i ? null : cell }))));
    return el("table", { class: "wb-table" }, el("thead", {}, head), el("tbody", {}, ...rows));
  }

  /* Colour tokens of a signed scale follow the theme; `at` places stops that are not evenly spaced. */
  function gradient({ stops, at }) {
    const colour = (stop) => (stop[0] === "@" ? `var(--wb-${stop.slice(1)})` : stop);
    return `linear-gradient(90deg, ${stops.map((stop, i) => (at ? `${colour(stop)} ${100 * at[i]}%` : colour(stop))).join(",")})`;
  }

  /* A bar with marks under it instead of an end on each side. */
  function ticked(spec, bar) {
    const marks = spec.ticks.map((tick) => {
      const node = el("span", { class: "wb-tick", text: tick.text });
      node.style.left = `${100 * tick.at}%`;
      if (tick.at < 0.02) node.classList.add("wb-first");
      if (tick.at > 0.98) node.classList.add("wb-last");
      return node;
    });
    return el("div", { class: "wb-scale wb-ticked", title: spec.tip || spec.label },
      el("div", { class: "wb-ticks" }, bar, ...marks), spec.label ? el("span", { class: "wb-muted", text: spec.label }) : null);
  }

  function scale(spec) {
    const bar = el("span", { class: "wb-scalebar" });
    bar.style.background = gradient(spec);
    if (spec.ticks) return ticked(spec, bar);
    return el("div", { class: "wb-scale" },
      el("span", { class: "wb-number", text: spec.low }), bar, el("span", { class: "wb-number", text: spec.high }),
      el("span", { class: "wb-muted", text: spec.label, title: spec.label }));
  }

  function legend(items) {
    return (items || []).map((item) => {
      const dot = el("i", { class: "wb-dot" });
      dot.style.background = `var(--wb-${item.colour.slice(1)})`;
      return el("span", { class: "wb-legend" }, dot, document.createTextNode(item.text));
    });
  }

  function heading(spec) {
    return spec.heading
      ? el("div", { class: "wb-heading" }, el("span", { text: spec.heading, title: spec.heading }), ...legend(spec.legend))
      : null;
  }

  /* Time bars of the profile: one per scheme, a segment per stage, the scan's part hatched. */
  function bars(spec, pickStage) {
    const longest = Math.max(...spec.bars.map((b) => b.segments.reduce((sum, s) => sum + s.ms, 0)));
    return el("div", { class: "wb-bars" }, ...spec.bars.map((bar) => {
      const segments = bar.segments.map((s) => {
        const share = (100 * s.ms) / longest;
        const text = `${s.name}: ${number(s.ms)} ms` + (s.scan_ms ? `, of which scan ${number(s.scan_ms)} ms` : "");
        const scan = el("i", { class: "wb-scanpart" });
        scan.style.width = `${s.ms ? (100 * s.scan_ms) / s.ms : 0}%`;
        const isStage = s.stage >= 1 && s.stage <= 4;
        const node = el(isStage ? "button" : "span", {
          class: "wb-segment", type: isStage ? "button" : null, "data-stage": s.stage, title: text, "aria-label": text,
          onclick: isStage ? () => pickStage(s.stage) : undefined,
        }, scan, el("span", { text: share > 11 ? s.name : "" }));
        node.style.width = `${share}%`;
        return node;
      });
      return el("div", { class: `wb-bar wb-bar-${bar.tone}` },
        el("div", { class: "wb-barhead" },
          el("b", { class: `wb-tone-${bar.tone}`, text: bar.label }), el("b", { class: "wb-number", text: bar.total }),
          el("span", { class: "wb-muted", text: `20 to 80 %: ${bar.range} · ${bar.scan}` })),
        el("div", { class: "wb-track" }, ...segments));
    }), el("div", { class: "wb-muted wb-axisnote", text: spec.text }));
  }

  /* Shares from 0 to 1 as bars from zero, one per scheme under each name. */
  function shares(spec) {
    const rows = spec.rows.map((row) => el("div", { class: "wb-share" },
      el("span", { class: "wb-sharename", text: row.text, title: row.text }),
      el("div", { class: "wb-sharebars" }, ...row.values.map((value) => {
        const fill = el("i", { class: `wb-fill-${value.tone}` });
        fill.style.width = `${100 * value.share}%`;
        return el("div", { class: "wb-sharebar", title: value.tip || value.text },
          el("span", { class: "wb-sharetrack" }, fill), el("span", { class: "wb-number", text: value.text }));
      }))));
    return el("div", { class: "wb-shares", role: "group", "aria-label": spec.heading }, heading(spec), ...rows);
  }

  return { table, scale, legend, heading, bars, shares };
};
